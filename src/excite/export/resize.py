"""Pillow's resize, with crop or padding, as a graph of ordinary operators, for images of a size known only at run time.

Notation: N images, C channels, h x w pixels of the image, H x W those of the network's input, S the larger of these, L
pixels of the image in one direction, K side of the window of the image that the crop uses.

``excite.data.resize`` does the same with known sizes. Here sizes are tensors, so that the graph works for every image.
It has no conditional: with one, OpenVINO 2026.4 gave wrong results (logits of 1e34) in the first call of a compiled
network, whatever the size. Size-dependent steps are arithmetic instead: for an H x W image the weights are the
identity, and the order of the two directions is chosen by a transposition before and after.

Pillow's weights are multiples of 2**-22, and pixels are integers: products and sums need up to 31 bits, more than
float32's 24. Each weight is therefore split into a multiple of 2**-14 and a remainder below 2**-15. The sums of both
parts are exact in float32 (and need no float64 product, which OpenVINO lacks), and so is the rounded total, as long as
an output pixel has at most 512 taps (bicubic: images reduced 127 times).

OpenVINO also has 32-bit integers. Positions are therefore counted from the middle of the image, which is also the
middle of the crop: this keeps products below 2**31 up to sides of 2**31 / (9 S) pixels.
"""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple, cast

import torch
from torch import Tensor

from excite.data.geometry import PILLOW_13, Fit, Interpolation
from excite.data.resize import PADDING
from excite.size import Size, as_size

_COARSE, _FINE = 2.0**14, 2.0**22
#: Radius of a filter, in pixels of the smaller of image and result.
_REACH = {"bicubic": 2, "bilinear": 1}


class Geometry(NamedTuple):
    """Sizes of (height, width): int64 (2,) each."""

    length: Tensor  # pixels of the image
    resized: Tensor  # pixels after the resize, before the crop or the padding
    off: Tensor  # twice the offset of the result's centre from the image's, in resized pixels: -1, 0 or 1


def fitted(
    images: Tensor, size: int | Sequence[int], crop_pct: float, interpolation: Interpolation, fit: Fit = "crop"
) -> Tensor:
    """``excite.data.resize.eval_transform`` for a batch of images of one size, inside a graph.

    Args:
        images: (N, C, h, w) of any type, integers 0 to 255.
        size: a number of pixels, or (H, W).
        crop_pct, interpolation, fit: as in the recipe's ``data`` section.

    Returns:
        float32 (N, C, H, W), integers 0 to 255. Equal to Pillow's result if the runtime computes scalars and weights in
        float64 (PyTorch, ONNX Runtime); OpenVINO has only float32 weights, which may round a pixel to the next level.
        H x W images are not changed, in all three.
    """
    wanted = as_size(size)
    axes = _geometry(images.shape[2], images.shape[3], wanted, crop_pct, fit)
    shrunk = axes.length - axes.resized
    vertical_first = (shrunk[0] > 0) & (shrunk[0] > 2 * shrunk[1])
    if fit == "crop":
        return _cropped(images, axes, wanted, crop_pct, interpolation, vertical_first)
    return _whole(images, axes, wanted, interpolation, vertical_first, padded=fit == "letterbox")


