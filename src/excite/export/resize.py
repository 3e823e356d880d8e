"""Pillow's resize and the centre crop as a graph of ordinary operators, for images of a size known only at run time.

Notation: N images, C channels, H x W pixels of the image, S side of the network's input, L = H or W, K side of the
window of the image that the crop uses.

``excite.data.decode`` does the same with known sizes. Here sizes are tensors, so that the graph works for every image.
It has no conditional: with one, OpenVINO 2026.4 gave wrong results (logits of 1e34) in the first call of a compiled
network, whatever the size. Size-dependent steps are arithmetic instead: for an S x S image the weights are the
identity, and the order of the two directions is chosen by a transposition before and after.

Pillow's weights are multiples of 2**-22, and pixels are integers: products and sums need up to 31 bits, more than
float32's 24. Each weight is therefore split into a multiple of 2**-14 and a remainder below 2**-15. The sums of both
parts are exact in float32 (and need no float64 product, which OpenVINO lacks), and so is the rounded total, as long as
an output pixel has at most 512 taps (bicubic: images reduced 127 times).

OpenVINO also has 32-bit integers. Positions are therefore counted from the middle of the image, which is also the
middle of the crop: this keeps products below 2**31 up to sides of 2**31 / (9 S) pixels.
"""

from math import ceil
from typing import NamedTuple, cast

import torch
from torch import Tensor

from excite.data.decode import PILLOW_13, Interpolation

_COARSE, _FINE = 2.0**14, 2.0**22
#: Radius of a filter, in pixels of the smaller of image and result.
_REACH = {"bicubic": 2, "bilinear": 1}


class Geometry(NamedTuple):
    """Sizes of (height, width): int64 (2,) each."""

    length: Tensor  # pixels of the image
    resized: Tensor  # pixels after the resize, before the crop
    off: Tensor  # twice the offset of the crop's centre from the image's, in resized pixels: -1, 0 or 1


