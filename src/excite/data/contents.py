"""The contents of a source, before its images are given their roles (training, validation, test)."""

import os
from dataclasses import dataclass, field, replace

import numpy as np

from excite.data.images import ArrayImages, FileImages


@dataclass
class Part:
    """The labelled files of one part.

    Attributes:
        images: paths and class numbers.
        sizes: int64 (N,), bytes.
        modified: int64 (N,), nanoseconds.
        root: the place of the whole data set.
        place: the place of this part, below which the class folders are; "" if that is ``root``.
        names: a name for each image that is the same wherever the data is; None: its path below ``root``.
        prefix: what stands before ``names`` in the whole data set, such as the part's name.
        groups: the group of each image, from the source itself; None if it has none.
    """

    images: FileImages
    sizes: np.ndarray
    modified: np.ndarray
    root: str = ""
    place: str = ""
    names: list[str] | None = None
    prefix: str = ""
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: np.ndarray) -> "Part":
        """The files at these positions, in this order."""
        names, groups = (None if each is None else [each[i] for i in index] for each in (self.names, self.groups))
        images, sizes, modified = self.images.take(index), self.sizes[index], self.modified[index]
        return replace(self, images=images, sizes=sizes, modified=modified, names=names, groups=groups)

    def relative(self) -> list[str]:
        """The name of each image in the data set, separated by "/"."""
        if self.names is None:
            return _below(self.root, self.images.paths)
        return [self.prefix + name for name in self.names] if self.prefix else self.names

    def within(self) -> list[str]:
        """The name of each image in its part, starting with the class folder: the same wherever the part is."""
        return self.names if self.names is not None else _below(self.place or self.root, self.images.paths)


def _below(place: str, paths: list[str]) -> list[str]:
    root = os.path.join(place, "")
    return [path.removeprefix(root).replace(os.sep, "/") for path in paths]


@dataclass
class Contents:
    """The result of ``read_source`` of a source's module.

    Attributes:
        classes: class names, in the order of the labels.
        parts: "train", "val", "test" -> images; only "all" if there are no parts.
        notes: sentences for the user, such as what was left out.
        unusable: (path, reason) of entries named like an image that are not files, and of folders not entered.
        where: the place of the parts, for messages.
        shared: path of an image -> its group, such as a patient, if that is in more than one of the parts.
    """

    classes: list[str]
    parts: dict[str, ArrayImages | Part]
    notes: list[str] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)
    where: str = ""
    shared: dict[str, str] = field(default_factory=dict)
