"""Images inside zip and tar files, as if these were folders. Only compressed tar files are unpacked.

Nothing here imports torch. Names in an archive are only names: nothing is ever written to where they point.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from excite.data.catalog import TABLES, is_archive
from excite.data.packed import PLAIN, ZIP_DEFLATED, ZIP_PLAIN, Container, Packed, read_at
from excite.data.walk import DISK, File, Found, Tree, ending, is_image, is_litter
from excite.errors import ExciteError, first_line, shown_text
from excite.files import cache_folder, written_aside
from excite.progress import Progress
from excite.storage.staging import locked

#: What opens a tar file that is compressed as a whole.
_OPENERS: dict[str, Callable[[BinaryIO], io.BufferedIOBase]] = {
    **dict.fromkeys((".gz", ".tgz"), lambda raw: gzip.GzipFile(fileobj=raw)),
    **dict.fromkeys((".bz2", ".tbz2"), bz2.BZ2File),
    **dict.fromkeys((".xz", ".txz"), lzma.LZMAFile),
}
#: The format of remembered listings.
VERSION = 1

#: (offset, length, size, kind, check) of a member; see :class:`~excite.data.packed.Member`.
Row = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Members:
    """The files in an archive.

    Attributes:
        file: what they are read from: the archive, or what it was unpacked to.
        names: their names, with "/" between folders.
        rows: int64 (N, 5): offset, length, size, kind, check of each.
        unusable: (name, reason) of what is no file, or cannot be read.
    """

    file: Container
    names: list[str]
    rows: np.ndarray
    unusable: list[tuple[str, str]]


def members(path: Path, progress: Progress | None = None) -> Members:
    """List an archive; what was listed before is remembered in the cache folder, as long as it has not changed.

    Args:
        path: a zip or tar file; a tar file that is compressed as a whole is unpacked into the cache folder first.
        progress: called while it is unpacked.

    Raises:
        ExciteError: it is damaged, encrypted or no archive; or the disk is full.
    """
    end = path.suffix.lower()
    with _told(path):
        found = path.stat()
        if end in _OPENERS:
            path = _unpacked(path, found, _OPENERS[end], progress)
            found = path.stat()
        place = cache_folder() / "archives" / f"{_key(path, found)}.npz"
        known = _remembered(place)
        if known is None:
            listed = list(_of_zip(path) if end == ".zip" else _of_tar(path, found.st_size))
            files = [(name, row) for name, row in listed if isinstance(row, tuple)]
            bad = [(name, row) for name, row in listed if isinstance(row, str)]
            rows = np.array([row for _, row in files], np.int64).reshape(-1, 5)
            known = [name for name, _ in files], rows, bad
            _remember(place, *known)
        if not known[0] and known[2]:
            name, reason = known[2][0]
            raise ExciteError(
                f"none of the {len(known[2]):,} files in {path} can be read ({shown_text(name)}: {reason}): unpack it, "
                "and give the folder"
            )
    return Members(Container(os.fspath(path), found.st_size, found.st_mtime_ns), *known)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what a damaged archive raises into one sentence."""
    try:
        yield
    except ExciteError:
        raise
    except NotImplementedError as error:
        raise ExciteError(f"{path} cannot be read ({first_line(error)}): unpack it, and give the folder") from None
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes, zipfile and tarfile raise nearly anything, also OSError
        if isinstance(error, OSError) and error.errno:
            raise ExciteError(f"{path} cannot be read: {error.strerror or first_line(error)}") from None
        raise ExciteError(f"{path} is damaged or no archive ({first_line(error)}): copy or download it again") from None


def _key(path: Path, found: os.stat_result) -> str:
    """A name for what is remembered of a file: other contents have another."""
    text = f"{VERSION}\0{found.st_size}\0{found.st_mtime_ns}\0".encode() + os.fsencode(path.absolute())
    return hashlib.sha256(text).hexdigest()[:24]


def _remember(place: Path, names: list[str], rows: np.ndarray, bad: list[tuple[str, str]]) -> None:
    texts = [*names, *(text for each in bad for text in each)]
    joined = "\0".join(texts).encode("utf-8", "surrogateescape")
    with suppress(ExciteError, OSError), written_aside(place) as aside, aside.open("wb") as file:
        np.savez(file, names=np.frombuffer(joined, np.uint8), rows=rows, count=np.array([len(names), len(bad)]))


def _remembered(place: Path) -> tuple[list[str], np.ndarray, list[tuple[str, str]]] | None:
    """What was remembered; None if nothing was, or if it is damaged, since it is only a cache."""
    try:
        with np.load(place, allow_pickle=False) as file:
            count, bad = file["count"].tolist()
            texts = file["names"].tobytes().decode("utf-8", "surrogateescape").split("\0") if count + bad else []
            rows = file["rows"].astype(np.int64)
    except Exception:  # a damaged archive can raise nearly anything
        return None
    if len(texts) != count + 2 * bad or rows.shape != (count, 5):
        return None
    rest = texts[count:]
    return texts[:count], rows, list(zip(rest[::2], rest[1::2], strict=True))


