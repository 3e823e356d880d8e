import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from excite.data import ArrayImages, AugmentConfig, BadImageError, DataConfig, EvalLoader, FileImages, TrainLoader
from excite.data.decode import load_image
from excite.data.decoder import FILE_CROP
from excite.data.loader import default_workers
from excite.data.resize import random_resized_crop
from excite.errors import ExciteError

RESIZED = AugmentConfig(crop="random_resized")


def arrays(count: int, channels: int = 3, size: int = 8) -> ArrayImages:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return ArrayImages(torch.from_numpy(pixels), torch.arange(count))


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    rng = np.random.default_rng(0)
    paths = []
    for i in range(14):
        path = tmp_path / f"{i:02d}.png"
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return FileImages(paths, list(range(14)))


def config(**options) -> DataConfig:
    return DataConfig.model_validate({"source": "folder", "image_size": 8, "workers": 0, **options})


def train(images, augment: AugmentConfig | None = None, data: DataConfig | None = None, **options) -> TrainLoader:
    options = {"batch_size": 4, "seed": 5, **options}
    augment, data = augment or AugmentConfig(), data or config()
    return TrainLoader(images, device="cpu", augment=augment, data_config=data, **options)


def evaluation(images, data: DataConfig | None = None, **options) -> EvalLoader:
    return EvalLoader(images, device="cpu", data_config=data or config(), **{"batch_size": 4, **options})


def same(first, second) -> bool:
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )


def order(batches) -> list[int]:
    return [int(v) for _, labels, *_ in batches for v in labels]


# --- which images make up a batch ------------------------------------------------------------------------------------


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch():
    loader = train(arrays(20))
    first = order(loader.epoch(0))
    assert sorted(first) == list(range(20))
    assert order(loader.epoch(0)) == first
    assert order(train(arrays(20)).epoch(0)) == first
    assert order(loader.epoch(1)) != first
    assert order(train(arrays(20), seed=6).epoch(0)) != first


def test_batches_carry_the_right_pixels():
    images = arrays(20)
    for pixels, labels in train(images).epoch(3):
        assert pixels.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert torch.equal(pixels, images.images[labels])


def test_one_gray_channel_is_repeated():
    images = arrays(8, channels=1)
    for pixels, labels in train(images).epoch(0):
        assert torch.equal(pixels, images.images[labels].repeat(1, 3, 1, 1))
    pixels, _ = next(train(images, data=config(in_chans=1)).epoch(0))
    assert pixels.shape == (4, 1, 8, 8)


@pytest.mark.parametrize(
    ("count", "batch", "world", "drop", "sizes"),
    [
        (10, 4, 1, True, [4, 4]),
        (10, 4, 1, False, [4, 4, 2]),
        (3, 4, 1, True, [3]),
        (12, 4, 1, True, [4, 4, 4]),
        (20, 4, 2, True, [4, 4]),
        (21, 4, 2, False, [4, 4, 3]),
        (5, 4, 2, True, [3]),
        (2, 4, 3, True, [1]),
    ],
)
def test_steps_and_batch_sizes_are_equal_on_every_rank(count: int, batch: int, world: int, drop: bool, sizes: list):
    for rank in range(world):
        loader = train(arrays(count), batch_size=batch, rank=rank, world=world, drop_last=drop)
        assert [len(labels) for _, labels in loader.epoch(0)] == sizes
        assert loader.steps_per_epoch == len(sizes)


def test_ranks_share_the_global_batch():
    alone = list(train(arrays(24), batch_size=6).epoch(2))
    ranks = [list(train(arrays(24), batch_size=2, rank=r, world=3).epoch(2)) for r in range(3)]
    for step, (_, labels) in enumerate(alone):
        assert sorted(labels.tolist()) == sorted(v for r in ranks for v in r[step][1].tolist())
    topped_up = [order(train(arrays(7), batch_size=3, rank=r, world=3, drop_last=False).epoch(0)) for r in range(3)]
    assert {v for part in topped_up for v in part} == set(range(7))


@pytest.mark.parametrize("augment", [AugmentConfig(), RESIZED])
def test_resuming_inside_an_epoch_gives_the_same_batches(augment: AugmentConfig):
    whole = list(train(arrays(22), augment).epoch(4))
    for start in range(len(whole) + 1):
        assert same(train(arrays(22), augment).epoch(4, start_step=start), whole[start:])


def test_global_generators_are_left_alone(files: FileImages):
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    for images in (arrays(9), files):
        list(train(images, RESIZED).epoch(0))
        list(evaluation(images))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_random_resized_arrays_are_cropped_per_image():
    line = torch.arange(0, 256, 8, dtype=torch.uint8)
    images = ArrayImages(line.expand(64, 1, 32, 32).contiguous(), torch.zeros(64, dtype=torch.int64))
    pixels, _ = next(train(images, RESIZED, config(image_size=32), batch_size=64).epoch(0))
    assert pixels.shape == (64, 3, 32, 32)
    assert len({tuple(p[0, 0].tolist()) for p in pixels}) > 40


# --- files -----------------------------------------------------------------------------------------------------------


