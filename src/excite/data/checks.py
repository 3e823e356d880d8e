"""Checks every file of class folders before the first step: whether it is complete, and whether it is a copy.

Results are kept in the cache folder by name, size and date, so that a second run only checks new files. An image that
looks complete is not decoded.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from excite.data.bands import COLOURS
from excite.data.contents import Part
from excite.data.decode import BadImageError, check_image
from excite.data.packed import Bytes, open_bytes
from excite.errors import ExciteError
from excite.files import cache_folder, written_aside
from excite.progress import Progress
from excite.runtime.waiting import waits
from excite.storage.staging import locked
from excite.threads import Threads

#: Version of the cache format and of the rules for what counts as complete.
VERSION = 1
#: A digest covers the whole file up to this many bytes, else its size, beginning and end ...
ENDS = 16 << 10
#: ... which distinguishes compressed files. Of uncompressed pixels, pieces from all over the file are included, too.
PLAIN = frozenset((".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".tga"))
THREADS = 8
CHUNK = 128


@dataclass
class Checked:
    """The result of checking the files of a part.

    Attributes:
        digests: digests of the contents, uint64 (N,); 0 for files that cannot be read.
        bad: (path, reason) of the files that cannot be decoded.
    """

    digests: np.ndarray
    bad: list[tuple[str, str]]


def digest_of(source: Bytes, size: int) -> int:
    """64 bits that are equal for copies of an image under any name, also inside archives; 0 if it cannot be read."""
    state = hashlib.blake2b(str(size).encode(), digest_size=8)
    places = [(0, ENDS), (max(0, size - ENDS), ENDS)]
    if not isinstance(source, bytes) and os.path.splitext(source)[1].lower() in PLAIN:
        places += [(size * i // 17, 1024) for i in range(1, 17)]
    if size <= 2 * ENDS:
        places = [(0, 2 * ENDS)]
    try:
        with open_bytes(source) as file:
            for start, length in places:
                file.seek(start)
                state.update(file.read(length) or b"")
    except (OSError, ValueError):
        return 0
    return int.from_bytes(state.digest(), "little") or 1


def check_files(part: Part, max_pixels: int, what: str, progress: Progress | None = None, in_chans: int = 3) -> Checked:
    """Check the files of a part, or use the cached results of an earlier check.

    Args:
        part: files with sizes and dates.
        max_pixels: larger images count as broken.
        what: name of the part, for the progress display.
        progress: called during the work.
        in_chans: channels that the images are read for.
    """
    paths, count = part.images.paths, len(part)
    place = _place(paths, max_pixels, in_chans)
    with _alone(place):  # of the processes of a job, the first one checks and the others read its results
        known = _read(place)
        keys = _keys(paths)
        index = np.minimum(np.searchsorted(known["keys"], keys), max(0, len(known["keys"]) - 1))
        same = np.zeros(count, dtype=bool)
        digests = np.zeros(count, dtype=np.uint64)
        reasons: dict[int, str] = {}
        if len(known["keys"]):
            for name, now in (("keys", keys), ("sizes", part.sizes), ("modified", part.modified)):
                match = known[name][index] == now
                same = match if name == "keys" else same & match
            digests[same] = known["digests"][index[same]]
            texts = known["reasons"]
            reasons = {int(i): texts[k] for i in np.flatnonzero(same) if (k := int(keys[i])) in texts}
        todo = np.flatnonzero(~same)
        for i, found, reason in _look(part, todo, max_pixels, what, progress, in_chans):
            digests[i] = found
            if reason is not None:
                reasons[int(i)] = reason
        if len(todo):
            _write(place, keys, part, digests, reasons)
    return Checked(digests, [(paths[i], reasons[i]) for i in sorted(reasons)])


def _look(
    part: Part, todo: np.ndarray, max_pixels: int, what: str, progress: Progress | None, in_chans: int
) -> Iterable[tuple[int, int, str | None]]:
    paths, sizes = part.images.paths, part.sizes

    def some(positions: np.ndarray) -> list[tuple[int, int, str | None]]:
        found = []
        for i in positions.tolist():
            reason = None
            try:
                check_image(part.images.source(i), max_pixels, in_chans)
            except BadImageError as error:
                reason = error.reason
            found.append((i, 0 if reason is not None else digest_of(part.images.source(i), int(sizes[i])), reason))
        return found

    folder = os.path.commonpath(paths) if len(todo) else ""
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    done = 0
    with Threads(THREADS) as pool:  # the disk takes most of the time, above all a network disk
        for found in waits.each(pool.map(some, chunks), lambda: f"the check of the {what} images in {folder}"):
            done += len(found)
            if progress is not None:
                progress(f"checking {what} images", done, len(todo))
            yield from found


def _keys(paths: Sequence[str]) -> np.ndarray:
    """Hashes of the absolute paths: uint64 (N,)."""
    keys = np.empty(len(paths), dtype=np.uint64)
    base = os.path.join(os.getcwd(), "")
    for i, path in enumerate(paths):
        whole = path if os.path.isabs(path) else base + path
        digest = hashlib.blake2b(os.fsencode(whole), digest_size=8).digest()
        keys[i] = int.from_bytes(digest, "little")
    return keys


def _place(paths: Sequence[str], max_pixels: int, in_chans: int) -> Path:
    """The cache file for a folder of images. It depends on Pillow's version, which decides what can be read."""
    root = os.path.abspath(os.path.commonpath([os.path.dirname(path) for path in paths]))
    rules = f"{VERSION}\0{max_pixels}\0{PIL.__version__}\0" + ("" if in_chans in COLOURS else f"{in_chans} bands\0")
    name = hashlib.sha256(rules.encode() + os.fsencode(root)).hexdigest()[:24]
    return cache_folder() / "checked" / f"{name}.npz"


def _alone(place: Path) -> ExitStack:
    """The lock of a cache file. If it cannot be written, there is none, and every process checks for itself."""
    held = ExitStack()
    with suppress(ExciteError):
        held.enter_context(locked(place))
    return held


_EMPTY = {name: np.zeros(0, np.uint64) for name in ("keys", "sizes", "modified", "digests")}


def _read(place: Path) -> dict[str, Any]:
    """The cached results; nothing if the file is damaged, since it is only a cache."""
    try:
        with np.load(place, allow_pickle=False) as file:
            found = {name: file[name] for name in _EMPTY}
            bad, texts = file["bad"], file["texts"].tobytes().decode().split("\0")
    except Exception:  # a damaged archive can raise nearly anything
        return {**_EMPTY, "reasons": {}}
    sized = {len(values) for values in found.values()}
    if len(sized) > 1 or (len(bad) and len(bad) != len(texts)):
        return {**_EMPTY, "reasons": {}}
    return {**found, "reasons": dict(zip(bad.tolist(), texts, strict=False))}


def _write(place: Path, keys: np.ndarray, part: Part, digests: np.ndarray, reasons: dict[int, str]) -> None:
    order = np.argsort(keys, kind="stable")
    bad = sorted(reasons)
    with suppress(ExciteError, OSError), written_aside(place) as aside, aside.open("wb") as file:
        np.savez(
            file,
            keys=keys[order],
            sizes=part.sizes[order],
            modified=part.modified[order],
            digests=digests[order],
            bad=keys[bad] if bad else np.zeros(0, np.uint64),
            texts=np.frombuffer("\0".join(reasons[i] for i in bad).encode("utf-8", "replace"), np.uint8),
        )
