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

import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps

from excite.data import jpeg
from excite.data.bands import COLOURS, Bands, check_bands, largest_of_bands, read_bands
from excite.data.config import PILLOW_LIMIT
from excite.data.formats import exif_of, open_image, quietly, what_it_is
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
from excite.size import as_size

Result = TypeVar("Result")

Interpolation = Literal["bicubic", "bilinear"]
#: How an image is brought to the wanted size; see :func:`eval_transform`.
Fit = Literal["crop", "letterbox", "stretch"]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

#: The padding of a letterboxed image, in every channel: the grey of YOLO, and ImageNet's mean (0.449 of 255 is 114.5).
#: Normalised, it is nearly 0, like the zeros that convolutions pad with; black would be two standard deviations below.
#: A constant, because the mean of the images is only known once they are padded, and because training, evaluation and
#: every export have to pad alike.
PADDING = 114

# Pillow 13 resizes vertically first if the height shrinks by more than twice as many pixels as the width (Resample.c,
# ImagingResampleInner); older versions always start horizontally. On noise, the order matters by up to 23 / 255.
PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13


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

    def spanned(self, down: "Span", across: "Span", interpolation: Interpolation) -> np.ndarray | None:
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
        return _pixels(image.resize((wide, tall), FILTERS[interpolation], box=(x, y, right, bottom)))

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


def resized_shape(
    height: int, width: int, size: int | Sequence[int], crop_pct: float, fit: Fit = "crop"
) -> tuple[int, int]:
    """Height and width of an image after the evaluation resize, before it is cropped or padded.

    - crop: the smallest that covers floor(size / crop_pct) in both directions: for a square, the shorter side becomes
      that, as in timm. The other side is truncated, as in torchvision.
    - letterbox: the largest within `size`; the other side is rounded, and at least 1.
    - stretch: `size`.
    """
    tall, wide = as_size(size)
    if fit == "stretch":
        return tall, wide
    if fit == "letterbox":
        by_width, by_height = (2 * wide * height + width) // (2 * width), (2 * tall * width + height) // (2 * height)
        return max(1, min(tall, by_width)), max(1, min(wide, by_height))
    tall, wide = math.floor(tall / crop_pct), math.floor(wide / crop_pct)
    return max(tall, int(wide * height / width)), max(wide, int(tall * width / height))


def crop_offset(length: int, size: int) -> int:
    """First pixel of a centre crop: round((length - size) / 2), rounding halves to even, as in torchvision."""
    return round((length - size) / 2)


