"""Batch norm + gate + addition + activation in two passes over the map, forward and backward.

Notation: N images, C channels, H x W positions, P = H * W, M = N * P.

The batch statistics already contain what a squeeze needs. Let m[n,c] and v[n,c] be the mean and (biased) variance of
the norm's input y over positions, which ONE pass gives. Then

    mu[c]  = mean_n m             var[c] = mean_n v + mean_n (m - mu)^2         (law of total variance)
    q[n,c] = (m - mu) * gamma / sqrt(var + eps) + beta                        the squeeze: mean over positions of BN(y)
    s[n,c] = gate(q)
    out    = act((y - m) * s*gamma/sqrt(var + eps) + s*q + identity)            ONE more pass

so neither BN(y) nor s * BN(y) is ever stored. Everything between the passes is (N, C), float32, and left to autograd.
The backward pass works likewise: one pass for the sums of g and g * (y - m), where g is the gradient before the
activation, whose input is computed anew (a ReLU needs its output alone); arithmetic on (N, C); and one pass for the
gradient of y, ``s*gamma/sqrt(var + eps) * g + (y - m) * slope + offset`` with slope and offset (N, C). The norm of a
projection shortcut is applied in the same last pass, and its sums come from the same first backward pass. The textbook
form is ``excite.ops.reference.norm_excite_residual``. The passes
are run by ``excite.ops.native`` (CPU kernels), ``excite.ops.triton_kernels`` (GPU) or ``excite.ops.plain`` (PyTorch).

For autograd, there are two functions with (N, C) tensors between them, :class:`NormStatistics` and :class:`NormApply`;
without a gate, there is one, :class:`NormAdd`. The gradient of ``y`` needs information from both, and must be computed
in one pass. ``NormApply`` therefore passes its information to ``NormStatistics`` as the gradients of *relays*: tensors
of the right shapes without contents, which are outputs of the one and inputs of the other. There is no other state, so
the same formulas serve ``torch.compile`` (``excite.ops.operators``).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from excite.errors import ExciteError, nearest
from excite.ops import native, plain, triton_kernels
from excite.ops.activations import LINEAR, activate, derivative_from, number_of
from excite.ops.boundaries import is_plain, is_recorded
from excite.ops.excitation import excite_residual, spatial_mean
from excite.ops.native import GradSums, Statistics
from excite.ops.sync_norm import Parts, SyncBatchNorm, over_all, parts_of
from excite.ops.triton_kernels.launch import DEVICES

MODES = ("auto", "on", "plain", "off")
#: Whether "auto" uses the Triton kernels where they run, as "on" does. They have not been measured on a GPU yet: set
#: this to True once `benchmarks/gpu.sh` shows that training with fused=on is faster than with fused=off, and say so in
#: docs/free-excitation.md.
AUTO_TAKES_TRITON = False
Excitation = Callable[[Tensor], Tensor]
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm)


class BackwardPasses(Protocol):
    """What runs the backward passes."""

    @property
    def dense(self) -> Any: ...
    @property
    def grad_sums(self) -> Any: ...
    @property
    def grad_input(self) -> Any: ...


class Passes(BackwardPasses, Protocol):
    """What runs the passes: a module with these functions (``excite.ops.native``, ``excite.ops.plain``)."""

    @property
    def moments(self) -> Any: ...
    @property
    def statistics(self) -> Any: ...
    @property
    def apply(self) -> Any: ...


def check_mode(fused: str) -> str:
    """Return ``fused`` unchanged. Raises ExciteError if it is not in :data:`MODES`."""
    if fused not in MODES:
        raise ExciteError(f"fused is {fused!r}{nearest(str(fused), MODES)} (allowed: {', '.join(MODES)})")
    return fused


def norm_excite_residual(
    y: Tensor,
    norm: nn.Module,
    excitation: Excitation | None = None,
    identity: Tensor | None = None,
    *,
    identity_norm: nn.Module | None = None,
    keep: Tensor | None = None,
    act: str | None = None,
    fused: str = "auto",
) -> Tensor:
    """``act(norm(y) * keep * excitation(mean over positions of norm(y)) + identity)``, each part optional.

    Args:
        y: (N, C, H, W), the output of the last convolution of a residual branch.
        norm: the batch norm after it, as a module. Its buffers are updated as by its own ``forward``.
        excitation: squeezes (N, C) -> scales (N, C), of a gate with ``channelwise = True``.
        identity: (N, C, H, W), the shortcut.
        identity_norm: the shortcut's own batch norm (of a projection); ``identity_norm(identity)`` is added.
        keep: (N, 1, 1, 1), a factor per image (stochastic depth).
        act: the activation at the end: "relu", "relu6", "silu", "gelu" (the exact one) or "hard_swish"; None: none.
        fused: "off": the textbook form. "on": the two passes wherever possible. "auto": the two passes where they were
            measured to be faster (CPU kernels on channels-last maps). "plain": like "on", but without kernels. Under
            ``torch.compile``, the passes are operators of this library if there are kernels; otherwise, with "on" or
            "plain", they are formulas for the compiler.

    Returns:
        (N, C, H, W) in the dtype of ``y``.

    Raises:
        ExciteError: no such activation.
        ValueError: a single value per channel in training, as for ``nn.BatchNorm2d``.
    """
    number = number_of(act)
    passes = _choose_compiled(y, norm, fused) if torch.compiler.is_compiling() else _choose(y, norm, fused)
    if identity is not None and identity_norm is not None and not _go_together(norm, identity_norm, passes):
        identity, identity_norm = norm_excite_residual(identity, identity_norm, fused=fused), None
    if passes is None:
        z = norm(y)
        if excitation is None:
            # In place only if nobody can have kept the norm's output.
            mine = identity is None and keep is None and is_plain(norm, *_NORMS)
            return activate(z, number, inplace=True) if mine else excite_residual(z, keep, identity, act, fused)
        scale = excitation(spatial_mean(z))
        return excite_residual(z, scale if keep is None else scale * keep.flatten(1), identity, act, fused)
    if identity is not None:
        identity = identity.to(y.dtype) if passes is _OPERATORS else passes.dense(identity, y)
    form: Any = _train if norm.training else _evaluate
    if excitation is None and passes is native:  # kernels only, which autocast does not affect
        return form(y, norm, None, identity, identity_norm, keep, number, passes)
    with _without_autocast(y):
        return form(y, norm, excitation, identity, identity_norm, keep, number, passes)


# --- which form -----------------------------------------------------------------------------------------------------


def _choose(y: Tensor, norm: nn.Module, fused: str) -> Passes | None:
    """What runs the passes; None for the textbook form."""
    if fused == "off" or is_recorded(y) or not _is_batch_norm(norm):
        return None
    differentiated = torch.is_grad_enabled() and (y.requires_grad or norm.weight.requires_grad)
    if not norm.training and differentiated:  # fixed statistics with gradients (frozen norms): rare, left to autograd
        return None
    if fused != "plain" and _dtypes(norm) == (torch.float32, torch.float32):
        if native.takes(y):
            return native
        if (fused == "on" or AUTO_TAKES_TRITON) and triton_kernels.takes(y):
            return triton_kernels
    return plain if fused in ("on", "plain") and y.ndim == 4 else None


class _Operators:
    """Stands for ``excite.ops.operators``, whose passes are PyTorch operators that choose what runs them."""


_OPERATORS: Any = _Operators


def _choose_compiled(y: Tensor, norm: nn.Module, fused: str) -> Passes | None:
    """The same under ``torch.compile``. An exported graph must only contain PyTorch's own operators."""
    if fused == "off" or _is_exporting() or not _is_batch_norm(norm) or not norm.training:
        return None
    if type(norm) is not nn.BatchNorm2d or norm.momentum is None or y.ndim != 4:
        return None
    if fused != "plain" and _dtypes(norm) == (torch.float32, torch.float32) and _has_kernels(y, fused):
        return _OPERATORS
    return plain if fused in ("on", "plain") else None


