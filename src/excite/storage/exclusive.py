"""Writes a small file at an address only if it is not there yet, or is still what was read.

S3 decides it itself (``If-None-Match: *``, ``If-Match``), and so does a local disk (hard links). Other stores do what
their fsspec package offers. Whatever the store did, the file is read back: a store that ignores conditions, or an
answer that was lost, gives the right result unless two processes write within the same moment.
"""

import errno
import inspect
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from excite.files import told, written_aside
from excite.storage.address import Remote


def create(remote: Remote, path: str, data: bytes) -> bool:
    """Write a file that must not exist. False if it does, with other contents. Raises what the file system raises."""
    if remote.is_local:
        return create_here(Path(path), data)
    if not remote.is_object_store:
        remote.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    try:
        _create(remote.fs, path, data)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno != errno.ENOSYS:  # a store that knows no conditions says so
            raise
        _create_if_missing(remote.fs, path, data)
    return bool(remote.fs.cat_file(path) == data)


def _create(fs: Any, path: str, data: bytes) -> None:
    # Older versions of these packages would take mode= for an option of the store, and overwrite.
    if "mode" in inspect.signature(getattr(fs, "_pipe_file", fs.pipe_file)).parameters:
        fs.pipe_file(path, data, mode="create")
    else:
        _create_if_missing(fs, path, data)


def _create_if_missing(fs: Any, path: str, data: bytes) -> None:
    if not fs.exists(path):
        fs.pipe_file(path, data)


def create_here(path: Path, data: bytes) -> bool:
    """The same on this machine; the file appears whole. Raises ExciteError if it cannot be written."""
    new = _beside(path, data)
    with told(path):
        try:
            os.link(new, path)
        except FileExistsError:
            return path.read_bytes() == data
        except OSError:  # a file system without hard links
            return _create_without_links(path, data)
        finally:
            new.unlink(missing_ok=True)
    return True


def _beside(path: Path, data: bytes) -> Path:
    """Write a whole file next to ``path``, under a name that no other process or machine uses. Raises ExciteError."""
    new = path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex}")
    with written_aside(new) as aside:
        aside.write_bytes(data)
    return new


def _create_without_links(path: Path, data: bytes) -> bool:
    """:func:`create_here` with a file that is there before its contents; not left if these cannot be written."""
    with told(path):
        try:
            file = path.open("xb")
        except FileExistsError:
            return path.read_bytes() == data
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
    return True


def replace(remote: Remote, path: str, data: bytes, tag: str | None) -> bool:
    """Overwrite a file that is still what it was. False if it has changed. Raises what the file system raises.

    Args:
        remote: the store.
        path: the file in it.
        data: its new contents.
        tag: its ETag when it was read; None if the store gives none, so that the last of several writers wins.
    """
    if remote.is_local:
        with told(Path(path)):
            os.replace(_beside(Path(path), data), path)
    elif tag is None or not hasattr(remote.fs, "call_s3"):
        remote.fs.pipe_file(path, data)
    else:
        _replace_in_s3(remote.fs, path, data, tag)
    with suppress(FileNotFoundError):  # deleted meanwhile
        return bool(remote.fs.cat_file(path) == data)
    return False


def _replace_in_s3(fs: Any, path: str, data: bytes, tag: str) -> None:
    bucket, key, _ = fs.split_path(path)
    try:
        fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=tag)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.ENOSYS:
            fs.pipe_file(path, data)
        elif "PreconditionFailed" not in str(error.__cause__):
            raise
