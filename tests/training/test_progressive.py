"""Image sizes that grow in training: what the network sees when, and that runs stay exact."""

import pytest
import torch
from torch.nn import functional as F

from excite.console import Display
from excite.data.augment import BatchAugment
from excite.data.config import AugmentConfig
from excite.errors import ExciteError
from excite.recipe import Recipe
from excite.runtime.device import make_accelerator
from excite.training.loop import train
from excite.training.setup import set_up
from excite.training.step import train_step
from excite.training.stop import Interrupted
from tests.training.jobs import run_job
from tests.training.small import metrics, same, small, tensors
from tests.training.test_layouts import digests, results_of_layouts, trained

GROWS = "train.progressive=[[0, 4], [1, [6, 8]], [2, 8]]"


def test_the_size_is_a_function_of_the_epoch():
    recipe = small(GROWS)
    assert [recipe.training_size(epoch) for epoch in range(4)] == [(4, 4), (6, 8), (8, 8), (8, 8)]
    assert recipe.smallest_size == (4, 4)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert small().training_size(2) == small().smallest_size == (8, 8)


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ("[[1, 4]]", "begins at epochs 1, but must begin with 0 and count up"),
        ("[[0, 4], [2, 6], [1, 8]]", "begins at epochs 0, 2, 1, but must begin with 0"),
        ("[[0, 16]]", "has 16 pixels, but images are made smaller, never larger: give data.image_size=16 or smaller"),
        ("[[0, 4], [3, 8]]", "has a size from epoch 3 on, but there are train.epochs=3"),
        ("[4, 8]", r"must be a list of \[epochs done, size\], as in train.progressive=\[\[0,16\]"),
        ("[[0, 0]]", "train.progressive is 0, but a size is a number of pixels from 1 to 4096"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(sizes, why):
    with pytest.raises(ExciteError, match=why):
        small(f"train.progressive={sizes}")


def test_sizes_of_another_shape_are_said():
    for sizes, distorted in (
        ("[[0, [4, 4]], [1, 8]]", False),
        ("[[0, [5, 4]], [1, 8]]", False),
        ("[[0, [6, 8]]]", True),
    ):
        run = set_up(small(f"train.progressive={sizes}"), Display(quiet=True), make_accelerator("cpu"))
        said = " ".join(run.notes)
        assert ("6x8 has another shape than data.image_size=[8,8], so images are distorted" in said) == distorted


def test_augmentation_is_that_of_whole_images():
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    augment = BatchAugment(AugmentConfig(crop="pad", cutout=4, mixup=0.2), (0.5,) * 3, (0.2,) * 3, 5)
    found = []
    for size in (None, (8, 12)):
        torch.manual_seed(0)
        found.append(augment(pixels, torch.arange(4), size))
    (whole, one), (less, other) = found
    assert torch.equal(one, other)
    assert torch.equal(less, F.interpolate(whole, (8, 12), mode="bilinear", antialias=True))


def test_the_network_sees_these_sizes_and_evaluation_its_own(tmp_path):
    run = set_up(small(GROWS, "limit_train=64"), Display(quiet=True), make_accelerator("cpu"))
    seen = []
    run.net.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    run.net.train()
    for _ in range(3):
        for images, labels in run.train_loader.epoch(0):
            assert images.shape[2:] == (8, 8)
            train_step(run, images, labels)
            run.step += 1
    assert seen == [(4, 4)] * 2 + [(6, 8)] * 2 + [(8, 8)] * 2
    assert run.preprocessing.size == (8, 8)
    assert any(
        "4x4 from epoch 1 on, 6x8 from epoch 2 on, 8x8 from epoch 3 on; evaluation sees 8x8" in n for n in run.notes
    )


@pytest.mark.heavy
def test_a_run_is_the_same_on_any_layout_and_resumed(tmp_path):
    words = ("train.deterministic=true", "train.device=cpu", "limit_train=64", GROWS)
    first, *others = results_of_layouts(words, tmp_path)
    assert others == [first, first]
    for stop in (1, 4):  # within the first size, and where the last one begins
        run_job(trained, 2, words, str(tmp_path / f"stopped{stop}"), 1, stop)
        run_job(trained, 1, words, str(tmp_path / f"stopped{stop}"), 1)
        assert digests(tmp_path / f"stopped{stop}") == first


def test_resumed_without_shards(tmp_path):
    recipe = small(GROWS, "limit_train=64", "train.device=cpu")
    train(recipe, run_dir=tmp_path / "whole", quiet=True)
    with pytest.raises(Interrupted):
        train(recipe, run_dir=tmp_path / "two", quiet=True, until=3)
    train(resume=tmp_path / "two", quiet=True)
    assert same(tensors(tmp_path / "two"), tensors(tmp_path / "whole"))
    assert [r["loss"] for r in metrics(tmp_path / "two")] == [r["loss"] for r in metrics(tmp_path / "whole")]
    train(small("limit_train=64", "train.device=cpu"), run_dir=tmp_path / "plain", quiet=True)
    assert not same(tensors(tmp_path / "plain"), tensors(tmp_path / "whole"))


def test_what_cannot_change_its_size_is_refused(tmp_path):
    def opened(*words):
        set_up(small(*words), Display(quiet=True), make_accelerator("cpu"))

    with pytest.raises(ExciteError, match="gather kernels of the gates of cifar_geresnet20_theta_plus have the size"):
        opened(GROWS, "model.name=cifar_geresnet20_theta_plus")
    opened(GROWS, "model.name=cifar_geresnet20_theta_plus", "model.options={extent: 2}")
    with pytest.raises(ExciteError, match=r"chooses the number of epochs, which train.progressive counts on"):
        train(small(GROWS, "train.device=cpu"), run_dir=tmp_path / "limited", time_limit=60.0, quiet=True)
