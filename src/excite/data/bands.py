"""Images of other than 1 or 3 channels: their bands are read as numbers.

Grey and colours have a meaning, so that one can be converted into the other (:mod:`excite.data.pixels`). Bands have
none: near infrared stays near infrared, and nothing is composited, inverted or converted. A file must have exactly as
many bands as the network takes. Pillow reads those of PNG, WebP and simple TIFFs (two or four bands); all other TIFFs
are read by tifffile, an extra.

16-bit values become 8 bits by the white level, as those of colours do: they are rounded to a 255th of it.

Shapes: C bands, H x W pixels. Everything here raises ValueError with a reason that does not name the file.
"""

import importlib.util
import io
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image

from excite.data.formats import exif_of, open_image, quietly
from excite.data.packed import Bytes, open_bytes
from excite.data.pixels import deep_values, eight_bits_of
from excite.data.whole import reaches_its_end
from excite.errors import install_line
from excite.text import counted

#: Numbers of channels that are colours: grey and RGB.
COLOURS = (1, 3)

#: Pillow's modes whose bands are the file's own numbers; others are made from them (palettes, premultiplied alpha ...).
_MODES = ("LA", "RGBA", "RGBX")
_PLANES, _SAMPLES, _ORIENTATION = 284, 277, 274  # tags of TIFF
_DEFLATE = (8, 32946)
#: Bytes of a compressed strip that cannot become much more than 256 MB: deflate shrinks by at most 1032.
_HARMLESS = 1 << 18


class Bands:
    """An image as a stack of bands, uint8 (H, W, C), with those methods of Pillow's images that resizing needs.

    Each band is resized by Pillow on its own, as Pillow does with those of a colour image.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as in Pillow."""
        return self.width, self.height

    def resize(
        self,
        size: tuple[int, int],
        resample: Image.Resampling = Image.Resampling.BICUBIC,
        box: tuple[float, float, float, float] | None = None,
    ) -> "Bands":
        """As Pillow's: `size` is (width, height)."""
        bands = (np.ascontiguousarray(self.pixels[:, :, k]) for k in range(self.pixels.shape[2]))
        return Bands(np.stack([np.asarray(Image.fromarray(band).resize(size, resample, box)) for band in bands], 2))

    def crop(self, box: tuple[int, int, int, int]) -> "Bands":
        """As Pillow's, for a box (left, top, right, bottom) inside the image."""
        left, top, right, bottom = box
        return Bands(self.pixels[top:bottom, left:right])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.pixels, dtype=dtype)


@dataclass(frozen=True)
class _Opened:
    """An image whose header has been read.

    Attributes:
        bands, height, width: its shape.
        integers: the type of its values, such as "uint16".
        white: its white level, if the file defines it.
        orientation: as in EXIF, from 1 to 8.
        more: what else the file has, for messages.
        whole: whether it certainly extends to its end.
        read: decode it to integers (H, W, C).
    """

    bands: int
    height: int
    width: int
    integers: str
    white: int | None
    orientation: int
    more: str
    whole: Callable[[], bool]
    read: Callable[[], np.ndarray]


def read_bands(source: Any, channels: int, max_pixels: int, white: int) -> Bands:
    """Read the bands of a file, its bytes, or pixels in memory, upright, with 8 bits each."""
    if isinstance(source, np.ndarray | Image.Image):
        return Bands(_eight_bits(_in_memory(source, channels, max_pixels), white))
    with _opened(source, channels, max_pixels) as image:
        values = _eight_bits(image.read(), image.white or white)
    return Bands(np.ascontiguousarray(_upright(values, image.orientation)))


def check_bands(source: Bytes, channels: int, max_pixels: int) -> None:
    """Raise ValueError for a file that `read_bands` would refuse, or that is truncated. Decodes it only if unusual."""
    with _opened(source, channels, max_pixels) as image:
        whole = image.whole()
    if not whole:
        read_bands(source, channels, max_pixels, 1)


def largest_of_bands(source: Bytes, channels: int, max_pixels: int) -> int | None:
    """The largest value of an image with 16 bits a band; None if it has 8, or if it defines its white level."""
    with _opened(source, channels, max_pixels) as image:
        if image.integers == "uint8" or image.white is not None:
            return None
        values = image.read()
    return int(values.max()) if values.size else None


def _eight_bits(values: np.ndarray, white: int) -> np.ndarray:
    return values if values.dtype == np.uint8 else eight_bits_of(values, white)


def _in_memory(source: np.ndarray | Image.Image, channels: int, max_pixels: int) -> np.ndarray:
    if isinstance(source, Image.Image):
        if source.mode not in _MODES:
            raise ValueError(f"it is a picture of mode {source.mode}, but the network takes {channels} bands")
        source = np.asarray(source)
    values = source[:, :, None] if source.ndim == 2 else source
    _check(values.shape[2], values.shape[0], values.shape[1], str(values.dtype), channels, max_pixels)
    return values


def _check(bands: int, height: int, width: int, kind: str, channels: int, max_pixels: int, more: str = "") -> None:
    if height * width > max_pixels:
        raise ValueError(f"it has {width} x {height} pixels, more than max_pixels = {max_pixels}")
    if bands != channels:
        raise ValueError(f"it has {counted(bands, 'band')}{more}, but the network takes {channels}")
    if np.dtype(kind).kind not in "ui":
        raise ValueError(f"{kind} pixels have no defined white level; save it with 8 or 16 bits per band")


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) turned and mirrored as EXIF says."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return values[::down, ::across]