def resize_and_crop(images: Tensor, size: int, crop_pct: float, interpolation: Interpolation) -> Tensor:
    """``excite.data.decode.eval_transform`` for a batch of images of one size, inside a graph.

    Args:
        images: (N, C, H, W) of any type, integers 0 to 255.
        size: S.
        crop_pct, interpolation: as in the recipe's ``data`` section.

    Returns:
        float32 (N, C, S, S), integers 0 to 255. Equal to Pillow's result if the runtime computes scalars and weights in
        float64 (PyTorch, ONNX Runtime); OpenVINO has only float32 weights, which may round a pixel to the next level.
        S x S images are not changed, in all three.
    """
    height, width = images.shape[2:]
    axes = _geometry(height, width, size, crop_pct)
    middle = torch.div(axes.length, 2, rounding_mode="floor")
    side = _window(axes.length, size, crop_pct, interpolation)
    pixels = torch.arange(side)[None] + (middle - side // 2)[:, None]  # (2, K), some of them outside the image
    inside = torch.minimum(pixels.clamp(min=0), axes.length[:, None] - 1)
    window = images.index_select(2, inside[0]).index_select(3, inside[1]).float()
    weights = _weights(axes, pixels, pixels == inside, size, interpolation)
    if not PILLOW_13:
        return _across_then_down(window, weights[1], weights[0], size)
    shrunk = axes.length - axes.resized
    vertical_first = (shrunk[0] > 0) & (shrunk[0] > 2 * shrunk[1])
    order = torch.stack([~vertical_first, vertical_first]).long()
    first, second = weights.index_select(0, order)
    turned = torch.where(vertical_first, window.transpose(2, 3), window)
    result = _across_then_down(turned, first, second, size)
    return torch.where(vertical_first, result.transpose(2, 3), result)


def _across_then_down(x: Tensor, across: Tensor, down: Tensor, size: int) -> Tensor:
    return _total(torch.matmul(down, _total(torch.matmul(x, across.t()), 3, size)), 2, size)


def _total(parts: Tensor, dim: int, size: int) -> Tensor:
    """The total of coarse and fine sums, concatenated along ``dim``, rounded half up and clamped to 0..255."""
    coarse, fine = parts.narrow(dim, 0, size), parts.narrow(dim, size, size)
    whole = torch.floor(coarse + 0.5)
    return (whole + torch.floor((coarse + 0.5 - whole) + fine)).clamp(0, 255)


def _geometry(height: int, width: int, size: int, crop_pct: float) -> Geometry:
    """``resized_shape`` and ``crop_offset`` of ``excite.data.decode`` in integers."""
    length = torch.stack([torch.scalar_tensor(side, dtype=torch.int64) for side in (height, width)])
    # An image that already has the final size is used whole.
    resizes = (length != size).sum().clamp(max=1)
    short = size + (int(size / crop_pct) - size) * resizes
    resized = torch.div(short * length, torch.minimum(length[0], length[1]), rounding_mode="floor")
    half = torch.div(resized - size, 2, rounding_mode="floor")
    is_odd = resized - size - 2 * half
    half_is_odd = half - 2 * torch.div(half, 2, rounding_mode="floor")
    return Geometry(length, resized, is_odd * (2 * half_is_odd - 1))  # halves round to even


def _window(length: Tensor, size: int, crop_pct: float, interpolation: Interpolation) -> int:
    """K: the number of pixels around the middle of the image that the crop uses, in each direction.

    Without this limit, a strip of 1 x 30000 pixels would take memory for its whole length, although the crop uses six
    of its pixels.
    """
    short, reach = int(size / crop_pct), _REACH[interpolation]
    # A resized pixel is at most (short + 1) / short^2 of the shorter side, because resized lengths are truncated.
    # In 64ths, rounded up, for OpenVINO's 32-bit integers.
    share = ceil(64 * (size + 2 * reach) * (short + 1) / short**2)
    lesser, greater = torch.minimum(length[0], length[1]), torch.maximum(length[0], length[1])
    part = torch.div(lesser * share, 64, rounding_mode="floor") + 2 * reach + 3
    seen = torch.maximum(part, lesser.clamp(max=size))  # S x S is used whole
    # A separate symbol: as an expression in H and W it would be part of every shape, and a saved graph would take three
    # times as long to load, because torch parses each with SymPy.
    side = cast(int, torch.minimum(greater.clamp(min=2), seen).item())
    torch._check(side >= 2)
    return side


def _weights(axes: Geometry, pixels: Tensor, exist: Tensor, size: int, interpolation: Interpolation) -> Tensor:
    """float32 (2, 2S, K): Pillow's weights (libImaging/Resample.c, precompute_coeffs), coarse parts above fine parts.

    ``pixels`` (2, K): positions in the image; ``exist`` (2, K): whether they are inside the image.
    """
    length, resized = axes.length[:, None, None], axes.resized[:, None, None]
    # Twice the positions, relative to the middle of the image, of rows of the result and of pixels of the image.
    rows = torch.arange(1 - size, size, 2)[:, None] + axes.off[:, None, None]
    places = (2 * pixels + 1 - axes.length[:, None])[:, None]
    # Twice the distance of centres in resized pixels, times the lengths: an integer without rounding error. The
    # absolute value is taken in float, because OpenVINO assumes that integers derived from image sizes are positive.
    apart = (places * resized - rows * length).double().abs()
    distance = apart / (2 * torch.maximum(length, resized)).double()
    if interpolation == "bicubic":
        near = ((1.5 * distance) - 2.5) * distance * distance + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    else:
        weights = (1 - distance).clamp(min=0.0)
    weights = weights * exist[:, None]
    weights = weights / weights.sum(2, keepdim=True)
    weights = weights.sign() * torch.floor(weights.abs() * _FINE + 0.5) / _FINE
    coarse = torch.floor(weights * _COARSE + 0.5) / _COARSE
    return torch.cat([coarse, weights - coarse], 1).float()
