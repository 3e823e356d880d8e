"""Which images train, choose and are measured: parts by name, the split, and what a walk leaves out."""

import hashlib
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from excite.data import AugmentConfig, DataConfig, DataSets, open_data, open_measured, split
from excite.data import record as record_module
from excite.data import walk as walking
from excite.data.checks import check_files, digest_of
from excite.data.folder import in_order, read_folder
from excite.data.record import Record, find_record, inherit, same_files
from excite.data.split import group_keys, stable_split
from excite.data.walk import walk
from excite.errors import ExciteError

CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def fill(root: Path, count: int, classes=CLASSES, first: int = 0) -> Path:
    """``count`` pictures a class, no two alike but for the same (first, root's place)."""
    for k, name in enumerate(classes):
        for i in range(count):
            picture(root / name / f"{i:03d}.png", 1000 * k + first + i)
    return root


def config(root: Path, **options) -> DataConfig:
    return DataConfig(source="folder", root=str(root), **{"image_size": 8, **options})


def opened(root: Path, **options) -> DataSets:
    return open_data(config(root, **options), check=True)


def sizes(data: DataSets) -> tuple[int, int, int]:
    return len(data.train), len(data.val), 0 if data.test is None else len(data.test)


# --- parts by name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("Train", "Validation", "TEST"),
        ("training", "dev", "testing"),
        ("TRAINING", "Val", "Testing"),
        ("training_set", "validation_set", "test_set"),
        ("seg_train", "seg_val", "seg_test"),
        ("train-images", "val-images", "test-images"),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "photos"])
def test_three_parts_under_their_usual_names(tmp_path, names, wrapper):
    for first, (name, count) in enumerate(zip(names, (6, 4, 3), strict=True)):
        fill(tmp_path / wrapper / name, count, first=100 * first)
    data = opened(tmp_path)
    assert data.classes == list(CLASSES)
    assert sizes(data) == (12, 8, 6)
    assert not data.val_is_test
    assert "12 training, 8 validation and 6 test images of 2 classes" in data.describe()
    assert ("one level down, in photos/" in data.describe()) == bool(wrapper)


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Testing"), ("training_set", "test_set")])
def test_a_test_part_alone_validates_nothing(tmp_path, names):
    fill(tmp_path / names[0], 20)
    fill(tmp_path / names[1], 5, first=100)
    data = opened(tmp_path)
    assert data.classes == list(CLASSES)
    assert sum(sizes(data)[:2]) == 40
    assert sizes(data)[2] == 10
    assert "of 40 images held out for validation (data.val_fraction=0.2)" in data.describe()
    watched = opened(tmp_path, val_from="test")
    assert sizes(watched) == (40, 10, 0)
    assert watched.val_is_test
    assert "nothing is chosen by it" in watched.describe()


def test_the_same_word_repeated_inside_a_part(tmp_path):
    for name, count in (("seg_train", 6), ("seg_test", 4)):
        fill(tmp_path / name / name, count, first=len(name))
    assert sizes(opened(tmp_path))[2] == 8


def test_litter_and_other_folders_are_left_out_and_said(tmp_path):
    fill(tmp_path / "photos" / "train", 6)
    fill(tmp_path / "photos" / "val", 3, first=50)
    fill(tmp_path / "photos" / "extra", 3)
    for litter in ("__MACOSX", "lost+found", "@eaDir", ".ipynb_checkpoints"):
        fill(tmp_path / litter / "train", 2)
        fill(tmp_path / "photos" / "train" / "cat" / litter, 2)
        fill(tmp_path / "photos" / "train" / litter, 2)
    (tmp_path / "photos" / "train" / "cat" / "._000.png").write_bytes(b"\0\5\x16\7")
    for name in ("a.xyz", "b.XYZ", "c.txt"):
        (tmp_path / "photos" / "train" / "dog" / name).write_bytes(b"text")
    data = opened(tmp_path)
    assert sizes(data) == (12, 6, 0)
    assert "3 files ignored: 2 .xyz, 1 .txt" in data.describe()
    assert "1 hidden file ignored" in data.describe()
    assert "ignored, not a part of the data set: extra/" in data.describe()


