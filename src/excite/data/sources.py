"""`open_data`: from the data section of a recipe to labelled images, their class names and their statistics.

A source has parts. Their roles are decided in one place for all sources:

    training     the weights are fitted to it
    validation   used to choose the best epoch, and whatever a user chooses later
    test         measured at the end, and never used to choose anything
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from excite.data.catalog import SOURCES, is_archive
from excite.data.checks import Checked, check_files
from excite.data.config import AugmentConfig, DataConfig
from excite.data.contents import Contents, Part
from excite.data.folder import decode_all, refuse_bad, some, title
from excite.data.images import (
    ArrayImages,
    FileImages,
    balanced_order,
    channel_statistics,
    fitted,
    luma,
)
from excite.data.labels import counts as label_counts
from excite.data.labels import renumbered, several
from excite.data.labels import text as label_text
from excite.data.pixels import FULL_WHITE
from excite.data.preprocessing import Preprocessing
from excite.data.record import Record, make_record, same_files, trained_among
from excite.data.room import on_disk
from excite.data.root import BETWEEN, find_root
from excite.data.split import fold_split, group_keys, stable_split
from excite.data.white import with_white
from excite.errors import ExciteError, shown
from excite.progress import Progress
from excite.size import size_text
from excite.storage import is_remote, stage
from excite.text import printable

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Streamed training images whose bands give mean and standard deviation.
SAMPLED = 256
MEMORY_LIMIT = 2 << 30  # bytes of pixels up to which mode=auto holds a folder in memory

#: Up to this many classes are listed one by one with their counts.
LISTED_CLASSES = 20
#: From this ratio of the largest class to the smallest, the accuracy of always answering the largest is reported.
UNBALANCED = 3.0

Images = ArrayImages | FileImages


@dataclass
class DataSets:
    """An opened source. `train` and `val` are either both ArrayImages or both FileImages.

    Attributes:
        classes: class names, in the order of the labels.
        train: the training images.
        val: the validation images; in data opened for measuring, the measured images of whatever part.
        preprocessing: evaluation preprocessing.
        fingerprint: hex digest of contents and labels (arrays), or of relative paths and sizes (files).
        parts: such a digest of the training ("train") and of the validation images ("val") alone.
        test: the test images; None if there is no such part.
        measured: what `val` is: "validation", "test", "training" or "all".
        split: whether `val` was held out of the training images here.
        val_is_test: whether `val` is the test part, so that nothing may be chosen by it.
        bad: (path, reason) of images skipped while loading.
        bad_val: how many of these are validation images.
        unusable: (path, reason) of entries named like an image that are not files: dangling links, named pipes ...
        notes: sentences for the user.
        record: the files for training and for validation, to be saved with a run; None for sources without files.
        shared: path of an image -> its group, such as a patient, if that is in more than one part of the source.
    """

    classes: list[str]
    train: Images
    val: Images
    preprocessing: Preprocessing
    fingerprint: str
    parts: dict[str, str] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    bad_val: int = 0
    unusable: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    test: Images | None = None
    measured: str = "validation"
    val_is_test: bool = False
    split: bool = False
    record: Record | None = None
    shared: dict[str, str] = field(default_factory=dict)

    @property
    def mean(self) -> tuple[float, ...]:
        """Per-channel mean in 0..1."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per-channel standard deviation in 0..1."""
        return self.preprocessing.std

    def relabelled(self, classes: Sequence[str]) -> "DataSets":
        """The same images with labels renumbered to these classes, which must include all of their own."""
        numbers = [list(classes).index(name) for name in self.classes]
        if numbers == list(range(len(classes))):
            return self
        done = {id(p): _numbered(p, numbers, len(classes)) for p in (self.train, self.val, self.test) if p is not None}
        test = None if self.test is None else done[id(self.test)]
        return replace(self, classes=list(classes), train=done[id(self.train)], val=done[id(self.val)], test=test)

    def describe(self) -> str:
        """A line with counts, image size and location of the pixels; then the classes with counts, and the notes."""
        shape = " x ".join(map(str, self.preprocessing.shape))
        shape += "" if self.preprocessing.fit == "crop" else f" ({self.preprocessing.fit})"
        place = "memory" if isinstance(self.train, ArrayImages) else "files"
        counts = f"{len(self.train)} training and {len(self.val)} validation images"
        if self.test is not None:
            counts = f"{len(self.train)} training, {len(self.val)} validation and {len(self.test)} test images"
        line = f"{counts} of {len(self.classes)} classes, {shape}, from {place}"
        skipped = [f"{len(self.bad)} broken images skipped; the first is {self.bad[0][0]}"] if self.bad else []
        return "\n".join(map(printable, [line, *_class_lines(self), *skipped, *self.notes]))


