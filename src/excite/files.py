"""Atomic file writes: a file is written to one side, flushed to disk, then renamed; and checks of paths."""

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from excite.errors import ExciteError, explain, no_path, shown_text
from excite.text import as_json

Shape = TypeVar("Shape")

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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to; it is renamed to ``path`` when the block ends without an error.

    A file replaces an existing one; a folder must be new. After a crash, a kill or a full disk at any moment, ``path``
    is either as before or complete, never in between.

    Raises:
        ExciteError: the disk is full, or the place cannot be written; ``path`` is then unchanged.
    """
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(aside)
        yield aside
        for file in [p for p in aside.rglob("*") if p.is_file()] if aside.is_dir() else [aside]:
            _sync(file)
        if aside.is_dir():
            _sync(aside)
        os.replace(aside, path)
        _sync(path.parent)
    except OSError as error:
        _remove(aside)
        raise ExciteError(_sentence(path, error)) from error
    except BaseException:
        _remove(aside)
        raise


def _sentence(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {path} could not be written; free some space (what was there before is unchanged)"
    return f"{path} could not be written: {error.strerror or error} (what was there before is unchanged)"


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


def read_typed(path: Path, shape: type[Shape], remedy: str) -> Shape:
    """Like :func:`read_json`, checked against the TypedDict ``shape``; other keys are kept. Raises ExciteError."""
    from pydantic import TypeAdapter, ValidationError

    values = read_json(path, remedy)
    try:
        TypeAdapter(shape).validate_python(values)
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