def test_a_class_that_is_called_like_a_part(tmp_path):
    """Trains among cars: no folders in it, so it is a class."""
    fill(tmp_path, 20, classes=("bus", "car", "train"))
    data = opened(tmp_path)
    assert data.classes == ["bus", "car", "train"]
    fill(tmp_path / "again" / "train", 6, classes=("bus", "train"))
    fill(tmp_path / "again" / "test", 3, classes=("bus", "train"), first=70)
    assert opened(tmp_path / "again").classes == ["bus", "train"]


def test_a_data_set_one_level_down_beside_other_folders(tmp_path):
    fill(tmp_path / "photos" / "train", 6)
    fill(tmp_path / "photos" / "val", 3, first=50)
    (tmp_path / "docs" / "pages").mkdir(parents=True)
    (tmp_path / "docs" / "a.txt").write_text("about")
    assert sizes(opened(tmp_path)) == (12, 6, 0)
    (tmp_path / "docs" / ".a.png").write_bytes(b"")  # hidden
    assert sizes(opened(tmp_path)) == (12, 6, 0)
    picture(tmp_path / "docs" / "a.png", 1)  # now it may be a class
    with pytest.raises(ExciteError, match=f"photos has parts in it .train/, val/.: .* as in {tmp_path}/train/photos/"):
        opened(tmp_path)
    fill(tmp_path / "alone" / "photos", 9, ("cat", "dog", "fox"))  # classes one level down
    data = opened(tmp_path / "alone")
    assert data.classes == ["cat", "dog", "fox"]
    assert "the data set is one level down, in photos/" in data.describe()
    picture(tmp_path / "alone" / "photos" / "a.png", 1)  # then it is itself the only class
    with pytest.raises(ExciteError, match="only one class, 'photos'"):
        opened(tmp_path / "alone")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda d: [fill(d / a / b, 3) for a in "xy" for b in ("train", "val")] + [fill(d / "z", 3)],
            r"holds several data sets with parts \(x/, y/\): give one of them, as in data.root=.*/x$",
        ),
        (lambda d: [picture(d / f"{i}.png", i) for i in range(12)], "no class folders, but 12 images: put the"),
        (lambda d: [fill(d / "train", 3), (d / "train" / "fox").mkdir()], "without images: fox; fill or remove them"),
        (lambda d: fill(d, 3, ("Training", "Testing")), "only has parts of a data set without class folders in them"),
        (lambda d: fill(d, 3, ("train_set", "test_set")), "only has parts of a data set without class folders in them"),
        (lambda d: fill(d, 3, ("train",)), "only has train/, without class folders in it"),
        (
            lambda d: [fill(d / n, 3) for n in ("train", "val", "valid")],
            "2 folders for the validation part: val, valid",
        ),
        (lambda d: [fill(d / n, 3) for n in ("val", "test")], r"has test/, val/ but no train/"),
        (lambda d: [fill(d / a / b, 3) for a in "xy" for b in ("train", "val")], "has its own parts"),
        (lambda d: [fill(d / a, 3, ("train", "test")) for a in CLASSES], "cat has parts in it"),
        (lambda d: [fill(d / "train", 3), fill(d / "test", 3, ("cats", "dog"))], "cats; did you mean 'cat'"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ExciteError, match=message):
        opened(tmp_path)


def test_a_class_that_only_other_parts_lack_is_said(tmp_path):
    fill(tmp_path / "train", 6, [f"c{k}" for k in range(8)])
    fill(tmp_path / "val", 3, ["c0"], first=50)
    for k in range(1, 8):
        (tmp_path / "val" / f"c{k}").mkdir()
    (tmp_path / "val" / "c1" / "a.txt").write_text("no image")
    notes = opened(tmp_path).notes
    assert notes[0] == f"class folders without images in {tmp_path / 'val'}: c1, c2, c3, c4, c5 and 2 more"
    assert "1 file ignored: 1 .txt" in notes


