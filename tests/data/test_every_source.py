"""What is promised of every data source, tried on all of them."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from every_source import CLASSES, SIDE, SOURCES, Item, items, pixels

from excite.data import DataConfig, DataSets, TrainLoader, open_data, open_measured
from excite.data.config import AugmentConfig
from excite.data.images import ArrayImages
from excite.errors import ExciteError

FILES = [name for name, source in SOURCES.items() if source.files]
ARRAYS = [name for name in SOURCES if name not in FILES]


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf" / "datasets"))
    datasets.disable_progress_bars()


def config(name: str, place: Path, images: list[Item], **options) -> DataConfig:
    return DataConfig(**{"image_size": SIDE, "in_chans": 1, **SOURCES[name].write(place, images), **options})


def expected(images: list[Item]) -> dict[bytes, int]:
    return {item.pixels.tobytes(): item.label for item in images}


def parts_of(name: str) -> list[Item]:
    return [item for part in SOURCES[name].parts for item in items(4 if part == "train" else 2, part, len(part))]


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize("name", SOURCES)
def test_parts_pixels_and_labels_are_what_was_written(name, mode, tmp_path):
    images = parts_of(name)
    data = config(name, tmp_path / "data", images, mode=mode, workers=0)
    opened = open_data(data)
    assert opened.classes == CLASSES
    assert isinstance(opened.train, ArrayImages) == (mode == "memory" or name in ARRAYS)
    by_part = {part: [item for item in images if item.part == part] for part in SOURCES[name].parts}
    assert pixels(opened.train, data) == expected(by_part["train"])
    assert pixels(opened.val, data) == expected(by_part.get("val", by_part["test"]))
    assert opened.val_is_test == ("val" not in by_part)  # what benchmarks do
    said = opened.describe()
    assert f"{len(by_part['train'])} training" in said
    assert f"{len(opened.val)} validation" in said
    test = open_measured(data.model_copy(update={"part": "test"}))
    assert pixels(test.val, data) == expected(by_part["test"])
    assert test.measured == "test"


@pytest.mark.parametrize("name", SOURCES)
def test_the_split_is_stable_and_stays_when_images_come_and_go(name, tmp_path):
    images = items(16, None)  # so many that every class has some on both sides by itself
    more = [*images, *items(1, None, seed=1)]
    options = {"val_from": "train", "val_fraction": 0.3, "mode": "stream", "workers": 0}
    first, second = (config(name, tmp_path / f"{len(some)}", some, **options) for some in (images, more))
    one, other = open_data(first), open_data(second)
    held, now = pixels(one.val, first), pixels(other.val, second)
    assert 30 <= len(held) <= 66
    assert pixels(one.train, first) | held == expected(images)
    assert held.items() <= now.items()
    assert len(now) - len(held) <= 10
    assert one.split
    assert "held out for validation" in one.describe()
    again = open_data(first)
    assert again.fingerprint == one.fingerprint
    assert other.fingerprint != one.fingerprint
    assert pixels(open_data(first.model_copy(update={"split_seed": 1})).val, first) != held


@pytest.mark.parametrize("name", [name for name in FILES if SOURCES[name].groups])
def test_groups_are_kept_together(name, tmp_path):
    images = [replace(item, group=f"patient {i % 7}") for i, item in enumerate(items(6, None))]
    options = {"val_fraction": 0.3, "mode": "stream", "workers": 0}
    if name in ("folder", "zip", "tar", "tar.gz"):
        options["group_by"] = 1
    data = config(name, tmp_path / "data", images, **options)
    opened = open_data(data)
    group_of = {item.pixels.tobytes(): item.group for item in images}
    sides = [{group_of[p] for p in pixels(part, data)} for part in (opened.train, opened.val)]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert "7 groups are kept together" in opened.describe()


@pytest.mark.parametrize("name", FILES)
def test_broken_images_are_skipped_or_stop_the_run_and_named(name, tmp_path):
    images = parts_of(name)
    broken = next(item for item in images if item.part == "train")
    images[images.index(broken)] = replace(broken, broken=True)
    data = config(name, tmp_path / "data", images, mode="stream", workers=0)
    opened = open_data(data, check=True)
    assert "1 broken images will be skipped" in opened.describe()
    assert broken.name in opened.describe()
    loader = TrainLoader(opened.train, batch_size=8, seed=0, device="cpu", augment=AugmentConfig(), data_config=data)
    assert sum(len(labels) for _, labels in loader.epoch(0)) == 40
    assert [broken.name in path for path, _ in loader.bad] == [True]
    stops = data.model_copy(update={"on_bad_train": "stop"})
    for mode in ("stream", "memory"):
        with pytest.raises(ExciteError, match=f"{broken.name}.*repair or remove them, or skip them with"):
            open_data(stops.model_copy(update={"mode": mode}), check=True)
    assert len(open_data(data.model_copy(update={"mode": "memory"})).train) == 39


@pytest.mark.parametrize("name", FILES)
def test_copies_of_training_images_in_the_validation_part_are_said(name, tmp_path):
    images = parts_of(name)
    copied = next(item for item in images if item.part == "train")
    images.append(replace(copied, part="val", name="copy"))
    opened = open_data(config(name, tmp_path / "data", images, mode="stream", workers=0), check=True)
    assert "1 of 21 validation images are copies of training images" in opened.describe()
    assert opened.record is not None
    assert len(opened.record.validation) == 21


@pytest.mark.parametrize("name", SOURCES)
def test_the_fingerprint_is_that_of_contents_and_labels(name, tmp_path):
    images = parts_of(name)
    some = images[0]
    changed = [replace(some, label=(some.label + 1) % 10), *images[1:]]
    drawn = [replace(some, pixels=some.pixels ^ 1), *images[1:]]
    found = []
    for n, each in enumerate((images, images[::-1], changed, drawn)):
        found.append(open_data(config(name, tmp_path / str(n), each, mode="memory")).fingerprint)
    assert found[0] == found[1]  # whatever the order
    assert len(set(found)) == 3


@pytest.mark.parametrize("name", FILES)
def test_classes_are_in_order(name, tmp_path):
    images = [item for item in items(4, None) if item.label < 3]
    data = config(name, tmp_path / "data", images, mode="stream", class_order="natural")
    assert open_data(data).classes == CLASSES[:3]
    named = open_data(data.model_copy(update={"class_names": ["a", "b", "c"]}))
    assert named.classes == ["a", "b", "c"]
    with pytest.raises(ExciteError, match=r"data\.class_names has 1 names, but the source has 3 classes"):
        open_data(data.model_copy(update={"class_names": ["a"]}))
    limited = open_data(data.model_copy(update={"limit_train": 6, "limit_val": 1}))
    assert np.bincount(limited.train.labels).tolist() == [2, 2, 2]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("name", SOURCES)
def test_an_epoch_has_every_image_once_also_when_resumed_by_other_ranks(name, world, tmp_path):
    """Counted: 3 steps with one number of ranks, and the rest with another, whose batches are of the same size."""
    images = items(6, "train") + [i for part in SOURCES[name].parts[1:] for i in items(1, part)]
    data = config(name, tmp_path / "data", images, mode="stream", workers=0)
    train = open_data(data).train
    seen: list[bytes] = []

    def run(ranks: int, start: int, stop: int) -> None:
        for rank in range(ranks):
            loader = TrainLoader(
                train,
                batch_size=12 // ranks,
                seed=3,
                device="cpu",
                augment=AugmentConfig(),
                data_config=data,
                rank=rank,
                world=ranks,
            )
            for step, (batch, _) in enumerate(loader.epoch(1, start), start):
                if step == stop:
                    break
                seen.extend(image.contiguous().numpy().tobytes() for image in batch)

    run(world, 0, 3)
    run({1: 2, 2: 3, 3: 1}[world], 3, 5)
    assert len(seen) == 60
    assert set(seen) == set(expected([item for item in images if item.part == "train"]))


@pytest.mark.parametrize("name", FILES)
def test_workers_give_the_same_batches(name, tmp_path):
    """In processes of their own, which open archives and shards themselves."""
    images = parts_of(name)
    data = config(name, tmp_path / "data", images, mode="stream", workers=0)
    opened = open_data(data)
    batches = []
    for workers in (0, 2):
        own = data.model_copy(update={"workers": workers})
        loader = TrainLoader(opened.train, batch_size=8, seed=0, device="cpu", augment=AugmentConfig(), data_config=own)
        batches.append(list(loader.epoch(0, 1)))
        del loader
    for (a, k), (b, n) in zip(*batches, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(k, n)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_missing_is_one_sentence(name, tmp_path):
    data = config(name, tmp_path / "data", parts_of(name))
    root = str(data.root)
    nowhere = data.model_copy(update={"root": f"{root}-none"})
    with pytest.raises(ExciteError, match=r"does not exist|cannot be loaded") as failed:
        open_data(nowhere)
    assert "\n" not in str(failed.value)
    with pytest.raises(ExciteError, match=r"data\.root is not set"):
        open_data(data.model_copy(update={"root": None}))
    empty = tmp_path / ("empty" if os.path.isdir(root.removeprefix("hf:")) else f"empty{Path(root).suffix}")
    empty.mkdir() if os.path.isdir(root.removeprefix("hf:")) else empty.write_bytes(b"")
    with pytest.raises(ExciteError) as failed:
        open_data(data.model_copy(update={"root": f"hf:{empty}" if root.startswith("hf:") else str(empty)}))
    assert "empty" in str(failed.value)


def _same(a: DataSets, b: DataSets) -> bool:
    return a.fingerprint == b.fingerprint and a.parts == b.parts and a.classes == b.classes


def test_a_run_on_class_folders_may_go_on_with_an_archive_of_them(tmp_path):
    images = parts_of("folder")
    for mode in ("memory", "stream"):
        one, *others = (
            open_data(config(name, tmp_path / mode / name, images, mode=mode))
            for name in ("folder", "zip", "tar", "tar.gz")
        )
        assert all(_same(one, other) for other in others)
    found = {
        name: open_data(config(name, tmp_path / "all" / name, images, mode="memory")).fingerprint for name in FILES
    }
    assert len(set(found.values())) == 1, found
