"""Squeeze (mean over positions) and excite (scale, add, ReLU).

Notation: N images, C channels, H x W positions, P = H * W.

There are two reasons not to write ``x.mean((2, 3))`` and ``(x * s + identity).relu()``. On a CPU in channels-last
layout, PyTorch's reduction over positions is slow (16x256x56x56 bf16 on 2 cores: 22.7 ms; as a matrix product with ones
2.1 ms; as a pooling over the whole map, as is done here, 0.66 ms). And with autograd, every multiply, add and sum at
the end of a block saves or creates a tensor of the block's size. Both are therefore written here with their own
backward passes, and measured in `benchmarks/`. Under ``torch.compile``, the textbook form is used, which Inductor
fuses, and also under ``torch.jit.trace`` and ``torch.fx``. These functions are tested against that form,
``excite.ops.reference``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from excite.ops import native, reference
from excite.ops.activations import LINEAR, RELU, activate, derivative_from, number_of
from excite.ops.boundaries import is_traced, one_node


def _sum_positions(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C): the sum over positions, accumulated in float32, in x's dtype."""
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        return F.avg_pool2d(x, x.shape[2:], divisor_override=1).flatten(1)
    return x.sum((2, 3))


def _over_positions(s: Tensor, x: Tensor) -> Tensor:
    """A scale (N, C) in a shape that broadcasts against x (N, C, H, W); other shapes are kept. In x's dtype."""
    if s.ndim != 2:
        return s.to(x.dtype)
    s = s.to(x.dtype)[:, :, None, None]
    if x.device.type == "cpu" and x.shape[1] <= 32 and x.is_contiguous(memory_format=torch.channels_last):
        # PyTorch's broadcasting loop runs over the C values of a position, too few to be fast. Repeating the scale
        # along a row of the map makes it run over W * C (128x16x32x32 bf16: addcmul takes 0.26 ms instead of 2.2).
        return s.expand(-1, -1, 1, x.shape[3]).contiguous(memory_format=torch.channels_last)
    return s


class _SpatialMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # for its shape and layout; batch norm keeps it or the block's end does, so it is free
        return _sum_positions(x).div_(x.shape[2] * x.shape[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # Expanded, not materialised: autograd's accumulation can read it as a broadcast operand.
        return _over_positions(grad / (x.shape[2] * x.shape[3]), x).expand(x.shape)


class _ExciteResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, identity: Tensor | None, relu: bool) -> Tensor:
        s = _over_positions(scale, x)
        out = x * s if identity is None else torch.addcmul(identity, x, s)
        if relu:
            out.relu_()
        ctx.save_for_backward(x, scale, out if relu else None)
        ctx.has_identity = identity is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, scale, out = ctx.saved_tensors
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        need_x, need_scale, need_identity, _ = ctx.needs_input_grad
        grad_x = grad * _over_positions(scale, grad) if need_x else None
        grad_scale = _scale_gradient(grad * x, scale) if need_scale else None
        return grad_x, grad_scale, grad if need_identity and ctx.has_identity else None, None


class _NativeExciteResidual(torch.autograd.Function):
    """The same with a factor per image and channel, with the CPU kernels: one pass forward, two backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, identity: Tensor | None, act: int) -> Tensor:
        s = scale.float().contiguous()
        out = native.apply(x, native.no_norm(x), s, identity, act)
        ctx.act = act
        ctx.save_for_backward(x, scale, *derivative_from(act, identity, out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, scale, identity, out = ctx.saved_tensors
        need_x, need_scale, need_identity, _ = ctx.needs_input_grad
        grad, s, known = native.dense(grad, x), scale.float().contiguous(), native.no_norm(x)
        sums = native.grad_sums(grad, out, x, known, s, ctx.act, ctx.act != LINEAR, identity)
        g = grad if sums.map is None else sums.map
        grad_x = native.apply(g, known, s, None, LINEAR) if need_x else None
        grad_scale = sums.packed[2].to(scale.dtype) if need_scale else None
        return grad_x, grad_scale, g if need_identity else None, None


def _scale_gradient(product: Tensor, scale: Tensor) -> Tensor:
    """Sum ``grad * x`` (N, C, H, W) down to the shape of the scale."""
    if scale.ndim == 2:
        return _sum_positions(product).to(scale.dtype)
    return product.sum_to_size(scale.shape).to(scale.dtype)


def _tracked(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


@one_node
def spatial_mean(x: Tensor) -> Tensor:
    """The squeeze: mean over positions (SE paper, section 3.1).

    Args:
        x: (N, C, H, W), any floating dtype, any memory format.

    Returns:
        (N, C) in x's dtype, accumulated in float32.
    """
    if is_traced(x):
        return reference.spatial_mean(x)
    return _SpatialMean.apply(x) if _tracked(x) else _SpatialMean.forward(_NoContext(), x)


@one_node
def excite_residual(
    x: Tensor,
    scale: Tensor | None = None,
    identity: Tensor | None = None,
    act: str | None = None,
    fused: str = "auto",
) -> Tensor:
    """``act(x * scale + identity)``, each part optional: the end of every residual block.

    Args:
        x: (N, C, H, W), the residual branch after its last batch norm.
        scale: (N, C), a factor per image and channel, or a tensor that broadcasts against ``x``.
        identity: (N, C, H, W), the shortcut.
        act: the activation at the end, as in :func:`excite.ops.norm_excite_residual`.
        fused: "off" or "plain" use PyTorch's operators rather than the CPU kernels, which have no second derivatives.

    Returns:
        (N, C, H, W) in x's dtype.
    """
    number = number_of(act)
    if is_traced(x):
        return reference.excite_residual(x, scale, identity, act)
    if identity is not None and identity.dtype != x.dtype:
        identity = identity.to(x.dtype)
    if scale is None:
        # Only the activation reads the new tensor with the sum: doing it in place saves a pass and a tensor.
        return activate(x, number) if identity is None else activate(x + identity, number, inplace=True)
    if fused not in ("off", "plain") and scale.ndim == 2 and scale.dtype is not torch.float64 and native.takes(x):
        identity = None if identity is None else native.dense(identity, x)
        # The backward kernels write the gradient before another activation than a ReLU only where there is a shortcut.
        inside = number == RELU or identity is not None or not _tracked(x, scale)
        out = _NativeExciteResidual.apply(x, scale, identity, number if inside else LINEAR)
        return out if inside else activate(out, number)
    relu = number == RELU
    if _tracked(x, scale, identity):
        out = _ExciteResidual.apply(x, scale, identity, relu)
    else:
        out = _ExciteResidual.forward(_NoContext(), x, scale, identity, relu)
    return out if relu else activate(out, number)


class _NativeGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return native.gather(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        grad_weight, grad_x = native.gather_grad(grad.contiguous(), x, weight, needs_weight, needs_x)
        return grad_x, grad_weight


@one_node
def weighted_sum(x: Tensor, weight: Tensor) -> Tensor:
    """A depth-wise convolution over the whole map: one dot product per image and channel.

    Args:
        x: (N, C, H, W).
        weight: (C, H, W).

    Returns:
        (N, C) in x's dtype.
    """
    if not is_traced(x) and weight.dtype is not torch.float64 and native.takes(x):
        return _NativeGather.apply(x, weight.float().permute(1, 2, 0).contiguous()).to(x.dtype)
    # As a matrix product, it takes half to a fifth of the time of a depth-wise convolution with such a large kernel
    # (CPU, both passes, 7 to 56 pixels).
    return torch.einsum("nchw,chw->nc", x, weight.to(x.dtype))


class _NoContext:
    """Discards what a forward pass saves, if nothing will be differentiated."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        pass
