"""Results that are kept in the cache folder, one file for each data set and kind: a second check is quick."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL

from excite.datacheck.items import Items
from excite.errors import ExciteError
from excite.files import cache_folder, written_aside

#: Version of the files, and of how their contents are computed.
VERSION = 2

Arrays = dict[str, np.ndarray]


def place_of(items: Items, kind: str) -> Path:
    """The file for a data set. Pillow's version decides what can be read, and how it looks."""
    paths = (path for i in range(len(items)) if (path := items.path(i)) is not None)
    first = os.path.dirname(os.path.abspath(next(paths, "")))
    what = [
        str(VERSION),
        PIL.__version__,
        str(items.max_pixels),
        str(items.channels),
        first,
        *items.classes,
        items.names[0],
    ]
    name = hashlib.sha256("\0".join(what).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return cache_folder() / "looked" / f"{name}-{kind}.npz"


def read_arrays(place: Path) -> Arrays | None:
    """What :func:`write_arrays` wrote; None if there is nothing, or it is damaged: it is only a cache."""
    with suppress(Exception), np.load(place, allow_pickle=False) as file:  # a damaged archive can raise nearly anything
        return {name: file[name] for name in file.files}
    return None


def write_arrays(place: Path, arrays: Arrays) -> None:
    """Write arrays, if that is possible."""
    with suppress(ExciteError, OSError), written_aside(place) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def kept(place: Path, key: bytes, make: Callable[[], Arrays]) -> Arrays:
    """The arrays in a file if they were made with this key, else those that ``make`` returns, which are written there.

    Args:
        place: from :func:`place_of`.
        key: whatever the arrays depend on.
        make: makes them.
    """
    stamp = np.frombuffer(hashlib.sha256(key).digest(), np.uint8)
    found = read_arrays(place)
    if found is not None and np.array_equal(found.pop("stamp", stamp[:0]), stamp):
        return found
    made = make()
    write_arrays(place, {**made, "stamp": stamp})
    return made