def _numbered(images: Images, numbers: Sequence[int], classes: int) -> Images:
    if isinstance(images, FileImages):
        return replace(images, labels=renumbered(images.labels, numbers, classes))
    if several(images.labels):
        labels = torch.from_numpy(renumbered(images.labels.numpy(), numbers, classes))
        return ArrayImages(images.images, labels, images.names)
    return ArrayImages(images.images, images.labels.new_tensor(numbers)[images.labels], images.names)


def _class_lines(data: DataSets) -> list[str]:
    """The number of images of each class in each part, and a warning if the classes are unequal."""
    parts = {"training": data.train, "validation": data.val} | ({} if data.test is None else {"test": data.test})
    counts = {name: label_counts(part.labels, len(data.classes)) for name, part in parts.items()}
    lines = []
    classes = [printable(name) for name in data.classes]
    if len(classes) <= LISTED_CLASSES:
        width = min(40, max(len(name) for name in classes))
        lines.append("  ".join([f"{'class':<{width}}", *counts]))
        for k, name in enumerate(classes):
            short = name if len(name) <= width else f"{name[: width - 1]}…"
            lines.append("  ".join([f"{short:<{width}}", *(f"{n[k]:>{len(p)}}" for p, n in counts.items())]))
    else:
        for name, n in counts.items():
            low, high = int(n.argmin()), int(n.argmax())
            lines.append(f"{name}: {n[low]} ({classes[low]}) to {n[high]} ({classes[high]}) images per class")
    lacking = [name for name, n in zip(classes, counts["validation"], strict=True) if not n]
    if lacking:
        lines.append(f"no validation image of {some(lacking)}")
    n, held = counts["training"], counts["validation"]
    if not several(data.val.labels) and n.max() >= UNBALANCED * max(1, n.min()) and held.sum():
        k = int(n.argmax())
        lines.append(
            f"the classes are unequal: always answering {data.classes[k]!r} would be right for "
            f"{100 * held[k] / held.sum():.1f} % of the validation images; look at the balanced accuracy"
        )
    return lines


@dataclass
class _Roles:
    """The roles of the images; ``how`` is "part", "split" or "test" (see DataConfig.val_from)."""

    train: "ArrayImages | Part"
    val: "ArrayImages | Part"
    test: "ArrayImages | Part | None"
    how: str
    notes: list[str]


def open_data(
    data: DataConfig, augment: AugmentConfig | None = None, *, check: bool = False, progress: Progress | None = None
) -> DataSets:
    """Open the source that `data` describes, for training.

    Args:
        data: the data section of a recipe.
        augment: together with the size, it decides whether a folder is held in memory.
        check: check every file of a folder first (:mod:`excite.data.checks`), and make the record for a run.
        progress: called while files are checked.

    Raises:
        ExciteError: the path does not exist; the source is incomplete, damaged or empty; a label is out of range; or
            (depending on data.on_bad_train and data.on_bad_val) an image cannot be read.
    """
    return _staged(data, lambda local: _open(local, augment or AugmentConfig(), check, progress))


def open_measured(
    data: DataConfig,
    augment: AugmentConfig | None = None,
    *,
    elsewhere: bool = False,
    asked: bool = False,
    train: bool = False,
    record: Record | None = None,
    limits: Mapping[str, int] | None = None,
) -> DataSets:
    """Open the images that a trained network is measured on; they are `val` of the result.

    In the data that the network was trained on, they are the part `data.part`. In other data, they are the part that
    was asked for, else its validation part, else its test part, else all images.

    Args:
        data: the data section of a recipe.
        augment: see :func:`open_data`.
        elsewhere: whether this is other data than the network was trained on.
        asked: whether the user asked for `data.part`.
        train: whether the training part is needed, too.
        record: the files that the network was trained on, if known; a note reports how many of the images are among
            them.
        limits: `limit_val` and `limit_train` of the caller, who reports them; those of `data` are reported in a note.

    Raises:
        ExciteError: as in :func:`open_data`, or the part does not exist.
    """
    whole = elsewhere and not asked
    options = (augment or AugmentConfig(), elsewhere, whole, train, record, limits or {})
    return _staged(data, lambda local: _measured(local, *options))


