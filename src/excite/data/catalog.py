"""The data sources: what is known of each before anything is read, and which module reads it. Imports nothing heavy.

To add one: a module with a function ``read_source`` (see :mod:`excite.data.idx`), and a line in :data:`SOURCES`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class Assumed:
    """What a source is taken for where its data are not here: the best-known data set of its kind.

    Attributes:
        name: for a sentence.
        train: its training images.
        classes: their classes.
    """

    name: str
    train: int
    classes: int


@dataclass(frozen=True)
class SourceFacts:
    """What is known of a source.

    Attributes:
        what: its format, for the list of all.
        reader: the module with ``read_source(data, root, least_classes) -> Contents``.
        root: what ``data.root`` is: a "folder"; "any", a folder or an archive; None: the data are in the package.
        class_folders: whether its images are files in class folders: listed, streamed, split by their paths.
        benchmark: whether published numbers are measured on its test part after training on all the rest.
        assumed: None where the data are always here.
    """

    what: str
    reader: str
    root: Literal["folder", "any"] | None
    class_folders: bool
    benchmark: bool
    assumed: Assumed | None


SOURCES = {
    "digits": SourceFacts("embedded 8x8 digits", "excite.data.digits", None, False, False, None),
    "cifar10": SourceFacts(
        "CIFAR python version", "excite.data.cifar", "any", False, True, Assumed("CIFAR-10", 50_000, 10)
    ),
    "cifar100": SourceFacts(
        "CIFAR python version", "excite.data.cifar", "any", False, True, Assumed("CIFAR-100", 50_000, 100)
    ),
    "folder": SourceFacts(
        "class folders", "excite.data.folder", "folder", True, False, Assumed("ImageNet", 1_281_167, 1000)
    ),
    "idx": SourceFacts("MNIST-style IDX", "excite.data.idx", "folder", False, True, Assumed("MNIST", 60_000, 10)),
}


def formats() -> str:
    """All formats in one clause."""
    *most, last = dict.fromkeys(facts.what for facts in SOURCES.values())
    return f"{', '.join(most)}, or {last}"


if TYPE_CHECKING:
    SourceName = str
else:
    SourceName = Literal[tuple(SOURCES)]
