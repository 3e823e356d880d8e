"""Walks through folders, for every command: which files are images, which are not, and which could not be examined.

It opens no file, so that a FIFO or a device cannot hang it, and it does not import torch.
"""

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from excite.data.formats import EXTENSIONS, UNREAD
from excite.text import counted
from excite.threads import Threads

if TYPE_CHECKING:
    from excite.data.packed import Packed

#: Folders that operating systems, archives and editors leave behind; none of them is a class of images.
LITTER = frozenset(
    ("__macosx", "lost+found", "@eadir", "$recycle.bin", "#recycle", "system volume information", "__pycache__")
)


#: Seconds that an answer of the system may take before several are asked for at a time.
SLOW = 1e-4
#: Threads that ask, and files whose answers say whether they are needed.
_ASKING, _SAMPLE = 16, 32


@dataclass(frozen=True)
class File:
    """An image file found by the walk: its path, and size (bytes) and modification time (nanoseconds) from ``stat``."""

    path: str
    size: int
    modified: int


@dataclass
class Found:
    """The result of a walk.

    Attributes:
        files: the images, sorted by path.
        other: file extension -> number of files, for extensions that are not read (lower case with dot; "" for none).
        hidden: number of hidden files (``._photo.jpg``, ``.DS_Store``).
        unusable: (path, reason) of dangling or circular links, of unreadable folders and of what is not a file.
    """

    files: list[File] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    unusable: list[tuple[str, str]] = field(default_factory=list)

    def add(self, more: "Found") -> None:
        """Add the result of another walk; its files are appended."""
        self.files += more.files
        self.other.update(more.other)
        self.hidden += more.hidden
        self.unusable += more.unusable

    def ignored(self) -> str | None:
        """What was left out, as one sentence with counts; None if nothing was."""
        parts = []
        if self.other:
            kinds = ", ".join(f"{n:,} {_kind_of(ending)}" for ending, n in self.other.most_common(8))
            rest = sum(n for _, n in self.other.most_common()[8:])
            parts.append(f"{_files(self.other.total())} ignored: {kinds}" + (f", {rest:,} others" if rest else ""))
        if self.hidden:
            parts.append(f"{counted(self.hidden, 'hidden file')} ignored")
        if self.unusable:
            path, reason = self.unusable[0]
            more = f" and {len(self.unusable) - 1:,} more" if len(self.unusable) > 1 else ""
            parts.append(f"left out: {path} ({reason}){more}")
        return "; ".join(parts) or None


def _kind_of(ending: str) -> str:
    """An extension for display, with the line to type that makes such files readable, if there is one."""
    mend = UNREAD.get(ending)
    return (ending or "without an extension") + (f" ({mend} makes them readable)" if mend else "")


def _files(count: int) -> str:
    return counted(count, "file")


def is_litter(name: str) -> bool:
    """Whether a folder or file with this name is hidden, or known to hold no data."""
    return name.startswith(".") or name.lower() in LITTER


def is_image(name: str) -> bool:
    """Whether a file with this name is read as an image, judging by its extension (upper or lower case)."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """(device, inode) of what a path leads to; None if it leads nowhere."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


class Walker(Protocol):
    """Finds the images below several folders of one data set."""

    def below(self, folder: str | os.PathLike[str]) -> Found:
        """Start finding the images below a folder; :meth:`finish` completes the returned object."""

    def finish(self) -> None:
        """Complete the results of every :meth:`below`."""


class Tree(Protocol):
    """Folders with images in them, on the disk or in an archive."""

    def folders(self, place: str | os.PathLike[str]) -> list[str]:
        """Sorted names of the folders in a folder, but litter. Raises OSError."""

    def images(self, place: str | os.PathLike[str]) -> list[str]:
        """Names of the images directly in a folder."""

    def walk(self) -> Walker:
        """Begin a walk."""

    def packed(self, paths: Sequence[str]) -> "Packed | None":
        """Where images that a walk found are; None if each is a file of its own."""