def test_flat_images_beside_class_folders_are_counted(tmp_path):
    fill(tmp_path / "train", 6)
    fill(tmp_path / "val", 3, first=40)
    (tmp_path / "test").mkdir()
    for i in range(4):
        picture(tmp_path / "test" / f"{i}.png", i)
        picture(tmp_path / "train" / f"{i}.png", i)
    text = opened(tmp_path).describe()
    assert "test/ is ignored: it has no class folders, so its images have no labels" in text
    assert f"4 images in {tmp_path / 'train'} are ignored, because they are not in a class folder" in text


def test_counts_of_every_class_and_a_warning_where_they_are_unequal(tmp_path):
    fill(tmp_path / "train", 20, ("healthy",))
    fill(tmp_path / "train", 3, ("sick",))
    fill(tmp_path / "val", 9, ("healthy",), first=60)
    fill(tmp_path / "val", 1, ("sick",), first=60)
    text = opened(tmp_path).describe()
    assert "healthy        20           9" in text
    assert "sick            3           1" in text
    assert "always answering 'healthy' would be right for 90.0 % of the validation images" in text


def test_many_classes_are_told_by_their_extremes(tmp_path):
    classes = [f"c{k:02}" for k in range(21)]
    fill(tmp_path / "train", 2, classes)
    fill(tmp_path / "train", 3, classes[5:6], first=50)
    picture(tmp_path / "train" / "c05" / "more.png", 5)
    fill(tmp_path / "val", 1, classes[:14], first=90)
    lines = opened(tmp_path, mode="stream").describe().splitlines()
    assert lines[1:4] == [
        "training: 2 (c00) to 4 (c05) images per class",
        "validation: 0 (c14) to 1 (c00) images per class",
        "no validation image of c14, c15, c16, c17, c18 and 2 more",
    ]


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_images_are_numbered_by_the_classes_of_a_network(tmp_path, mode):
    for first, (name, count) in enumerate((("train", 6), ("val", 3), ("test", 2))):
        fill(tmp_path / name, count, first=100 * first)
        picture(tmp_path / name / "dog" / "more.png", 60 + first)
    data = opened(tmp_path, mode=mode)
    assert data.relabelled(["cat", "dog"]) is data
    assert data.relabelled(["cat", "dog", "owl"]).classes == ["cat", "dog", "owl"]
    other = data.relabelled(["dog", "bird", "cat"])
    assert other.classes == ["dog", "bird", "cat"]
    for part, cats in (("train", 6), ("val", 3), ("test", 2)):
        before, after = getattr(data, part), getattr(other, part)
        assert [2 - 2 * int(label) for label in before.labels] == [int(label) for label in after.labels]
        assert np.bincount(np.asarray(after.labels)).tolist() == [cats + 1, 0, cats]
        assert after.names == before.names
    same = measured(tmp_path, asked=True, part="test", mode=mode).relabelled(["dog", "cat"])
    assert same.train is same.val  # one set of images, held in memory once


# --- measuring -------------------------------------------------------------------------------------------------------


def measured(root: Path, elsewhere: bool = True, asked: bool = False, record: Record | None = None, **options):
    return open_measured(config(root, **options), elsewhere=elsewhere, asked=asked, record=record)


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_a_folder_elsewhere_is_measured_whole(tmp_path, mode):
    fill(tmp_path / "flat", 20)
    data = measured(tmp_path / "flat", mode=mode)
    assert (len(data.val), data.measured) == (40, "all")
    assert f"measured: all images of {tmp_path / 'flat'}, 40 of 40 images" in data.notes
    for name, what in (("val", "validation"), ("test", "test")):
        fill(tmp_path / name / name, 10)
        data = measured(tmp_path / name, mode=mode)
        assert (len(data.val), data.measured) == (20, what)
    fill(tmp_path / "both" / "train", 9)
    fill(tmp_path / "both" / "test", 7)
    assert len(measured(tmp_path / "both", mode=mode).val) == 14
    fill(tmp_path / "trained" / "train", 9)
    assert len(measured(tmp_path / "trained", mode=mode).val) == 18
    data = measured(tmp_path / "flat", mode=mode, limit_val=6)
    assert len(data.val) == 6
    assert data.notes == [f"measured: all images of {tmp_path / 'flat'}, 6 of 40 images (data.limit_val=6)"]
    data = open_measured(config(tmp_path / "flat", mode=mode), elsewhere=True, limits={"limit_val": 6})
    assert len(data.val) == 6