def spans(
    height: int, width: int, size: int | Sequence[int], crop_pct: float, fit: Fit = "crop"
) -> tuple["Span", "Span"]:
    """How an image of height x width pixels becomes one of `size`, in each direction: the one geometry of all resizes
    of whole images. An image that already has that size is left as it is."""
    wanted = as_size(size)
    shape = wanted if (height, width) == wanted else resized_shape(height, width, size, crop_pct, fit)
    down, across = (
        # Never cropped in a letterbox; what is lacking is shared out, the odd pixel behind.
        Span(length, n, -((side - n) // 2) if fit == "letterbox" else crop_offset(n, side), side)
        for length, n, side in zip((height, width), shape, wanted, strict=True)
    )
    return down, across


# Pillow resizes the whole image, which is then cropped, unless this would make more than this many times the pixels of
# the result (aspect ratios from about 12 : 1 with crop_pct 0.875). Then only what the crop needs is computed: 1 x 30000
# pixels would otherwise become 256 x 7,680,000.
_WHOLE = 16


def eval_transform(
    image: Opened,
    size: int | Sequence[int],
    crop_pct: float,
    interpolation: Interpolation,
    fit: Fit = "crop",
) -> np.ndarray:
    """Bring a whole image to `size`, a number of pixels or (H, W): uint8 (H, W, C).

    - crop: resize so that it covers floor(size / crop_pct) in both directions, and crop the centre.
    - letterbox: resize so that all of it fits into `size`, and pad with grey (`PADDING`) on both sides.
    - stretch: resize to `size`, whatever the shape.

    An image that already has that size is left as it is, so that small images of the final size (CIFAR) are seen whole.
    The resize is Pillow's (antialiased). Of a long, thin image, only the part inside the crop is resized; the result is
    the same.

    Raises:
        ValueError: stretching an absurdly tall image would take too much memory.
    """
    wanted = tall, wide = as_size(size)
    if (image.height, image.width) == wanted:
        return _pixels(image)
    down, across = spans(image.height, image.width, wanted, crop_pct, fit)
    if fit == "letterbox":
        inside = [each._replace(first=0, wanted=each.resized) for each in (down, across)]
        return _padded(_resized(image, inside[0], inside[1], interpolation), down, across)
    if fit == "stretch" and down.resized * across.resized <= _WHOLE * tall * wide:
        _refuse_tall(image.width, image.height, across.resized)
    return _resized(image, down, across, interpolation)


def _resized(image: Opened, down: "Span", across: "Span", interpolation: Interpolation) -> np.ndarray:
    if isinstance(image, Jpeg):
        part = image.spanned(down, across, interpolation)
        return part if part is not None else _resized(image.whole(), down, across, interpolation)
    if down.resized * across.resized > _WHOLE * down.wanted * across.wanted:
        return _thin(image, down, across, interpolation)
    image = image.resize((across.resized, down.resized), FILTERS[interpolation])
    end = across.first + across.wanted, down.first + down.wanted
    return _pixels(image.crop((across.first, down.first, *end)))


def _padded(pixels: np.ndarray, down: "Span", across: "Span") -> np.ndarray:
    """A resized image with the padding around it: uint8 (h, w, C) -> uint8 (H, W, C)."""
    out = np.full((down.wanted, across.wanted, pixels.shape[2]), PADDING, np.uint8)
    out[-down.first :, -across.first :][: down.resized, : across.resized] = pixels
    return out


def _refuse_tall(width: int, height: int, wanted: int) -> None:
    """Raise ValueError if Pillow would need absurdly many pixels in between: before version 13 it starts horizontally,
    whatever the shape."""
    if wanted * height > PILLOW_LIMIT and not PILLOW_13 and width != wanted:
        raise ValueError(f"resizing {width} x {height} pixels of it would need {wanted} x {height} in between")


class Span(NamedTuple):
    """A resize and crop (or padding) along one axis, in pixels."""

    length: int  # of the image
    resized: int  # length after the resize, before the crop or the padding
    first: int  # first resized pixel of the result; negative: so many pixels of padding come before it
    wanted: int  # number of pixels of the result

    def window(self, interpolation: Interpolation) -> tuple[int, int]:
        """Start and end of the image's pixels that the crop depends on."""
        first, last = _taps(self, interpolation)[1:]
        return int(first[0]), int(last[-1])


def _thin(image: Picture, down: Span, across: Span, interpolation: Interpolation) -> np.ndarray:
    """Resize and crop to uint8 (H, W, C), using memory in proportion to the result for any shape of the image."""
    (top, bottom), (left, right) = down.window(interpolation), across.window(interpolation)
    needed = torch.from_numpy(_pixels(image.crop((left, top, right, bottom)))).permute(2, 0, 1)
    return _resample(needed, down, across, interpolation).permute(1, 2, 0).numpy()


def eval_transform_tensor(
    images: torch.Tensor,
    size: int | Sequence[int],
    crop_pct: float,
    interpolation: Interpolation,
    fit: Fit = "crop",
) -> torch.Tensor:
    """`eval_transform` for a batch on any device, with equal results: uint8 (B, C, h, w) -> uint8 (B, C, H, W)."""
    height, width = images.shape[-2:]
    wanted = as_size(size)
    if (height, width) == wanted:
        return images
    down, across = spans(height, width, wanted, crop_pct, fit)
    if fit != "letterbox":
        return _cropped(images, down, across, interpolation)
    out = images.new_full((*images.shape[:-2], *wanted), PADDING)
    inside = out[..., -down.first :, -across.first :][..., : down.resized, : across.resized]
    inside.copy_(resize_tensor(images, down.resized, across.resized, interpolation))
    return out


def resize_tensor(images: torch.Tensor, height: int, width: int, interpolation: Interpolation) -> torch.Tensor:
    """Pillow's resize on tensors, with equal results: uint8 (..., H, W) -> uint8 (..., height, width)."""
    old_height, old_width = images.shape[-2:]
    return _cropped(images, Span(old_height, height, 0, height), Span(old_width, width, 0, width), interpolation)


def _cropped(images: torch.Tensor, down: Span, across: Span, interpolation: Interpolation) -> torch.Tensor:
    (top, bottom), (left, right) = down.window(interpolation), across.window(interpolation)
    return _resample(images[..., top:bottom, left:right], down, across, interpolation)


def _resample(needed: torch.Tensor, down: Span, across: Span, interpolation: Interpolation) -> torch.Tensor:
    """Pillow's resize, computing only a crop, from the window of the image that the crop depends on.

    It takes two matrix products with Pillow's weights, each rounded to uint8 as in Pillow. We do not use
    F.interpolate(antialias=True): it takes uint8 on the CPU only, and always starts horizontally (bicubic
    500x375 -> 256x341 on noise then differs from Pillow 13 by up to 14 / 255).
    """
    out = needed.to(torch.float32 if needed.device.type == "mps" else torch.float64)  # MPS has no float64
    shrinks = down.length > down.resized
    vertical_first = PILLOW_13 and shrinks and down.length - down.resized > 2 * (across.length - across.resized)
    passes = [(across, True), (down, False)]
    for span, horizontal in reversed(passes) if vertical_first else passes:
        # Pillow skips an axis that keeps its length; its weights would be ones.
        weights = _weights(span, interpolation).to(out)
        out = _round(out @ weights.T if horizontal else weights @ out)
    return out.to(torch.uint8)


def _round(values: torch.Tensor) -> torch.Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)  # in place: the product is ours


def _taps(span: Span, interpolation: Interpolation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres of the wanted pixels in the image, and start and end of the pixels that each depends on.

    Three arrays (wanted,), as in precompute_coeffs of Pillow's libImaging/Resample.c.
    """
    scale = span.length / span.resized
    support = (2.0 if interpolation == "bicubic" else 1.0) * max(scale, 1.0)
    centre = (np.arange(span.first, span.first + span.wanted) + 0.5) * scale
    first = np.trunc(np.maximum(centre - support + 0.5, 0)).astype(np.int64)
    return centre, first, np.trunc(np.minimum(centre + support + 0.5, span.length)).astype(np.int64)


def _weights(span: Span, interpolation: Interpolation) -> torch.Tensor:
    """Pillow's antialiasing weights (libImaging/Resample.c, precompute_coeffs) as a float64 matrix (wanted, window).

    They are rounded to multiples of 2**-22 as in Pillow, so that products with uint8 are exact in float64.
    """
    centre, first, last = (each[:, None] for each in _taps(span, interpolation))
    pixel = np.arange(first[0, 0], last[-1, 0])[None]
    distance = np.abs(pixel - centre + 0.5) * (1.0 / max(span.length / span.resized, 1.0))
    if interpolation == "bicubic":
        near = ((1.5 * distance) - 2.5) * distance * distance + 1
        far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    else:
        weights = np.maximum(1 - distance, 0.0)
    weights *= (pixel >= first) & (pixel < last)
    weights /= weights.cumsum(1)[:, -1:]  # summed in Pillow's order: the last bit may decide a rounding
    return torch.from_numpy(np.trunc(weights * 2**22 + np.copysign(0.5, weights)) / 2**22)


#: Sizes that are drawn before a box is given up that does not fit, as in torchvision.
ATTEMPTS = 10


def random_boxes(
    rng: np.random.Generator, count: int, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> np.ndarray:
    """Boxes of Inception-style random crops in an H x W image: int64 (B, 4) of left, top, width, height.

    The area is uniform in `scale` (as a fraction of the image), width / height log-uniform in `ratio`, the position
    uniform. After ten failed attempts it is the largest centred box with a shape within `ratio`, as in torchvision.
    """
    area = height * width * rng.uniform(scale[0], scale[1], (count, ATTEMPTS))
    aspect = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), (count, ATTEMPTS)))
    wide = np.round(np.sqrt(area * aspect)).astype(np.int64)
    tall = np.round(np.sqrt(area / aspect)).astype(np.int64)
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    pick = fits.argmax(1), fits.any(1)
    row = np.arange(count)
    whole_wide, whole_tall = _largest_box(height, width, ratio)
    wide = np.where(pick[1], wide[row, pick[0]], whole_wide)
    tall = np.where(pick[1], tall[row, pick[0]], whole_tall)
    left, top = rng.integers(0, width - wide + 1), rng.integers(0, height - tall + 1)
    left = np.where(pick[1], left, (width - wide) // 2)
    top = np.where(pick[1], top, (height - tall) // 2)
    return np.stack([left, top, wide, tall], axis=1)


def random_box(
    rng: np.random.Generator, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """One of `random_boxes`, the same for the same generator, in a third of the time: a loader draws one an image."""
    shares = rng.uniform(scale[0], scale[1], ATTEMPTS).tolist()
    aspects = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), ATTEMPTS)).tolist()
    pixels = height * width
    for share, aspect in zip(shares, aspects, strict=True):
        area = pixels * share
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            return int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - tall + 1)), wide, tall
    wide, tall = _largest_box(height, width, ratio)
    return (width - wide) // 2, (height - tall) // 2, wide, tall


def _largest_box(height: int, width: int, ratio: Sequence[float]) -> tuple[int, int]:
    aspect = width / height
    if aspect < ratio[0]:
        return width, min(height, max(1, round(width / ratio[0])))
    if aspect > ratio[1]:
        return min(width, max(1, round(height * ratio[1]))), height
    return width, height


def random_resized_crop(
    image: Opened,
    rng: np.random.Generator,
    scale: Sequence[float],
    ratio: Sequence[float],
    size: int | Sequence[int],
    interpolation: Interpolation,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """A random part of the image (`random_boxes`), resized to `size` in one step: uint8 (H, W, C), perhaps in `out`.

    `ratio` is as in a recipe, see `box_ratio`.
    """
    tall, wide = as_size(size)
    left, top, width, height = random_box(rng, image.height, image.width, scale, box_ratio(ratio, size))
    if isinstance(image, Jpeg):
        return image.cropped((left, top, width, height), (tall, wide), interpolation, out)
    _refuse_tall(width, height, wide)  # only an absurd `ratio` gets here
    box = (left, top, left + width, top + height)
    return _pixels(image.resize((wide, tall), FILTERS[interpolation], box=box))


def box_ratio(ratio: Sequence[float], size: int | Sequence[int]) -> tuple[float, float]:
    """The range of width / height of the boxes of random crops, from that of a recipe (`augment.ratio`), which is
    relative to the shape of the result: [3/4, 4/3] distorts by at most 4/3, in a square as in 96 x 160."""
    tall, wide = as_size(size)
    return ratio[0] * (wide / tall), ratio[1] * (wide / tall)


def _pixels(image: Opened) -> np.ndarray:
    if isinstance(image, Jpeg):
        down, across = (Span(length, length, 0, length) for length in (image.height, image.width))
        return _resized(image, down, across, "bilinear")
    pixels = np.array(image)  # a copy: torch.from_numpy wants writable memory
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