def _staged(data: DataConfig, opening: Callable[[DataConfig], DataSets]) -> DataSets:
    """Fetch data at an address first."""
    facts = SOURCES[data.source]
    if data.root is None or not is_remote(data.root) or facts.root is None:
        return opening(data)
    reader = import_module(facts.reader)
    wanted = None if is_archive(data.root) else getattr(reader, "WANTED", None)
    names = reader.expand(data.root) if hasattr(reader, "expand") else [data.root]
    staged = [stage(name, wanted) for name in names]
    for name in reader.beside(data.root) if hasattr(reader, "beside") else ():
        with suppress(ExciteError):  # it need not be there
            staged.append(stage(name, wanted))
    opened = opening(data.model_copy(update={"root": BETWEEN.join(str(each.path) for each in staged)}))
    opened.notes += [each.note for each in staged if each.note]
    return opened


def source_contents(data: DataConfig, least_classes: int = 2) -> Contents:
    """Read the contents of a local source. Raises ExciteError if it is missing, incomplete, damaged or empty."""
    contents: Contents = import_module(SOURCES[data.source].reader).read_source(data, find_root(data), least_classes)
    _refuse_twins(contents.classes, contents.where or str(data.root))
    contents.notes += [*_odd_names(contents.classes), *_shared_groups(contents, data.group_by)]
    return contents


def _shared_groups(contents: Contents, group_by: int | str | None) -> list[str]:
    """Find the images of groups, such as patients, that are in more than one of the parts that the source gives; and a
    note on them.

    Raises:
        ExciteError: ``group_by`` finds no group at all.
    """
    parts = {name: part for name, part in contents.parts.items() if isinstance(part, Part) and len(part)}
    if len(parts) < 2:
        return []
    if group_by is None:
        groups = {name: part.groups or [] for name, part in parts.items()}
    else:
        names = {name: part.within() for name, part in parts.items()}
        whole = [path for each in names.values() for path in each]
        by_class = all(part.names is None for part in parts.values())
        keys = iter(group_keys(whole, group_by, named_by_class=by_class)[0])
        groups = {name: [next(keys).decode("utf-8", "surrogateescape") for _ in each] for name, each in names.items()}
    seen: dict[str, str] = {}
    both: set[str] = set()
    for name, each in groups.items():
        for group in {group for group in each if not group.startswith("\0")}:  # these stand alone
            if seen.setdefault(group, name) != name:
                both.add(group)
    for name, each in groups.items():
        paths = parts[name].images.paths
        contents.shared |= {path: group for path, group in zip(paths, each, strict=False) if group in both}
    if both:
        return [f"{len(both):,} groups are in more than one part, so results are too optimistic: {shown(min(both))} is"]
    return [] if group_by is None else [f"no group is in more than one part (data.group_by={group_by})"]


#: How programs write a label that is missing.
_MISSING = frozenset(("nan", "NaN", "NA", "N/A", "n/a", "#N/A", "<NA>", "None", "null", "NULL"))


def _odd_names(classes: Sequence[str]) -> list[str]:
    """Notes on class names that are hardly meant: one name in two spellings, and what stands for a missing label."""
    spelt: dict[str, list[str]] = {}
    for name in classes:
        spelt.setdefault(re.sub(r"[\s_-]+", " ", name.casefold()).strip(), []).append(name)
    alike = [names for names in spelt.values() if len(names) > 1]
    missing = [name for name in classes if name in _MISSING]
    notes = [
        f"{len(alike):,} classes are spelt in several ways and trained as several, such as "
        f"{' and '.join(map(shown, names))}: if each is one class, give it one name"
        for names in alike[:1]
    ]
    return notes + [
        f"{shown(name)} is a class: if it stands for a missing label, remove its images" for name in missing
    ]


def _refuse_twins(classes: Sequence[str], where: str) -> None:
    """Raise ExciteError if two classes have one name: results by name would mix them up."""
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise ExciteError(f"{where} has two classes {shown(twice)}: give each a name of its own")


