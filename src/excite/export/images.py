"""Images to verify and calibrate with: the user's own, the run's, or random ones.

Letters: N images, C channels (1 or 3), H x W pixels, S side of what the network sees.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from excite.data import ArrayImages, Preprocessing, eval_transform, open_data
from excite.data.decode import load_image
from excite.data.folder import EXTENSIONS
from excite.data.images import balanced_order
from excite.errors import ExciteError
from excite.inference import classes_fit, find_images, only_numbers_classes
from excite.recipe import Recipe
from excite.storage import local_file

Part = Literal["train", "val"]


@dataclass(frozen=True)
class Samples:
    """Images, each of its own size.

    Attributes:
        name: where they come from, for the report.
        labels: class numbers, or None where they are not known (random images: which is a class has no meaning).
        random: whether they are noise.
    """

    name: str
    count: int
    read: Callable[[int], np.ndarray]  # position -> uint8 (H, W, C)
    labels: Sequence[int] | None
    random: bool = False

    def __len__(self) -> int:
        return self.count

    def take(self, limit: int) -> "Samples":
        """At most ``limit`` of them (0: all), drawn with a fixed seed, class-balanced where the classes are known."""
        if not limit or limit >= self.count:
            return self
        classes = [0] * self.count if self.labels is None else self.labels
        chosen = balanced_order(classes, 0)[:limit].tolist()
        labels = None if self.labels is None else [self.labels[i] for i in chosen]
        name = f"{limit} of the {self.count:,} images of {self.name}"
        return Samples(name, limit, lambda i: self.read(chosen[i]), labels, self.random)


def prepare(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 (H, W, C) -> uint8 (S, S, C), as ``excite predict`` resizes and crops it (Pillow)."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    return eval_transform(picture, preprocessing.image_size, preprocessing.crop_pct, preprocessing.interpolation)


def open_samples(meta: dict[str, Any], where: str | None, part: Part) -> tuple[Samples, str | None]:
    """The images at ``where``, or the run's own, or random ones; and a sentence where it is not what one would expect.

    Args:
        meta: of the checkpoint: classes, preprocessing, recipe.
        where: class folders (labelled), data of the recipe's format (labelled), or any images; None: the run's own.
        part: which part of a data set.

    Raises:
        ExciteError: there are no images at ``where``, or their classes are not the network's.
    """
    preprocessing = Preprocessing.from_dict(meta["preprocessing"])
    if where is not None:
        return _at(meta, where, part, preprocessing), None
    try:
        return _of_recipe(meta, None, part, preprocessing), None
    except ExciteError as error:
        note = f"the run's own images cannot be had ({error}); random ones are taken instead: name yours"
        return random_samples(preprocessing), note


def random_samples(preprocessing: Preprocessing, count: int = 64) -> Samples:
    """Blurred noise of several sizes, seeded: smooth enough that a resize has something to do."""
    size, channels = preprocessing.image_size, preprocessing.in_chans

    def read(i: int) -> np.ndarray:
        rng = np.random.default_rng(i)
        height, width = (size, size) if i % 4 == 0 else rng.integers(max(1, size // 2), 3 * size + 1, 2).tolist()
        return blurred_noise(rng, height, width, channels)

    return Samples(f"{count} random images, not real ones", count, read, None, random=True)


def blurred_noise(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """uint8 (H, W, C)."""
    small = rng.integers(0, 256, (max(1, height // 4), max(1, width // 4), channels), dtype=np.uint8)
    picture = Image.fromarray(small[:, :, 0] if channels == 1 else small).resize((width, height))
    return np.asarray(picture).reshape(height, width, channels)


def _at(meta: dict[str, Any], where: str, part: Part, preprocessing: Preprocessing) -> Samples:
    folders = _class_folders(Path(where), meta, part)
    if folders:
        paths, labels = [], []
        for label, folder in folders:
            found = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
            paths += found
            labels += [label] * len(found)
        if paths:
            return _files(where, paths, labels, preprocessing)
    if meta["recipe"]["data"]["source"] not in ("folder", "digits"):
        try:
            return _of_recipe(meta, where, part, preprocessing)
        except ExciteError as error:
            as_data = error
        try:
            return _files(where, find_images([where]), None, preprocessing)
        except ExciteError:
            raise as_data from None
    return _files(where, find_images([where]), None, preprocessing)


def _class_folders(root: Path, meta: dict[str, Any], part: Part) -> list[tuple[int, Path]]:
    """Number and folder of classes: in the root's part for ``part`` where it has such, else in the root itself."""
    classes = meta["classes"]
    for name in {"val": ("val", "test"), "train": ("train",)}[part] + ("",):
        folders = (
            sorted(p for p in (root / name).iterdir() if p.is_dir() and p.name[0] != ".")
            if (root / name).is_dir()
            else []
        )
        if only_numbers_classes(meta) and len(folders) == len(classes):
            return list(enumerate(folders))
        if found := [(classes.index(p.name), p) for p in folders if p.name in classes]:
            return found
    return []


def _files(name: str, paths: list[str], labels: list[int] | None, preprocessing: Preprocessing) -> Samples:
    mode: Literal["RGB", "L"] = "L" if preprocessing.in_chans == 1 else "RGB"

    def read(i: int) -> np.ndarray:
        pixels = np.asarray(load_image(local_file(paths[i]), mode))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    return Samples(name, len(paths), read, labels)


def _of_recipe(meta: dict[str, Any], root: str | None, part: Part, preprocessing: Preprocessing) -> Samples:
    recipe = Recipe.from_dict(meta["recipe"], "the checkpoint's recipe")
    config = recipe.data if root is None else recipe.data.model_copy(update={"root": root})
    data = open_data(config, recipe.augment)
    if not classes_fit(meta, data.classes):
        raise ExciteError(f"the {len(data.classes)} classes of {root or 'the data'} are not the network's")
    images = data.val if part == "val" else data.train
    name = f"the run's own {'validation' if part == 'val' else 'training'} images" if root is None else root
    if not isinstance(images, ArrayImages):
        return _files(name, images.paths, images.labels, preprocessing)

    def read(i: int) -> np.ndarray:
        pixels = images.images[i].permute(1, 2, 0).numpy()
        return np.repeat(pixels, preprocessing.in_chans // pixels.shape[2], 2)

    return Samples(name, len(images), read, images.labels.tolist())
