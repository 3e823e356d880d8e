"""Batch norm + gate + addition + ReLU in two passes over the map, forward and backward.

Letters: N images, C channels, H x W positions, P = H * W, M = N * P.

What a squeeze needs is in the batch statistics already. With m[n,c] and v[n,c] the mean and (biased) variance of the
norm's input y over positions, which ONE pass gives,

    mu[c]  = mean_n m             var[c] = mean_n v + mean_n (m - mu)^2         (law of total variance)
    q[n,c] = (m - mu) * gamma / sqrt(var + eps) + beta                        the squeeze: mean over positions of BN(y)
    s[n,c] = gate(q)
    out    = relu((y - m) * s*gamma/sqrt(var + eps) + s*q + identity)           ONE more pass

so that neither BN(y) nor s * BN(y) ever exists. Everything between the passes is (N, C), float32, and left to autograd.
Backward likewise: one pass for the sums of g and g * (y - m), where g is the gradient behind the ReLU; arithmetic on
(N, C); and one pass for the gradient of y, ``s*gamma/sqrt(var + eps) * g + (y - m) * slope + offset`` with slope
and offset (N, C). The textbook form is ``excite.ops.reference.norm_excite_residual``; the passes are run by
``excite.ops.native`` (CPU kernels) or ``excite.ops.plain`` (PyTorch).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from excite.errors import ExciteError, nearest
from excite.ops import native, plain
from excite.ops.excitation import excite_residual, spatial_mean
from excite.ops.native import OPEN, OUTPUT, RECOMPUTE, GradSums, Statistics

MODES = ("auto", "on", "off")
Excitation = Callable[[Tensor], Tensor]


class Passes(Protocol):
    """Who runs the passes: a module with these functions (``excite.ops.native``, ``excite.ops.plain``)."""

    moments: Any
    statistics: Any
    apply: Any
    grad_sums: Any
    grad_input: Any


def check_mode(fused: str) -> str:
    """``fused`` as it is. Raises ExciteError where it is none of auto, on, off."""
    if fused not in MODES:
        raise ExciteError(f"fused is {fused!r}{nearest(str(fused), MODES)} (allowed: {', '.join(MODES)})")
    return fused


def norm_excite_residual(
    y: Tensor,
    norm: nn.Module,
    excitation: Excitation | None = None,
    identity: Tensor | None = None,
    *,
    keep: Tensor | None = None,
    relu: bool = False,
    fused: str = "auto",
) -> Tensor:
    """``relu(norm(y) * keep * excitation(mean over positions of norm(y)) + identity)``, each part optional.

    Args:
        y: (N, C, H, W), what the last convolution of a residual branch gives.
        norm: the batch norm after it, as a module: its buffers are updated as its own ``forward`` would do.
        excitation: (N, C) squeezes -> (N, C) scales, of a gate with ``channelwise = True``.
        identity: (N, C, H, W), the shortcut.
        keep: (N, 1, 1, 1), a factor per image (stochastic depth).
        relu: whether to end with a ReLU.
        fused: "off" is the textbook form; "on" the two passes, wherever they are possible; "auto" the two passes where
            they were measured to be faster (CPU kernels on channels-last maps).

    Returns:
        (N, C, H, W) in the type of ``y``.

    Raises:
        ValueError: one value per channel in training, as ``nn.BatchNorm2d`` has it.
    """
    passes = _choose(y, norm, fused)
    if passes is None:
        z = norm(y)
        if excitation is None:
            return excite_residual(z, keep, identity, relu, fused)
        scale = excitation(spatial_mean(z))
        return excite_residual(z, scale if keep is None else scale * keep.flatten(1), identity, relu, fused)
    assert isinstance(norm, nn.BatchNorm2d)
    if identity is not None:
        identity = native.dense(identity, y) if passes is native else identity.to(y.dtype)
    if not norm.training:
        return _evaluate(y, norm, excitation, identity, keep, relu, passes)
    if y.numel() == y.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {y.shape}")
    if excitation is None and keep is None:
        return _NormResidual.apply(y, *_affine(norm, y), norm.eps, *_running(norm), identity, relu, passes)
    box = _Handover(passes, relu)
    with _without_autocast(y):
        weight, bias = _affine(norm, y)
        squeezed = _Squeeze.apply(y, weight, bias, norm.eps, *_running(norm), box)
        s = _scales(squeezed, excitation, keep)
        # The map goes in detached: its whole gradient comes from _Squeeze, which is told of by ``squeezed``.
        return _Excite.apply(y.detach(), squeezed, s, identity, box)


def norm_relu(y: Tensor, norm: nn.Module, *, fused: str = "auto") -> Tensor:
    """``relu(norm(y))``: (N, C, H, W) -> (N, C, H, W); see :func:`norm_excite_residual`."""
    if _choose(y, norm, fused) is None:
        return F.relu(norm(y), inplace=True)
    return norm_excite_residual(y, norm, relu=True, fused=fused)


def _choose(y: Tensor, norm: nn.Module, fused: str) -> Passes | None:
    """Who runs the passes; None for the textbook form."""
    if fused == "off" or torch.compiler.is_compiling() or not _is_plain_batch_norm(norm):
        return None
    differentiated = torch.is_grad_enabled() and (y.requires_grad or norm.weight.requires_grad)
    if not norm.training and differentiated:  # fixed statistics with gradients (frozen norms): rare, autograd has it
        return None
    assert norm.running_mean is not None
    if norm.weight.dtype is norm.running_mean.dtype is torch.float32 and native.takes(y):
        return native
    return plain if fused == "on" and y.ndim == 4 else None


def _is_plain_batch_norm(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Exactly ``nn.BatchNorm2d`` (not a synchronised or parametrised one) that nobody listens to."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.weight is not None
        and norm.running_mean is not None
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)
    )


def _affine(norm: nn.BatchNorm2d, y: Tensor) -> tuple[Tensor, Tensor]:
    """gamma and beta in the type of the arithmetic."""
    dtype = torch.float64 if y.dtype is torch.float64 else torch.float32
    return norm.weight.to(dtype), norm.bias.to(dtype)


def _without_autocast(y: Tensor) -> AbstractContextManager[Any]:
    kind = y.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def _running(norm: nn.BatchNorm2d) -> tuple[tuple[Tensor, Tensor] | None, float]:
    """The statistics to move and by how much, as ``nn.BatchNorm2d`` does it; momentum None is a cumulative average."""
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    if not momentum or norm.running_mean is None or norm.running_var is None:
        return None, 0.0
    return (norm.running_mean, norm.running_var), momentum


def _mask(relu: bool, identity: Tensor | None) -> int:
    """Where the ReLU's mask comes from: with a shortcut only the output has it; without one y, which is read anyway."""
    return OPEN if not relu else RECOMPUTE if identity is None else OUTPUT


