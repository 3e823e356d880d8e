"""Batch norm over all parts of a batch. Notation: N images of one part, C channels, P parts.

The parts are the processes of a job, or the shards that a step on the CPU is computed in (:func:`computing_with`). On
devices that support it, this is ``nn.SyncBatchNorm``. It does not run on a CPU; there, it is a module with the same
state dict and arithmetic, built from a few PyTorch operations and two exchanges.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class Parts(Protocol):
    """The parts of a batch that statistics are computed over; each is computed by a process or a thread of its own."""

    def gather(self, mine: Tensor) -> Tensor:
        """(L,) -> (P, L): those of all parts, in an order that is the same for all."""
        ...

    def add(self, mine: Tensor) -> Tensor:
        """The sum over all parts, in the shape of ``mine``, which may be overwritten."""
        ...


class Processes(NamedTuple):
    """The processes of a job as parts; ``group`` None means all of them."""

    group: distributed.ProcessGroup | None

    def gather(self, mine: Tensor) -> Tensor:
        """One all-gather."""
        gathered = mine.new_empty(distributed.get_world_size(self.group), len(mine))
        distributed.all_gather(list(gathered.unbind()), mine, group=self.group)
        return gathered

    def add(self, mine: Tensor) -> Tensor:
        """One all-reduce, in place."""
        distributed.all_reduce(mine, group=self.group)
        return mine


_this_thread = threading.local()


@contextmanager
def computing_with(parts: Parts) -> Iterator[None]:
    """Context in which the norms that this thread runs are computed over ``parts``, forward and backward."""
    _this_thread.parts = parts
    try:
        yield
    finally:
        _this_thread.parts = None


def parts_of(norm: nn.Module) -> Parts | None:
    """What a norm's statistics are computed over in training; None: what it is given, and no more."""
    if type(norm) is nn.BatchNorm2d:
        return None
    if not torch.compiler.is_compiling() and (parts := getattr(_this_thread, "parts", None)) is not None:
        return parts
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    group = getattr(norm, "process_group", None)
    return Processes(group) if distributed.get_world_size(group) > 1 else None


def convert_sync_batchnorm(model: nn.Module, native: bool) -> nn.Module:
    """Replace every batch norm of ``model`` by one over all parts, keeping the same parameter and buffer objects.

    Args:
        model: any module; changed in place (if it is itself a batch norm, the new one is returned).
        native: use ``nn.SyncBatchNorm`` (see ``device.has_sync_batchnorm``).
    """
    if native:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if isinstance(model, _BatchNorm):
        return SyncBatchNorm.from_batchnorm(model)
    for name, child in model.named_children():
        converted = convert_sync_batchnorm(child, native)
        if converted is not child:
            setattr(model, name, converted)
    return model


class SyncBatchNorm(_BatchNorm):
    """``nn.SyncBatchNorm`` for devices that torch's does not support: (N, C, ...) -> the same shape.

    Like ``nn.SyncBatchNorm``, it is not a subclass of ``nn.BatchNorm2d``: code that fuses batch norms must not mistake
    it for one with the statistics of a single part. Every part needs at least one image.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "SyncBatchNorm":
        _stay_out_of_graphs()
        return super().__new__(cls)

    @classmethod
    def from_batchnorm(cls, norm: _BatchNorm) -> "SyncBatchNorm":
        """The same norm over all parts, sharing parameters, buffers and mode."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
        new._parameters.update(norm._parameters)
        new._buffers.update(norm._buffers)
        return new.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2 dimensions (N, C, ...), got {input.ndim}")

    def forward(self, x: Tensor) -> Tensor:
        parts = parts_of(self) if self.training else None
        if parts is None:
            return super().forward(x)
        self._check_input_dim(x)
        factor = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a plain average over all batches
                factor = 1.0 / float(self.num_batches_tracked)
        running = (self.running_mean, self.running_var)
        return _SyncBatchNorm.apply(x, self.weight, self.bias, *running, self.eps, factor, parts)


@functools.cache
def _stay_out_of_graphs() -> None:
    """Called with the first module, not with the class: it imports the compiler, which takes 1.5 s."""
    SyncBatchNorm.forward = torch.compiler.disable(SyncBatchNorm.forward)  # type: ignore[method-assign]


class _SyncBatchNorm(torch.autograd.Function):
    """One gathering of 2C + 1 numbers forward, one sum of 2C backward; statistics at least in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        factor: float,
        parts: Parts,
    ) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        var, mean = torch.var_mean(x.to(exact), _all_but_channels(x), correction=0)
        mean, var, total = over_all(mean, var, x.numel() / x.shape[1], parts)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), factor)
            running_var.lerp_((var * total / (total - 1)).to(running_var.dtype), factor)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps), total)
        ctx.parts = parts
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inv_std, total = ctx.saved_tensors
        dims, shape = _all_but_channels(x), [1, -1] + [1] * (x.ndim - 2)
        grad, centred = grad.to(mean.dtype), x.to(mean.dtype) - mean.view(shape)
        sum_grad, sum_product = grad.sum(dims), (grad * centred).sum(dims)
        # The parameters' gradients are this part's own: they are averaged with all others after the backward pass.
        grad_weight = sum_product * inv_std if ctx.needs_input_grad[1] else None
        grad_bias = sum_grad if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias, *[None] * 5
        sums = ctx.parts.add(torch.cat([sum_grad, sum_product]))
        mean_grad, mean_product = (sums / total).chunk(2)
        scale = inv_std if weight is None else inv_std * weight
        slope = (mean_product * inv_std * inv_std).view(shape)
        grad_x = (grad - mean_grad.view(shape) - centred * slope) * scale.view(shape)
        return grad_x.to(x.dtype), grad_weight, grad_bias, *[None] * 5


def over_all(mean: Tensor, var: Tensor, count: float, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of values of one part -> those over all parts.

    Args:
        mean, var: (C,), float32 or float64.
        count: values per channel; may differ between parts.
        parts: all of them.

    Returns:
        (C,), (C,) and 0-d, in the dtype of ``mean``.
    """
    gathered = parts.gather(torch.cat([mean, var, mean.new_full((1,), count)]))
    # Merging means and variances, rather than summing x and x^2, keeps the variance accurate if it is small relative to
    # the mean (Chan, Golub & LeVeque 1979).
    means, variances, counts = gathered.split([len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    return mean, ((variances + (means - mean) ** 2) * counts).sum(0) / total, total


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]
