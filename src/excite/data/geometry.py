"""Where pixels come from: the boxes of random crops, and the resizes of whole images, as Pillow computes them.

Shapes: h x w pixels of any image, H x W those wanted; B boxes.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import PIL

from excite.size import as_size

Interpolation = Literal["bicubic", "bilinear"]
#: How an image is brought to the wanted size; see :func:`eval_transform`.
Fit = Literal["crop", "letterbox", "stretch"]


# Pillow 13 resizes vertically first if the height shrinks by more than twice as many pixels as the width (Resample.c,
# ImagingResampleInner); older versions always start horizontally. On noise, the order matters by up to 23 / 255.
PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13


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


class Span(NamedTuple):
    """A resize and crop (or padding) along one axis, in pixels."""

    length: int  # of the image
    resized: int  # length after the resize, before the crop or the padding
    first: int  # first resized pixel of the result; negative: so many pixels of padding come before it
    wanted: int  # number of pixels of the result

    def window(self, interpolation: Interpolation) -> tuple[int, int]:
        """Start and end of the image's pixels that the crop depends on."""
        first, last = taps(self, interpolation)[1:]
        return int(first[0]), int(last[-1])


def taps(span: Span, interpolation: Interpolation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres of the wanted pixels in the image, and start and end of the pixels that each depends on.

    Three arrays (wanted,), as in precompute_coeffs of Pillow's libImaging/Resample.c.
    """
    scale = span.length / span.resized
    support = (2.0 if interpolation == "bicubic" else 1.0) * max(scale, 1.0)
    centre = (np.arange(span.first, span.first + span.wanted) + 0.5) * scale
    first = np.trunc(np.maximum(centre - support + 0.5, 0)).astype(np.int64)
    return centre, first, np.trunc(np.minimum(centre + support + 0.5, span.length)).astype(np.int64)


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


def box_ratio(ratio: Sequence[float], size: int | Sequence[int]) -> tuple[float, float]:
    """The range of width / height of the boxes of random crops, from that of a recipe (`augment.ratio`), which is
    relative to the shape of the result: [3/4, 4/3] distorts by at most 4/3, in a square as in 96 x 160."""
    tall, wide = as_size(size)
    return ratio[0] * (wide / tall), ratio[1] * (wide / tall)
