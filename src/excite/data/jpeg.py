"""Reads only the part of a JPEG that is needed: by a kernel of ours around the libjpeg-turbo that Pillow itself uses.

Random crops use about half of a photograph's pixels, and so does evaluation with ``crop_pct`` 0.875. The rows below are
not decoded at all; of those above and beside, only the entropy code is. The resize that follows is Pillow's
(``libImaging/Resample.c``) with vector instructions. The result equals that of Pillow, bit for bit. Where it might not,
an image is left to Pillow: files without a plain end, with warnings, or with colours other than grey, RGB and YCbCr.

Sources: libjpeg-turbo, ``libjpeg.txt`` ("Partial image decompression").
"""

import ctypes
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, features

from excite.data.geometry import PILLOW_13, box_ratio
from excite.data.packed import PLAIN, Member, opened_file
from excite.runtime.compiled import Kernels

#: First bytes of a JPEG, and its last.
START, END = b"\xff\xd8\xff", b"\xff\xd9"
#: The oldest libjpeg-turbo whose partial decoding is exact.
OLDEST = (3, 0)
_DONE, _MEMORY = 0, 2


class Header(NamedTuple):
    """Width and height in pixels as they are stored, and whether the file may have an EXIF orientation."""

    width: int
    height: int
    may_be_turned: bool


class Axis(NamedTuple):
    """What becomes of an image in one direction: pixels [start, end) become ``resized``, of which ``wanted`` from
    number ``first`` on are kept."""

    start: float
    end: float
    resized: int
    first: int
    wanted: int


def _prepare(library: ctypes.CDLL) -> None:
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.excite_jpeg_header.argtypes = [ctypes.c_char_p, ctypes.c_int64, pointer]
    library.excite_jpeg_part.argtypes = [
        *(ctypes.c_char_p, ctypes.c_int64, integer, integer, pointer, pointer, integer, integer, integer, pointer)
    ]
    library.excite_jpeg_crops.argtypes = [ctypes.c_int64, *(pointer,) * 11]
    library.excite_jpeg_crops.restype = None
    library.excite_jpeg_draws.argtypes = [pointer, integer, pointer, ctypes.c_int64, pointer, ctypes.c_int64]
    library.excite_jpeg_draws.restype = None
    found = library.excite_jpeg_bind(str(_decoder()).encode())
    if found:
        raise RuntimeError(f"the libjpeg that Pillow uses {_UNFIT[found]}; type: pip install --upgrade pillow")


#: What `excite_jpeg_bind` returns -> what is wrong.
_UNFIT = {1: "cannot be loaded", 2: "has no partial decoding", 3: "has another binary interface than 6.2"}


def _decoder() -> Path:
    """Pillow's own extension: the functions that a search from it finds are those that Pillow itself calls, whatever
    else is loaded, and wherever it is. Raises RuntimeError if its libjpeg-turbo is too old."""
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise RuntimeError("they need a 64-bit system")
    version = features.version("libjpeg_turbo") or "0"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        raise RuntimeError("this Pillow was built without libjpeg-turbo 3; type: pip install --upgrade pillow")
    found: str | None = getattr(Image.core, "__file__", None)
    if found is None:
        raise RuntimeError("this Pillow is part of the interpreter")
    return Path(found)


# Weights as Pillow computes them: without fused multiplications.
_kernels = Kernels("excite.data", "jpeg_kernels.cpp", "jpeg", ("-ffp-contract=off",), _prepare)
available, why_not, build_seconds = _kernels.available, _kernels.why_not, _kernels.build_seconds


def header(data: bytes) -> Header | None:
    """The header of a JPEG, from the whole file's bytes; None if only Pillow can tell, or there are no kernels."""
    if not data.startswith(START) or not data.endswith(END) or not available():
        return None
    found = np.empty(3, np.int32)
    if _kernels.library.excite_jpeg_header(data, len(data), found.ctypes.data):
        return None
    return Header(int(found[0]), int(found[1]), bool(found[2]))


def lossless(file: BinaryIO) -> bool:
    """Whether a JPEG is of a lossless kind (SOF3, 7, 11, 15), which libjpeg cannot decode at a smaller size."""
    file.seek(len(START) - 1)
    while len(marker := file.read(4)) == 4 and marker[0] == 0xFF:
        kind = marker[1]
        if kind == 0xFF:  # any number of them may come before a marker
            file.seek(-3, io.SEEK_CUR)
            continue
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return kind % 4 == 3
        file.seek(int.from_bytes(marker[2:], "big") - 2, io.SEEK_CUR)
    return False


def part(
    data: bytes,
    denominator: int,
    orientation: int,
    across: Axis,
    down: Axis,
    cubic: bool,
    channels: int,
    out: np.ndarray | None = None,
) -> np.ndarray | None:
    """A part of a JPEG with a `header`, upright and resized: uint8 (H, W, C). None if only Pillow can read it.

    The interpreter's lock is not held meanwhile.

    Args:
        data: the whole file's bytes.
        denominator: decode at 1 / 1, 2, 4 or 8 of its size.
        orientation: of EXIF, 1 to 8.
        across, down: in pixels of the upright image, at that size.
        cubic: bicubic, not bilinear.
        channels: 3 for RGB, 1 for luma.
        out: where to put it, contiguous; a new array by default.

    Raises:
        MemoryError: there is not enough memory.
    """
    if out is None:
        out = np.empty((down.wanted, across.wanted, channels), np.uint8)
    assert out.flags.c_contiguous
    assert (out.dtype, *out.shape) == (np.uint8, down.wanted, across.wanted, channels)
    box = np.array((across.start, across.end, down.start, down.end), np.float32)
    size_of = np.array((*across[2:], *down[2:]), np.int32)
    settings = denominator, orientation, box.ctypes.data, size_of.ctypes.data, cubic, PILLOW_13, channels
    status = _kernels.library.excite_jpeg_part(data, len(data), *settings, out.ctypes.data)
    if status == _MEMORY:
        raise MemoryError
    return out if status == _DONE else None


