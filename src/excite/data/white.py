"""Detects the white level of 16-bit images: cameras and scanners use 10, 12 or 14 of the bits, and files do not say."""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from excite.data.config import DataConfig
from excite.data.decode import BadImageError, largest_value
from excite.data.images import FileImages
from excite.data.packed import Bytes, open_bytes
from excite.data.pixels import FULL_WHITE
from excite.threads import Threads

#: Bit depths of sensors. With others, such as 11, a dark set of 12-bit images would be taken for it and clipped later.
DEPTHS = (8, 10, 12, 14, 16)
#: When streaming: number of files whose first bytes are examined, and of 16-bit files decoded, before training.
LOOKED_AT, DECODED = 4096, 256

Answer = TypeVar("Answer")
Item = TypeVar("Item")


def with_white(
    data: DataConfig, train: FileImages, val: FileImages, every: bool = False
) -> tuple[DataConfig, list[str]]:
    """The data section with `white` filled in, and notes for the user.

    The white level is the smallest of 2**8 - 1, 2**10 - 1 ... 2**16 - 1 that is not below the largest value of the
    training images. It is also set in both parts (`FileImages.white`). Unreadable images are skipped here; they are
    reported later.

    Args:
        data: the data section; if it gives `white`, that is used and no image is examined.
        train: the images to detect it from.
        val: images that only get it set.
        every: examine every training image with 16 bits per channel, not just `DECODED` of them.
    """
    said: list[str] = []
    if data.white is None:
        found, deep, sampled = _largest(train, data, every)
        white = next(2**bits - 1 for bits in DEPTHS if (found or FULL_WHITE) < 2**bits)
        data = data.model_copy(update={"white": white})
        if white != FULL_WHITE:
            images = (
                f"a sample of {deep:,} 16-bit training images uses"
                if sampled
                else f"{deep:,} 16-bit training images use"
            )
            said.append(
                f"{images} values up to {found} of {FULL_WHITE}: using {white} as white (data.white={white}), "
                f"larger values are clipped; data.white={FULL_WHITE} turns this off"
            )
    assert data.white is not None
    train.white = val.white = data.white
    return data, said


def _largest(images: FileImages, data: DataConfig, every: bool) -> tuple[int | None, int, bool]:
    """The largest value among 16-bit images, how many images were decoded for it, and whether they are a sample."""
    positions = range(len(images)) if every else _spread(range(len(images)), LOOKED_AT)
    looked: list[Bytes] = [images.source(i) for i in positions]
    with Threads(os.cpu_count() or 1) as pool:  # Pillow releases the GIL while it decodes
        deep = [each for each, is_deep in zip(looked, _in_chunks(pool, has_16_bits, looked), strict=True) if is_deep]
        decoded = deep if every else _spread(deep, DECODED)

        def largest(source: Bytes) -> int | None:
            try:
                return largest_value(source, data.max_pixels, data.in_chans)
            except BadImageError:
                return None

        values = [value for value in _in_chunks(pool, largest, decoded) if value is not None]
    values = [value for value in values if 0 <= value <= FULL_WHITE]
    return max(values, default=None), len(values), len(decoded) < len(deep) or len(looked) < len(images)


def _in_chunks(pool: Threads, ask: Callable[[Bytes], Answer], images: Sequence[Bytes]) -> list[Answer]:
    """`ask` of every image, in chunks of 64: handing over single ones would cost more than the quickest calls."""
    chunks = [images[i : i + 64] for i in range(0, len(images), 64)]
    return [answer for part in pool.map(lambda chunk: [ask(each) for each in chunk], chunks) for answer in part]


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, count).round()]


def has_16_bits(source: Bytes) -> bool:
    """Whether a file may have more than 8 bits per channel with an unknown white level, by its first bytes."""
    try:
        plain = isinstance(source, str)
        with open(source, "rb", buffering=0, opener=_without_waiting) if plain else open_bytes(source) as file:
            head = file.read(32)
    except (OSError, ValueError):
        return False
    if head.startswith(b"\x89PNG"):
        return head[24:25] == b"\x10"
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") or (head[:2] in (b"P5", b"P2"))


def _without_waiting(path: str, flags: int) -> int:
    """Open without blocking: a FIFO that nobody writes to would hang forever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
