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


@dataclass(frozen=True, kw_only=True)
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
    "digits": SourceFacts(
        what="embedded 8x8 digits",
        reader="excite.data.digits",
        root=None,
        class_folders=False,
        benchmark=False,
        assumed=None,
    ),
    "cifar10": SourceFacts(
        what="CIFAR python version",
        reader="excite.data.cifar",
        root="any",
        class_folders=False,
        benchmark=True,
        assumed=Assumed("CIFAR-10", 50_000, 10),
    ),
    "cifar100": SourceFacts(
        what="CIFAR python version",
        reader="excite.data.cifar",
        root="any",
        class_folders=False,
        benchmark=True,
        assumed=Assumed("CIFAR-100", 50_000, 100),
    ),
    "folder": SourceFacts(
        what="class folders",
        reader="excite.data.folder",
        root="folder",
        class_folders=True,
        benchmark=False,
        assumed=Assumed("ImageNet", 1_281_167, 1000),
    ),
    "idx": SourceFacts(
        what="MNIST-style IDX",
        reader="excite.data.idx",
        root="folder",
        class_folders=False,
        benchmark=True,
        assumed=Assumed("MNIST", 60_000, 10),
    ),
}


def formats() -> str:
    """All formats in one clause."""
    *most, last = dict.fromkeys(facts.what for facts in SOURCES.values())
    return f"{', '.join(most)}, or {last}"


if TYPE_CHECKING:
    SourceName = str
else:
    SourceName = Literal[tuple(SOURCES)]