def _has_kernels(y: Tensor, fused: str) -> bool:
    if y.device.type == "cpu":
        dense = y.is_contiguous(memory_format=torch.channels_last)
        return dense and y.dtype in native.DTYPES and _native_available()
    dense = y.is_contiguous(memory_format=torch.channels_last) or y.is_contiguous()
    wanted = fused == "on" or AUTO_TAKES_TRITON
    return wanted and dense and y.device.type in DEVICES and _triton_available()


def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


# Called while tracing: the first two depend on the machine and cannot be traced; PyTorch 2.11 traces the third as
# "yes", whether or not it exports. This is what `torch.compiler.assume_constant_result` does, except that it also
# imports the compiler, which would take 1.5 s in every command.
_native_available, _triton_available = native.available, triton_kernels.available
for _constant in (_native_available, _triton_available, _is_exporting):
    _constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_batch_norm(norm: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether it is exactly one of PyTorch's batch norms (not parametrised or derived), without hooks."""
    return is_plain(norm, *_NORMS) and norm.weight is not None and norm.running_mean is not None


def _go_together(norm: Any, other: nn.Module, passes: Passes | None) -> bool:
    return (
        passes is not None
        and _is_batch_norm(other)
        and other.training == norm.training
        and _dtypes(other) == _dtypes(norm)
    )


def _dtypes(norm: _BatchNorm) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes of the parameters and of the running statistics."""
    assert norm.running_mean is not None
    return norm.weight.dtype, norm.running_mean.dtype


# --- training -------------------------------------------------------------------------------------------------------


def _train(
    y: Tensor,
    norm: _BatchNorm,
    excitation: Excitation | None,
    identity: Tensor | None,
    identity_norm: _BatchNorm | None,
    keep: Tensor | None,
    act: int,
    passes: Passes,
) -> Tensor:
    if torch.compiler.is_compiling() and passes is plain:
        return _train_traced(y, norm, excitation, identity, identity_norm, keep, act)
    bare = excitation is None and keep is None and identity_norm is None
    if bare and passes is not _OPERATORS and parts_of(norm) is None:
        _check_count(y)
        return NormAdd.apply(y, *_affine(norm, y), identity, norm.eps, *_running(norm), act, passes)
    squeezed, packed, *relays = _statistics(y, norm, passes, act if identity is None else LINEAR)
    s = _scales(squeezed, excitation, keep)
    of_add: tuple[Tensor | None, ...] = (None, None, None)  # packed, and relays of g and its sums
    if identity is not None and identity_norm is not None:
        of_add = _statistics(identity, identity_norm, passes, LINEAR)[1:4]
        identity = identity.detach()  # its gradient comes through the relays, as that of y does
    arguments = (y.detach(), packed, *relays, s, identity, *of_add, act)
    return torch.ops.excite.norm_apply(*arguments) if passes is _OPERATORS else NormApply.apply(*arguments, passes)


def _train_traced(
    y: Tensor,
    norm: _BatchNorm,
    excitation: Excitation | None,
    identity: Tensor | None,
    identity_norm: _BatchNorm | None,
    keep: Tensor | None,
    act: int,
) -> Tensor:
    """The two passes as formulas that a compiler differentiates and fuses.

    Nothing is packed: Inductor 2.13 computed a wrong gradient for the first dense layer of a gate if its input was part
    of the packed statistics (tests/ops/test_operators.py).
    """

    def known(y: Tensor, norm: _BatchNorm) -> plain.Unpacked:
        return plain.unpacked_statistics(y, *_affine(norm, y), norm.eps, *_running(norm))

    mine = known(y, norm)
    of_add = None if identity is None or identity_norm is None else known(identity, identity_norm)
    return plain.apply_unpacked(y, mine, _scales(mine[1], excitation, keep), identity, act, of_add)


def _statistics(y: Tensor, norm: _BatchNorm, passes: Passes, act: int) -> tuple[Tensor, ...]:
    """The outputs of NormStatistics for a norm; updates its buffers."""
    parts = parts_of(norm)
    if parts is None:
        _check_count(y)
    running, momentum = _running(norm)
    if passes is _OPERATORS:
        squeezed, packed, moments, *relays = torch.ops.excite.norm_statistics(y, *_affine(norm, y), norm.eps, act)
        for buffer, value in zip(running or (), moments, strict=False):
            buffer.lerp_(value, momentum)
        return squeezed, packed, *relays
    return NormStatistics.apply(y, *_affine(norm, y), norm.eps, running, momentum, passes, parts, act)


def _check_count(y: Tensor) -> None:
    if y.numel() == y.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {y.shape}")


def _affine(norm: _BatchNorm, y: Tensor) -> tuple[Tensor, Tensor]:
    """gamma and beta in the dtype of the arithmetic."""
    dtype = torch.float64 if y.dtype is torch.float64 else torch.float32
    return norm.weight.to(dtype), norm.bias.to(dtype)


def _without_autocast(y: Tensor) -> AbstractContextManager[Any]:
    kind = y.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def _running(norm: _BatchNorm) -> tuple[tuple[Tensor, Tensor] | None, float]:
    """The statistics to update and the factor, as in ``nn.BatchNorm2d``; momentum None means a cumulative average."""
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    if not momentum or norm.running_mean is None or norm.running_var is None:
        return None, 0.0
    return (norm.running_mean, norm.running_var), momentum


def _scales(squeezed: Tensor, excitation: Excitation | None, keep: Tensor | None) -> Tensor | None:
    """(N, C): the gate's scale times the factor per image; None if there is neither."""
    if excitation is None:
        return None if keep is None else keep.flatten(1).to(squeezed.dtype).expand(squeezed.shape).contiguous()
    s = excitation(squeezed)
    return (s if keep is None else s * keep.flatten(1).to(s.dtype)).contiguous()


def make_relays(y: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Relays for the gradients g (N, C, H, W), sums (2, N, C) and s (N, C); see the module's docstring. No memory."""
    n, c = y.shape[:2]
    return y.new_empty(()).expand(y.shape), packed.new_empty(()).expand(2, n, c), packed.new_empty(()).expand(n, c)


class NormAdd(torch.autograd.Function):
    """``act(norm(y) + identity)``, each part optional: without a gate, nothing is between the passes.

    It does the work of NormStatistics and NormApply in one node: a node costs a tenth of a millisecond of Python, which
    matters for a small network on a CPU (docs/performance.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        identity: Tensor | None,
        eps: float,
        running: tuple[Tensor, Tensor] | None,
        momentum: float,
        act: int,
        passes: Passes,
    ) -> Tensor:
        known = passes.statistics(y, weight, bias, eps, running, momentum)
        out = passes.apply(y, known, None, identity, act, None)
        ctx.passes, ctx.act, ctx.added = passes, act, identity is not None
        ctx.save_for_backward(y, known.packed, *derivative_from(LINEAR if identity is None else act, identity, out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        y, packed, add, out = ctx.saved_tensors
        passes, act, known = ctx.passes, ctx.act, Statistics(packed)
        grad = passes.dense(grad, y)
        sums = passes.grad_sums(grad, out, y, known, None, act, ctx.added and act != LINEAR, add)
        g = grad if sums.map is None else sums.map
        weight, bias, dy = passes.grad_input(
            g, y, known, None, GradSums(sums.packed, None), None, LINEAR if ctx.added else act, ctx.needs_input_grad[0]
        )
        return dy, weight, bias, g if ctx.needs_input_grad[3] else None, *[None] * 5


class NormStatistics(torch.autograd.Function):
    """The norm's input -> the squeeze (N, C), what else the last pass needs, and three relays.

    ``act``: the activation that the gradient from the relay is still to be taken back through.
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
        passes: Passes,
        parts: Parts | None,
        act: int,
    ) -> tuple[Tensor, ...]:
        if parts is None:
            known, ctx.total = passes.statistics(y, weight, bias, eps, running, momentum), None
        else:
            known, ctx.total = _statistics_over_all(y, weight, bias, eps, running, momentum, passes, parts)
        ctx.save_for_backward(y, known.packed)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(known.packed)
        ctx.passes, ctx.parts, ctx.act = passes, parts, act
        return known.squeezed, known.packed, *make_relays(y, known.packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor | None, _: None, *of_relays: Tensor | None) -> tuple[Any, ...]:
        y, packed = ctx.saved_tensors
        merged = None if ctx.total is None else (ctx.total, ctx.parts)
        wanted = ctx.needs_input_grad[0]
        grads = statistics_backward(ctx.passes, y, packed, dq, of_relays, ctx.act, wanted, merged)
        return *grads, *[None] * 6


def statistics_backward(
    passes: BackwardPasses,
    y: Tensor,
    packed: Tensor,
    dq: Tensor | None,
    of_relays: tuple[Tensor | None, ...],
    act: int,
    wanted: bool,
    merged: tuple[Tensor, Parts] | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of ``y`` (if wanted), weight and bias, from those of the squeeze and of the relays.

    ``merged``: if the statistics are those of several parts, the number of values per channel and the parts.
    """
    n, c = y.shape[:2]
    g, sums, s = of_relays
    if g is None or sums is None:  # the block's output was not used, only its squeeze
        g, sums, act = torch.zeros_like(y), packed.new_zeros(2, n, c), LINEAR
    dq = None if dq is None else dq.contiguous()
    known, packed_sums = Statistics(packed), GradSums(sums, None)
    if merged is None:
        weight, bias, dy = passes.grad_input(g, y, known, s, packed_sums, dq, act, wanted)
        return dy, weight, bias
    weight, bias, _ = passes.grad_input(g, y, known, s, packed_sums, dq, act, False)
    # The parameters' gradients are this part's own: they are averaged with all others after the backward pass.
    total, parts = merged
    means = parts.add(torch.stack([weight, bias]))
    dy = passes.grad_input(g, y, known, s, packed_sums, dq, act, wanted, means.div_(total))[2]
    return dy, weight, bias


def _statistics_over_all(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
    passes: Passes,
    parts: Parts,
) -> tuple[Statistics, Tensor]:
    """``passes.statistics`` over several parts, which exchange 2C + 1 numbers; and the number of values, ()."""
    mean, within = passes.moments(y)
    own = mean.mean(0)
    own_variance = within.mean(0) + (mean - own).square().mean(0)
    batch_mean, variance, total = over_all(own, own_variance, y.numel() / y.shape[1], parts)
    if running is not None:
        running[0].lerp_(batch_mean.to(running[0].dtype), momentum)
        running[1].lerp_((variance * (total / (total - 1))).to(running[1].dtype), momentum)
    rstd = (variance + eps).rsqrt()
    scale = weight * rstd
    return native.known_statistics(mean, (mean - batch_mean) * scale + bias, batch_mean, rstd, scale), total


class NormApply(torch.autograd.Function):
    """``act(norm(y) * s + identity)``; gradients of the norms' inputs are left to :class:`NormStatistics`.

    ``y``, and ``identity`` if it has a norm, are passed in detached; their gradients leave through the relays.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        packed: Tensor,
        relay: Tensor,
        relay_sums: Tensor,
        relay_s: Tensor,
        s: Tensor | None,
        identity: Tensor | None,
        packed_add: Tensor | None,
        add_relay: Tensor | None,
        add_relay_sums: Tensor | None,
        act: int,
        passes: Passes,
    ) -> Tensor:
        known_add = None if packed_add is None else Statistics(packed_add)
        out = passes.apply(y, Statistics(packed), s, identity, act, known_add)
        save_for_apply_backward(ctx, y, packed, s, identity, packed_add, out, act)
        ctx.passes = passes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *apply_backward(ctx, ctx.passes, grad), None, None


def save_for_apply_backward(
    ctx: Any,
    y: Tensor,
    packed: Tensor,
    s: Tensor | None,
    identity: Tensor | None,
    packed_add: Tensor | None,
    out: Tensor,
    act: int,
) -> None:
    """Save what the backward pass reads, and no more."""
    ctx.act, ctx.added = act, identity is not None
    add, out_kept = derivative_from(LINEAR if identity is None else act, identity, out)
    ctx.save_for_backward(y, packed, s, add if packed_add is None else identity, packed_add, out_kept)


def apply_backward(ctx: Any, passes: BackwardPasses, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The first backward pass: gradients of NormApply's first ten arguments."""
    y, packed, s, add, packed_add, out = ctx.saved_tensors
    grad = passes.dense(grad, y)
    known_add = None if packed_add is None else Statistics(packed_add)
    # The gradient before the activation is that of the shortcut, too. It is stored; the second pass begins with it.
    write = ctx.added and ctx.act != LINEAR
    sums = passes.grad_sums(grad, out, y, Statistics(packed), s, ctx.act, write, add, known_add)
    g, packed_sums = grad if sums.map is None else sums.map, sums.packed
    to_statistics = (g, packed_sums[:2], s)
    of_s = None if s is None else packed_sums[2]
    if known_add is not None:
        return None, None, *to_statistics, of_s, None, None, g, torch.stack([packed_sums[0], packed_sums[-1]])
    return None, None, *to_statistics, of_s, g if ctx.needs_input_grad[6] else None, None, None, None


# --- evaluation -----------------------------------------------------------------------------------------------------


def _evaluate(
    y: Tensor,
    norm: _BatchNorm,
    excitation: Excitation | None,
    identity: Tensor | None,
    identity_norm: _BatchNorm | None,
    keep: Tensor | None,
    act: int,
    passes: Passes,
) -> Tensor:
    """With the running statistics, without gradients."""
    # The map is normed in the same way with and without a gate, so that a gate with scale 1 does not change a bit.
    known = _known(y, norm, None)
    squeezed = known.squeezed if excitation is None else _known(y, norm, passes.moments(y)[0]).squeezed
    known_add = None if identity is None or identity_norm is None else _known(identity, identity_norm, None)
    return passes.apply(y, known, _scales(squeezed, excitation, keep), identity, act, known_add)


def _known(y: Tensor, norm: _BatchNorm, m: Tensor | None) -> Statistics:
    """What the last pass needs, from the running statistics; ``m``: means over positions (N, C), for a gate."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = _affine(norm, y)
    mean = norm.running_mean.to(weight.dtype)
    rstd = (norm.running_var.to(weight.dtype) + norm.eps).rsqrt()
    scale = weight * rstd
    if m is None:
        return native.known_statistics(mean.expand(y.shape[:2]), bias.expand(y.shape[:2]), mean, rstd, scale)
    return native.known_statistics(m, (m - mean) * scale + bias, mean, rstd, scale)