def _cropped(
    images: Tensor, axes: Geometry, wanted: Size, crop_pct: float, interpolation: Interpolation, vertical_first: Tensor
) -> Tensor:
    """Resize and crop, from a square window around the middle of the image: a transposition before and after chooses
    the order of the two directions. A result that is not square is part of a square one."""
    size = max(wanted)
    middle = torch.div(axes.length, 2, rounding_mode="floor")
    side = _window(axes.length, wanted, crop_pct, interpolation)
    pixels = torch.arange(side)[None] + (middle - side // 2)[:, None]  # (2, K), some of them outside the image
    inside = torch.minimum(pixels.clamp(min=0), axes.length[:, None] - 1)
    window = images.index_select(2, inside[0]).index_select(3, inside[1]).float()
    rows = torch.stack([torch.arange(1 - n, 1 - n + 2 * size, 2) for n in wanted]) + axes.off[:, None]
    # Rows after those of the shorter side repeat its last: they are cut off, but without weights would divide by 0.
    rows = torch.minimum(rows, torch.tensor(wanted)[:, None] - 1 + axes.off[:, None])
    weights = _weights(axes, rows, pixels, pixels == inside, interpolation)
    if not PILLOW_13:
        return _across_then_down(window, weights[1], weights[0])[:, :, : wanted[0], : wanted[1]]
    order = torch.stack([~vertical_first, vertical_first]).long()
    first, second = weights.index_select(0, order)
    turned = torch.where(vertical_first, window.transpose(2, 3), window)
    result = _across_then_down(turned, first, second)
    return torch.where(vertical_first, result.transpose(2, 3), result)[:, :, : wanted[0], : wanted[1]]


def _whole(
    images: Tensor, axes: Geometry, wanted: Size, interpolation: Interpolation, vertical_first: Tensor, padded: bool
) -> Tensor:
    """Resize a whole image, and pad it. Image and result may have any shapes, so that a transposition cannot choose the
    order of the two directions: the result is computed in both orders."""
    image = images.float()
    weights, exist = [], []
    for k, n in enumerate(wanted):
        axis = Geometry(axes.length[k : k + 1], axes.resized[k : k + 1], axes.off[k : k + 1])
        rows = torch.arange(1 - n, n, 2)[None] + axis.off[:, None]
        most = axis.resized[:, None] - 1
        exist.append(((rows <= most) & (rows >= -most))[0])
        # Rows of the padding repeat the last one of the image: without weights, they would divide by 0.
        rows = torch.maximum(torch.minimum(rows, most), -most)
        pixels = torch.arange(image.shape[2 + k])[None]
        weights.append(_weights(axis, rows, pixels, pixels >= 0, interpolation)[0])
    down, across = weights
    result = _across_then_down(image, across, down)
    if PILLOW_13:
        other = _total(torch.matmul(_total(torch.matmul(down, image), 2), across.t()), 3)
        result = torch.where(vertical_first, other, result)
    if padded:
        result = torch.where(exist[0][:, None] & exist[1], result, float(PADDING))
    return result


def _across_then_down(x: Tensor, across: Tensor, down: Tensor) -> Tensor:
    return _total(torch.matmul(down, _total(torch.matmul(x, across.t()), 3)), 2)


def _total(parts: Tensor, dim: int) -> Tensor:
    """The total of coarse and fine sums, concatenated along ``dim``, rounded half up and clamped to 0..255."""
    coarse, fine = parts.chunk(2, dim)
    whole = torch.floor(coarse + 0.5)
    return (whole + torch.floor((coarse + 0.5 - whole) + fine)).clamp(0, 255)


def _geometry(height: int, width: int, wanted: Size, crop_pct: float, fit: Fit) -> Geometry:
    """``excite.data.geometry.spans`` in integers."""
    length = torch.stack([torch.scalar_tensor(side, dtype=torch.int64) for side in (height, width)])
    across, side = torch.stack([length[1], length[0]]), torch.tensor(wanted)
    if fit == "stretch":
        return Geometry(length, side, torch.zeros_like(side))
    if fit == "letterbox":
        by_other = torch.div(2 * torch.tensor(wanted[::-1]) * length + across, 2 * across, rounding_mode="floor")
        resized = torch.minimum(side, by_other).clamp(min=1)
        spare = side - resized
        return Geometry(length, resized, spare - 2 * torch.div(spare, 2, rounding_mode="floor"))
    # An image that already has the final size is used whole.
    resizes = (length != side).sum().clamp(max=1)
    least = [n + (int(n / crop_pct) - n) * resizes for n in wanted]
    by_other = torch.div(torch.stack(least[::-1]) * length, across, rounding_mode="floor")
    resized = torch.maximum(torch.stack(least), by_other)
    half = torch.div(resized - side, 2, rounding_mode="floor")
    is_odd = resized - side - 2 * half
    half_is_odd = half - 2 * torch.div(half, 2, rounding_mode="floor")
    return Geometry(length, resized, is_odd * (2 * half_is_odd - 1))  # halves round to even


def _window(length: Tensor, wanted: Size, crop_pct: float, interpolation: Interpolation) -> int:
    """K: the number of pixels around the middle of the image that the crop uses, in each direction.

    Without this limit, a strip of 1 x 30000 pixels would take memory for its whole length, although the crop uses six
    of its pixels.
    """
    least, reach = [int(n / crop_pct) for n in wanted], _REACH[interpolation]
    # A resized pixel is at most (n + 1) / n^2 of the side that is resized to n, because resized lengths are truncated.
    # In 64ths, rounded up, for OpenVINO's 32-bit integers.
    times = 64 * (max(wanted) + 2 * reach) * (min(least) + 1) / min(least)
    parts = [torch.div(length[k] * ceil(times / n), 64, rounding_mode="floor") for k, n in enumerate(least)]
    part = torch.minimum(*parts) + 2 * reach + 3
    is_wanted = 1 - (length != torch.tensor(wanted)).sum().clamp(max=1)
    seen = torch.maximum(part, max(wanted) * is_wanted)  # used whole
    # A separate symbol: as an expression in H and W it would be part of every shape, and a saved graph would take three
    # times as long to load, because torch parses each with SymPy.
    greater = torch.maximum(length[0], length[1])
    side = cast(int, torch.minimum(greater.clamp(min=2), seen).item())
    torch._check(side >= 2)
    return side


def _weights(axes: Geometry, rows: Tensor, pixels: Tensor, exist: Tensor, interpolation: Interpolation) -> Tensor:
    """float32 (A, 2R, K): Pillow's weights (libImaging/Resample.c, precompute_coeffs), coarse parts above fine parts,
    in A directions.

    Args:
        rows: (A, R), twice the positions of pixels of the result, relative to the middle of the resized image.
        pixels: (A, K), positions in the image.
        exist: (A, K), whether they are inside the image.
    """
    length, resized = axes.length[:, None, None], axes.resized[:, None, None]
    # Twice the positions of pixels of the image, relative to its middle.
    places = (2 * pixels + 1 - axes.length[:, None])[:, None]
    # Twice the distance of centres in resized pixels, times the lengths: an integer without rounding error. The
    # absolute value is taken in float, because OpenVINO assumes that integers derived from image sizes are positive.
    apart = (places * resized - rows[:, :, None] * length).double().abs()
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