def _source(data: DataConfig, least_classes: int = 2) -> Contents:
    """The contents; images in memory are resized."""
    contents = source_contents(data, least_classes)
    for name, part in contents.parts.items():
        if isinstance(part, ArrayImages):
            contents.parts[name] = _brought_to_size(part, data).canonical()
    return contents


def _roles(data: DataConfig, source: Contents) -> _Roles:
    """Decide which images are for training, validation and test."""
    parts, notes = source.parts, []
    train = parts.get("train") or parts.get("all")
    if train is None:
        there = ", ".join(f"{name}/" for name in sorted(parts))
        root = source.where or data.root
        if any(isinstance(part, Part) and part.names is not None for part in parts.values()):
            raise ExciteError(f"{root} has no training images, only: {', '.join(title(name) for name in parts)}")
        raise ExciteError(f"{root} has {there} but no train/: put the training images into {Path(str(root)) / 'train'}")
    val, test, how = parts.get("val"), parts.get("test"), "part"
    wanted: str = data.val_from if data.fold is None else "train"
    if wanted == "auto":
        has_benchmark = test is not None and SOURCES[data.source].benchmark
        wanted = "part" if val is not None else "test" if has_benchmark else "train"
    if wanted == "test":
        if test is None:
            raise ExciteError(
                "data.val_from=test, but there is no test part; data.val_from=train holds out training images"
            )
        notes += ["the validation part is not used (data.val_from=test)"] if val is not None else []
        val, test, how = test, None, "test"
        notes.append(
            "validating on the test part, so nothing is chosen by it: the weights of the last epoch are kept "
            "(data.val_from=train holds out training images instead)"
        )
    elif wanted == "train":
        by = "data.val_from=train" if data.fold is None else "data.fold"
        notes += [f"the validation part is not used ({by})"] if val is not None else []
        whole = len(train)
        train, val, more = _split(data, source, train)
        how = "split"
        by = f"data.val_fraction={data.val_fraction:g}"
        if data.fold is not None:
            by = f"fold {data.fold[0]} of {data.fold[1]}, data.fold"
        notes.append(f"{len(val)} of {whole} images held out for validation ({by})")
        notes += more
    assert val is not None
    return _Roles(train, val, test, how, notes)


def _split(
    data: DataConfig, source: Contents, whole: "ArrayImages | Part"
) -> tuple["ArrayImages | Part", "ArrayImages | Part", list[str]]:
    """Hold out `val_fraction` of the images or a fold, deciding for each on its own; see :mod:`excite.data.split`."""
    notes: list[str] = []
    if isinstance(whole, ArrayImages):
        keys = whole.digests()
        labels = whole.labels.numpy()
    else:
        names = whole.within()
        labels = np.asarray(whole.images.labels)
        keys = [name.encode("utf-8", "surrogateescape") for name in names]
        if data.group_by is not None:
            keys, alone = group_keys(names, data.group_by, named_by_class=whole.names is None)
            notes.append(f"{len(set(keys)):,} groups are kept together (data.group_by={data.group_by})")
            notes += [f"{alone:,} images belong to no group: each stands alone"] if alone else []
        elif whole.groups is not None:
            keys = [group.encode("utf-8", "surrogateescape") for group in whole.groups]
            notes.append(f"{len(set(keys)):,} groups are kept together, as the source gives them")
    if data.fold is None:
        keep, out = stable_split(keys, labels, data.val_fraction, data.split_seed)
    else:
        fold, folds = data.fold
        keep, out = fold_split(keys, fold, folds, data.split_seed)
    kept, held = (set(np.flatnonzero(label_counts(labels[side], len(source.classes)))) for side in (keep, out))
    only_train = sorted(kept - held)
    if only_train:
        notes.append(
            f"{len(only_train)} classes have too few images (or groups) to validate on: "
            f"{some([source.classes[k] for k in only_train])}"
        )
    only_val = sorted(held - kept)
    if only_val:
        notes.append(
            f"{len(only_val)} classes have so few images that the split left them none to train on: "
            f"{some([source.classes[k] for k in only_val])}"
        )
    return whole.take(keep), whole.take(out), notes


def _limited(part: "ArrayImages | Part", limit: int | None, seed: int) -> "ArrayImages | Part":
    """At most `limit` images, class-balanced."""
    labels = part.labels.numpy() if isinstance(part, ArrayImages) else part.images.labels
    if limit is None or limit >= len(labels):
        return part
    return part.take(balanced_beginning(labels, limit, seed))


