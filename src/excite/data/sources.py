"""`open_data`: from what a recipe says to labelled images, their class names and their statistics."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from excite.data.cifar import read_cifar
from excite.data.config import AugmentConfig, DataConfig
from excite.data.digits import read_digits
from excite.data.folder import EXTENSIONS, decode_all, read_folder
from excite.data.idx import read_idx_folder
from excite.data.images import (
    ArrayImages,
    FileImages,
    balanced_order,
    channel_statistics,
    fit,
    luma,
    stratified_split,
)
from excite.data.pixels import FULL_WHITE
from excite.data.preprocessing import Preprocessing
from excite.data.white import with_white
from excite.errors import ExciteError, nearest
from excite.storage import is_remote, stage

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEMORY_LIMIT = 2 << 30  # bytes of pixels up to which mode=auto holds a folder in memory

Images = ArrayImages | FileImages


@dataclass
class DataSets:
    """An opened source. `train` and `val` are either both ArrayImages or both FileImages."""

    classes: list[str]
    train: Images
    val: Images
    preprocessing: Preprocessing
    fingerprint: str  # hex digest: of contents and labels for arrays, of relative paths and sizes for files
    bad: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of images skipped while loading
    bad_val: int = 0  # how many of these are validation images
    notes: list[str] = field(default_factory=list)  # what a user should know, one sentence each

    @property
    def mean(self) -> tuple[float, ...]:
        """Per-channel mean in 0..1 units."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per-channel standard deviation in 0..1 units."""
        return self.preprocessing.std

    def describe(self) -> str:
        """One line: counts, size, where the pixels live; and one line for each note."""
        size, place = self.preprocessing.image_size, "memory" if isinstance(self.train, ArrayImages) else "files"
        line = (
            f"{len(self.train)} training and {len(self.val)} validation images of {len(self.classes)} classes, "
            f"{self.preprocessing.in_chans} x {size} x {size}, from {place}"
        )
        skipped = [f"{len(self.bad)} broken images skipped, the first: {self.bad[0][0]}"] if self.bad else []
        return "\n".join([line, *skipped, *self.notes])


def open_data(data: DataConfig, augment: AugmentConfig | None = None) -> DataSets:
    """Open the source that `data` describes; `augment` decides, with the size, whether a folder is held in memory.

    Raises ExciteError for a path that does not exist, a source that is incomplete, damaged or empty, labels out of
    range, and (by data.on_bad_train / on_bad_val) for images that cannot be read.
    """
    if data.root is not None and is_remote(data.root) and data.source != "digits":
        staged = stage(data.root, EXTENSIONS if data.source == "folder" else None)
        opened = open_data(data.model_copy(update={"root": str(staged.path)}), augment)
        opened.notes += [staged.note] if staged.note else []
        return opened
    if data.source == "folder":
        return _open_folder(data, augment or AugmentConfig())
    if data.source == "digits":
        classes, train, val = read_digits()
        held_out: ArrayImages | None = val
    elif data.source == "idx":
        classes, train, held_out = read_idx_folder(_root(data, "folder"), data.class_names)
    else:
        classes, train, held_out = read_cifar(data.source, _root(data, "any"))
    train = _brought_to_size(train, data).canonical()
    if held_out is None:
        keep, out = stratified_split(train.labels.numpy(), data.val_fraction, data.split_seed)
        train, held_out = train.take(keep), train.take(out)
    else:
        held_out = _brought_to_size(held_out, data).canonical()
    train = train.take(balanced_beginning(train.labels.numpy(), data.limit_train, data.split_seed))
    held_out = held_out.take(balanced_beginning(held_out.labels.numpy(), data.limit_val, data.split_seed))
    return _in_memory(data, classes, train, held_out)


def _brought_to_size(part: ArrayImages, data: DataConfig) -> ArrayImages:
    pixels = luma(part.images) if data.in_chans == 1 and part.images.shape[1] == 3 else part.images
    return ArrayImages(fit(pixels, data.image_size, data.crop_pct, data.interpolation), part.labels, part.names)


