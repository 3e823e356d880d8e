"""Atomic file writes: a file is written to one side, flushed to disk, then renamed; and checks of paths."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from excite.errors import ExciteError, explain, no_path, shown_text
from excite.leaving import unbroken
from excite.owners import aside_of, remove, sweep_once
from excite.text import as_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Shape = TypeVar("Shape")


class WriteFailed(ExciteError):
    """The system refused to write a file. ``number`` is its error, as in :mod:`errno`."""

    def __init__(self, message: str, number: int | None) -> None:
        super().__init__(message)
        self.number = number


#: Bytes. Our largest JSON files, results with a report on many classes, have a few megabytes.
LONGEST_JSON = 256 << 20


def cache_folder() -> Path:
    """The folder for whatever can be made or downloaded again: EXCITE_CACHE, else ~/.cache/excite."""
    return Path(os.environ.get("EXCITE_CACHE") or "~/.cache/excite").expanduser()


def not_ours(found: os.stat_result, kind: Callable[[int], bool] = stat.S_ISREG) -> str | None:
    """Why a file or folder may come from, or be changed by, another user; None if it is this user's alone.

    Args:
        found: its ``os.lstat`` result (links not followed).
        kind: the test for its type, such as ``stat.S_ISDIR``.
    """
    if not kind(found.st_mode):
        return "is not what it should be"
    if sys.platform == "win32":  # the mode does not hold permissions there
        return None
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    return "can be written to by others" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not support fsync on folders; failing to flush a file is an error.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def flush_entries(folder: Path) -> None:
    """Flush the names in a folder to disk, so that a renamed file stays so. Raises OSError."""
    _sync(folder)


def flush(path: Path) -> None:
    """Flush a file, or a folder with everything in it, to disk. Raises OSError."""
    inside = [*path.rglob("*")] if path.is_dir() else []
    for each in [p for p in inside if p.is_file()] + [p for p in inside if p.is_dir() and not p.is_symlink()]:
        _sync(each)
    _sync(path)


@contextmanager
def written_aside(path: Path, over: bool = False) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to; it is renamed to ``path`` when the block ends without an error.

    A file replaces an existing one; a folder must be new. After a crash, a kill or a full disk at any moment, ``path``
    is either as before or complete, never in between. What processes that have died left in the same folder is removed.

    Args:
        path: the file or folder.
        over: a folder, too, may replace an existing one. The two change places at once; on systems and disks that
            cannot do so (Windows, some network disks) it takes two renames, and after a kill between them ``path`` is
            missing.

    Raises:
        ExciteError: the disk is full, or the place cannot be written; ``path`` is then unchanged.
    """
    aside = aside_of(path)
    with told(path), _cleared(aside):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_once(path.parent)
        yield aside
        flush(aside)
        with unbroken():
            if over and path.is_dir():
                _put_in_place_of_a_folder(aside, path)
            else:
                os.replace(aside, path)
        _sync(path.parent)


def _put_in_place_of_a_folder(new: Path, path: Path) -> None:
    if _exchanged(new, path):
        _sync(path.parent)
        remove(new)  # which is now what was there before
        return
    before = aside_of(path)
    os.rename(path, before)
    try:
        os.replace(new, path)
    except OSError:
        os.rename(before, path)
        raise
    _sync(path.parent)
    remove(before)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names at one instant, as renameat2(2) of Linux and renamex_np(2) of macOS can; whether they did."""
    import ctypes

    if sys.platform == "win32":
        return False
    system = ctypes.CDLL(None)
    swap, here = 2, -100  # RENAME_EXCHANGE and RENAME_SWAP are both 2; AT_FDCWD of Linux
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(system, "renameat2"):
        return bool(system.renameat2(here, names[0], here, names[1], swap) == 0)
    return hasattr(system, "renamex_np") and bool(system.renamex_np(*names, swap) == 0)


@contextmanager
def _cleared(aside: Path) -> Iterator[None]:
    """Remove ``aside`` if the block fails; a signal waits until that is done."""
    try:
        yield
    except BaseException:
        with unbroken():
            remove(aside)
        raise


@contextmanager
def told(path: Path, setting: str = "") -> Iterator[None]:
    """Turn an error of the file system while ``path`` is written, also one that a library wrapped, into the sentence.

    Args:
        path: what is written.
        setting: the environment variable that chooses its place, which the sentence then names.

    Raises:
        ExciteError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise WriteFailed(_sentence(path, error, setting), error.errno) from error
    except Exception as error:
        wrapped = as_os_error(error, path.parent)
        if wrapped is None:
            raise
        raise WriteFailed(_sentence(path, wrapped, setting), wrapped.errno) from error


