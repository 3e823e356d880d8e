"""From the bytes of an image file to uint8 pixels of the wanted size, for every format that users have.

Shapes: C channels, h x w pixels of any image, H x W those wanted; B boxes, or images in a batch.

The same rules apply wherever an image is read (training, validation, prediction):
- grey, CMYK (also Adobe's inverted CMYK), palette, YCbCr ... become RGB (or luma, ITU-R 601, for one channel);
- alpha, palette transparency and a transparent key colour are composited over white;
- 16 bits per channel, grey or colour, are scaled to round(v * 255 / white), with white = 65535 by default (Pillow would
  clip grey above 255 to white, and keep 16 levels of 12-bit colours);
- bands other than colour and transparency (near infrared ...) are never taken for either: such images are refused,
  except by networks that take so many bands (`excite.data.bands`);
- the EXIF orientation is applied; of a GIF or multi-page TIFF, the first frame is read.

The formats are listed in `excite.data.formats`.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps

from excite.data import jpeg
from excite.data.bands import COLOURS, Bands, check_bands, largest_of_bands, read_bands
from excite.data.config import PILLOW_LIMIT
from excite.data.formats import exif_of, open_image, quietly, what_it_is
from excite.data.geometry import Interpolation, Span
from excite.data.packed import Bytes, Member, open_bytes, whole_if
from excite.data.pixels import (
    FULL_WHITE,
    bands_unsaid,
    deep_values,
    eight_bits,
    eight_bits_of,
    refuse_bands,
    scaled,
    tiff_bands,
    white_of,
)
from excite.data.whole import missing_end, reaches_its_end
from excite.errors import ExciteError, first_line
from excite.pages.pictures import visible

Result = TypeVar("Result")

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class BadImageError(ExciteError):
    """An image that cannot be used, with its `path` and the `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.path, self.reason)  # so that it can cross a process boundary


class BadImagesError(BadImageError):
    """Several images that cannot be used, raised if the recipe's rule is to stop at them.

    Args:
        bad: (path, reason) of each; the attributes ``path`` and ``reason`` are those of the first.
        key: the recipe key that leaves them out instead.
    """

    def __init__(self, bad: Sequence[tuple[str, str]], key: str) -> None:
        self.bad, self.key = list(bad), key
        super().__init__(*self.bad[0])
        shown = "; ".join(f"{path}: {reason}" for path, reason in self.bad[:20])
        more = f"; and {len(self.bad) - 20:,} more" if len(self.bad) > 20 else ""
        what = f"cannot read {len(self.bad):,} images: " if len(self.bad) > 1 else "cannot read image "
        self.args = (f"{what}{shown}{more}; repair or remove them, or skip them with {key}=skip",)

    def __reduce__(self) -> tuple[type, tuple[list[tuple[str, str]], str]]:  # type: ignore[override]
        return type(self), (self.bad, self.key)


#: A path, the bytes of an image file or where they are inside a larger one; or pixels: a Pillow image, or uint8 or
#: uint16 (H, W) or (H, W, 1 to 4).
ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


def name_of(source: ImageSource) -> str:
    """The path of an image file, also of one opened by Pillow; "" if there is none."""
    if isinstance(source, Image.Image):
        return os.fspath(getattr(source, "filename", "") or "")
    return "" if isinstance(source, bytes | np.ndarray) else os.fspath(source)


@contextmanager
def reading(source: ImageSource) -> Iterator[str]:
    """Context for everything done to one image, from opening to resizing: any error becomes a BadImageError.

    Decoders raise nearly anything on damaged bytes (OSError, SyntaxError, KeyError, OverflowError, RecursionError ...),
    and absurd shapes end in MemoryError. Yields the image's name.
    """
    name = name_of(source) or ("<bytes>" if isinstance(source, bytes) else "<image>")
    try:
        yield name
    except ExciteError:
        raise
    except FileNotFoundError:
        raise BadImageError(name, "there is no such file") from None
    except PermissionError:
        raise BadImageError(name, "permission denied") from None
    except Image.DecompressionBombError:
        raise BadImageError(name, f"it has more than max_pixels = {PILLOW_LIMIT} pixels") from None
    except MemoryError:
        raise BadImageError(name, "there is not enough memory; a smaller data.max_pixels skips such images") from None
    except Exception as error:
        raise BadImageError(name, first_line(error)) from error


def load_image(
    source: ImageSource,
    mode: Literal["RGB", "L"] = "RGB",
    max_pixels: int = PILLOW_LIMIT,
    enough: int | None = None,
    white: int = FULL_WHITE,
) -> Image.Image:
    """Read an image (a file, its bytes, or pixels in memory) as a Pillow image of `mode`, upright and opaque.

    With `enough`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides keep at least that many
    pixels (libjpeg does this while decoding: 12 megapixels at 1/2 take 22 ms instead of 51). `white` is the white level
    of images with 16 bits per channel; larger values are white, too.

    Raises BadImageError if the file is missing, not a regular file, empty, truncated or not an image, if it has bands
    that are neither colour nor transparency, or if its header gives more than `max_pixels` pixels (checked before
    anything is decoded).
    """
    if isinstance(source, Image.Image | np.ndarray):
        if not is_untouched(source):
            return _from_memory(source, mode, max_pixels, white)
        source = name_of(source)
    with reading(source) as name:
        return _decoded(source, name, mode, max_pixels, white, None if enough is None else (enough, enough))


def _decoded(
    source: Bytes, name: str, mode: Literal["RGB", "L"], max_pixels: int, white: int, enough: tuple[int, int] | None
) -> Image.Image:
    """`load_image` of a file. A JPEG keeps at least `enough` columns and rows, as they are stored."""
    with opened(source, name, max_pixels) as image:
        if enough is not None and image.format in ("JPEG", "MPO") and not _lossless(image):
            image.draft(None, enough)
        if image.format == "JPEG2000":
            with open_bytes(source) as file:
                if missing_end(image, file):
                    raise ValueError("it is truncated: the end of its JPEG 2000 codestream is missing")
        eight = eight_bits(source, image, white)
        _check_size(name, image, max_pixels)  # the header of an .ico may give a different size
        return _upright(_convert(eight, mode), image)


def _lossless(image: Image.Image) -> bool:
    """Whether Pillow cannot decode a JPEG at a smaller size, although it tries."""
    file: Any = image.fp  # type: ignore[attr-defined]
    before = file.tell()
    found = jpeg.lossless(file)
    file.seek(before)
    return found


@dataclass(frozen=True)
class Jpeg:
    """A JPEG of which only the header has been read: what is needed of its pixels is known when it is resized.

    Attributes:
        data: the file's bytes.
        name: for messages.
        width, height: in pixels, upright.
        orientation: of EXIF, 1 to 8.
        mode: what it becomes.
        by_kernel: whether the kernels of :mod:`excite.data.jpeg` can read it; else Pillow does, with the same result.
        max_pixels: as for `load_image`.
    """

    data: bytes
    name: str
    width: int
    height: int
    orientation: int
    mode: Literal["RGB", "L"]
    by_kernel: bool
    max_pixels: int

    def whole(self, denominator: int = 1) -> Image.Image:
        """All of it, decoded by Pillow at 1 / 1, 2, 4 or 8 of its size, each side rounded up; a lossless file always at
        its full size."""
        enough = (self.width // denominator, self.height // denominator)
        stored = enough if self.orientation < 5 else enough[::-1]
        return _decoded(
            self.data, self.name, self.mode, self.max_pixels, FULL_WHITE, stored if denominator > 1 else None
        )

    def spanned(self, down: Span, across: Span, interpolation: Interpolation) -> np.ndarray | None:
        """Resized and cropped: uint8 (H, W, C); None if only Pillow can do it."""
        columns, rows = (jpeg.Axis(0, each.length, *each[1:]) for each in (across, down))
        return self._part(1, columns, rows, interpolation)

    def cropped(
        self,
        box: Sequence[int],
        size: Sequence[int],
        interpolation: Interpolation,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """A box (left, top, width, height), resized to `size` (H, W): uint8 (H, W, C), perhaps in `out`.

        It is decoded at the smallest size at which the box still has as many pixels as the result in both directions.
        (libjpeg does this while decoding: 12 megapixels at 1/2 take 22 ms instead of 51.)
        """
        (left, top, width, height), (tall, wide) = box, size
        denominator = next(d for d in (8, 4, 2, 1) if d == 1 or (width >= d * wide and height >= d * tall))
        # Sides are rounded up: the pixel that is only partly covered comes first where a side is mirrored.
        lead_x, lead_y = (
            -length % denominator if turned else 0
            for length, turned in zip((self.width, self.height), _MIRRORED.get(self.orientation, (0, 0)), strict=True)
        )
        x, y = ((first + lead) / denominator for first, lead in ((left, lead_x), (top, lead_y)))
        right, bottom = x + width / denominator, y + height / denominator
        axes = jpeg.Axis(x, right, wide, 0, wide), jpeg.Axis(y, bottom, tall, 0, tall)
        pixels = self._part(denominator, *axes, interpolation, out)
        if pixels is not None:
            return pixels
        image = self.whole(denominator)
        if image.width == self.width:
            x, y, right, bottom = left, top, left + width, top + height
        return pixels_of(image.resize((wide, tall), FILTERS[interpolation], box=(x, y, right, bottom)))

    def _part(
        self,
        denominator: int,
        across: jpeg.Axis,
        down: jpeg.Axis,
        interpolation: Interpolation,
        out: np.ndarray | None = None,
    ) -> np.ndarray | None:
        if not self.by_kernel:
            return None
        cubic, channels = interpolation == "bicubic", 1 if self.mode == "L" else 3
        return jpeg.part(self.data, denominator, self.orientation, across, down, cubic, channels, out)


#: EXIF orientation -> whether columns and rows of the upright image are counted from the other end of the stored one.
_MIRRORED = {2: (1, 0), 3: (1, 1), 4: (0, 1), 6: (1, 0), 7: (1, 1), 8: (0, 1)}

#: An image that has been read.
Picture = Image.Image | Bands
#: What `eval_transform` and `random_resized_crop` take.
Opened = Picture | Jpeg


def as_picture(pixels: np.ndarray) -> Picture:
    """uint8 (H, W, C) -> an image to resize."""
    if pixels.shape[2] not in COLOURS:
        return Bands(pixels)
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def load_picture(
    source: ImageSource,
    in_chans: int,
    max_pixels: int = PILLOW_LIMIT,
    enough: int | None = None,
    white: int = FULL_WHITE,
) -> Picture:
    """Read an image for a network of so many channels: grey or RGB, see `load_image`; else exactly so many bands, see
    :mod:`excite.data.bands`. Raises BadImageError."""
    if in_chans in COLOURS:
        return load_image(source, "L" if in_chans == 1 else "RGB", max_pixels, enough, white)
    file: Any = name_of(source) if isinstance(source, Image.Image) and is_untouched(source) else source
    with reading(source) as name:
        if isinstance(file, str | os.PathLike) and not isinstance(file, Member):
            check_regular(name)
        return _known(read_bands, file, name, in_chans, max_pixels, white)


def open_picture(source: ImageSource, in_chans: int, max_pixels: int = PILLOW_LIMIT, white: int = FULL_WHITE) -> Opened:
    """`load_picture`, but of a JPEG only the header is read as yet. For use within `reading`: resizing it may fail."""
    if isinstance(source, Image.Image | np.ndarray) or in_chans not in COLOURS:
        return load_picture(source, in_chans, max_pixels, white=white)
    with reading(source) as name:
        data = source if isinstance(source, bytes) else whole_if(source, jpeg.START)
        if data is not None and data.startswith(jpeg.START):
            return _opened_jpeg(data, name, "L" if in_chans == 1 else "RGB", max_pixels)
    return load_picture(source, in_chans, max_pixels, white=white)


def _opened_jpeg(data: bytes, name: str, mode: Literal["RGB", "L"], max_pixels: int) -> Jpeg:
    found = jpeg.header(data)
    if found is not None and not found.may_be_turned:
        _check_pixels(name, found.width, found.height, max_pixels)
        return Jpeg(data, name, found.width, found.height, 1, mode, True, max_pixels)
    with opened(data, name, max_pixels) as image:
        orientation = _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
    return Jpeg(data, name, width, height, orientation, mode, found is not None, max_pixels)


def load_shown(
    source: ImageSource,
    in_chans: int,
    max_pixels: int = PILLOW_LIMIT,
    enough: int | None = None,
    white: int = FULL_WHITE,
) -> Image.Image:
    """Read an image as people see it, RGB: in its colours, also for a network that takes grey; of bands the first three
    (:func:`excite.pages.pictures.visible`). Raises BadImageError."""
    if in_chans in COLOURS:
        return load_image(source, "RGB", max_pixels, enough, white)
    pixels = np.ascontiguousarray(visible(np.asarray(load_picture(source, in_chans, max_pixels, white=white))))
    return Image.fromarray(pixels).convert("RGB")


def _known(read: Callable[..., Result], source: Any, name: str, *options: Any) -> Result:
    """``read(source, ...)``; a file that is no image at all is described as other images are."""
    try:
        return read(source, *options)
    except Image.UnidentifiedImageError:
        raise BadImageError(name, _unidentified(source)) from None


def is_untouched(image: Image.Image | np.ndarray) -> bool:
    """Whether this is a file that Pillow has opened but not decoded. It is then read like any other file, which keeps
    what Pillow drops (the lower 8 of 16 bits) and notices what it overlooks (a missing end)."""
    unread = getattr(image, "tile", None) and getattr(image, "tell", lambda: 0)() == 0
    return bool(unread and name_of(image) and os.path.exists(name_of(image)))


def _from_memory(
    source: Image.Image | np.ndarray, mode: Literal["RGB", "L"], max_pixels: int, white: int
) -> Image.Image:
    with reading(source) as name:
        if isinstance(source, np.ndarray):
            if source.ndim == 3 and source.shape[2] > 4:
                raise ValueError(f"it has {source.shape[2]} channels, but the network takes {1 if mode == 'L' else 3}")
            values = source[:, :, 0] if source.ndim == 3 and source.shape[2] == 1 else source
            values = values if values.dtype == np.uint8 else eight_bits_of(values, white)
            source = Image.fromarray(np.ascontiguousarray(values))
        _check_size(name, source, max_pixels)
        refuse_bands(source)
        source.load()
        eight = source
        if source.mode.startswith("I"):
            eight = scaled(source, np.asarray(source), white_of(source, white) if source.format else white)
        return _upright(_convert(eight, mode), source)


def check_image(path: Bytes, max_pixels: int = PILLOW_LIMIT, in_chans: int = 3) -> None:
    """Raise BadImageError for a file that `load_picture` would refuse, or that is truncated.

    It reads the header and the end of the file, and decodes the whole file only if one of them is unusual. So an image
    that can be read is never refused. Damage within a file of the right length is not detected.
    """
    with reading(path) as name:
        if in_chans not in COLOURS:
            if not isinstance(path, bytes | Member):
                check_regular(name)
            _known(check_bands, path, name, in_chans, max_pixels)
            return
        with opened(path, name, max_pixels) as image:
            # Pixels that may have no defined white level: only their values tell.
            unusual = image.mode == "I" or bands_unsaid(image)
            if not unusual:
                file = getattr(image, "fp", None)
                if file is None:
                    with open_bytes(path) as file:
                        unusual = not reaches_its_end(image, file)
                else:
                    unusual = not reaches_its_end(image, file)
        if unusual:
            load_image(path, max_pixels=max_pixels)


def largest_value(source: Bytes, max_pixels: int = PILLOW_LIMIT, in_chans: int = 3) -> int | None:
    """The largest value of an image with 16 bits per channel, not counting transparency. None for all other images,
    and for formats that define their white level.

    Raises BadImageError as `load_picture` does.
    """
    if in_chans not in COLOURS:
        with reading(source):
            return largest_of_bands(source, in_chans, max_pixels)
    with reading(source) as name, opened(source, name, max_pixels) as image:
        if white_of(image, 0):
            return None
        values = deep_values(source, image)
        if values is None or not values.size:
            return None
        return int((values if values.ndim == 2 else values[..., : 3 if values.shape[2] > 2 else 1]).max())


@contextmanager
def opened(source: Bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image and check its header: its size and the meaning of its bands. Only for use within `reading`."""
    if not isinstance(source, bytes | Member):
        check_regular(name)
    try:
        image = open_image(source)
    except Image.DecompressionBombError:
        raise BadImageError(name, f"it has more than max_pixels = {min(max_pixels, PILLOW_LIMIT)} pixels") from None
    except Image.UnidentifiedImageError:
        raise BadImageError(name, _unidentified(source)) from None
    with image:
        _check_size(name, image, max_pixels)
        refuse_bands(image)
        yield image


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise ValueError for anything but a regular file: opening a FIFO, a socket or a device may hang forever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFDIR: "a folder",
            stat.S_IFIFO: "a FIFO (named pipe)",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        raise ValueError(f"it is {kinds.get(stat.S_IFMT(mode), 'something else')}, not a file")


def _check_size(name: str, image: Image.Image, max_pixels: int) -> None:
    _check_pixels(name, *image.size, max_pixels)


def _check_pixels(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadImageError(name, f"it has {width} x {height} pixels, more than max_pixels = {max_pixels}")


def _unidentified(source: Bytes) -> str:
    if isinstance(source, bytes):
        head = source[:1024]
    else:
        with open_bytes(source) as file:
            head = file.read(1024)
    if not head:
        return "the file is empty (0 bytes)"
    return (
        tiff_bands(source)
        or what_it_is(head)
        or ("it contains nothing but zeros" if not any(head) else "")
        or "it is not an image in a known format, or its header is damaged"
    )


def _convert(image: Image.Image, mode: Literal["RGB", "L"]) -> Image.Image:
    if image.mode == mode and "transparency" not in image.info:
        return image.copy() if image.readonly else image
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if mode == "L" and image.mode not in ("L", "1"):
        image = image.convert("RGB")  # luma is computed from colours, not from CMYK or palette indices
    return image.convert(mode)


def _upright(converted: Image.Image, original: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    orientation = _orientation(original)
    if orientation == 1:
        return converted
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = Image.frombytes(converted.mode, converted.size, converted.tobytes(), "raw")
    plain.info["exif"] = exif.tobytes()
    return ImageOps.exif_transpose(plain)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Damaged EXIF data is ignored, since the pixels are intact."""
    with quietly():
        orientation = exif_of(image).get(0x0112, 1)
    return int(orientation) if orientation in range(2, 9) else 1


def pixels_of(image: Picture) -> np.ndarray:
    """The pixels of an image: uint8 (H, W, C)."""
    pixels = np.array(image)  # a copy: torch.from_numpy wants writable memory
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
