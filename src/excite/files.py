"""Files that are whole or absent: written to the side, flushed to the disk, then renamed."""

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

from excite.errors import ExciteError, explain, shown_text
from excite.text import as_json

Shape = TypeVar("Shape")

#: Bytes. The longest of ours, the results of a run of many classes with its report, have some megabytes.
LONGEST_JSON = 256 << 20


def cache_folder() -> Path:
    """Where what can be made or fetched again is kept: EXCITE_CACHE, else ~/.cache/excite."""
    return Path(os.environ.get("EXCITE_CACHE") or "~/.cache/excite").expanduser()


def not_ours(found: os.stat_result, kind: Callable[[int], bool] = stat.S_ISREG) -> str | None:
    """Why others than this user could have put a file or folder there, or could change it; None where they could not.

    Args:
        found: of it, without following a link.
        kind: what it should be, such as ``stat.S_ISDIR``.
    """
    if not kind(found.st_mode):
        return "is not what it should be"
    if sys.platform == "win32":  # rights are not in the mode there
        return None
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    return "can be written to by others" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not know fsync on folders; a file that cannot be flushed is an error.
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
    """Yield a path beside ``path`` to write to; it becomes ``path`` when the block ends well.

    A file replaces the one that is there; a folder must be new.

    After a crash, a kill or a full disk at any moment, ``path`` is as it was before or as it should be, never between.

    Raises:
        ExciteError: the disk is full or the place cannot be written; what was at ``path`` before is untouched.
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
        return f"the disk is full: {path} could not be written; free some space (what was there before is whole)"
    return f"{path} could not be written: {error.strerror or error} (what was there before is whole)"


def check_writable(path: Path) -> None:
    """Raise ExciteError where a file could not be written, before the work that it is to hold is done.

    Folders that are missing are no error: they are made. A full disk is only met by writing.
    """
    if path.is_dir():
        raise ExciteError(f"{path} is a folder; name a file in it, such as {path / 'NAME'}")
    there = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not there.is_dir():
        raise ExciteError(f"{path} could not be written: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ExciteError(f"{path} could not be written: the folder {there} is read-only for you; name another place")


def check_here(place: str, what: str) -> None:
    """Raise ExciteError where ``place`` is an address; ``what`` it is begins the sentence."""
    if "://" in place:
        raise ExciteError(f"{place}: {what} must be on this machine")


def check_new(path: Path, force: bool = False) -> None:
    """The same for a file that is not to be written over, unless by ``force``."""
    check_writable(path)
    if os.path.lexists(path) and not force:
        raise ExciteError(f"{path} exists already; --force writes over it")


def check_new_folder(path: Path) -> None:
    """The same for a folder that must be new."""
    if os.path.lexists(path):
        raise ExciteError(f"{path} exists already; name a new folder")
    check_writable(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all. Raises ExciteError where it cannot be written.

    Lone surrogates, which stand for bytes of file names that are no UTF-8, become ``\\udce9``: a text is never lost for
    a name in it.
    """
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def to_json(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON text, see :func:`excite.text.as_json`; one line is ASCII, indented text is for people."""
    return as_json(value, indent, ascii_only=indent is None)


def from_json(text: str | bytes) -> Any:
    """What JSON text says, with None for a bare NaN or Infinity, which former versions wrote.

    Raises:
        ValueError: it is no JSON, or nested so deep that Python gives up.
    """
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: Path, remedy: str = "delete it to go on without it") -> dict[str, Any]:
    """What :func:`write_json` wrote, an object. Raises ExciteError where it cannot be read; ``remedy`` ends it."""
    try:
        if path.stat().st_size > LONGEST_JSON:
            raise ValueError(f"it has more than {LONGEST_JSON >> 20} MB")
        value = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else shown_text(str(error))
        raise ExciteError(f"{path} cannot be read as JSON ({reason}); {remedy}") from None
    if not isinstance(value, dict):
        raise ExciteError(f"{path} holds no JSON object; {remedy}")
    return value


def read_typed(path: Path, shape: type[Shape], remedy: str) -> Shape:
    """The same for a file that a TypedDict describes; keys that it does not name are kept. Raises ExciteError."""
    from pydantic import TypeAdapter, ValidationError

    values = read_json(path, remedy)
    try:
        TypeAdapter(shape).validate_python(values)
    except ValidationError as error:
        why = "; ".join(explain(e) for e in error.errors()[:3])
        raise ExciteError(f"{path} is damaged: {why}; {remedy}") from None
    return cast(Shape, values)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, whole or not at all. Raises ExciteError where it cannot be written."""
    write_text(path, as_json(value) + "\n")


def sha256_of(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