def _behind_relu(
    passes: Passes,
    grad: Tensor,
    out: Tensor | None,
    y: Tensor,
    known: Statistics,
    s: Tensor | None,
    mask: int,
    wants_identity: bool,
) -> tuple[GradSums, Tensor, int]:
    """The first pass backward: its sums, and the gradient and mask that the second pass is to start from.

    Where the shortcut wants the gradient behind the ReLU it is written out, and the second pass need not mask anew.
    """
    if passes is native:
        grad = native.dense(grad, y)
    sums = passes.grad_sums(grad, out, y, known, s, mask, mask == OUTPUT and wants_identity)
    return (sums, grad, mask) if sums.map is None else (sums, sums.map, OPEN)


class _NormResidual(torch.autograd.Function):
    """No gate: ``relu(BN(y) + identity)``."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        running: tuple[Tensor, Tensor] | None,
        momentum: float,
        identity: Tensor | None,
        relu: bool,
        passes: Passes,
    ) -> Tensor:
        known = passes.statistics(y, weight, bias, eps, running, momentum)
        out = passes.apply(y, known, None, identity, relu)
        ctx.mask = _mask(relu, identity)
        ctx.save_for_backward(y, out if ctx.mask == OUTPUT else None)
        ctx.known, ctx.passes = known, passes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, out = ctx.saved_tensors
        wants_identity = ctx.needs_input_grad[6]
        sums, grad, mask = _behind_relu(ctx.passes, grad, out, y, ctx.known, None, ctx.mask, wants_identity)
        grad_weight, grad_bias, grad_y = ctx.passes.grad_input(
            grad, out, y, ctx.known, None, sums, None, mask, ctx.needs_input_grad[0]
        )
        return grad_y, grad_weight, grad_bias, None, None, None, grad if wants_identity else None, None, None


class _Handover:
    """What the steps of one call tell one another, besides what autograd carries."""

    known: Statistics
    grad: Tensor
    out: Tensor | None
    s: Tensor
    sums: GradSums
    mask: int

    def __init__(self, passes: Passes, relu: bool) -> None:
        self.passes, self.relu = passes, relu


class _Squeeze(torch.autograd.Function):
    """The norm's input -> the squeeze (N, C), moving the running statistics.

    Its backward pass makes the WHOLE gradient of the map, the part through :class:`_Excite` included, so that the two
    are never added: _Excite's has run before (it feeds on ``squeezed``) and left what is needed in the handover.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        running: tuple[Tensor, Tensor] | None,
        momentum: float,
        box: _Handover,
    ) -> Tensor:
        box.known = box.passes.statistics(y, weight, bias, eps, running, momentum)
        ctx.save_for_backward(y)
        ctx.set_materialize_grads(False)
        ctx.box = box
        # A new object: the handover, which the graph holds, must not hold the graph.
        return box.known.squeezed.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_squeezed: Tensor | None) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        box = ctx.box
        dq = None if grad_squeezed is None else grad_squeezed.contiguous()
        grad_weight, grad_bias, grad_y = box.passes.grad_input(
            box.grad, box.out, y, box.known, box.s, box.sums, dq, box.mask, ctx.needs_input_grad[0]
        )
        del box.grad, box.out, box.sums, box.s
        return grad_y, grad_weight, grad_bias, None, None, None, None