class PatientFile(io.RawIOBase):
    """A file that pretends to write after the system has refused; :meth:`check` then raises.

    For torch's archives: their C++ writer meets the full disk once more in its destructor, and ends the process.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("wb", buffering=1 << 20)
        self._refusal: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._try(lambda: self._file.write(data))
        return memoryview(data).nbytes

    def flush(self) -> None:
        if not self._file.closed:
            self._try(self._file.flush)

    def close(self) -> None:
        if not self.closed:
            self.flush()
            with suppress(OSError):  # it has been met before
                self._file.close()
        super().close()

    def _try(self, action: Callable[[], object]) -> None:
        if self._refusal is None:
            try:
                action()
            except OSError as error:
                self._refusal = error

    def check(self) -> None:
        """Close the file. Raises OSError if any of it could not be written."""
        self.close()
        if self._refusal is not None:
            raise self._refusal


@contextmanager
def patient(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for a library that must not meet an error while it writes: the block's end raises it (OSError)."""
    file = PatientFile(path)
    try:
        yield cast("IO[bytes]", file)
    finally:
        file.close()
    file.check()


#: What libraries that write in C++ or Rust say when the system refuses: torch's archives, OpenVINO's streams.
_REFUSED_INSIDE = re.compile(r"PytorchStreamWriter failed|unexpected pos \d+|file write failed|[Cc]an'?t open bin file")


def as_os_error(error: Exception, folder: Path) -> OSError | None:
    """The system's error that a library wrapped in its own while it wrote into ``folder``; None if it is another.

    safetensors gives its number. torch and OpenVINO give none: it is a full disk if less than 1 MB is free.
    """
    text = str(error)
    if type(error).__name__ == "SafetensorError" and (code := re.search(r"os error (\d+)", text)):
        return OSError(int(code.group(1)), os.strerror(int(code.group(1))))
    if not isinstance(error, RuntimeError) or _REFUSED_INSIDE.search(text) is None:
        return None
    try:
        full = shutil.disk_usage(folder).free < 1 << 20
    except OSError as lost:  # the folder itself is gone
        return lost
    number = errno.ENOSPC if full else errno.EIO
    return OSError(number, os.strerror(number))


def _sentence(path: Path, error: OSError, setting: str) -> str:
    unchanged = "(what was there before is unchanged)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = "the disk is full" if error.errno == errno.ENOSPC else "your quota of the disk is used up"
        larger = f" or set {setting} to a larger disk" if setting else ""
        return f"{kind}: {path} could not be written; free some space{larger} {unchanged}"
    if error.errno == errno.ENAMETOOLONG:
        return f"{shown_text(str(path))} could not be written: the name is too long; choose a shorter one"
    if error.errno == errno.ENOENT and not path.parent.is_dir():
        return f"{path} could not be written: the folder {path.parent} has vanished (was it moved or deleted?)"
    if error.errno == errno.EROFS:
        another = f"set {setting} to another place" if setting else "name another place"
        return f"{path} could not be written: the disk is read-only; {another}, or mount it for writing"
    elsewhere = f"; set {setting} to another place" if setting else ""
    return f"{path} could not be written: {error.strerror or error}{elsewhere} {unchanged}"


