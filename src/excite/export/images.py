"""Images for verification and calibration: the user's, the run's, or random ones.

Notation: N images, C channels, h x w pixels of an image, H x W of the network's input.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from excite.data import ArrayImages, Preprocessing
from excite.data.catalog import SOURCES, is_archive
from excite.data.config import PILLOW_LIMIT
from excite.data.contents import Part as Listed
from excite.data.decode import BadImageError, as_picture, check_image, load_picture
from excite.data.folder import read_folder, refuse_bad, some
from excite.data.images import balanced_order
from excite.data.packed import Member
from excite.errors import ExciteError
from excite.storage import local_file
from excite.trained.classes import check_order
from excite.trained.given import find_images
from excite.trained.opened import Opened
from excite.weights.checkpoint import only_numbers_classes
from excite.weights.header import Meta

Part = Literal["train", "val"]


@dataclass(frozen=True)
class Samples:
    """Images, each of its own size.

    Attributes:
        name: their origin, for messages.
        count: number of images.
        read: position -> uint8 (H, W, C).
        labels: class indices; None if unknown, as for random images.
        random: whether they are noise.
        sources: what each is read from; None for images in memory.
    """

    name: str
    count: int
    read: Callable[[int], np.ndarray]  # position -> uint8 (H, W, C)
    labels: Sequence[int] | np.ndarray | None
    random: bool = False
    sources: Sequence[str | Member] | None = None

    def __len__(self) -> int:
        return self.count

    def take(self, limit: int) -> "Samples":
        """At most ``limit`` images (0: all), drawn with a fixed seed, class-balanced if the classes are known."""
        if not limit or limit >= self.count:
            return self
        classes = [0] * self.count if self.labels is None else self.labels
        chosen = balanced_order(classes, 0)[:limit].tolist()
        labels = None if self.labels is None else [self.labels[i] for i in chosen]
        name = f"{limit} of the {self.count:,} images of {self.name}"
        return self._chosen(name, chosen, labels)

    def _chosen(self, name: str, chosen: Sequence[int], labels: Sequence[int] | None) -> "Samples":
        sources = None if self.sources is None else [self.sources[i] for i in chosen]
        return Samples(name, len(chosen), lambda i: self.read(chosen[i]), labels, self.random, sources)

    def readable(self, data: Mapping[str, Any], part: Part) -> tuple["Samples", str | None]:
        """The images that can be read, by the recipe's ``on_bad_...`` rule, and a sentence if some were left out.

        Args:
            data: the recipe's ``data`` section, as in a checkpoint's header.
            part: the part whose rule applies.

        Raises:
            ExciteError: an image cannot be read and the rule is to stop, or no image can be read.
        """
        bad: dict[int, str] = {}
        for i, source in enumerate(self.sources or ()):
            try:
                check_image(_local(source), data.get("max_pixels", PILLOW_LIMIT), data.get("in_chans", 3))
            except BadImageError as error:
                bad[i] = error.reason
        if not bad:
            return self, None
        key = f"data.on_bad_{part}"
        listed = [(os.fspath((self.sources or ())[i]), reason) for i, reason in bad.items()]
        refuse_bad(listed, data.get(f"on_bad_{part}", "stop"), key, self.count)
        good = [i for i in range(self.count) if i not in bad]
        labels = None if self.labels is None else [self.labels[i] for i in good]
        note = f"{len(bad)} images cannot be read and are left out ({key}=stop makes this an error): {listed[0][0]}"
        return self._chosen(self.name, good, labels), note


def prepare(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 (h, w, C) -> uint8 (H, W, C), brought to the network's size with Pillow as in ``excite predict``."""
    return preprocessing.fitted(as_picture(image))


def open_samples(opened: Opened, where: str | None, part: Part) -> tuple[Samples, str | None]:
    """The images at ``where``, or the run's own, or random ones; and a note for the user, if any.

    Args:
        opened: the network with its images; if these have overrides, random images are not used.
        where: class folders (labelled), data of the recipe's format (labelled), or any images; None: the run's own.
        part: the part of the data set.

    Raises:
        ExciteError: there are no images at ``where``, or they have other classes than the network.
    """
    preprocessing = opened.predictor.preprocessing
    if where is not None:
        return _at(opened, where, part, preprocessing)
    try:
        return _of_recipe(opened, part, preprocessing)
    except ExciteError as error:
        if opened.overrides:
            raise
        note = f"the run's own images are not available ({error}); random images are used instead: name your own"
        return random_samples(preprocessing), note