def balanced_beginning(labels: list[int] | np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Positions, ascending, of the first `limit` of a seeded class-balanced order; all of them for None."""
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
    digest = hashlib.sha256()
    for part in (train, val):
        digest.update(repr(tuple(part.images.shape)).encode())
        for one in sorted(part.digests()):
            digest.update(one)
    return DataSets(_renamed(classes, data), train, val, _preprocessing(data, mean, std), digest.hexdigest())


def _preprocessing(data: DataConfig, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
    size = data.evaluation_size
    white = data.white or FULL_WHITE
    return Preprocessing(size, data.crop_pct, data.interpolation, tuple(mean), tuple(std), data.in_chans, white)


def _renamed(classes: list[str], data: DataConfig) -> list[str]:
    if data.class_names is None:
        return classes
    if len(data.class_names) != len(classes):
        raise ExciteError(
            f"data.class_names has {len(data.class_names)} names, but the source has {len(classes)} classes"
        )
    return data.class_names


def _open_folder(data: DataConfig, augment: AugmentConfig) -> DataSets:
    root = _root(data, "folder")
    classes, train, val = read_folder(root)
    notes: list[str] = []
    if val is None:
        keep, out = stratified_split(train.labels, data.val_fraction, data.split_seed)
        train, val = train.take(keep), train.take(out)
        unseen = len(set(val.labels) - set(train.labels))
        if unseen:
            notes.append(f"{unseen} classes have so few images that the split left them none to train on")
    # Limits apply before anything is decoded: a smoke test on a huge folder must not read all of it.
    train = train.take(balanced_beginning(train.labels, data.limit_train, data.split_seed))
    val = val.take(balanced_beginning(val.labels, data.limit_val, data.split_seed))
    if data.evaluation_size != data.image_size:
        notes.append(f"trained at {data.image_size} pixels, evaluated at {data.evaluation_size}")
    pixels = (len(train) * data.image_size**2 + len(val) * data.evaluation_size**2) * data.in_chans
    small = augment.crop != "random_resized" and pixels <= MEMORY_LIMIT
    memory = data.mode == "memory" or (data.mode == "auto" and small)
    data, said = with_white(data, train, val, every=memory)
    notes += said
    if memory:
        plain = _preprocessing(data, (0.0,), (1.0,))  # decoding does not look at the statistics
        for_training = replace(plain, image_size=data.image_size)
        train_images, bad_train = decode_all(train, for_training, data.max_pixels, data.on_bad_train)
        val_images, bad_val = decode_all(val, plain, data.max_pixels, data.on_bad_val)
        opened = _in_memory(data, classes, train_images.canonical(), val_images.canonical())
        opened.bad, opened.bad_val, opened.notes = bad_train + bad_val, len(bad_val), notes
        return opened
    average = [sum(IMAGENET_MEAN) / 3], [sum(IMAGENET_STD) / 3]
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if data.in_chans == 3 else average
    preprocessing = _preprocessing(data, data.mean or mean, data.std or std)
    return DataSets(_renamed(classes, data), train, val, preprocessing, _files_digest(root, train, val), notes=notes)


def _files_digest(root: Path, *parts: FileImages) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for path, label in zip(part.paths, part.labels, strict=True):
            relative = Path(path).relative_to(root).as_posix()
            digest.update(f"{relative}\0{os.path.getsize(path)}\0{label}\n".encode("utf-8", "surrogateescape"))
        digest.update(b"\0")
    return digest.hexdigest()


def _root(data: DataConfig, kind: str) -> Path:
    """The source's path, checked; `kind` is "folder", or "any" where an archive file will do."""
    if data.root is None:
        raise ExciteError(
            f"data.root is not set: give the path of the {data.source} data, as in data.root=/path/to/data"
        )
    root = Path(data.root).expanduser()
    if not root.exists():
        parent = next(p for p in root.absolute().parents if p.exists())
        missing = root.absolute().relative_to(parent).parts[0]
        names = [entry.name for entry in os.scandir(parent)] if parent.is_dir() else []
        raise ExciteError(f"data.root={data.root} does not exist: {parent} has no {missing!r}{nearest(missing, names)}")
    if kind == "folder" and not root.is_dir():
        raise ExciteError(f"data.root={data.root} is a file, but source={data.source} needs a folder")
    return root
