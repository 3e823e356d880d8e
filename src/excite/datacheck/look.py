"""One look at every image: it is decoded once, and a few numbers of it are kept, in the cache folder, too.

Shapes: N images. Everything that later steps need from the pixels is in :class:`Looks`, about 1.5 KB an image.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from excite.data.ahead import decoding_threads
from excite.data.bands import COLOURS
from excite.data.decode import BadImageError, opened, reading
from excite.data.formats import FORMATS
from excite.data.packed import Bytes
from excite.datacheck.items import Items
from excite.datacheck.kept import place_of, read_arrays, write_arrays
from excite.progress import Progress, silent
from excite.runtime.waiting import waits
from excite.threads import Threads

#: Side of the small grey picture that copies are recognised by, and of that of the colours, pixels.
SIDE, COLOUR = 32, 8
#: A JPEG is decoded at a half, a quarter or an eighth of its size while both sides keep so many pixels: damage is found
#: all the same, since every code in the file is read.
ENOUGH = 96
_CHUNK = 64
#: Directions of edges that are told apart.
_TURNS = 9
_FORMATS = (*FORMATS, "MPO", "pixels", "other")


def _row() -> np.dtype:
    return np.dtype(
        [
            ("key", np.uint64),  # of the stamp: path, size and date, or pixels
            ("digest", np.uint64),  # of the whole file, or of the pixels; 0: unreadable
            ("bytes", np.int64),  # size of the file; 0 for pixels in memory
            ("width", np.int32),
            ("height", np.int32),
            ("format", np.int8),  # in _FORMATS
            ("mode", "U8"),  # Pillow's name of the kind of pixels
            ("range", np.uint8),  # the largest value minus the smallest, of the channel where that is most
            ("mean", np.float32, 3),  # of each channel, 0 to 255
            ("grey", np.uint8, (SIDE, SIDE)),
            ("colour", np.uint8, (2, COLOUR, COLOUR)),  # Cb and Cr
            ("edges", np.float16, 144),
        ]
    )


ROW = _row()


@dataclass
class Looks:
    """What was seen of N images.

    Attributes:
        rows: structured (N,), of dtype :data:`ROW`; zeros for unreadable images.
        reasons: position -> why the image cannot be read.
        fresh: how many were looked at now; the others were in the cache.
    """

    rows: np.ndarray
    reasons: dict[int, str]
    fresh: int

    @property
    def good(self) -> np.ndarray:
        """int64: positions of the readable images, ascending."""
        return np.flatnonzero(self.rows["digest"])

    def formats(self) -> np.ndarray:
        """Pillow's name of each format: str (N,)."""
        return np.array(_FORMATS)[self.rows["format"]]


def look_at_all(items: Items, progress: Progress = silent) -> Looks:
    """Look at every image that is not in the cache.

    Args:
        items: the images.
        progress: called during the work.
    """
    keys = np.array([_short(items.stamp(i)) for i in range(len(items))], np.uint64)
    rows = np.zeros(len(items), ROW)
    reasons: dict[int, str] = {}
    place = place_of(items, "seen")
    known, texts = _read(place)
    if len(known):
        at = np.minimum(np.searchsorted(known["key"], keys), len(known) - 1)
        same = known["key"][at] == keys
        rows[same] = known[at[same]]
        reasons = {int(i): texts[int(keys[i])] for i in np.flatnonzero(same) if int(keys[i]) in texts}
    todo = np.flatnonzero(rows["key"] != keys)
    for done, (i, row, reason) in enumerate(_look(items, todo), 1):
        rows[i] = row
        rows[i]["key"] = keys[i]
        if reason is not None:
            reasons[i] = reason
        progress("looking at every image", done, len(todo))
    if len(todo):
        _write(place, rows, {int(keys[i]): reason for i, reason in reasons.items()})
    return Looks(rows, dict(sorted(reasons.items())), len(todo))