class _Excite(torch.autograd.Function):
    """``relu(norm(y) * s + identity)``; what concerns ``y`` in the backward pass is left to :class:`_Squeeze`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, squeezed: Tensor, s: Tensor, identity: Tensor | None, box: _Handover) -> Tensor:
        out = box.passes.apply(y, box.known, s, identity, box.relu)
        ctx.mask = _mask(box.relu, identity)
        ctx.save_for_backward(y, s, out if ctx.mask == OUTPUT else None)
        ctx.box = box
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, s, out = ctx.saved_tensors
        box, wants_identity = ctx.box, ctx.needs_input_grad[3]
        box.sums, box.grad, box.mask = _behind_relu(box.passes, grad, out, y, box.known, s, ctx.mask, wants_identity)
        box.out = out if box.mask == OUTPUT else None
        box.s = s.detach()  # the graph, which holds the box, must not be held by it
        return None, None, box.sums.grad_s, box.grad if wants_identity else None, None


def _scales(squeezed: Tensor, excitation: Excitation | None, keep: Tensor | None) -> Tensor:
    """(N, C): the gate's, times the factor per image."""
    s = torch.ones_like(squeezed) if excitation is None else excitation(squeezed)
    return (s if keep is None else s * keep.flatten(1).to(s.dtype)).contiguous()


def _evaluate(
    y: Tensor,
    norm: nn.BatchNorm2d,
    excitation: Excitation | None,
    identity: Tensor | None,
    keep: Tensor | None,
    relu: bool,
    passes: Passes,
) -> Tensor:
    """With the running statistics, and nothing to differentiate."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with _without_autocast(y):
        weight, bias = _affine(norm, y)
        mean = norm.running_mean.to(weight.dtype)
        rstd = (norm.running_var.to(weight.dtype) + norm.eps).rsqrt()
        if excitation is None and keep is None:
            m, squeezed, s = mean.expand(y.shape[:2]), bias.expand(y.shape[:2]), None
        else:
            m, _ = passes.moments(y)
            squeezed = (m - mean) * (weight * rstd) + bias
            s = _scales(squeezed, excitation, keep)
        return passes.apply(y, native.known_statistics(m, squeezed, mean, rstd, weight * rstd), s, identity, relu)