def test_the_part_that_is_asked_for(tmp_path):
    for first, (name, count) in enumerate((("train", 8), ("val", 5), ("test", 3))):
        fill(tmp_path / name, count, first=100 * first)
    for part, count in (("val", 10), ("test", 6), ("train", 16)):
        for elsewhere in (False, True):
            assert len(measured(tmp_path, elsewhere, asked=True, part=part).val) == count
    fill(tmp_path / "flat", 20)
    held_out = len(opened(tmp_path / "flat").val)
    assert len(measured(tmp_path / "flat", asked=True).val) == held_out
    own = measured(tmp_path / "flat", elsewhere=False)
    assert len(own.val) == held_out
    assert own.notes == [f"measured: the images held out for validation, {held_out} of 40 images"]
    with pytest.raises(ExciteError, match="has no test part"):
        measured(tmp_path / "flat", part="test", asked=True)
    with pytest.raises(ExciteError, match=r"val_from=test, but there is no test part"):
        opened(tmp_path / "flat", val_from="test")


def test_how_many_are_measured_and_by_whose_limit(tmp_path):
    for first, (name, count) in enumerate((("train", 8), ("val", 5), ("test", 3))):
        fill(tmp_path / name, count, first=100 * first)
    for mode in ("memory", "stream"):
        data = open_measured(config(tmp_path, part="test", mode=mode, limit_train=4), asked=True, train=True)
        assert sizes(data) == (4, 6, 0)
        assert np.bincount(np.asarray(data.train.labels)).tolist() == [2, 2]
        assert data.notes == ["measured: the test part, 6 of 6 images"]
    data = measured(tmp_path, part="test", asked=True, elsewhere=True, limit_val=5, record=None)
    assert (len(data.val), data.measured) == (5, "test")
    assert data.notes == [f"measured: the test part of {tmp_path}, 5 of 6 images (data.limit_val=5)"]
    told = "measured: the validation part, 4 of 10 images (data.limit_val=4)"
    for own, callers, notes in ((4, 8, [told]), (4, 4, [told]), (8, 4, []), (10, 12, [])):  # the smaller limit holds
        data = open_measured(config(tmp_path, limit_val=own), limits={"limit_val": callers})
        assert (len(data.val), data.notes) == (min(own, callers), notes)  # callers tell of their limit themselves


def test_images_that_were_trained_on_are_told(tmp_path):
    fill(tmp_path / "before", 20)
    data = opened(tmp_path / "before")
    assert data.record is not None
    fill(tmp_path / "after", 20)
    picture(tmp_path / "after" / "dog" / "new.png", 77777)
    (tmp_path / "run").mkdir()
    data.record.write(tmp_path / "run")
    record = Record.read(tmp_path / "run")
    assert record is not None
    assert sorted(record.validation) == sorted(data.record.validation)
    note = f"the network was trained on {len(data.train)} of these 41 images, so the results are too optimistic"
    assert any(each.startswith(note) for each in measured(tmp_path / "after", record=record).notes)
    assert not any("trained on" in n for n in measured(tmp_path / "after", asked=True, record=record).notes)
    assert not any("trained on" in n for n in measured(tmp_path / "before", elsewhere=False, record=record).notes)
    assert any(
        "trained on" in n for n in measured(tmp_path / "before", elsewhere=False, part="train", record=record).notes
    )
    fill(tmp_path / "other", 20, first=500)
    assert not any("trained on" in n for n in measured(tmp_path / "other", record=record).notes)


def test_weights_to_begin_with_have_seen_images_too(tmp_path):
    fill(tmp_path / "photos", 20)
    (tmp_path / "run").mkdir()
    first = opened(tmp_path / "photos").record
    assert first is not None
    first.write(tmp_path / "run")
    again = opened(tmp_path / "photos").record
    assert again is not None
    assert inherit(again, str(tmp_path / "run" / "model.safetensors")) is None  # the same images were held out
    other = opened(tmp_path / "photos", split_seed=5).record
    assert other is not None
    seen = len(set(other.validation) - set(first.validation))
    sentence = inherit(other, str(tmp_path / "run"))
    assert sentence is not None
    assert sentence == (
        f"{tmp_path / 'run'} (train.init_from) was trained on {seen} of the {len(other.validation)} validation images, "
        "so the validation results are too optimistic"
    )
    assert set(first.trained) < set(other.trained)
    assert inherit(other, "timm:resnet50") is None