def _look(items: Items, todo: np.ndarray) -> Iterator[tuple[int, np.ndarray, str | None]]:
    def some(positions: np.ndarray) -> list[tuple[int, np.ndarray, str | None]]:
        found: list[tuple[int, np.ndarray, str | None]] = []
        for i in positions.tolist():
            try:
                found.append((i, look(items, i), None))
            except BadImageError as error:
                found.append((i, np.zeros((), ROW), error.reason))
        return found

    sample = [path for i in todo[:: max(1, len(todo) // 32)].tolist() if (path := items.path(i)) is not None]
    with Threads(decoding_threads(sample)) as pool:
        chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
        for found in waits.each(pool.map(some, chunks), lambda: "the look at every image"):
            yield from found


def look(items: Items, item: int) -> np.ndarray:
    """Decode an image and measure it: a row of :data:`ROW`. Raises BadImageError."""
    row = np.zeros((), ROW)
    with reading(items.path(item) or items.names[item]) as name:
        source = items.source(item)
        kind, mode = "pixels", f"{items.channels} bands"
        if isinstance(source, np.ndarray):
            row["height"], row["width"] = source.shape[:2]
            mode = {1: "L", 3: "RGB"}.get(source.shape[2], mode)
        image = items.picture(item, ENOUGH)
        data = items.data(item)
        if not isinstance(source, np.ndarray):
            row["bytes"] = len(data)
            if items.channels in COLOURS:
                with opened(cast(Bytes, source), name, items.max_pixels) as header:
                    kind, mode = header.format or "other", header.mode
                    row["width"], row["height"] = header.size
            else:
                kind = "other"
                row["width"], row["height"] = image.size
        row["format"] = _FORMATS.index(kind if kind in _FORMATS else "other")
        row["mode"] = mode
        row["digest"] = _short(data) or 1
        _measure(row, image)
    return row


def _measure(row: np.ndarray, image: Image.Image) -> None:
    row["range"] = max(band.getextrema()[1] - band.getextrema()[0] for band in image.split())  # type: ignore[operator]
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=3.0)
    pixels = np.asarray(small, np.float32)
    row["mean"] = pixels.mean((0, 1))
    light, blue, red = np.moveaxis(np.asarray(small.convert("YCbCr")), 2, 0)
    row["grey"] = light
    block = SIDE // COLOUR
    colours = np.stack([blue, red]).reshape(2, COLOUR, block, COLOUR, block)
    row["colour"] = np.round(colours.mean((2, 4)))
    row["edges"] = edges(light.astype(np.float32))


def edges(grey: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal & Triggs, CVPR 2005): float32 (SIDE, SIDE) -> (144,).

    4 x 4 cells of 8 x 8 pixels, 9 unsigned orientations, each cell divided by its norm plus that of the whole.
    """
    down, across = np.gradient(grey)
    size = np.hypot(down, across)
    turn = np.mod(np.arctan2(down, across), np.pi) * (_TURNS / np.pi)
    low = np.floor(turn).astype(np.int64)
    share = turn - low
    cell = np.arange(SIDE) // (SIDE // 4)
    cells = (cell[:, None] * 4 + cell[None]) * _TURNS
    out = np.bincount((cells + low % _TURNS).ravel(), (size * (1 - share)).ravel(), 144)
    out += np.bincount((cells + (low + 1) % _TURNS).ravel(), (size * share).ravel(), 144)
    table = out.reshape(16, _TURNS)
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    return np.sqrt(table / (norms + norms.mean() + 1e-3)).ravel()


# --- the cache --------------------------------------------------------------------------------------------------------


def _short(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _read(place: Path) -> tuple[np.ndarray, dict[int, str]]:
    """The rows by ascending key and the reasons by key; nothing if there is no such file."""
    found = read_arrays(place) or {}
    rows, bad, texts = found.get("rows"), found.get("bad"), found.get("texts")
    if rows is None or bad is None or texts is None or rows.dtype != ROW or rows.ndim != 1:
        return np.zeros(0, ROW), {}
    reasons = texts.tobytes().decode("utf-8", "replace").split("\0")
    return rows, dict(zip(bad.tolist(), reasons, strict=False))


def _write(place: Path, rows: np.ndarray, reasons: dict[int, str]) -> None:
    keys = sorted(reasons)
    texts = "\0".join(reasons[key] for key in keys).encode("utf-8", "replace")
    write_arrays(
        place,
        {
            "rows": rows[np.argsort(rows["key"], kind="stable")],
            "bad": np.array(keys, np.uint64),
            "texts": np.frombuffer(texts, np.uint8),
        },
    )