def _open(
    data: DataConfig, augment: AugmentConfig, check: bool, progress: Progress | None, source: Contents | None = None
) -> DataSets:
    source = _source(data) if source is None else source
    roles = _roles(data, source)
    notes = [*source.notes, *roles.notes]
    # Limits apply before decoding: a smoke test on a huge folder must not read all of it.
    train = _limited(roles.train, data.limit_train, data.split_seed)
    val = _limited(roles.val, data.limit_val, data.split_seed)
    test = None if roles.test is None else _limited(roles.test, data.limit_val, data.split_seed)
    for key, what, few, every in (
        ("limit_train", "training", train, roles.train),
        ("limit_val", "validation", val, roles.val),
        ("limit_val", "test", test, roles.test),
    ):
        if few is not None and every is not None and len(few) < len(every):
            notes.append(f"data.{key}: {len(few):,} of {len(every):,} {what} images")
    if isinstance(train, Part):
        assert isinstance(val, Part)
        assert test is None or isinstance(test, Part)
        opened = _of_files(data, augment, source, train, val, test, check, progress)
    else:
        assert isinstance(val, ArrayImages)
        opened = _in_memory(data, source.classes, train, val)
        opened.test = test if isinstance(test, ArrayImages) else None
    opened.notes = notes + opened.notes
    opened.val_is_test, opened.split = roles.how == "test", roles.how == "split"
    return opened


def _measured(
    data: DataConfig,
    augment: AugmentConfig,
    elsewhere: bool,
    all_of_it: bool,
    with_train: bool,
    record: Record | None,
    limits: Mapping[str, int],
) -> DataSets:
    source = _source(data, 1 if elsewhere or data.part != "val" else 2)  # as while training, or what there is
    images, what, sentence, of = _wanted(data, source, elsewhere, all_of_it)
    said = data.limit_val is not None and data.limit_val < min(len(images), limits.get("limit_val", len(images)) + 1)
    fewest = {key: min(n, getattr(data, key) or n) for key, n in limits.items()}
    data = data.model_copy(update=fewest)
    if what == "validation" and not elsewhere:  # as while training, with its fingerprint
        opened = _open(data, augment, False, None, source)
        part = "val" in source.parts and data.val_from == "auto"
        sentence = None if part and not said else sentence
    else:
        images = _limited(images, data.limit_val, data.split_seed)
        train = images
        if with_train:
            train = source.parts.get("train") or source.parts.get("all") or images
            train = _limited(train, data.limit_train, data.split_seed)
        if isinstance(images, Part):
            assert isinstance(train, Part)
            opened = _of_files(data, augment, source, train, images, None, False, None)
        else:
            assert isinstance(train, ArrayImages)
            opened = _in_memory(data, source.classes, train, images)
        if train is images:
            opened.train = opened.val
    opened.notes, opened.measured = list(source.notes), what
    if sentence is not None:
        count = len(opened.val) + opened.bad_val
        limit = f" (data.limit_val={data.limit_val})" if said else ""
        opened.notes.append(f"measured: {sentence}, {count:,} of {of:,} images{limit}")
    if record is not None and isinstance(images, Part):
        seen = 0 if same_files(record, images.relative()) else trained_among(record, images)
        if seen:
            opened.notes.append(
                f"the network was trained on {seen:,} of these {len(images):,} images, "
                "so the results are too optimistic"
                + ("; data.part=val measures only the held-out ones" if what == "all" else "")
            )
    return opened