def test_a_record_is_found_from_whatever_lies_in_its_run_folder(tmp_path):
    digests = [7, 2**64 - 1, 9]
    Record(["a/\udce9.png", "b/1.png"], np.array(digests, np.uint64)).write(tmp_path)
    assert (tmp_path / "trained_files.bin").read_bytes() == b"".join(n.to_bytes(8, "little") for n in digests)
    deep = tmp_path / "checkpoints" / "last"
    deep.mkdir(parents=True)
    for source in (tmp_path, tmp_path / "model.safetensors", deep, deep / "state.safetensors"):
        found = find_record(source)
        assert found is not None
        assert (found.validation, found.trained.tolist()) == (["a/\udce9.png", "b/1.png"], sorted(digests))
    assert find_record(deep / "too" / "deep") is None
    assert found.has(np.array([9, 8, 0, 7], np.uint64)).tolist() == [True, False, False, True]
    found.trained = np.array([0, 9], np.uint64)
    assert found.has(np.array([0, 9], np.uint64)).tolist() == [False, True]  # 0: a file that could not be read
    assert same_files(found, ["b/1.png", "a/\udce9.png"])
    assert not same_files(found, ["b/1.png"])
    with (tmp_path / "trained_files.bin").open("ab") as file:
        file.write(b"cut")
    assert Record.read(tmp_path).trained.tolist() == sorted(digests)
    (tmp_path / "trained_files.bin").unlink()
    assert find_record(tmp_path) is None


def test_copies_across_the_parts_are_told(tmp_path):
    fill(tmp_path / "train", 6)
    fill(tmp_path / "val", 3, first=50)
    picture(tmp_path / "val" / "cat" / "copy.png", 2)
    assert (
        "1 of 7 validation images are copies of training images; the first is val/cat/copy.png"
        in opened(tmp_path).notes
    )


# --- the split -------------------------------------------------------------------------------------------------------


def side_of_each(root: Path, **options) -> dict[str, str]:
    data = open_data(config(root, **options), AugmentConfig(crop="random_resized"))
    return {os.path.relpath(p, root): side for side in ("train", "val") for p in getattr(data, side).paths}


def test_an_added_file_moves_no_other_across(tmp_path):
    fill(tmp_path, 25)
    before = side_of_each(tmp_path)
    assert 4 < list(before.values()).count("val") < 18
    for name in ("000-new", "013-new", "zzz"):
        picture(tmp_path / "dog" / f"{name}.png", len(name))
        after = side_of_each(tmp_path)
        assert {path: after[path] for path in before} == before
    (tmp_path / "cat" / "003.png").unlink()
    fill(tmp_path / "fox", 9)
    after = side_of_each(tmp_path)
    assert all(after[path] == before[path] for path in before if path in after)
    assert side_of_each(tmp_path, split_seed=1) != after
    moved = tmp_path.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    assert side_of_each(moved) == after


def test_every_class_is_on_both_sides():
    for seed in range(50):
        labels = np.repeat([0, 1, 2, 3], [2, 3, 5, 40])
        train, val = stable_split([f"{i}".encode() for i in range(50)], labels, 0.2, seed)
        assert sorted([*train, *val]) == list(range(50))
        assert set(labels[train]) == set(labels[val]) == {0, 1, 2, 3}
    train, val = stable_split([b"a", b"b", b"c"], [0, 0, 1], 0.2, 0)  # the only image of a class trains
    assert 2 in train
    with pytest.raises(ExciteError, match="in one group cannot be split"):
        stable_split([b"a", b"a"], [0, 1], 0.2, 0)


def test_the_share_that_validates_is_about_the_fraction():
    keys = [f"{i}".encode() for i in range(20000)]
    for fraction in (0.05, 0.2, 0.7):
        _, val = stable_split(keys, np.arange(20000) % 10, fraction, 3)
        assert abs(len(val) / 20000 - fraction) < 0.01


