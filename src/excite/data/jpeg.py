"""Reads only the part of a JPEG that is needed: by a kernel of ours around the libjpeg-turbo that Pillow itself uses.

Random crops use about half of a photograph's pixels, and so does evaluation with ``crop_pct`` 0.875. The rows below are
not decoded at all; of those above and beside, only the entropy code is. The resize that follows is Pillow's
(``libImaging/Resample.c``) with vector instructions. The result equals that of Pillow, bit for bit. Where it might not,
an image is left to Pillow: files without a plain end, with warnings, or with colours other than grey, RGB and YCbCr.

Sources: libjpeg-turbo, ``libjpeg.txt`` ("Partial image decompression").
"""

import ctypes
import io
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, features

from excite.data.geometry import PILLOW_13
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