def append_text(path: Path, text: str, *, create: bool = True, private: bool = False, setting: str = "") -> None:
    """Append UTF-8 text to a file, all of it or nothing: after a full disk the file is as it was.

    Args:
        path: the file.
        text: what to append.
        create: whether a missing file is begun. False, for a file that is known to have been there: its loss is told.
        private: a file that is begun is for this user alone.
        setting: see :func:`told`.

    Raises:
        ExciteError: it cannot be written, or it has vanished.
    """
    data = text.encode("utf-8", "backslashreplace")
    with told(path, setting):
        flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT if create else 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(path, flags, 0o600 if private else 0o666)
        except FileNotFoundError:
            if create or not path.parent.is_dir():
                raise
            text = f"{path} has vanished while it was being written (was it moved or deleted?)"
            raise WriteFailed(text, errno.ENOENT) from None
        with open(descriptor, "ab", buffering=0) as file:
            before = os.fstat(descriptor).st_size
            try:
                _write_all(file.write, data)
            except OSError:
                os.ftruncate(descriptor, before)
                raise


def _write_all(write: Callable[[memoryview], int | None], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[write(left) or 0 :]


def check_writable(path: Path) -> None:
    """Raise ExciteError if a file could not be written; called before the work whose results it will hold.

    Missing folders are not an error: they are created later. A full disk is only noticed when writing.
    """
    if (why := no_path(str(path))) is not None:
        raise ExciteError(f"{shown_text(str(path))} could not be written: it {why}")
    if path.is_dir():
        raise ExciteError(f"{path} is a folder; name a file in it, such as {path / 'NAME'}")
    there = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not there.is_dir():
        raise ExciteError(f"{path} could not be written: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ExciteError(f"{path} could not be written: the folder {there} is read-only for you; name another place")


def check_here(place: str, what: str) -> None:
    """Raise ExciteError if ``place`` is an address (``scheme://``); ``what`` names the thing in the message."""
    if "://" in place:
        raise ExciteError(f"{place}: {what} must be on this machine")


def check_new(path: Path, force: bool = False) -> None:
    """Like :func:`check_writable`, and raise ExciteError if the file exists, unless ``force``."""
    check_writable(path)
    if os.path.lexists(path) and not force:
        raise ExciteError(f"{path} already exists; use --force to overwrite it")


def check_new_folder(path: Path) -> None:
    """Like :func:`check_writable`, for a folder that must not exist yet."""
    if os.path.lexists(path):
        raise ExciteError(f"{path} already exists; name a new folder")
    check_writable(path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Raises ExciteError if it cannot be written.

    Lone surrogates, which stand for bytes of file names that are not UTF-8, are written as ``\\udce9``, so that such a
    name never makes a write fail.
    """
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def to_json(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON text, see :func:`excite.text.as_json`; on one line it is ASCII, with ``indent`` it is UTF-8."""
    return as_json(value, indent, ascii_only=indent is None)


def from_json(text: str | bytes) -> Any:
    """Parse JSON text; a bare NaN or Infinity, which earlier versions wrote, becomes None.

    Raises:
        ValueError: it is not JSON, or nested too deep for Python's parser.
    """
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: Path, remedy: str = "delete it to go on without it") -> dict[str, Any]:
    """Read a JSON object from a file. Raises ExciteError if it cannot be read; ``remedy`` ends the message."""
    try:
        if path.stat().st_size > LONGEST_JSON:
            raise ValueError(f"it has more than {LONGEST_JSON >> 20} MB")
        value = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else shown_text(str(error))
        raise ExciteError(f"{path} cannot be read as JSON ({reason}); {remedy}") from None
    if not isinstance(value, dict):
        raise ExciteError(f"{path} does not hold a JSON object; {remedy}")
    return value


@cache
def _checker(shape: type) -> "TypeAdapter[Any]":
    """What checks values against a shape. Making one takes longer than reading a small file with it."""
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def read_typed(path: Path, shape: type[Shape], remedy: str) -> Shape:
    """Like :func:`read_json`, checked against the TypedDict ``shape``; other keys are kept. Raises ExciteError."""
    from pydantic import ValidationError

    values = read_json(path, remedy)
    try:
        _checker(shape).validate_python(values)  # type: ignore[arg-type]  # a class can be hashed
    except ValidationError as error:
        why = "; ".join(explain(e) for e in error.errors()[:3])
        raise ExciteError(f"{path} is damaged: {why}; {remedy}") from None
    return cast(Shape, values)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically. Raises ExciteError if it cannot be written."""
    write_text(path, as_json(value) + "\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