class Walk:
    """Walks through several folders of one data set, entering each folder once and real folders before links.

    A link upwards, or to another class or part, would count images twice and give them a second label. Links are
    therefore only followed by :meth:`finish`, when all real folders are known.
    """

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()  # (device, inode): names can differ for the same folder
        self._links: list[tuple[str, Found]] = []
        self._given: list[Found] = []

    def below(self, folder: str | os.PathLike[str], *, deep: bool = True) -> Found:
        """Start finding the images below a folder; :meth:`finish` completes the returned object.

        Args:
            folder: a folder, or a link to one.
            deep: whether to enter sub-folders.
        """
        found = Found()
        self._given.append(found)
        # Never enter a parent folder: a link to one would bring in the other classes and everything beside them.
        for path in {os.path.abspath(folder), os.path.realpath(folder)}:
            while (above := os.path.dirname(path)) != path:
                path = above
                self._seen.add(identity(path) or (0, 0))
        self._enter(os.fspath(folder), found, deep)
        return found

    def finish(self) -> None:
        """Follow the links, then sort the results of every :meth:`below` by path."""
        while self._links:
            self._enter(*self._links.pop(0), True)
        for found in self._given:
            found.files.sort(key=lambda file: file.path)
            found.unusable.sort()

    def _enter(self, top: str, found: Found, deep: bool) -> None:
        todo = [top]
        while todo:
            place = todo.pop()
            own = identity(place)
            if own in self._seen:
                found.unusable.append((place, "it leads to a folder that is already included"))
                continue
            if own is not None:
                self._seen.add(own)
            try:
                with os.scandir(place) as entries:
                    listed = list(entries)
            except OSError as error:
                found.unusable.append((place, f"the folder cannot be read: {error.strerror or error}"))
                continue
            images = []
            for entry in listed:
                if not _is_dir(entry):
                    if _counts(entry, found):
                        images.append(entry.path)
                elif deep and not is_litter(entry.name):
                    if entry.is_symlink():
                        self._links.append((entry.path, found))
                    else:
                        todo.append(entry.path)
            for path, (file, reason) in zip(images, look_at_all(images), strict=True):
                if file is not None:
                    found.files.append(file)
                else:
                    found.unusable.append((path, str(reason)))


class Disk:
    """The folders of the file system; links to folders count."""

    def folders(self, place: str | os.PathLike[str]) -> list[str]:
        """See :class:`Tree`."""
        with os.scandir(place) as entries:
            return sorted(entry.name for entry in entries if not is_litter(entry.name) and _is_dir(entry))

    def images(self, place: str | os.PathLike[str]) -> list[str]:
        """See :class:`Tree`."""
        with os.scandir(place) as entries:
            return [entry.name for entry in entries if is_image(entry.name) and not is_litter(entry.name)]

    def walk(self) -> Walk:
        """See :class:`Tree`."""
        return Walk()

    def packed(self, paths: Sequence[str]) -> None:
        """See :class:`Tree`."""


DISK: Tree = Disk()


def walk(folder: str | os.PathLike[str], *, deep: bool = True) -> Found:
    """Find the images below one folder, sorted by path; see :class:`Walk`."""
    whole = Walk()
    found = whole.below(folder, deep=deep)
    whole.finish()
    return found


def _counts(entry: os.DirEntry[str], found: Found) -> bool:
    """Whether an entry that is not a folder has the name of an image; the others are counted where they belong."""
    if is_litter(entry.name):
        found.hidden += 1
    elif not is_image(entry.name):
        found.other[ending(entry.name)] += 1
    else:
        return True
    return False


def ending(name: str) -> str:
    found = os.path.splitext(name)[1].lower()
    return found if len(found) <= 12 else ""  # "photo.of my cat in the garden" has none


def look_at(path: str) -> tuple[File | None, str | None]:
    """``stat`` a path once: the file, or the reason why it cannot be opened."""
    try:
        status = os.stat(path)
    except ValueError:  # a NUL byte, or what the file system's encoding lacks
        return None, "it is no path"
    except OSError as error:
        if not os.path.islink(path):
            return None, "it has vanished" if isinstance(error, FileNotFoundError) else str(error.strerror)
        return None, "a circular link" if error.errno == errno.ELOOP else "a broken link"
    if not stat.S_ISREG(status.st_mode):
        return None, f"it is {_kind(status.st_mode)}, not a file"
    return File(path, status.st_size, status.st_mtime_ns), None


def look_at_all(paths: Sequence[str]) -> list[tuple[File | None, str | None]]:
    """``look_at`` each path: in threads where the answers take long, as those of a network disk do."""
    started = time.perf_counter()
    found = [look_at(path) for path in paths[:_SAMPLE]]
    rest = paths[_SAMPLE:]
    if not rest or time.perf_counter() - started < SLOW * _SAMPLE:
        return found + [look_at(path) for path in rest]
    chunks = [rest[i : i + _SAMPLE] for i in range(0, len(rest), _SAMPLE)]
    with Threads(_ASKING) as pool:
        return found + [
            each for chunk in pool.map(lambda chunk: [look_at(path) for path in chunk], chunks) for each in chunk
        ]


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_it, name in kinds if is_it(mode)), "a device")