@contextmanager
def _opened(source: Bytes, channels: int, max_pixels: int) -> Iterator[_Opened]:
    with open_bytes(source) as file:
        is_tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    with (
        _by_tifffile(source, channels)
        if is_tiff and not _pillow_reads(source)
        else _by_pillow(source, channels, max_pixels) as image
    ):
        _check(image.bands, image.height, image.width, image.integers, channels, max_pixels, image.more)
        yield image


def _pillow_reads(source: Bytes) -> bool:
    """Whether Pillow gives the numbers of a TIFF unchanged, and all of them."""
    try:
        with open_image(source) as opened:
            image: Any = opened
            tags = image.tag_v2
            raw = {next(iter(tile.args)) if isinstance(tile.args, tuple) else tile.args for tile in image.tile}
            own = all(str(each).partition(";")[0] in _MODES for each in raw)
            complete = tags.get(_SAMPLES, 1) == len(image.getbands()) and tags.get(_PLANES, 1) == 1
            return image.mode in _MODES and own and complete
    except Exception:  # tifffile will say what is wrong
        return False


@contextmanager
def _by_pillow(source: Bytes, channels: int, max_pixels: int) -> Iterator[_Opened]:
    with open_image(source) as opened:
        image: Any = opened
        if image.mode not in _MODES:
            bands = len(image.getbands())
            if bands == channels:
                raise ValueError(f"its {bands} bands are {image.mode}, which are not read as numbers; save it as TIFF")
            _check(bands, image.height, image.width, "uint8", channels, max_pixels, f" ({image.mode})")

        def read() -> np.ndarray:
            values = deep_values(source, image)
            return np.asarray(image) if values is None else values

        def whole() -> bool:
            with open_bytes(source) as file:
                return reaches_its_end(image, file)

        with quietly():
            orientation = int(exif_of(image).get(0x0112, 1))
        deep = any(";16" in str(tile.args) for tile in image.tile)
        kind = "uint16" if deep else "uint8"
        yield _Opened(len(image.getbands()), image.height, image.width, kind, None, orientation, "", whole, read)


@contextmanager
def _by_tifffile(source: Bytes, channels: int) -> Iterator[_Opened]:
    if importlib.util.find_spec("tifffile") is None:
        raise ValueError(f"reading its bands needs tifffile: {install_line('bands')}")
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is raised, too
    with (
        open_bytes(source) as file,
        tifffile.TiffFile(file) as tiff,
    ):
        first: Any = tiff.pages[0]
        pages = [first]
        if first.samplesperpixel == 1 and len(tiff.pages) > 1:
            pages = [cast(Any, tiff.pages[k]) for k in range(min(len(tiff.pages), channels + 1))]
        alike = all((page.shape, page.dtype) == (first.shape, first.dtype) for page in pages)
        as_bands = len(pages) == channels and alike
        more = f" in each of {len(tiff.pages)} pages" if len(pages) > 1 and not as_bands else ""
        pages = pages if as_bands else [first]
        size = file.seek(0, io.SEEK_END)

        def read() -> np.ndarray:
            for page in pages:
                _refuse_incomplete(page, size)
                _refuse_bomb(page, file)
            values = np.stack([page.asarray() for page in pages], -1) if as_bands else first.asarray()
            planes = first.planarconfig == 2 and first.samplesperpixel > 1
            values = np.moveaxis(values, 0, -1) if planes else values
            return values.reshape(first.imagelength, first.imagewidth, -1)

        def whole() -> bool:
            for page in pages:
                _refuse_incomplete(page, size)
            return True

        bits = first.bitspersample
        white = 2**bits - 1 if isinstance(bits, int) and 8 < bits < 16 else None
        orientation = first.tags.valueof(_ORIENTATION, 1)
        yield _Opened(
            len(pages) if as_bands else first.samplesperpixel,
            first.imagelength,
            first.imagewidth,
            str(first.dtype),
            white,
            orientation if isinstance(orientation, int) else 1,
            more,
            whole,
            read,
        )


def _refuse_incomplete(page: Any, size: int) -> None:
    """tifffile would fill what is missing with zeros."""
    offsets, counts = cast(Sequence[int], page.dataoffsets), cast(Sequence[int], page.databytecounts)
    if not offsets or len(offsets) != len(counts) or min(counts) <= 0:
        raise ValueError("it has no pixels, or only a part of them")
    if any(offset + count > size for offset, count in zip(offsets, counts, strict=True)):
        raise ValueError("it is truncated: the end of its pixels is missing")


def _refuse_bomb(page: Any, file: Any) -> None:
    """tifffile inflates a strip without a limit: refuse one that becomes more than its pixels."""
    if page.compression not in _DEFLATE:
        return
    shape = page.chunks
    wanted = int(np.prod(shape)) * page.dtype.itemsize
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count <= _HARMLESS:
            continue
        file.seek(offset)
        if len(zlib.decompressobj().decompress(file.read(count), wanted + 1)) > wanted:
            raise ValueError("its compressed pixels become more than it has room for")