def _of_zip(path: Path) -> Iterator[tuple[str, Row | str]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            kinds = {zipfile.ZIP_STORED: ZIP_PLAIN, zipfile.ZIP_DEFLATED: ZIP_DEFLATED}
            kind = kinds.get(info.compress_type)
            if info.flag_bits & 0x1:
                yield info.filename, "it is encrypted"
            elif info.external_attr >> 28 == 0o12:  # the type in Unix's mode
                yield info.filename, "it is a link"
            elif kind is None:
                yield info.filename, f"its compression (number {info.compress_type}) is not supported"
            else:
                yield info.filename, (info.header_offset, info.compress_size, info.file_size, kind, info.CRC)


def _of_tar(path: Path, size: int) -> Iterator[tuple[str, Row | str]]:
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
            if info.isdir():
                continue
            if not info.isreg():
                yield info.name, "it is a link" if info.issym() or info.islnk() else "it is not a file"
            elif info.sparse is not None:
                yield info.name, "it has holes (a sparse file)"
            elif info.offset_data + info.size > size:
                raise EOFError(f"its end is missing, in {shown_text(info.name)}")
            else:
                yield info.name, (info.offset_data, info.size, info.size, PLAIN, 0)
        last = archive.offset
    # A copy that broke off between two members looks whole to tarfile; but tar files end with blocks of zeros.
    file = Container.of(path)
    if not any(read_at(file, at, 512).strip(b"\0") == b"" and at + 512 <= size for at in (last, last - 512)):
        raise EOFError("its end is missing")


def _unpacked(
    path: Path, found: os.stat_result, opener: Callable[[BinaryIO], io.BufferedIOBase], progress: Progress | None
) -> Path:
    """The tar file inside a compressed one, in the cache folder: in a stream of bytes no image can be found again."""
    place = cache_folder() / "archives" / _key(path, found)
    target = place.with_name(f"{place.name}.tar")
    with locked(place):
        if not target.is_file():
            with open(path, "rb") as raw, opener(raw) as whole, written_aside(target) as aside, aside.open("wb") as out:
                for piece in _pieces(path, whole):
                    out.write(piece)
                    if progress is not None:
                        progress(f"unpacking {path.name}", raw.tell(), found.st_size)
    return target


def _pieces(path: Path, whole: io.BufferedIOBase) -> Iterator[bytes]:
    """What a compressed file holds. Its damage is told here: the disk that is written to meanwhile is not at fault."""
    with _told(path):
        try:
            while piece := whole.read(1 << 22):
                yield piece
        except OSError as error:  # of damage, gzip and bz2 raise these, without a number
            raise error if error.errno else EOFError(first_line(error)) from None


@dataclass
class Archive:
    """An archive as folders; see :class:`~excite.data.walk.Tree`. The folder ``root`` stands for the archive itself."""

    root: str
    members: Members
    _folders: dict[str, set[str]] = field(default_factory=dict)
    _files: dict[str, list[int]] = field(default_factory=dict)
    _hidden: dict[str, int] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, name in enumerate(self.members.names):
            *folders, file = self._split(name)
            place, hidden = self._enter(folders)
            if hidden or is_litter(file):
                self._hidden[place] = self._hidden.get(place, 0) + 1
                continue
            path = f"{place}/{file}"
            if path in self._numbers:  # the last of several members of one name is the valid one, as when unpacking
                self._files[place].remove(self._numbers[path])
            self._numbers[path] = number
            self._files.setdefault(place, []).append(number)

    def _split(self, name: str) -> list[str]:
        return [piece for piece in name.replace("\\", "/").split("/") if piece not in ("", ".")] or [name]

    def _enter(self, folders: Sequence[str]) -> tuple[str, bool]:
        """The place of a folder, or of the one that hides it; and whether it is hidden."""
        place = self.root
        for name in folders:
            if is_litter(name):
                return place, True
            self._folders.setdefault(place, set()).add(name)
            place = f"{place}/{name}"
        return place, False

    def folders(self, place: str | os.PathLike[str]) -> list[str]:
        """See :class:`~excite.data.walk.Tree`."""
        return sorted(self._folders.get(os.fspath(place), ()))

    def images(self, place: str | os.PathLike[str]) -> list[str]:
        """See :class:`~excite.data.walk.Tree`."""
        names = (self._split(self.members.names[i])[-1] for i in self._files.get(os.fspath(place), ()))
        return [name for name in names if is_image(name)]

    def walk(self) -> "Archive":
        """See :class:`~excite.data.walk.Tree`."""
        return self

    def below(self, folder: str | os.PathLike[str]) -> Found:
        """See :class:`~excite.data.walk.Walker`."""
        found, todo = Found(), [os.fspath(folder)]
        while todo:
            place = todo.pop()
            todo += [f"{place}/{name}" for name in self.folders(place)]
            found.hidden += self._hidden.get(place, 0)
            for number in self._files.get(place, ()):
                name = self._split(self.members.names[number])[-1]
                if is_image(name):
                    size = int(self.members.rows[number, 2])
                    found.files.append(File(f"{place}/{name}", size, self.members.file.modified))
                else:
                    found.other[ending(name)] += 1
        inside = f"{os.fspath(folder)}/"
        paths = ((f"{self.root}/{name}", reason) for name, reason in self.members.unusable)
        found.unusable = sorted((path, reason) for path, reason in paths if path.startswith(inside) and is_image(path))
        found.files.sort(key=lambda file: file.path)
        return found

    def finish(self) -> None:
        """See :class:`~excite.data.walk.Walker`."""

    def packed(self, paths: Sequence[str]) -> Packed:
        """Where images are that :meth:`below` found."""
        numbers = [self._numbers[path] for path in paths]
        return Packed.of([self.members.file], [(0, *self.members.rows[number].tolist()) for number in numbers])


def tree_of(root: Path) -> Tree:
    """What holds the folders: the disk, or an archive. Raises ExciteError for other files; see :func:`members`."""
    if not root.is_file():
        return DISK
    if not is_archive(root):
        table = "; for a table, say data.source=table" if root.suffix.lower() in TABLES else ""
        raise ExciteError(
            f"data.root={root} is a file: give the folder with the class folders, or a .zip or .tar file of it{table}"
        )
    return open_archive(root)


def open_archive(path: Path, progress: Progress | None = None) -> Archive:
    """An archive as folders. Raises ExciteError; see :func:`members`."""
    return Archive(os.fspath(path), members(path, progress))
