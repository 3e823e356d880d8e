"""Brings images to the size of a network, in training and evaluation, as Pillow does, on any device.

Shapes: C channels, h x w pixels of any image, H x W those wanted; B images in a batch.
"""

from collections.abc import Sequence

import numpy as np
import torch

from excite.data.config import PILLOW_LIMIT
from excite.data.decode import FILTERS, Jpeg, Opened, Picture, pixels_of
from excite.data.geometry import PILLOW_13, Fit, Interpolation, Span, box_ratio, random_box, spans, taps
from excite.size import as_size

#: The padding of a letterboxed image, in every channel: the grey of YOLO, and ImageNet's mean (0.449 of 255 is 114.5).
#: Normalised, it is nearly 0, like the zeros that convolutions pad with; black would be two standard deviations below.
#: A constant, because the mean of the images is only known once they are padded, and because training, evaluation and
#: every export have to pad alike.
PADDING = 114


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


def _resized(image: Opened, down: Span, across: Span, interpolation: Interpolation) -> np.ndarray:
    if isinstance(image, Jpeg):
        part = image.spanned(down, across, interpolation)
        return part if part is not None else _resized(image.whole(), down, across, interpolation)
    if down.resized * across.resized > _WHOLE * down.wanted * across.wanted:
        return _thin(image, down, across, interpolation)
    image = image.resize((across.resized, down.resized), FILTERS[interpolation])
    end = across.first + across.wanted, down.first + down.wanted
    return _pixels(image.crop((across.first, down.first, *end)))


def _padded(pixels: np.ndarray, down: Span, across: Span) -> np.ndarray:
    """A resized image with the padding around it: uint8 (h, w, C) -> uint8 (H, W, C)."""
    out = np.full((down.wanted, across.wanted, pixels.shape[2]), PADDING, np.uint8)
    out[-down.first :, -across.first :][: down.resized, : across.resized] = pixels
    return out


def _refuse_tall(width: int, height: int, wanted: int) -> None:
    """Raise ValueError if Pillow would need absurdly many pixels in between: before version 13 it starts horizontally,
    whatever the shape."""
    if wanted * height > PILLOW_LIMIT and not PILLOW_13 and width != wanted:
        raise ValueError(f"resizing {width} x {height} pixels of it would need {wanted} x {height} in between")


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


def _weights(span: Span, interpolation: Interpolation) -> torch.Tensor:
    """Pillow's antialiasing weights (libImaging/Resample.c, precompute_coeffs) as a float64 matrix (wanted, window).

    They are rounded to multiples of 2**-22 as in Pillow, so that products with uint8 are exact in float64.
    """
    centre, first, last = (each[:, None] for each in taps(span, interpolation))
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


def _pixels(image: Opened) -> np.ndarray:
    """All of an image: uint8 (H, W, C)."""
    if isinstance(image, Jpeg):
        down, across = (Span(length, length, 0, length) for length in (image.height, image.width))
        return _resized(image, down, across, "bilinear")
    return pixels_of(image)