def test_groups_stay_together(tmp_path):
    for k, name in enumerate(CLASSES):
        for patient in range(12):
            for i in range(3):
                picture(tmp_path / name / f"patient{patient}" / f"{i}.png", 1000 * k + 10 * patient + i)
    for group_by in (1, r"patient(\d+)"):
        sides: dict[str, set[str]] = {}
        for path, side in side_of_each(tmp_path, group_by=group_by).items():
            sides.setdefault(Path(path).parts[1], set()).add(side)
        assert all(len(found) == 1 for found in sides.values())  # across classes, too
        assert set().union(*sides.values()) == {"train", "val"}
    data = opened(tmp_path, group_by=1)
    assert "12 groups are kept together (data.group_by=1)" in data.notes
    keys, alone = group_keys(["cat/p1/a.png", "cat/b.png", "dog/p1/c.png"], 1)
    assert keys[0] == keys[2] != keys[1]
    assert alone == 1
    for bad, message in ((3, "no folder at level 3"), ("(", "not a regular expression"), ("xyz", "no match in 'cat/")):
        with pytest.raises(ExciteError, match=message):
            opened(tmp_path, group_by=bad)


def test_a_pattern_that_does_not_come_to_an_end_is_told(monkeypatch):
    """For these 60 letters it would take until the sun is cold."""
    monkeypatch.setattr(split, "SLOWEST_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGVTALRM)
    paths = ["cat/1.png", f"cat/{'a' * 60}.png"]
    told = (
        r"data\.group_by=\(a\+\)\+\$ does not come to an end: it takes more than 0\.05 s for 'cat/aaa.*simpler pattern"
    )
    with pytest.raises(ExciteError, match=told):
        group_keys(paths, "(a+)+$")
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_a_pattern_that_gets_on_is_let():
    """However long all paths together take."""
    found: list[str] = []
    watch = split._Watch(re.compile("a"), ["x", "y", "z"], found)
    watch.tick()
    for each in ("1", "2", "3"):
        found.append(each)
        watch.tick()
    watch.tick()  # at the end, nothing is late
    found.pop()
    watch.tick()
    with pytest.raises(ExciteError, match="for 'z'"):
        watch.tick()


def test_groups_are_found_in_any_thread(monkeypatch):
    """Signals come to the main thread only."""
    monkeypatch.setattr(signal, "setitimer", None)
    with ThreadPoolExecutor(1) as pool:
        keys, alone = pool.submit(group_keys, ["cat/p1/a.png", "cat/b.png"], r"p\d").result()
    assert (keys[0], alone) == (b"p1", 1)


# --- the walk --------------------------------------------------------------------------------------------------------


def test_links_are_entered_once_and_label_nothing_twice(tmp_path):
    fill(tmp_path / "train", 6)
    fill(tmp_path / "val", 3, first=50)
    inside = tmp_path / "train" / "dog"
    picture(inside / "more" / "x.png", 99)
    fill(tmp_path / "pool", 2, ("owl",), first=90)
    for name, target in {
        "back": "..",
        "again": ".",
        "across": "../cat",
        "over": "../../val/dog",
        "away": "../../pool/owl",
        "same": "more",
    }.items():
        os.symlink(target, inside / name)
    os.symlink("../dog/more", tmp_path / "train" / "cat" / "stolen")
    data = opened(tmp_path)
    assert sizes(data) == (12 + 1 + 2, 6, 0)
    assert np.bincount(data.train.labels).tolist() == [6, 9]
    assert "it leads to a folder that is already included" in data.describe()
    assert "and 5 more" in data.describe()


def test_what_is_no_file_is_never_opened(tmp_path):
    fill(tmp_path, 6)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    os.symlink("/nowhere/x.png", tmp_path / "cat" / "lost.png")
    os.symlink("round.png", tmp_path / "cat" / "round.png")
    (tmp_path / "cat" / "folder.png").mkdir()
    found = walk(tmp_path)
    assert len(found.files) == 12
    assert {os.path.basename(path): reason for path, reason in found.unusable} == {
        "pipe.png": "it is a named pipe, not a file",
        "lost.png": "a broken link",
        "round.png": "a circular link",
    }
    assert "left out: " in str(found.ignored())
    assert len(opened(tmp_path).unusable) == 3


def test_files_on_a_slow_disk_are_asked_for_at_the_same_time(tmp_path, monkeypatch):
    for number in range(100):
        (tmp_path / f"{number:03d}.png").write_bytes(b"x" * number)
    (tmp_path / "070.png").unlink()
    (tmp_path / "070.png").symlink_to("nothing")
    together, own = threading.Barrier(2), walking.look_at

    def look(path):
        if path.endswith(("040.png", "080.png")):  # in different chunks, whatever the order of the folder
            together.wait(60)
        return own(path)

    expected = walk(tmp_path)
    monkeypatch.setattr(walking, "SLOW", 0)
    monkeypatch.setattr(walking, "_SAMPLE", 1)
    monkeypatch.setattr(walking, "look_at", look)
    found = walk(tmp_path)
    assert found == expected
    assert len(found.files) == 99
    assert found.unusable == [(str(tmp_path / "070.png"), "a broken link")]


def test_what_a_walk_tells_of_files_and_of_what_it_leaves_out(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "sub/c.jpg", "a.png"):
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, ns=(1, 1234567890123456789))
    found = walk(tmp_path)
    assert [(os.path.relpath(f.path, tmp_path), f.size, f.modified) for f in found.files] == [
        (name, len(name), 1234567890123456789) for name in ("a.png", "b.PNG", "sub/c.jpg")
    ]
    assert found.ignored() is None
    assert [os.path.basename(f.path) for f in walk(tmp_path, deep=False).files] == ["a.png", "b.PNG"]
    for k in range(9):
        for i in range(12 - k):
            (tmp_path / f"{i}.x{k}").write_bytes(b"")
    for name in ("a photo.of my cat in the garden", *(f"plain{i}" for i in range(20)), ".hidden", ".too"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "lost.png").symlink_to("nowhere")
    (tmp_path / "round.png").symlink_to("round.png")
    assert walk(tmp_path).ignored() == (
        "93 files ignored: 21 without an extension, 12 .x0, 11 .x1, 10 .x2, 9 .x3, 8 .x4, 7 .x5, 6 .x6, 9 others; "
        f"2 hidden files ignored; left out: {tmp_path}/lost.png (a broken link) and 1 more"
    )


