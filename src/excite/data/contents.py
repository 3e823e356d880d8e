"""What a source holds, before anybody says which images train and which are measured."""

import os
from dataclasses import dataclass, field

import numpy as np

from excite.data.images import ArrayImages, FileImages
from excite.data.parts import Layout


@dataclass
class Part:
    """The labelled files of one part, with what one ``stat`` told of each.

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
        """The files of these positions, in this order."""
        return Part(self.images.take(index), self.sizes[index], self.modified[index])


@dataclass
class Folder:
    """Class folders, listed.

    Attributes:
        classes: names, in the order of the labels.
        layout: where the parts lie.
        parts: "train", "val", "test" -> files; "all" alone where there are no parts.
        notes: what was left out and the like, one sentence each.
        unusable: (path, reason) of what is called like an image and is no file, and of folders that were not entered.
    """

    classes: list[str]
    layout: Layout
    parts: dict[str, Part]
    notes: list[str]
    unusable: list[tuple[str, str]]

    def relative(self, part: Part) -> list[str]:
        """Each path below the folder of the parts (or of the classes), with "/"."""
        root = os.path.join(self.layout.root, "")
        return [path.removeprefix(root).replace(os.sep, "/") for path in part.images.paths]


@dataclass
class Contents:
    """What ``read_source`` of a source's module gives.

    Attributes:
        classes: names, in the order of the labels.
        parts: "train", "val", "test" -> images; "all" alone where there are no parts.
        folder: the listing, of class folders.
        notes: what a user should know, one sentence each.
    """

    classes: list[str]
    parts: dict[str, ArrayImages | Part]
    folder: Folder | None = None
    notes: list[str] = field(default_factory=list)
