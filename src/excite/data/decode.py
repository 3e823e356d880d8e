"""From the bytes of an image file to uint8 pixels of the wanted size, for every format users have.

Shapes: C channels (1 or 3), H x W any image, S the wanted side; B boxes or images of a batch.

Rules, the same wherever an image is read (training, validation, prediction):
- gray, CMYK (Adobe's inverted one too), palette, YCbCr ... become RGB (or luma, ITU-R 601, for one channel);
- alpha, palette transparency and a transparent key colour are laid over white;
- 16-bit gray is scaled, round(v * 255 / 65535); Pillow's own conversion would clip everything above 255 to white;
- the EXIF orientation is applied; a GIF or multi-page TIFF gives its first frame.
"""

import io
import math
import os
import threading
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps

from excite.data.config import PILLOW_LIMIT
from excite.errors import ExciteError

Interpolation = Literal["bicubic", "bilinear"]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# Pillow 13 resizes down first where the height shrinks by more than twice as many pixels as the width (Resample.c,
# ImagingResampleInner); older versions always go across first. On noise the order matters by up to 23 / 255.
PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13

# warnings.catch_warnings is not thread-safe before Python 3.14; only headers are read while this is held.
_OPEN = threading.Lock()


class BadImageError(ExciteError):
    """An image that cannot be used. `path` and `reason` say which and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.path, self.reason)  # so that it can cross a process boundary


class BadImagesError(BadImageError):
    """Images that cannot be used, all named, under a rule that stops at them.

    Args:
        bad: (path, reason) of each; ``path`` and ``reason`` are the first one's.
        key: of the recipe, that leaves them out instead.
    """

    def __init__(self, bad: Sequence[tuple[str, str]], key: str) -> None:
        self.bad, self.key = list(bad), key
        super().__init__(*self.bad[0])
        shown = "; ".join(f"{path}: {reason}" for path, reason in self.bad[:20])
        more = f"; and {len(self.bad) - 20:,} more" if len(self.bad) > 20 else ""
        what = f"cannot read {len(self.bad):,} images: " if len(self.bad) > 1 else "cannot read image "
        self.args = (f"{what}{shown}{more}; mend or remove them, or leave them out with {key}=skip",)

    def __reduce__(self) -> tuple[type, tuple[list[tuple[str, str]], str]]:  # type: ignore[override]
        return type(self), (self.bad, self.key)


def load_image(
    source: str | os.PathLike[str] | bytes,
    mode: Literal["RGB", "L"] = "RGB",
    max_pixels: int = PILLOW_LIMIT,
    enough: int | None = None,
) -> Image.Image:
    """Read an image file (or its bytes) into a Pillow image of the given mode, upright and opaque.

    With `enough`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, both sides staying at or above that many pixels
    (libjpeg does it while decoding: 12 megapixels at 1/2 take 22 ms instead of 51).

    Raises BadImageError where the file is missing, empty, truncated, not an image, or has more than `max_pixels`
    pixels by its header (checked before anything is decoded).
    """
    name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
    try:
        with _open(source) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImageError(name, f"it has {width} x {height} pixels, more than max_pixels = {max_pixels}")
            if enough is not None:
                image.draft(None, (enough, enough))  # formats other than JPEG ignore it
            image.load()
            return _upright(_convert(image, mode), image)
    except BadImageError:
        raise
    except FileNotFoundError:
        raise BadImageError(name, "there is no such file") from None
    except Image.DecompressionBombError:
        raise BadImageError(name, f"it has more than max_pixels = {min(max_pixels, PILLOW_LIMIT)} pixels") from None
    except Image.UnidentifiedImageError:
        raise BadImageError(name, _unidentified(source)) from None
    except Exception as error:  # decoders raise nearly anything on damaged bytes: OSError, SyntaxError, KeyError ...
        raise BadImageError(name, " ".join(str(error).split()) or type(error).__name__) from error


def check_image(path: str, max_pixels: int = PILLOW_LIMIT) -> None:
    """Placeholder until the decoding branch is merged."""
    load_image(path, "RGB", max_pixels)


def _open(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Read the header only; Pillow's warning about large images is silenced because `max_pixels` replaces it."""
    with _OPEN, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _unidentified(source: str | os.PathLike[str] | bytes) -> str:
    size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    return "it is empty (0 bytes)" if size == 0 else "it is not an image of a known format, or its header is damaged"


def _convert(image: Image.Image, mode: Literal["RGB", "L"]) -> Image.Image:
    if image.mode == mode and "transparency" not in image.info:
        return image.copy() if image.readonly else image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_gray(image).convert(mode)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if mode == "L" and image.mode not in ("L", "1"):
        image = image.convert("RGB")  # luma of the colours, not of CMYK or palette numbers
    return image.convert(mode)


