"""A record in the run folder of which files the run was trained and validated on, so that measuring on training images
never goes unnoticed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from excite.data.checks import THREADS, Checked, digest_of
from excite.data.contents import Part
from excite.errors import ExciteError
from excite.files import written_aside
from excite.storage import is_remote, local_file
from excite.threads import Threads

#: File in a run folder: one relative path per line, in the file system's bytes.
VALIDATION = "validation_files.txt"
#: File in a run folder: digests of all training files as unsigned 64-bit integers, little-endian, ascending.
TRAINED = "trained_files.bin"


@dataclass
class Record:
    """The files that a run was trained and validated on.

    Attributes:
        validation: relative paths of the validation images, with "/" as separator.
        trained: digests of the training images, uint64 (N,), ascending; see ``excite.data.checks.digest_of``.
        held_out: digests of the validation images in their order, uint64 (N,); not saved in the run folder.
    """

    validation: list[str] = field(default_factory=list)
    trained: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    def write(self, folder: Path) -> None:
        """Write both files atomically. Raises ExciteError."""
        text = "".join(f"{path}\n" for path in self.validation)
        with written_aside(folder / VALIDATION) as aside:
            aside.write_bytes(text.encode("utf-8", "surrogateescape"))
        with written_aside(folder / TRAINED) as aside:
            aside.write_bytes(self.trained.astype("<u8").tobytes())

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """Read what :meth:`write` wrote; None if the folder has no such files (a run of an older version)."""
        try:
            text = (folder / VALIDATION).read_bytes().decode("utf-8", "surrogateescape")
            stored = (folder / TRAINED).read_bytes()
        except OSError:
            return None
        trained = np.frombuffer(stored[: len(stored) // 8 * 8], "<u8").astype(np.uint64)
        return cls(text.splitlines(), np.sort(trained))

    def has(self, digests: np.ndarray) -> np.ndarray:
        """Whether each of these files was trained on: digests uint64 (N,) -> bool (N,)."""
        return np.isin(digests, self.trained) & (digests != 0)


def make_record(train: Part, val: Part, checked: dict[str, Checked]) -> tuple[Record, list[str]]:
    """The record of a new run, and a note if some validation images are copies of training images."""
    digests = checked["train"].digests
    record = Record(val.relative(), np.unique(digests[digests != 0]), checked["val"].digests)
    both = record.has(record.held_out)
    if not both.any():
        return record, []
    first = record.validation[int(both.argmax())]
    note = f"{both.sum():,} of {len(val):,} validation images are copies of training images; the first is {first}"
    return record, [note]


def find_record(source: str | Path) -> Record | None:
    """The record of the run that a network came from; None if it is unknown or no longer there.

    Args:
        source: a run folder, its weights or one of its checkpoints; or the address of a run.
    """
    if is_remote(source):
        for name in (VALIDATION, TRAINED):
            try:
                folder = Path(local_file(f"{str(source).rstrip('/')}/{name}")).parent
            except ExciteError:
                return None
        return Record.read(folder)
    path = Path(source).absolute()
    return next((found for p in (path, *list(path.parents)[:3]) if (found := Record.read(p)) is not None), None)


def inherit(record: Record, source: str) -> str | None:
    """Add the images that the initial weights were trained on, and return a note if some of them validate here."""
    earlier = find_record(source)
    if earlier is None:
        return None
    seen = int(earlier.has(record.held_out).sum())
    record.trained = np.union1d(record.trained, earlier.trained)
    if not seen:
        return None
    return (
        f"{source} (train.init_from) was trained on {seen:,} of the {len(record.held_out):,} validation images, so the "
        "validation results are too optimistic"
    )


def trained_among(record: Record, part: Part) -> int:
    """Number of files of a part that were trained on. Reads the beginning and the end of each file."""
    with Threads(THREADS) as pool:
        sources = [part.images.source(i) for i in range(len(part))]
        digests = list(pool.map(digest_of, sources, part.sizes.tolist(), chunksize=128))
    return int(record.has(np.array(digests, dtype=np.uint64)).sum())


def same_files(record: Record, relative: Iterable[str]) -> bool:
    """Whether these relative paths are exactly the validation images of the run."""
    return sorted(record.validation) == sorted(relative)
