"""All images of a data set as one list, whatever source they come from."""

import os
from dataclasses import dataclass, field

import numpy as np

from excite.data import ArrayImages, DataSets, FileImages
from excite.data.decode import ImageSource, check_regular
from excite.data.labels import several
from excite.data.packed import Member, open_bytes
from excite.errors import ExciteError

#: Names of the parts, for people and for files: as in ``DataSets``.
PARTS = ("training", "validation", "test")


@dataclass
class Items:
    """N labelled images of all parts.

    Attributes:
        classes: K class names, in the order of the labels.
        labels: int64 (N,).
        parts: int64 (N,), positions in :data:`PARTS`.
        names: N names for display, as in ``FileImages.names`` and ``ArrayImages.names``: unique within a part only.
        max_pixels: larger images are not decoded.
        in_chans: channels that they are read for.
    """

    classes: list[str]
    labels: np.ndarray
    parts: np.ndarray
    names: list[str]
    max_pixels: int
    in_chans: int
    _held: list[ArrayImages | FileImages] = field(repr=False)
    _place: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, item: int) -> tuple[ArrayImages | FileImages, int]:
        """The images of the item's part, and its position in them."""
        return self._held[self.parts[item]], int(self._place[item])

    def path(self, item: int) -> str | None:
        """The item's file; None for an image that is not a file of its own."""
        images, at = self.where(item)
        return images.paths[at] if isinstance(images, FileImages) else None

    def white(self, item: int) -> int:
        """The white level of an image with 16 bits per channel."""
        images, _ = self.where(item)
        return images.white if isinstance(images, FileImages) else 65535

    def content(self, item: int) -> ImageSource:
        """The bytes of the item's file, or its pixels: uint8 (H, W, C).

        Raises:
            OSError, ValueError: the file cannot be read, or is not a regular file.
        """
        images, at = self.where(item)
        if isinstance(images, ArrayImages):
            return images.images[at].permute(1, 2, 0).contiguous().numpy()
        source = images.source(at)
        if not isinstance(source, Member):
            check_regular(source)
        with open_bytes(source) as file:
            return file.read()

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
        table = np.zeros((len(PARTS), len(self.classes)), np.int64)
        np.add.at(table, (self.parts, self.labels), 1)
        return table


def all_items(data: DataSets, max_pixels: int) -> Items:
    """All images of an opened source, part by part. Raises ExciteError if they may have several labels."""
    held = [data.train, data.val, data.test]
    sets = [images for images in held if images is not None]
    if any(several(images.labels) for images in sets):
        raise ExciteError("excite data check does not handle images with several labels yet")
    labels = [np.asarray(images.labels, dtype=np.int64) for images in sets]
    numbers = [np.full(len(images), part, np.int64) for part, images in enumerate(held) if images is not None]
    names: list[str] = [name for images in sets for name in images.names]
    return Items(
        data.classes,
        np.concatenate(labels),
        np.concatenate(numbers),
        names,
        max_pixels,
        data.preprocessing.in_chans,
        held,  # type: ignore[arg-type]  # a part without images is never asked for
        np.concatenate([np.arange(len(images)) for images in sets]),
    )
