"""Which files a run was trained on and which it validated on, kept in its folder, so that nobody measures on the former
without being told.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from excite.data.checks import THREADS, Checked, digest_of
from excite.data.contents import Folder, Part
from excite.errors import ExciteError
from excite.files import written_aside
from excite.storage import is_remote, local_file

#: In a run folder: a relative path a line, in the bytes that the file system has for it.
VALIDATION = "validation_files.txt"
#: In a run folder: the digest of every file that was trained on, unsigned 64 bits, little-endian, ascending.
TRAINED = "trained_files.bin"


@dataclass
class Record:
    """What a run was trained and validated on.

    Attributes:
        validation: relative paths of the validation images, "/" between folders.
        trained: uint64 (N,), ascending: digests of the training images, see ``excite.data.checks.digest_of``.
        held_out: uint64 (N,), those of the validation images in their order; not kept in the run folder.
    """

    validation: list[str] = field(default_factory=list)
    trained: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    def write(self, folder: Path) -> None:
        """Write both files whole or not at all. Raises ExciteError."""
        text = "".join(f"{path}\n" for path in self.validation)
        with written_aside(folder / VALIDATION) as aside:
            aside.write_bytes(text.encode("utf-8", "surrogateescape"))
        with written_aside(folder / TRAINED) as aside:
            aside.write_bytes(self.trained.astype("<u8").tobytes())

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """What :meth:`write` wrote; None where a folder has no such files (of a run before there were any)."""
        try:
            text = (folder / VALIDATION).read_bytes().decode("utf-8", "surrogateescape")
            stored = (folder / TRAINED).read_bytes()
        except OSError:
            return None
        trained = np.frombuffer(stored[: len(stored) // 8 * 8], "<u8").astype(np.uint64)
        return cls(text.splitlines(), np.sort(trained))

    def has(self, digests: np.ndarray) -> np.ndarray:
        """Which of these files, uint64 (N,), were trained on: bool (N,)."""
        return np.isin(digests, self.trained) & (digests != 0)


def make_record(folder: Folder, train: Part, val: Part, checked: dict[str, Checked]) -> tuple[Record, list[str]]:
    """The record of a run that begins, and a note where an image is on both sides."""
    digests = checked["train"].digests
    record = Record(folder.relative(val), np.unique(digests[digests != 0]), checked["val"].digests)
    both = record.has(record.held_out)
    if not both.any():
        return record, []
    first = record.validation[int(both.argmax())]
    note = f"{both.sum():,} of {len(val):,} validation images are copies of training images, the first: {first}"
    return record, [note]


def find_record(source: str | Path) -> Record | None:
    """What the run that a network came from was trained on; None where that is not known (any more).

    Args:
        source: a run folder, its weights, or a state in its folder of checkpoints; or an address of the former.
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
    """Weights that training begins with have seen images, too: count those in, and tell how many of them validate."""
    earlier = find_record(source)
    if earlier is None:
        return None
    seen = int(earlier.has(record.held_out).sum())
    record.trained = np.union1d(record.trained, earlier.trained)
    if not seen:
        return None
    return (
        f"{seen:,} of {len(record.held_out):,} validation images were trained on by {source} (train.init_from), which "
        "flatters the numbers"
    )


def trained_among(record: Record, part: Part) -> int:
    """How many files of a part were trained on; reads the beginning and the end of each."""
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(digest_of, part.images.paths, part.sizes.tolist(), chunksize=128))
    return int(record.has(np.array(digests, dtype=np.uint64)).sum())


def same_files(record: Record, relative: Iterable[str]) -> bool:
    """Whether these are the validation images of the run."""
    return sorted(record.validation) == sorted(relative)