def random_samples(preprocessing: Preprocessing, count: int = 64) -> Samples:
    """Seeded, blurred noise images of several sizes, smooth enough to test the resize."""
    channels, *size = preprocessing.shape

    def read(i: int) -> np.ndarray:
        rng = np.random.default_rng(i)
        height, width = size if i % 4 == 0 else (int(rng.integers(max(1, n // 2), 3 * n + 1)) for n in size)
        return blurred_noise(rng, height, width, channels)

    return Samples(f"{count} random images, not real ones", count, read, None, random=True)


def blurred_noise(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """Smooth noise: uint8 (H, W, C)."""
    small = rng.integers(0, 256, (max(1, height // 4), max(1, width // 4), channels), dtype=np.uint8)
    return np.asarray(as_picture(small).resize((width, height))).reshape(height, width, channels)


def _at(opened: Opened, where: str, part: Part, preprocessing: Preprocessing) -> tuple[Samples, str | None]:
    meta = opened.predictor.meta
    labelled = _labelled(meta, where, part, preprocessing)
    if labelled is not None:
        return labelled
    facts = SOURCES[meta["recipe"]["data"]["source"]]
    if facts.root is not None and not facts.files:
        try:
            there = Opened(opened.located, opened.predictor, [f"data.root={where}"], train=part == "train")
            return _of_recipe(there, part, preprocessing)
        except ExciteError as error:
            as_data = error
        try:
            return _files(where, find_images([where]), None, preprocessing), None
        except ExciteError:
            raise as_data from None
    said: list[str] = []
    return _files(where, find_images([where], said.append), None, preprocessing), "; ".join(said) or None


def _labelled(meta: Meta, where: str, part: Part, preprocessing: Preprocessing) -> tuple[Samples, str | None] | None:
    """Images in class folders, and a note on what was left out; None without folders of the network's classes."""
    order = meta["recipe"]["data"].get("class_order")
    try:
        there = Path(where).is_dir() or (Path(where).is_file() and is_archive(where))
        folder = read_folder(Path(where), order, least=1) if there else None
    except ExciteError:
        return None
    if folder is None:
        return None
    names, notes = list(meta["classes"]), list(folder.notes)
    if only_numbers_classes(meta):
        if len(folder.classes) != len(names):
            return None
        check_order(meta, folder.classes, order, where)
        names = folder.classes
    wanted = ("train", "all", "val", "test") if part == "train" else ("val", "test", "all", "train")
    chosen = folder.parts[next(name for name in wanted if name in folder.parts)]
    assert isinstance(chosen, Listed)
    images = chosen.images
    numbers = {k: names.index(name) for k, name in enumerate(folder.classes) if name in names}
    kept = [(images.source(i), numbers[k]) for i, k in enumerate(images.labels) if k in numbers]
    if not kept:
        return None
    if len(kept) < len(images):
        unknown = some([name for name in folder.classes if name not in names])
        notes.append(
            f"{len(images) - len(kept)} images of classes that the network does not have are left out: {unknown}"
        )
    samples = _files(where, [source for source, _ in kept], [label for _, label in kept], preprocessing)
    return samples, "; ".join(notes) or None


def _local(source: str | Member) -> str | Member:
    return source if isinstance(source, Member) else local_file(source)


def _files(
    name: str, sources: Sequence[str | Member], labels: Sequence[int] | np.ndarray | None, preprocessing: Preprocessing
) -> Samples:
    def read(i: int) -> np.ndarray:
        pixels = np.asarray(load_picture(_local(sources[i]), preprocessing.in_chans, white=preprocessing.white))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    return Samples(name, len(sources), read, labels, sources=sources)


def _of_recipe(opened: Opened, part: Part, preprocessing: Preprocessing) -> tuple[Samples, str | None]:
    data, overrides = opened.data, opened.overrides
    images = data.val if part == "val" else data.train
    what = {"val": data.measured, "train": "training"}[part]
    name = f"the run's own {what} images" if not overrides else f"the {what} images of {' '.join(overrides)}"
    note = "; ".join(data.notes) or None
    if not isinstance(images, ArrayImages):
        return _files(name, [images.source(i) for i in range(len(images))], images.labels, preprocessing), note

    def read(i: int) -> np.ndarray:
        pixels = images.images[i].permute(1, 2, 0).numpy()
        return np.repeat(pixels, preprocessing.in_chans // pixels.shape[2], 2)

    return Samples(name, len(images), read, images.labels.tolist()), note