def test_names_that_are_no_utf8(tmp_path):
    fill(tmp_path / "train", 6)
    fill(tmp_path / "val", 3, first=50)
    for part in ("train", "val"):
        os.rename(tmp_path / part / "cat" / "000.png", tmp_path / part / "cat" / os.fsdecode(b"caf\xe9.png"))
    data = opened(tmp_path)
    assert sizes(data) == (12, 6, 0)
    assert data.record is not None
    data.record.write(tmp_path)
    again = Record.read(tmp_path)
    assert again is not None
    assert os.fsdecode(b"val/cat/caf\xe9.png") in again.validation


def test_orders_of_numbered_classes():
    names = ["10", "1", "2", "b", "B", "a2", "a10"]
    assert in_order(names, "string") == in_order(names, None) == ["1", "10", "2", "B", "a10", "a2", "b"]
    assert in_order(names, "natural") == ["1", "2", "10", "a2", "a10", "B", "b"]


# --- files are looked at first ----------------------


def test_all_broken_files_are_named_before_the_first_step(tmp_path, monkeypatch):
    for part, first in (("train", 0), ("val", 50), ("test", 90)):
        fill(tmp_path / part, 6, first=first)
    broken = [tmp_path / "train" / "cat" / "001.png", *(tmp_path / p / "dog" / "002.png" for p in ("val", "test"))]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    for mode in ("memory", "stream"):
        with pytest.raises(ExciteError) as caught:
            opened(tmp_path, mode=mode)
        assert str(caught.value).startswith("cannot read 2 images: ")
        assert all(str(path) in str(caught.value) for path in broken[1:])
        assert str(caught.value).endswith("data.on_bad_val=skip")
        with pytest.raises(ExciteError, match="cannot read 3 images") as caught:
            opened(tmp_path, mode=mode, on_bad_train="stop")
        assert str(caught.value).endswith("data.on_bad_train=skip data.on_bad_val=skip")
    looked = []
    monkeypatch.setattr("excite.data.checks.check_image", lambda path, *_: looked.append(path))
    assert sizes(opened(tmp_path, mode="stream", on_bad_val="skip")) == (12, 12, 12)
    assert looked == []  # all remembered
    picture(broken[0], 123)
    opened(tmp_path, mode="stream", on_bad_val="skip")
    assert looked == [str(broken[0])]


