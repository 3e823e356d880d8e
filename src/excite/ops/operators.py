"""The passes of ``excite.ops.gated_norm`` as PyTorch operators (``torch.ops.excite.*``), for ``torch.compile``.

If a pass is a single operator, a compiler leaves it to the kernels and keeps one graph. Eager PyTorch calls the kernels
directly, because calling an operator through the dispatcher and Python takes time.

Notation: N images, C channels, H x W positions. Every operator is functional (nothing is changed in place, nothing is
returned twice), knows its shapes without running (fake tensors, "meta") and, if differentiable, its backward pass:

- ``norm_statistics(y, weight, bias, eps, act)`` -> squeeze (N, C), packed statistics (2N + 3, C), mean and unbiased
  variance of the batch (2, C), three relays;
- ``norm_apply(y, packed, ...)`` -> the block's output (N, C, H, W);
- ``norm_grad_sums``, ``norm_grad_input``: the two backward passes, which have no derivatives themselves.
"""

from typing import Any

import torch
from torch import Tensor

from excite.ops import native, plain, triton_kernels
from excite.ops.gated_norm import (
    Passes,
    apply_backward,
    make_relays,
    save_for_apply_backward,
    statistics_backward,
)
from excite.ops.native import GradSums, Statistics


def _passes(y: Tensor) -> Passes:
    """What runs the passes over such maps, determined when they run."""
    return native if native.takes(y) else triton_kernels if triton_kernels.takes(y) else plain


# --- forward --------------------------------------------------------------------------------------------------------


@torch.library.custom_op("excite::norm_statistics", mutates_args=())
def norm_statistics(
    y: Tensor, weight: Tensor, bias: Tensor, eps: float, act: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # With momentum 1, running statistics become the batch's own.
    moments = weight.new_zeros(2, y.shape[1])
    packed = _passes(y).statistics(y, weight, bias, eps, (moments[0], moments[1]), 1.0).packed
    return Statistics(packed).squeezed.clone(), packed, moments, *make_relays(y, packed)


@norm_statistics.register_fake
def _(y: Tensor, weight: Tensor, bias: Tensor, eps: float, act: int) -> tuple[Tensor, ...]:
    n, c = y.shape[:2]
    packed = weight.new_empty(2 * n + 3, c)
    return weight.new_empty(n, c), packed, weight.new_empty(2, c), *make_relays(y, packed)


def _save_for_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, _, _, _, ctx.act = inputs
    ctx.save_for_backward(y, output[1])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _statistics_backward(ctx: Any, dq: Tensor | None, _: None, __: None, *of_relays: Tensor | None) -> tuple[Any, ...]:
    y, packed = ctx.saved_tensors
    grads = statistics_backward(_Backward(), y, packed, dq, of_relays, ctx.act, ctx.needs_input_grad[0])
    return *grads, None, None


norm_statistics.register_autograd(_statistics_backward, setup_context=_save_for_statistics)


@torch.library.custom_op("excite::norm_apply", mutates_args=())
def norm_apply(
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
) -> Tensor:
    known_add = None if packed_add is None else Statistics(packed_add)
    passes = _passes(y)
    if identity is not None:
        identity = passes.dense(identity, y)
    return passes.apply(y, Statistics(packed), s, identity, act, known_add)


@norm_apply.register_fake
def _(y: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(y)


def _save_for_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, packed, _, _, _, s, identity, packed_add, _, _, act = inputs
    save_for_apply_backward(ctx, y, packed, s, identity, packed_add, output, act)


def _apply_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *apply_backward(ctx, _Backward(), grad), None


norm_apply.register_autograd(_apply_backward, setup_context=_save_for_apply)


# --- backward -------------------------------------------------------------------------------------------------------


@torch.library.custom_op("excite::norm_grad_sums", mutates_args=())
def norm_grad_sums(
    grad: Tensor,
    out: Tensor | None,
    y: Tensor,
    packed: Tensor,
    s: Tensor | None,
    act: int,
    write: bool,
    add: Tensor | None,
    packed_add: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The sums, and g (empty if not wanted, because an operator's outputs are always tensors)."""
    passes = _passes(y)
    grad = passes.dense(grad, y)
    known_add = None if packed_add is None else Statistics(packed_add)
    add = None if add is None else passes.dense(add, y)
    sums = passes.grad_sums(grad, out, y, Statistics(packed), s, act, write, add, known_add)
    return sums.packed, y.new_empty(0) if sums.map is None else _like(sums.map, y)


@norm_grad_sums.register_fake
def _(
    grad: Tensor,
    out: Tensor | None,
    y: Tensor,
    packed: Tensor,
    s: Tensor | None,
    act: int,
    write: bool,
    add: Tensor | None,
    packed_add: Tensor | None,
) -> tuple[Tensor, Tensor]:
    rows = 2 + (s is not None) + (packed_add is not None)
    return packed.new_empty(rows, y.shape[0], y.shape[1]), torch.empty_like(y) if write else y.new_empty(0)


@torch.library.custom_op("excite::norm_grad_input", mutates_args=())
def norm_grad_input(
    grad: Tensor,
    y: Tensor,
    packed: Tensor,
    s: Tensor | None,
    sums: Tensor,
    grad_squeezed: Tensor | None,
    act: int,
    wanted: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias (2, C), and of ``y`` (empty if not wanted)."""
    passes = _passes(y)
    known, known_sums = Statistics(packed), GradSums(sums.contiguous(), None)
    weight, bias, dy = passes.grad_input(passes.dense(grad, y), y, known, s, known_sums, grad_squeezed, act, wanted)
    return torch.stack([weight, bias]), y.new_empty(0) if dy is None else _like(dy, y)


@norm_grad_input.register_fake
def _(
    grad: Tensor,
    y: Tensor,
    packed: Tensor,
    s: Tensor | None,
    sums: Tensor,
    grad_squeezed: Tensor | None,
    act: int,
    wanted: bool,
) -> tuple[Tensor, Tensor]:
    return packed.new_empty(2, y.shape[1]), torch.empty_like(y) if wanted else y.new_empty(0)


def _like(x: Tensor, y: Tensor) -> Tensor:
    """``x`` with the strides of ``y``, as promised to the compiler; copied only if they differ."""
    return x if x.stride() == y.stride() else torch.empty_like(y).copy_(x)


class _Backward:
    """The backward passes as operators, with the names and signatures of ``excite.ops.plain``."""

    @staticmethod
    def dense(x: Tensor, like: Tensor) -> Tensor:
        return x  # the operators do it

    @staticmethod
    def grad_sums(
        grad: Tensor,
        out: Tensor | None,
        y: Tensor,
        known: Statistics,
        s: Tensor | None,
        act: int,
        write: bool,
        add: Tensor | None = None,
        known_add: Statistics | None = None,
    ) -> GradSums:
        packed_add = None if known_add is None else known_add.packed
        sums, g = norm_grad_sums(grad, out, y, known.packed, s, act, write, add, packed_add)
        return GradSums(sums, g if write else None)

    @staticmethod
    def grad_input(
        grad: Tensor,
        y: Tensor,
        known: Statistics,
        s: Tensor | None,
        sums: GradSums,
        grad_squeezed: Tensor | None,
        act: int,
        wanted: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        of_affine, dy = norm_grad_input(grad, y, known.packed, s, sums.packed, grad_squeezed, act, wanted)
        return of_affine[0], of_affine[1], dy if wanted else None