def words_of(seed: Sequence[int]) -> list[int]:
    """Numbers as NumPy's SeedSequence takes them: each as words of 32 bits, the lowest first."""
    words: list[int] = []
    for number in seed:
        words.append(number & 0xFFFFFFFF)
        while number := number >> 32:
            words.append(number & 0xFFFFFFFF)
    return words


def _places(
    sources: Sequence[str | os.PathLike[str] | None],
) -> tuple[ctypes.Array, np.ndarray, np.ndarray, list[io.FileIO]]:
    """Paths; descriptors int32 (B,), or -1; offset and length int64 (2, B) there; and what keeps the files open."""
    paths: list[bytes | None] = []
    descriptors = np.full(len(sources), -1, np.int32)
    spans = np.zeros((2, len(sources)), np.int64)
    files = []
    for i, source in enumerate(sources):
        path = None
        if source is None:
            pass
        elif not isinstance(source, Member):
            path = os.fsencode(source)
        elif source.kind == PLAIN:
            try:
                files.append(opened_file(source.file))
                descriptors[i], spans[0, i], spans[1, i] = files[-1].fileno(), source.offset, source.length
            except (OSError, ValueError):  # said by whoever reads it in another way
                pass
        paths.append(path)
    return (ctypes.c_char_p * len(sources))(*paths), descriptors, spans, files


class _Crops(ctypes.Structure):
    _fields_ = (
        ("ranges", ctypes.c_double * 6),
        ("most", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("tall", "wide", "cubic", "newer", "channels", "words")),
    )


@dataclass(frozen=True)
class RandomCrops:
    """Random crops of whole files in one call, from opening them to their pixels: a loader reads many a second, and
    what each costs in Python is done by one thread at a time. Of the same file with the same seed,
    :func:`excite.data.resize.random_resized_crop` makes the same pixels.

    Attributes:
        scale: smallest and largest share of an image's area.
        ratio: smallest and largest width / height, as in a recipe.
        size: (H, W), pixels of the result.
        cubic: bicubic, not bilinear.
        channels: 3 for RGB, 1 for luma.
        max_pixels: larger images are left to others.
    """

    scale: Sequence[float]
    ratio: Sequence[float]
    size: tuple[int, int]
    cubic: bool
    channels: int
    max_pixels: int

    def read(
        self,
        sources: Sequence[str | os.PathLike[str] | None],
        seed: Sequence[int],
        own: Sequence[int],
        out: np.ndarray,
        beat: np.ndarray,
        numbers: Sequence[int],
    ) -> np.ndarray:
        """Put the crops of B images in ``out``. The interpreter's lock is not held meanwhile.

        Args:
            sources: where the images are; None: leave this one to others.
            seed: of all crops, not negative.
            own: the last number of each image's seed, from 0 to 2**32 - 1.
            out: uint8 (B, H, W, C), contiguous.
            beat: int64 (2,), becomes the number of the image that is read, or -1, and counts them.
            numbers: those of the images.

        Returns:
            bool (B,): which are done. The others, whatever the reason, are to be read in another way.
        """
        low, high = box_ratio(self.ratio, self.size)
        ranges = (ctypes.c_double * 6)(*self.scale, low, high, math.log(low), math.log(high))
        shared = words_of(seed)
        settings = self.cubic, PILLOW_13, self.channels, len(shared) + 1
        crops = _Crops(ranges, self.max_pixels, *self.size, *settings)
        words = np.array([*shared, 0], np.uint32)
        lasts, places = np.array(own, np.uint32), np.array(numbers, np.int64)
        done = np.zeros(len(sources), bool)
        assert out.flags.c_contiguous
        assert (out.dtype, *out.shape) == (np.uint8, len(sources), *self.size, self.channels)
        paths, descriptors, (offsets, lengths), files = _places(sources)
        given = (each.ctypes.data for each in (descriptors, offsets, lengths, places, words, lasts))
        _kernels.library.excite_jpeg_crops(
            *(len(sources), paths, *given),
            *(ctypes.addressof(crops), out.ctypes.data, done.ctypes.data, beat.ctypes.data),
        )
        del files  # until now they must be open
        return done


def draws(seed: Sequence[int], doubles: int, below: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """So many numbers from 0 to 1, float64, and one uint32 below each of these, as the crops draw them (for tests)."""
    words, numbers, integers = np.array(words_of(seed), np.uint32), np.empty(doubles), np.array(below, np.uint32)
    settings = words.ctypes.data, len(words), numbers.ctypes.data, doubles, integers.ctypes.data, len(integers)
    _kernels.library.excite_jpeg_draws(*settings)
    return numbers, integers