def test_what_was_found_is_remembered_of_the_same_files_only(tmp_path, monkeypatch):
    fill(tmp_path, 3)
    (tmp_path / "dog" / "001.png").write_bytes(b"text")
    part = read_folder(tmp_path).parts["all"]
    told: list[tuple] = []
    first = check_files(part, 10**6, "training", lambda *what: told.append(what))
    assert told == [("checking training images", 6, 6)]
    assert [os.path.relpath(path, tmp_path) for path, _ in first.bad] == ["dog/001.png"]
    assert np.flatnonzero(first.digests == 0).tolist() == [4]
    looked = []

    def look(path, *_):
        looked.append(os.path.relpath(path, tmp_path))

    monkeypatch.setattr("excite.data.checks.check_image", look)
    picture(tmp_path / "cat" / "003.png", 9)
    resized = tmp_path / "cat" / "000.png"
    date = resized.stat().st_mtime_ns
    resized.write_bytes(b"of another size")
    os.utime(resized, ns=(date, date))
    os.utime(tmp_path / "cat" / "001.png", ns=(1, 1))
    part = read_folder(tmp_path).parts["all"]
    again = check_files(part, 10**6, "training")
    assert sorted(looked) == ["cat/000.png", "cat/001.png", "cat/003.png"]
    assert again.bad == first.bad  # with the reason that was remembered, not looked for
    assert again.digests[[1, 2, 4, 5, 6]].tolist() == first.digests[[1, 2, 3, 4, 5]].tolist()
    looked.clear()
    check_files(part, 10**6, "training")
    assert looked == []
    check_files(part, 10**6 - 1, "training")  # then other images are too large
    assert len(looked) == 7
    for file in Path(os.environ["EXCITE_CACHE"]).rglob("*.npz"):
        file.write_bytes(b"damaged")
    check_files(part, 10**6, "training")
    assert len(looked) == 14


def test_digests_are_these_for_ever(tmp_path):
    """They are kept in run folders: of small files all bytes, of large ones both ends, of plain pixels pieces, too."""
    for name, size in (("a.png", 100), ("a.png", 32768), ("b.jpg", 70000), ("c.BMP", 70000), ("c.tif", 32769)):
        content = np.random.default_rng(size).bytes(size)
        (tmp_path / name).write_bytes(content)
        seen = content if size <= 32768 else content[:16384] + content[-16384:]
        if size > 32768 and name[0] == "c":
            seen += b"".join(content[size * i // 17 :][:1024] for i in range(1, 17))
        expected = hashlib.blake2b(f"{size}".encode() + seen, digest_size=8).digest()
        assert digest_of(str(tmp_path / name), size) == int.from_bytes(expected, "little")
    assert digest_of(str(tmp_path / "none.png"), 5) == 0


def test_the_record_of_a_run_at_an_address(tmp_path, monkeypatch):
    Record(["a/1.png", "b/ü.png"], np.array([3, 5], np.uint64)).write(tmp_path)
    asked = []

    def fetched(address: str) -> str:
        asked.append(address)
        return str(tmp_path / address.rpartition("/")[2])

    monkeypatch.setattr(record_module, "local_file", fetched)
    for source in ("s3://bucket/run", "s3://bucket/run/"):
        found = find_record(source)
        assert (found.validation, found.trained.tolist()) == (["a/1.png", "b/ü.png"], [3, 5])
        assert asked == ["s3://bucket/run/validation_files.txt", "s3://bucket/run/trained_files.bin"]
        asked.clear()

    def gone(address: str) -> str:
        raise ExciteError("there is nothing")

    monkeypatch.setattr(record_module, "local_file", gone)
    assert find_record("s3://bucket/run") is None
