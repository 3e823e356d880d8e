"""All images of a data set as one list, whatever source they come from."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from excite.data import ArrayImages, DataSets, FileImages
from excite.data.bands import COLOURS
from excite.data.decode import ImageSource, check_regular, load_picture
from excite.data.labels import counts, several
from excite.data.packed import Member, open_bytes
from excite.data.pixels import FULL_WHITE
from excite.pages.pictures import visible

#: Names of the parts, for people and for files: as in ``DataSets``.
PARTS = ("training", "validation", "test")


@dataclass
class Items:
    """N labelled images of all parts.

    Attributes:
        classes: class names, in the order of the labels. With several labels an image, the combinations of classes that
            occur: "cat|dog".
        labels: int64 (N,).
        parts: int64 (N,), positions in :data:`PARTS`.
        names: N names for display, as in ``FileImages.names`` and ``ArrayImages.names``: unique within a part only.
        max_pixels: larger images are not decoded.
        channels: that the network takes, ``data.in_chans``.
        each_class: K class names.
        several: uint8 (N, K), 1 for each class of an image; None where each image has one.
        shared: path of an image -> its group, such as a patient, if that is in more than one part of the source.
    """

    classes: list[str]
    labels: np.ndarray
    parts: np.ndarray
    names: list[str]
    max_pixels: int
    channels: int
    _held: list[ArrayImages | FileImages] = field(repr=False)
    _place: np.ndarray = field(repr=False)
    each_class: list[str]
    several: np.ndarray | None = None
    shared: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def given(self) -> np.ndarray:
        """The labels as they are given: int64 (N,), or uint8 (N, K) with several an image."""
        return self.labels if self.several is None else self.several

    def where(self, item: int) -> tuple[ArrayImages | FileImages, int]:
        """The images of the item's part, and its position in them."""
        return self._held[self.parts[item]], int(self._place[item])

    def path(self, item: int) -> str | None:
        """The item's file; None for an image that is not a file of its own."""
        images, at = self.where(item)
        return images.paths[at] if isinstance(images, FileImages) else None

    def source(self, item: int) -> ImageSource:
        """What an image is read from: its file or its place in a larger one, or its pixels, uint8 (H, W, C)."""
        images, at = self.where(item)
        if isinstance(images, ArrayImages):
            return images.images[at].permute(1, 2, 0).contiguous().numpy()
        return images.source(at)

    def data(self, item: int) -> bytes:
        """The bytes of the item's file, or of its pixels. Raises OSError or ValueError if the file cannot be read."""
        source = self.source(item)
        if isinstance(source, np.ndarray):
            return source.tobytes()
        assert isinstance(source, str | Member)
        if not isinstance(source, Member):
            check_regular(source)
        with open_bytes(source) as file:
            return file.read()

    def picture(self, item: int, enough: int) -> Image.Image:
        """The image in RGB, as people see it; a JPEG may be decoded smaller (``load_image``). Raises BadImageError."""
        images, _ = self.where(item)
        white = images.white if isinstance(images, FileImages) else FULL_WHITE
        # Grey and colours as they are: an image that is to become grey still shows its colours here.
        channels = self.channels if self.channels not in COLOURS else 3
        found = load_picture(self.source(item), channels, self.max_pixels, enough, white)
        return found if isinstance(found, Image.Image) else Image.fromarray(visible(found.pixels)).convert("RGB")

    def stamp(self, item: int) -> bytes:
        """What changes when the item does: path, size and date of its file, or its pixels."""
        images, at = self.where(item)
        if isinstance(images, ArrayImages):
            pixels = images.images[at]
            return repr(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()
        source = images.source(at)
        path = os.path.abspath(source)
        try:
            found = os.stat(source.file.path if isinstance(source, Member) else path)
        except OSError:
            return os.fsencode(path)
        return os.fsencode(path) + f"\0{found.st_size}\0{found.st_mtime_ns}\0{images.white}".encode()

    def label(self, item: int) -> str:
        """The name of the item's class."""
        return self.classes[int(self.labels[item])]

    def part(self, item: int) -> str:
        """The name of the item's part."""
        return PARTS[int(self.parts[item])]

    def counts(self) -> np.ndarray:
        """Images of each class in each part: int64 (3, K)."""
        return np.stack([self._counts(self.parts == part) for part in range(len(PARTS))])

    def _counts(self, some: np.ndarray) -> np.ndarray:
        return counts(self.given[some], len(self.each_class))


def combined(classes: Sequence[str], given: np.ndarray) -> str:
    """The name of a combination of classes, uint8 (K,): "cat|dog", or "none"."""
    return "|".join(classes[k] for k in np.flatnonzero(given).tolist()) or "none"


def all_items(data: DataSets, max_pixels: int, channels: int = 3) -> Items:
    """All images of an opened source, part by part."""
    held = [data.train, data.val, data.test]
    sets = [images for images in held if images is not None]
    labels, classes = np.concatenate([np.asarray(images.labels) for images in sets]), data.classes
    hot = labels if several(labels) else None
    if hot is not None:
        kinds, labels = np.unique(hot, axis=0, return_inverse=True)
        classes = [combined(data.classes, kind) for kind in kinds]
    numbers = [np.full(len(images), part, np.int64) for part, images in enumerate(held) if images is not None]
    names: list[str] = [name for images in sets for name in images.names]
    return Items(
        classes,
        labels.reshape(-1).astype(np.int64),
        np.concatenate(numbers),
        names,
        max_pixels,
        channels,
        held,  # type: ignore[arg-type]  # a part without images is never asked for
        np.concatenate([np.arange(len(images)) for images in sets]),
        data.classes,
        hot,
        data.shared,
    )