def _wanted(
    data: DataConfig, source: Contents, elsewhere: bool, all_of_it: bool
) -> tuple["ArrayImages | Part", str, str | None, int]:
    """The images to measure, what they are, a clause that says so, and how many there are in all."""
    parts = source.parts
    where = f" of {data.root}" if elsewhere else ""
    if data.part == "test":
        if "test" not in parts:
            raise ExciteError(
                f"data.part=test, but {data.root or data.source} has no test part (a folder test/ beside train/); it "
                f"has: {', '.join(title(p) for p in parts)}",
                instead={f"{key}=test": f"{key}=val" for key in ("data.part", "part")},
            )
        return parts["test"], "test", f"the test part{where}", len(parts["test"])
    if data.part == "train":
        roles = _roles(data, source)
        return roles.train, "training", f"the training images{where}", len(roles.train)
    if all_of_it and "val" not in parts:
        if "test" in parts:
            return parts["test"], "test", f"the test part{where}, which has no validation part", len(parts["test"])
        every = parts.get("all") or parts["train"]
        return every, "all", f"all images{where}", len(every)
    if all_of_it:
        return parts["val"], "validation", f"the validation part{where}", len(parts["val"])
    roles = _roles(data, source)
    what = {"part": "the validation part", "split": "the images held out for validation", "test": "the test part"}
    whole = len(roles.val) + (len(roles.train) if roles.how == "split" else 0)
    return roles.val, "validation", what[roles.how] + where, whole


def _brought_to_size(part: ArrayImages, data: DataConfig) -> ArrayImages:
    channels = part.images.shape[1]
    if data.in_chans not in (1, 3, channels):
        raise ExciteError(f"data.in_chans={data.in_chans}, but the images of {data.source} have {channels}")
    pixels = luma(part.images) if data.in_chans == 1 and channels == 3 else part.images
    return ArrayImages(
        fitted(pixels, data.training_size, data.crop_pct, data.interpolation, data.fit), part.labels, part.names
    )


