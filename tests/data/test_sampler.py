"""`data.sampler`: shares of classes, every image of a class before any again, and the same draws on every layout."""

import numpy as np
import pytest
import torch

from excite.data import ArrayImages, AugmentConfig, DataConfig, FileImages, TrainLoader
from excite.data.sampler import ClassSampler, shares

#: Images of each class; the third has none.
COUNTS = np.array([61, 7, 0, 3, 1, 24])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(6), COUNTS))


def loader(images, sampler="balanced", batch=16, repeats=1, **options):
    data = DataConfig(source="folder", image_size=4, in_chans=1, workers=0, sampler=sampler)
    augment = AugmentConfig(crop="none", repeats=repeats)
    return TrainLoader(images, batch_size=batch, seed=3, device="cpu", augment=augment, data_config=data, **options)


def arrays() -> ArrayImages:
    pixels = torch.arange(len(LABELS), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    return ArrayImages(pixels, torch.from_numpy(LABELS))


def epoch_of(loader: TrainLoader, epoch: int) -> np.ndarray:
    return np.concatenate([loader.batch_indices(epoch, step) for step in range(loader.steps_per_epoch)])


@pytest.mark.parametrize(("sampler", "weight"), [("balanced", COUNTS > 0), ("sqrt", np.sqrt(COUNTS))])
def test_the_shares_are_kept_in_every_epoch_and_exact_over_many(sampler, weight):
    wanted = weight / weight.sum()
    assert shares(COUNTS, sampler) == pytest.approx(wanted)
    train = loader(arrays(), sampler)
    assert train.steps_per_epoch == loader(arrays(), None).steps_per_epoch == 6
    drawn = np.array([np.bincount(LABELS[epoch_of(train, e)], minlength=6) for e in range(64)])
    assert (drawn.sum(1) == 96).all()
    assert (np.abs(drawn - 96 * wanted) < 1).all()
    assert (np.abs(drawn.sum(0) - 64 * 96 * wanted) < 2).all()


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("sampler", ["balanced", "sqrt"])
def test_every_image_of_a_class_is_used_before_any_again_across_epochs(sampler, repeats):
    train = loader(arrays(), sampler, repeats=repeats)
    epochs = [epoch_of(train, e).reshape(6, repeats, -1) for e in range(40)]
    assert all((each == each[:, :1]).all() for each in epochs)  # the copies of a slice are the same images
    used = np.concatenate([each[:, 0].ravel() for each in epochs])
    for k, count in enumerate(COUNTS):
        own = used[LABELS[used] == k]
        rounds = own[: len(own) // max(1, count) * count].reshape(-1, count) if count else own.reshape(0, 0)
        assert (np.sort(rounds, 1) == np.flatnonzero(LABELS == k)).all()  # noqa: SIM300
        if count > 3:
            assert len({tuple(r) for r in rounds.tolist()}) > 1  # another order each time


def test_fewer_draws_than_classes_go_to_the_classes_in_turn():
    sampler = ClassSampler(np.arange(10), "balanced", 0, 3)
    drawn = sum(np.bincount(sampler.order(e) % 10, minlength=10) for e in range(64))
    assert (drawn.sum(), drawn.min() >= 19, drawn.max() <= 20) == (192, True, True)


def test_an_epoch_is_a_function_of_seed_and_epoch_alone():
    sampler = ClassSampler(LABELS, "balanced", 3, 96)
    fifth = sampler.order(5)
    again = ClassSampler(LABELS, "balanced", 3, 96)
    assert (again.order(5) == fifth).all()  # without the four before
    assert (again.order(6) != fifth).any()
    assert (ClassSampler(LABELS, "balanced", 4, 96).order(5) != fifth).any()
    assert len(set(fifth)) == 96  # each draw has a number of its own, and so its own crop
    assert (np.sort(fifth // len(LABELS))[-1]) > 10


@pytest.mark.parametrize("repeats", [1, 2])
def test_ranks_and_shards_share_what_one_would_have(repeats):
    whole = loader(arrays(), repeats=repeats)
    for world, shards in ((2, None), (4, None), (2, 2), (1, 4)):
        of = [
            loader(arrays(), batch=16 // world, repeats=repeats, rank=r, world=world, shards=shards)
            for r in range(world)
        ]
        for epoch, step in ((0, 0), (1, 5)):
            dealt = np.stack([each.batch_indices(epoch, step) for each in of], 1).ravel()
            assert (dealt == whole.batch_indices(epoch, step)).all()


def test_an_epoch_goes_on_where_it_was_left(tmp_path):
    from PIL import Image

    paths = []
    for i in range(len(LABELS)):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.new("L", (4, 4), i).save(paths[-1])
    for images in (arrays(), FileImages(paths, LABELS.tolist())):
        train = loader(images)
        whole = list(train.epoch(2))
        rest = list(loader(images).epoch(2, 4))
        assert len(rest) == 2
        for (pixels, labels), (other, true) in zip(whole[4:], rest, strict=True):
            assert torch.equal(pixels, other)
            assert torch.equal(labels, true)
            assert (LABELS[pixels[:, 0, 0, 0].numpy()] == labels.numpy()).all()


def test_fewer_images_than_a_batch_are_filled_up():
    few = arrays().take(np.arange(10))
    train = loader(few, batch=8, rank=1, world=2)
    assert train.steps_per_epoch == 1
    assert len(train.batch_indices(0, 0)) == 5