def test_file_crops_are_seeded_by_seed_epoch_and_image(files: FileImages):
    for pixels, labels in train(files, RESIZED).epoch(3):
        assert pixels.shape == (4, 3, 8, 8)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            rng = np.random.default_rng((FILE_CROP, 5, 3, label))
            source = load_image(files.paths[label])
            expected = random_resized_crop(source, rng, RESIZED.scale, RESIZED.ratio, 8, "bicubic")
            assert (image.permute(1, 2, 0).numpy() == expected).all()


def test_workers_do_not_change_the_batches_and_live_on(files: FileImages):
    expected = [list(train(files, RESIZED).epoch(e)) for e in range(3)]
    loader = train(files, RESIZED, config(workers=2))
    assert same(loader.epoch(0), expected[0])
    loader_workers = [w.pid for w in loader._files.loader._iterator._workers]
    unfinished = loader.epoch(1)
    next(unfinished)  # left in the middle, as a run that stops is
    assert same(loader.epoch(2), expected[2])
    assert same(loader.epoch(1, start_step=1), expected[1][1:])
    assert [w.pid for w in loader._files.loader._iterator._workers] == loader_workers
    assert loader.wait_seconds > 0


def test_streamed_and_stored_files_are_the_same(files: FileImages):
    from excite.data.folder import decode_all
    from excite.data.preprocessing import Preprocessing

    stored, bad = decode_all(files, Preprocessing(8, 0.875, "bicubic", (0.0,), (1.0,), 3), 10**6)
    assert bad == []
    assert same(train(files).epoch(1), train(stored).epoch(1))
    assert same(evaluation(files), evaluation(stored))


def test_a_broken_training_image_is_replaced_by_the_next_good_one(files: FileImages):
    good = {
        label: pixels
        for batch in train(files).epoch(0)
        for pixels, label in zip(batch[0], batch[1].tolist(), strict=False)
    }
    for broken in (6, 7, 13):
        Path(files.paths[broken]).write_bytes(b"broken")
    stand_in = {6: 8, 7: 8, 13: 0}
    clean = order(train(arrays(14)).epoch(0))
    for workers in (0, 1):
        loader = train(files, data=config(workers=workers))
        batches = list(loader.epoch(0))
        assert order(batches) == [stand_in.get(i, i) for i in clean]
        for pixels, labels in batches:
            for image, label in zip(pixels, labels.tolist(), strict=True):
                assert label not in good or torch.equal(image, good[label])
        list(loader.epoch(1))
        met = sorted(path for path, _ in loader.bad)
        assert set(met) <= {files.paths[i] for i in stand_in}
        assert len(met) == len(set(met)) >= 2
        assert all("not an image" in reason for _, reason in loader.bad)


def failure(batches) -> str:
    """The message of the BadImageError that iterating raises; unlike pytest.raises it keeps no frame, nor worker."""
    try:
        for _ in batches:
            pass
    except BadImageError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_run_where_told_to(files: FileImages, workers: int):
    Path(files.paths[3]).write_bytes(b"")
    expected = f"cannot read image {files.paths[3]}: the file is empty (0 bytes)"
    loader = train(files, data=config(on_bad_train="stop", workers=workers), batch_size=14)
    mend = "; repair or remove them, or skip them with data.on_bad_{}=skip"
    assert failure(loader.epoch(0)) == expected + mend.format("train")
    assert failure(evaluation(files, config(workers=workers))) == expected + mend.format("val")
    # Measured training images follow the rule for training images.
    args = {"batch_size": 5, "device": "cpu", "data_config": config(workers=workers)}
    measured = EvalLoader(files, rule="train", **args)
    assert sum(len(labels) for _, labels, _ in measured) == 13
    assert [path for path, _ in measured.bad] == [files.paths[3]]


def test_nothing_but_broken_images_ends(files: FileImages):
    for path in files.paths:
        Path(path).write_bytes(b"broken")
    with pytest.raises(ExciteError, match="100 training images in a row cannot be read"):
        list(train(files).epoch(0))
    loader = evaluation(files, config(on_bad_val="skip"))
    assert list(loader) == []
    assert len(loader.bad) == 14


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 4, 5, 100])
@pytest.mark.parametrize("count", [1, 7, 20])
def test_evaluation_counts_every_image_exactly_once(count: int, batch: int, world: int):
    images, seen = arrays(count), []
    for rank in range(world):
        for pixels, labels, indices in evaluation(images, batch_size=batch, rank=rank, world=world):
            assert 1 <= len(labels) <= batch
            assert torch.equal(images.images[indices], pixels)
            assert torch.equal(images.labels[indices], labels)
            seen += indices.tolist()
    assert sorted(seen) == list(range(count))


def test_evaluation_of_files_skips_what_it_is_told_to(files: FileImages):
    everything = evaluation(files, config(workers=1), batch_size=5)
    assert order(everything) == list(range(14))
    assert same(everything, evaluation(files, batch_size=5)), "it can be iterated again"
    for broken in (0, 1, 9):
        Path(files.paths[broken]).write_bytes(b"broken")
    loader = evaluation(files, config(on_bad_val="skip"), batch_size=2)
    assert order(loader) == [i for i in range(14) if i not in (0, 1, 9)]
    assert [path for path, _ in loader.bad] == [files.paths[i] for i in (0, 1, 9)]


def test_default_workers_are_shared_among_the_ranks_of_a_machine(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert default_workers() == 1
