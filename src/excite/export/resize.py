"""Pillow's resize and the centre crop as a graph of ordinary operators, for images of a size known only at run time.

Letters: N images, C channels, H x W pixels of the image, S side of what the network sees, L = H or W.

``excite.data.decode`` has the same with sizes known beforehand. Here sizes are tensors, so that the graph holds for
every image. Pillow's weights are multiples of 2**-22, pixels are whole: products and sums need up to 31 bits, more than
float32's 24. Each weight is therefore cut into a multiple of 2**-14 and a rest below 2**-15; the sums of either part
are exact in float32 (and need no float64 product, which OpenVINO does not have), and so is the rounded total, as long
as an output pixel has at most 512 taps (bicubic: images shrunk 127 times).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from excite.data.decode import PILLOW_13, Interpolation

_COARSE, _FINE = 2.0**14, 2.0**22


class Axis(NamedTuple):
    """One direction of a resize and crop: int64 scalars."""

    length: Tensor  # pixels of the image
    resized: Tensor  # pixels after the resize, before the crop
    first: Tensor  # first resized pixel inside the crop


def resize_and_crop(
    images: Tensor, size: int, crop_pct: float, interpolation: Interpolation, branch: bool = True
) -> Tensor:
    """``excite.data.decode.eval_transform`` for a batch of images of one size, inside a graph.

    Args:
        images: (N, C, H, W) of any type, whole numbers 0 to 255.
        size: S. crop_pct, interpolation: as in the recipe's ``data`` section.
        branch: whether the graph may have conditionals: S x S images then cost nothing, and others one order of the
            two directions; otherwise the graph always resizes, in both orders, and takes one.

    Returns:
        float32 (N, C, S, S), whole numbers 0 to 255; equal to Pillow's where the graph is run with float64 scalars and
        weights (PyTorch, ONNX Runtime); OpenVINO has float32 weights only, which may round a pixel to the next level.
    """
    if not (branch and torch.compiler.is_compiling()):  # cond would compile first
        return _resize(images, size, crop_pct, interpolation, branch)

    def as_it_is(images: Tensor) -> Tensor:
        # A slice that is the whole: it tells the tracer that S x S comes out of either branch.
        side = torch.arange(size)
        return images.index_select(2, side).index_select(3, side).float()

    def resized(images: Tensor) -> Tensor:
        return _resize(images, size, crop_pct, interpolation, branch)

    height, width = (torch.scalar_tensor(length, dtype=torch.int64) for length in images.shape[2:])
    # Half of a CIFAR network's time for one image went into resizing it to the size it had.
    return torch.cond((height == size) & (width == size), as_it_is, resized, (images,))


def _resize(images: Tensor, size: int, crop_pct: float, interpolation: Interpolation, branch: bool) -> Tensor:
    """The same, always by the two matrix products."""
    down, across = _axes(images.shape[2], images.shape[3], size, crop_pct)
    down_weights = _weights(down, images.shape[2], size, interpolation)
    across_weights = _weights(across, images.shape[3], size, interpolation).t().contiguous()
    shrinks = down.length > down.resized
    vertical_first = shrinks & (down.length - down.resized > 2 * (across.length - across.resized))

    def down_then_across(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
        return _total(torch.matmul(_total(torch.matmul(down, x), 2, size), across), 3, size)

    def across_then_down(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
        return _total(torch.matmul(down, _total(torch.matmul(x, across), 3, size)), 2, size)

    operands = (images.float(), down_weights, across_weights)
    if not PILLOW_13:
        return across_then_down(*operands)
    if not branch:
        return torch.where(vertical_first, down_then_across(*operands), across_then_down(*operands))
    if torch.compiler.is_compiling():
        return torch.cond(vertical_first, down_then_across, across_then_down, operands)
    return (down_then_across if vertical_first else across_then_down)(*operands)


def _total(parts: Tensor, dim: int, size: int) -> Tensor:
    """Coarse and fine sums, one behind the other along ``dim``: their total, rounded half up and clamped to 0..255."""
    coarse, fine = parts.narrow(dim, 0, size), parts.narrow(dim, size, size)
    whole = torch.floor(coarse + 0.5)
    return (whole + torch.floor((coarse + 0.5 - whole) + fine)).clamp(0, 255)


def _axes(height: int, width: int, size: int, crop_pct: float) -> tuple[Axis, Axis]:
    """Down and across; ``resized_shape`` and ``crop_offset`` of ``excite.data.decode`` in whole numbers."""
    h, w = (torch.scalar_tensor(length, dtype=torch.int64) for length in (height, width))
    # An image prepared at its final size is seen whole.
    resizes = ((h - size).abs() + (w - size).abs()).clamp(max=1)
    short = size + (int(size / crop_pct) - size) * resizes
    lesser = torch.minimum(h, w)
    axes = []
    for length in (h, w):
        resized = torch.div(short * length, lesser, rounding_mode="floor")
        spare = resized - size
        half = torch.div(spare, 2, rounding_mode="floor")
        odd = half - 2 * torch.div(half, 2, rounding_mode="floor")
        axes.append(Axis(length, resized, half + (spare - 2 * half) * odd))  # spare / 2, halves to even
    return axes[0], axes[1]


def _weights(axis: Axis, length: int, size: int, interpolation: Interpolation) -> Tensor:
    """float32 (2S, L): Pillow's weights (libImaging/Resample.c, precompute_coeffs), coarse parts over fine ones."""
    rows = torch.arange(size)[:, None] + axis.first
    pixels = torch.arange(length)[None]
    # Twice the distance of centres in resized pixels, times the lengths: whole, so that it has no rounding error.
    apart = ((2 * pixels + 1) * axis.resized - (2 * rows + 1) * axis.length).abs()
    distance = apart.double() / (2 * torch.maximum(axis.length, axis.resized)).double()
    if interpolation == "bicubic":
        near = ((1.5 * distance) - 2.5) * distance * distance + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    else:
        weights = (1 - distance).clamp(min=0.0)
    weights = weights / weights.sum(1, keepdim=True)
    weights = weights.sign() * torch.floor(weights.abs() * _FINE + 0.5) / _FINE
    coarse = torch.floor(weights * _COARSE + 0.5) / _COARSE
    return torch.cat([coarse, weights - coarse]).float()
