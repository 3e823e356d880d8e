"""Reads untrusted ``.npz`` files: the declared size of an array is checked against the file before it is allocated."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from excite.errors import first_line

#: A file may unpack to this many times its size, or to this many bytes, whichever is more.
_TIMES, _BYTES = 50, 64 << 20


def read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an ``.npz`` by name. Nothing in it is unpickled.

    (``np.load`` would allocate whatever shape an array's header gives, and unpack everything.)

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an ``.npz``, is damaged, or has arrays of something other than numbers and texts.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > max(_TIMES * path.stat().st_size, _BYTES):
                raise ValueError("it unpacks to far more than its size")
            for entry in entries:
                with archive.open(entry) as file:
                    _check(entry.filename, file, entry.file_size)
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # zipfile and NumPy raise nearly anything on a damaged file
        raise ValueError(first_line(error)) from None


def _check(name: str, file: Any, size: int) -> None:
    """Raise ValueError if an array's header does not match the bytes after it."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name!r} has format version {version}")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds objects")
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"{name!r} has the shape {str(shape)[:40]}, but {size - file.tell()} bytes follow")
