"""Reductions of maps, and products as large as a map, that are fast in either memory layout.

Notation: N images, C channels, H x W positions. On a CPU, most of PyTorch's reductions over positions are slow for
channels-last maps (8x256x56x56 float32 on one core, forward pass: ``mean(3)`` takes 36 ms, as a pooling 1.8 ms;
``vector_norm`` takes 33 ms, the moments kernel 2.9 ms). A product in the wrong layout makes its consumer slower
(``x * scale``: 17 ms instead of 5.5 ms). Under ``torch.compile``, the textbook forms are left to the compiler.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from excite.ops import native
from excite.ops.activations import LINEAR
from excite.ops.boundaries import is_symbolic, is_traced, one_node


def row_means(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H, 1), the mean over each row."""
    return F.avg_pool2d(x, (1, x.shape[3])) if _pools_faster(x) else x.mean(3, keepdim=True)


def column_means(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 1, W), the mean over each column."""
    return F.avg_pool2d(x, (x.shape[2], 1)) if _pools_faster(x) else x.mean(2, keepdim=True)


def _pools_faster(x: Tensor) -> bool:
    return not is_traced(x) and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)


def spatial_max(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C), the maximum over positions."""
    # It remembers the position of the maximum. ``amax`` does not; its backward pass makes several passes over the map.
    return F.adaptive_max_pool2d(x, 1).flatten(1)


@one_node
def spatial_norm(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C), the square root of the sum of squares over positions, in float32 or wider."""
    if not is_traced(x) and native.takes(x):
        return _NativeNorm.apply(x)
    return torch.linalg.vector_norm(x, dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


class _NativeNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mean, variance = native.moments(x)
        norm = (variance.addcmul_(mean, mean).mul_(x.shape[2] * x.shape[3])).sqrt_()
        ctx.save_for_backward(x, norm)
        return norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, norm = ctx.saved_tensors
        slope = torch.where(norm > 0, grad / norm, 0.0)  # the subgradient 0 at 0, as in vector_norm
        return native.apply(x, native.no_norm(x), slope.contiguous(), None, LINEAR)


def broadcast(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """``function(a, b)`` in the memory layout of ``like``; a and b broadcast to the shape of ``like``."""
    if is_symbolic(like) or like.is_contiguous() or not like.is_contiguous(memory_format=torch.channels_last):
        return function(a, b)
    a, b = (t.permute(0, 2, 3, 1).contiguous() for t in (a, b))  # small, and the result has the order of their strides
    return function(a, b).permute(0, 3, 1, 2)