def _from_deep_gray(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray (modes I;16, I;16B, I) to 8 bits."""
    values = np.asarray(image)
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no agreed white; save it with 8 or 16 bits a channel")
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError("32-bit integer pixels have no agreed white; save it with 8 or 16 bits a channel")
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


def _upright(converted: Image.Image, original: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; damaged EXIF data is no reason to lose a picture whose pixels are whole."""
    try:
        orientation = original.getexif().get(0x0112, 1)
    except Exception:
        return converted
    if orientation not in range(2, 9):
        return converted
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = Image.frombytes(converted.mode, converted.size, converted.tobytes(), "raw")
    plain.info["exif"] = exif.tobytes()
    return ImageOps.exif_transpose(plain)


def resized_shape(height: int, width: int, size: int, crop_pct: float) -> tuple[int, int]:
    """Height and width after the evaluation resize: shorter side floor(size / crop_pct), the longer one truncated.

    This is the rule of timm (floor) and torchvision (truncation of the longer side).
    """
    short = math.floor(size / crop_pct)
    if width <= height:
        return int(short * height / width), short
    return short, int(short * width / height)


def crop_offset(length: int, size: int) -> int:
    """First pixel of a centre crop: torchvision's round((length - size) / 2), which rounds halves to even."""
    return round((length - size) / 2)


def eval_transform(image: Image.Image, size: int, crop_pct: float, interpolation: Interpolation) -> np.ndarray:
    """Resize the shorter side to floor(size / crop_pct), crop the centre: uint8 (S, S, C).

    An image that already is S x S is left alone, so that small images prepared at their final size (CIFAR) are seen
    whole. The resize is Pillow's (antialiased).
    """
    if image.size != (size, size):
        height, width = resized_shape(image.height, image.width, size, crop_pct)
        image = image.resize((width, height), FILTERS[interpolation])
        left, top = crop_offset(width, size), crop_offset(height, size)
        image = image.crop((left, top, left + size, top + size))
    return _pixels(image)


def eval_transform_tensor(
    images: torch.Tensor, size: int, crop_pct: float, interpolation: Interpolation
) -> torch.Tensor:
    """`eval_transform` for a batch on any device: uint8 (B, C, H, W) -> uint8 (B, C, S, S), equal to it."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    new_height, new_width = resized_shape(height, width, size, crop_pct)
    images = resize_tensor(images, new_height, new_width, interpolation)
    top, left = crop_offset(new_height, size), crop_offset(new_width, size)
    return images[..., top : top + size, left : left + size]


def resize_tensor(images: torch.Tensor, height: int, width: int, interpolation: Interpolation) -> torch.Tensor:
    """Pillow's resize on tensors: uint8 (..., H, W) -> uint8 (..., height, width), equal to it.

    Two matrix products with Pillow's weights, rounded to uint8 after each as Pillow does. F.interpolate(antialias=True)
    is not used: it takes uint8 on the CPU only, and always goes across first (500x375 -> 256x341 bicubic noise
    then differs from Pillow 13 by up to 14 / 255).
    """
    out = images.to(torch.float32 if images.device.type == "mps" else torch.float64)  # MPS has no float64
    old_height, old_width = images.shape[-2:]
    across = _weights(old_width, width, interpolation).T.to(out) if old_width != width else None
    down = _weights(old_height, height, interpolation).to(out) if old_height != height else None
    vertical_first = PILLOW_13 and old_height > height and old_height - height > 2 * (old_width - width)
    if down is not None and vertical_first:
        out = _round(down @ out)
    if across is not None:
        out = _round(out @ across)
    if down is not None and not vertical_first:
        out = _round(down @ out)
    return out.to(torch.uint8)


def _round(values: torch.Tensor) -> torch.Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)  # in place: the product is ours


def _weights(length: int, out: int, interpolation: Interpolation) -> torch.Tensor:
    """Pillow's antialiasing weights (libImaging/Resample.c, precompute_coeffs) as a float64 matrix (out, length).

    Rounded to multiples of 2**-22 as Pillow's are, so that products with uint8 are exact in float64.
    """
    scale = length / out
    stretch = max(scale, 1.0)
    support = (2.0 if interpolation == "bicubic" else 1.0) * stretch
    centre = (np.arange(out)[:, None] + 0.5) * scale
    first, last = np.trunc(np.maximum(centre - support + 0.5, 0)), np.trunc(np.minimum(centre + support + 0.5, length))
    pixel = np.arange(length)[None]
    distance = np.abs(pixel + 0.5 - centre) / stretch
    if interpolation == "bicubic":
        near = ((1.5 * distance) - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    else:
        weights = np.maximum(1 - distance, 0.0)
    weights *= (pixel >= first) & (pixel < last)
    weights /= weights.sum(1, keepdims=True)
    return torch.from_numpy(np.trunc(weights * 2**22 + np.copysign(0.5, weights)) / 2**22)


def random_boxes(
    rng: np.random.Generator, count: int, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> np.ndarray:
    """Boxes of Inception-style random crops: int64 (B, 4) of left, top, width, height, inside a H x W image.

    Area uniform in `scale` (as a share of the image), width / height log-uniform in `ratio`, position uniform; up to
    ten attempts, then the largest centred box whose shape is within `ratio`: torchvision's rule.
    """
    attempts = 10
    area = height * width * rng.uniform(scale[0], scale[1], (count, attempts))
    aspect = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), (count, attempts)))
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


def _largest_box(height: int, width: int, ratio: Sequence[float]) -> tuple[int, int]:
    aspect = width / height
    if aspect < ratio[0]:
        return width, min(height, max(1, round(width / ratio[0])))
    if aspect > ratio[1]:
        return min(width, max(1, round(height * ratio[1]))), height
    return width, height


def random_resized_crop(
    image: Image.Image,
    rng: np.random.Generator,
    scale: Sequence[float],
    ratio: Sequence[float],
    size: int,
    interpolation: Interpolation,
) -> np.ndarray:
    """A random part of the image (`random_boxes`), resized in one Pillow call: uint8 (S, S, C)."""
    left, top, width, height = random_boxes(rng, 1, image.height, image.width, scale, ratio)[0].tolist()
    box = (left, top, left + width, top + height)
    return _pixels(image.resize((size, size), FILTERS[interpolation], box=box))


def _pixels(image: Image.Image) -> np.ndarray:
    pixels = np.array(image)  # a copy: torch.from_numpy wants writable memory
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