def balanced_beginning(labels: list[int] | np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Ascending positions of the first `limit` images of a seeded class-balanced order; None: all positions."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    return np.sort(balanced_order(labels, seed)[:limit])


def _in_memory(data: DataConfig, classes: list[str], train: ArrayImages, val: ArrayImages) -> DataSets:
    if data.mean is not None and data.std is not None:
        mean, std = data.mean, data.std
    else:
        mean, std = channel_statistics(train.images)
        repeat = data.in_chans // len(mean)
        mean, std = mean * repeat, std * repeat
    whole, parts = hashlib.sha256(), dict[str, str]()
    for name, part in (("train", train), ("val", val)):
        content = b"".join([repr(tuple(part.images.shape)).encode(), *sorted(part.digests())])
        whole.update(content)
        parts[name] = hashlib.sha256(content).hexdigest()
    opened = DataSets(_renamed(classes, data), train, val, _preprocessing(data, mean, std), whole.hexdigest(), parts)
    if mapped := {id(part): part.images.numel() for part in (train, val) if on_disk(part.images)}:
        opened.notes.append(
            f"the decoded images take {sum(mapped.values()) / 1e9:,.1f} GB, more than half of the memory that is left: "
            "they are kept in a file in the cache folder (EXCITE_CACHE), with the same results"
        )
    return opened


def _preprocessing(data: DataConfig, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
    return Preprocessing(
        data.evaluation_size,
        data.crop_pct,
        data.interpolation,
        tuple(mean),
        tuple(std),
        data.in_chans,
        data.white or FULL_WHITE,
        data.fit,
    )


def _renamed(classes: list[str], data: DataConfig) -> list[str]:
    if data.class_names is None:
        return classes
    if len(data.class_names) != len(classes):
        raise ExciteError(
            f"data.class_names has {len(data.class_names)} names, but the source has {len(classes)} classes"
        )
    _refuse_twins(data.class_names, "data.class_names")
    return data.class_names


def _of_files(
    data: DataConfig,
    augment: AugmentConfig,
    source: Contents,
    train: Part,
    val: Part,
    test: Part | None,
    check: bool,
    progress: Progress | None,
) -> DataSets:
    """Files: decoded into memory if they are small, else when they are needed."""
    notes: list[str] = []
    checked: dict[str, Checked] = {}
    if check:
        for name, part in (("train", train), ("val", val), ("test", test)):
            if part is not None:
                checked[name] = check_files(part, data.max_pixels, title(name), progress, data.in_chans)
        refuse_broken(data, {name: (found.bad, len(found.digests)) for name, found in checked.items()})
    if data.evaluation_size != data.training_size:
        notes.append(f"training at {size_text(data.training_size)}, evaluating at {size_text(data.evaluation_size)}")
    pixels = pixels_of(data, len(train), len(val))
    small = augment.crop != "random_resized" and pixels <= MEMORY_LIMIT
    memory = data.mode == "memory" or (data.mode == "auto" and small)
    data, said = with_white(data, train.images, val.images, every=memory)
    notes += said
    if test is not None:
        test.images.white = train.images.white
    if memory:
        plain = _preprocessing(data, (0.0,), (1.0,))  # decoding does not look at the statistics
        for_training = replace(plain, image_size=data.training_size)
        val_images, bad_val = decode_all(val.images, plain, data.max_pixels)
        train_images, bad_train = val_images, list[tuple[str, str]]()
        if train is not val:
            train_images, bad_train = decode_all(train.images, for_training, data.max_pixels)
        refuse_broken(data, {"train": (bad_train, len(train)), "val": (bad_val, len(val))})
        opened = _in_memory(data, source.classes, train_images.canonical(), val_images.canonical())
        opened.bad, opened.bad_val = bad_train + bad_val, len(bad_val)
        notes += opened.notes
    else:
        mean, std, said = _streamed_statistics(data, train.images)
        notes += said
        preprocessing = _preprocessing(data, mean, std)
        digest = _files_digest(train, val)
        parts = {"train": _files_digest(train), "val": _files_digest(val)}
        opened = DataSets(_renamed(source.classes, data), train.images, val.images, preprocessing, digest, parts)
        known = [*(checked["train"].bad if checked else []), *(checked["val"].bad if checked else [])]
        if known:
            notes.append(_skipped(known))
    opened.notes, opened.unusable, opened.shared = notes, source.unusable, source.shared
    opened.test = None if test is None else test.images
    if check:
        opened.record, more = make_record(train, val, checked)
        opened.notes += more
    return opened


def pixels_of(data: DataConfig, train: int, val: int) -> int:
    """Bytes of so many decoded training and validation images."""
    sizes = ((train, data.training_size), (val, data.evaluation_size))
    return sum(count * height * width for count, (height, width) in sizes) * data.in_chans


def _streamed_statistics(data: DataConfig, train: FileImages) -> tuple[Sequence[float], Sequence[float], list[str]]:
    """Mean and standard deviation of each channel for images that are not all decoded beforehand, and notes: the
    recipe's, else ImageNet's; of bands, which ImageNet does not have, those of a sample of the training images."""
    if data.mean is not None and data.std is not None:
        return data.mean, data.std, []
    if data.in_chans == 3:
        return IMAGENET_MEAN, IMAGENET_STD, []
    if data.in_chans == 1:
        return [sum(IMAGENET_MEAN) / 3], [sum(IMAGENET_STD) / 3], []
    sample = train.take(np.unique(np.linspace(0, len(train) - 1, SAMPLED).round().astype(int)))
    whole = replace(_preprocessing(data, (0.0,), (1.0,)), image_size=data.training_size)
    images, bad = decode_all(sample, whole, data.max_pixels)
    if not len(images):
        raise ExciteError(f"none of {len(sample)} training images can be read; the first is {bad[0][0]}: {bad[0][1]}")
    mean, std = channel_statistics(images.images)
    note = (
        f"mean and standard deviation of the {data.in_chans} channels are those of {len(images):,} of {len(train):,} "
        "training images (data.mean and data.std set them)"
    )
    return mean, std, [note]


def refuse_broken(data: DataConfig, bad: Mapping[str, tuple[list[tuple[str, str]], int]]) -> None:
    """Apply the recipe's rules on broken files: all files that stop a run are named at once."""
    rules = {"train": ("data.on_bad_train", data.on_bad_train)}
    stop: list[tuple[str, str]] = []
    keys = []
    for part, (found, count) in bad.items():
        key, rule = rules.get(part, ("data.on_bad_val", data.on_bad_val))
        if found and rule == "stop":
            stop += found
            keys += [] if key in keys else [key]
        else:
            refuse_bad(found, "skip", key, count)
    if stop:
        refuse_bad(stop, "stop", "=skip ".join(keys), len(stop))


def _skipped(bad: Sequence[tuple[str, str]]) -> str:
    path, reason = bad[0]
    return (
        f"{len(bad)} broken images will be skipped (data.on_bad_train=stop refuses them); the first is {path}: {reason}"
    )


def _files_digest(*parts: Part) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for relative, size, label in zip(part.relative(), part.sizes.tolist(), part.images.labels, strict=True):
            digest.update(f"{relative}\0{size}\0{label_text(label)}\n".encode("utf-8", "surrogateescape"))
        digest.update(b"\0")
    return digest.hexdigest()
