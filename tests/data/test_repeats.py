"""Repeated augmentation, and evaluation at another size than training."""

import numpy as np
import pytest
import torch
from PIL import Image

from excite.data import (
    ArrayImages,
    AugmentConfig,
    BatchAugment,
    DataConfig,
    EvalLoader,
    FileImages,
    TrainLoader,
    open_data,
)
from excite.data.loader import epoch_order


def config(**options):
    return DataConfig.model_validate({"source": "folder", "image_size": 8, "workers": 0, **options})


def loader(images, repeats=4, batch=8, **options):
    augment = AugmentConfig.model_validate({"crop": "random_resized", "repeats": repeats})
    return TrainLoader(images, batch_size=batch, seed=3, device="cpu", augment=augment, data_config=config(), **options)


def arrays(count):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return ArrayImages(torch.from_numpy(pixels), torch.arange(count))


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return FileImages([str(tmp_path / f"{i}.png") for i in range(20)], list(range(20)))


def test_a_batch_holds_every_image_so_often_and_an_epoch_fewer_images():
    train = loader(arrays(20))
    assert train.steps_per_epoch == 2  # as without repeats: 20 // 8
    order = epoch_order(20, 3, 0)
    for step in range(2):
        assert train.batch_indices(0, step).tolist() == order[2 * step : 2 * step + 2].tolist() * 4
    assert not np.array_equal(train.batch_indices(1, 0), train.batch_indices(0, 0))  # other images another time


def test_without_repeats_nothing_changes():
    train = loader(arrays(20), repeats=1)
    order = epoch_order(20, 3, 5)
    assert [train.batch_indices(5, s).tolist() for s in range(2)] == [order[:8].tolist(), order[8:16].tolist()]


def test_ranks_share_what_one_would_have():
    whole = loader(arrays(40), batch=16).batch_indices(2, 1)
    parts = [loader(arrays(40), batch=8, rank=r, world=2).batch_indices(2, 1) for r in range(2)]
    assert np.array_equal(np.stack(parts, 1).ravel(), whole)


def test_fewer_images_than_a_batch():
    train = loader(arrays(3), repeats=4, batch=32)
    assert train.steps_per_epoch == 1
    assert np.bincount(train.batch_indices(0, 0)).tolist() == [4, 4, 4]
    assert len(next(iter(train.epoch(0)))[1]) == 12


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_copies_are_cropped_differently_and_have_the_same_label(kind, files):
    train = loader(arrays(20) if kind == "arrays" else files)
    batches = list(train.epoch(0))
    assert len(batches) == 2
    for step, (images, labels) in enumerate(batches):
        assert labels.tolist() == train.batch_indices(0, step).tolist()
        for label in set(labels.tolist()):
            copies = images[labels == label]
            assert len(copies) == 4
            assert len({c.numpy().tobytes() for c in copies}) == 4


def test_copies_are_not_neighbours_so_that_mixing_mixes_images():
    _, labels = next(iter(loader(arrays(20)).epoch(0)))
    assert not (labels == labels.roll(1)).any()
    augment = BatchAugment(AugmentConfig(mixup=0.2), (0.5,) * 3, (0.25,) * 3, 20)
    _, targets = augment(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), labels)
    assert (targets > 0).sum(1).tolist() == [2] * 8


def test_the_middle_of_an_epoch_is_the_same_when_it_begins_there(files):
    _, (images, labels) = loader(files).epoch(0)
    ((again, same),) = loader(files).epoch(0, 1)
    assert torch.equal(images, again)
    assert torch.equal(labels, same)


# --- evaluation at another size ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize("eval_size", [None, 24])
def test_evaluation_may_see_larger_images(folder, mode, eval_size):
    data = config(root=str(folder), image_size=16, eval_size=eval_size, mode=mode, crop_pct=0.8)
    augment = AugmentConfig(crop="random_resized") if mode == "stream" else AugmentConfig()
    opened = open_data(data, augment)
    train = TrainLoader(opened.train, batch_size=2, seed=0, device="cpu", augment=augment, data_config=data)
    evaluation = EvalLoader(opened.val, batch_size=2, device="cpu", data_config=data)
    size = eval_size or 16
    assert next(iter(train.epoch(0)))[0].shape == (2, 3, 16, 16)
    images = torch.cat([images for images, _, _ in evaluation])
    assert images.shape == (6, 3, size, size)
    assert opened.preprocessing.image_size == size  # what a checkpoint carries, for predict and validate
    loaded = [opened.preprocessing.load(path) for path in sorted((folder / "val").glob("*/*.png"))]
    assert sorted(i.numpy().tobytes() for i in images) == sorted(i.numpy().tobytes() for i in loaded)
    assert ("training at 16 pixels, evaluating at 24" in opened.describe()) == (eval_size == 24)
