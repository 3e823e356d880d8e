"""The data sources: facts known before anything is read, and the module that reads each. Imports nothing heavy.

To add one: a module with a function ``read_source`` (see :mod:`excite.data.idx`), and a line in :data:`SOURCES`.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class Assumed:
    """The data set that a source is assumed to hold if its data is not available: the best-known one of its kind.

    Attributes:
        name: its name, for messages.
        train: number of training images.
        classes: number of classes.
    """

    name: str
    train: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """Facts about a source.

    Attributes:
        what: its format, for the list of all sources.
        reader: the module with ``read_source(data, root, least_classes) -> Contents``.
        root: what ``data.root`` must be: "folder", or "any" (a folder or an archive); None: the data is in the package.
        files: whether the images are files of any size, which are listed, streamed and split by name; else they are
            arrays of one size.
        benchmark: whether published results train on everything but the test part and are measured on that.
        assumed: the data set assumed if the data is missing; None if it is always there.
        several: whether an image can have several classes (``data.task=multilabel``).
        side: of the images in pixels, if all are squares of one size; else None.
    """

    what: str
    reader: str
    root: Literal["folder", "any"] | None
    files: bool
    benchmark: bool
    assumed: Assumed | None
    several: bool = False
    side: int | None = None


SOURCES = {
    "digits": SourceFacts(
        what="the 8x8 digits of the package",
        reader="excite.data.digits",
        root=None,
        files=False,
        benchmark=False,
        assumed=None,
        side=8,
    ),
    "cifar10": SourceFacts(
        what="CIFAR (Python version)",
        reader="excite.data.cifar",
        root="any",
        files=False,
        benchmark=True,
        assumed=Assumed("CIFAR-10", 50_000, 10),
        side=32,
    ),
    "cifar100": SourceFacts(
        what="CIFAR (Python version)",
        reader="excite.data.cifar",
        root="any",
        files=False,
        benchmark=True,
        assumed=Assumed("CIFAR-100", 50_000, 100),
        side=32,
    ),
    "folder": SourceFacts(
        what="class folders (or an archive of them)",
        reader="excite.data.folder",
        root="any",
        files=True,
        benchmark=False,
        assumed=Assumed("ImageNet", 1_281_167, 1000),
    ),
    "table": SourceFacts(
        what="tables",
        reader="excite.data.table",
        root="any",
        files=True,
        several=True,
        benchmark=False,
        assumed=Assumed("ImageNet", 1_281_167, 1000),
    ),
    "webdataset": SourceFacts(
        what="WebDataset shards",
        reader="excite.data.webdataset",
        root="any",
        files=True,
        several=True,
        benchmark=False,
        assumed=Assumed("ImageNet", 1_281_167, 1000),
    ),
    "idx": SourceFacts(
        what="MNIST-style IDX",
        reader="excite.data.idx",
        root="folder",
        files=False,
        benchmark=True,
        assumed=Assumed("MNIST", 60_000, 10),
        side=28,
    ),
}


#: Endings of tables.
TABLES = frozenset((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"))
#: Endings of archives that are read in place, and of tar files that are compressed as a whole.
IN_PLACE, COMPRESSED = (".zip", ".tar"), (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz")


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of an archive of images that can be read, by its ending."""
    stem, end = os.path.splitext(os.fspath(path).lower())
    return end in IN_PLACE or (end in COMPRESSED and (end.startswith(".t") or stem.endswith(".tar")))


def formats() -> str:
    """All formats as one phrase."""
    *most, last = dict.fromkeys(facts.what for facts in SOURCES.values())
    return f"{', '.join(most)}, or {last}"


if TYPE_CHECKING:
    SourceName = str
else:
    SourceName = Literal[tuple(SOURCES)]
