"""The contents of a source, before its images are given their roles (training, validation, test)."""

import os
from dataclasses import dataclass, field

import numpy as np

from excite.data.images import ArrayImages, FileImages
from excite.data.parts import Layout


@dataclass
class Part:
    """The labelled files of one part, with size and modification time of each.

    Attributes:
        images: paths and class numbers.
        sizes: int64 (N,), bytes.
        modified: int64 (N,), nanoseconds.
    """

    images: FileImages
    sizes: np.ndarray
    modified: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: np.ndarray) -> "Part":
        """The files at these positions, in this order."""
        return Part(self.images.take(index), self.sizes[index], self.modified[index])


@dataclass
class Folder:
    """The listing of class folders.

    Attributes:
        classes: class names, in the order of the labels.
        layout: the folders of the parts.
        parts: "train", "val", "test" -> files; only "all" if there are no parts.
        notes: sentences for the user, such as what was left out.
        unusable: (path, reason) of entries named like an image that are not files, and of folders not entered.
    """

    classes: list[str]
    layout: Layout
    parts: dict[str, Part]
    notes: list[str]
    unusable: list[tuple[str, str]]

    def relative(self, part: Part) -> list[str]:
        """Each path relative to the folder of the parts (or of the classes), separated by "/"."""
        root = os.path.join(self.layout.root, "")
        return [path.removeprefix(root).replace(os.sep, "/") for path in part.images.paths]


@dataclass
class Contents:
    """The result of ``read_source`` of a source's module.

    Attributes:
        classes: class names, in the order of the labels.
        parts: "train", "val", "test" -> images; only "all" if there are no parts.
        folder: the listing, if the source has class folders.
        notes: sentences for the user.
    """

    classes: list[str]
    parts: dict[str, ArrayImages | Part]
    folder: Folder | None = None
    notes: list[str] = field(default_factory=list)
