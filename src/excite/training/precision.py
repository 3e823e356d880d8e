"""Mixed precision: its effect on batch norm, and restoring the buffers after a skipped fp16 step."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from excite.errors import ExciteError
from excite.recipe import Recipe
from excite.runtime.device import DTYPES, SLOWER_ON_CPUS, Precision, choose_precision, is_emulated


def settle_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """On a CPU that can only emulate a recipe's fp16 or bf16, use the precision of "auto", and note it in the recipe.

    Emulation is many times slower, and shipped recipes ask for fp16 because their sources ran on accelerators. A
    precision that the user set (on the command line or in a recipe file) is kept, as is any on other devices.
    """
    asked = recipe.train.precision
    if device.type != "cpu" or recipe.is_own("train.precision") or not is_emulated(asked, device):
        return recipe
    taken = choose_precision("auto", device)
    note = (
        f"{taken} in place of the recipe's {asked}, which this CPU has no instructions for "
        f"(measured {SLOWER_ON_CPUS[asked]} as slow as fp32, see docs/precision.md); train.precision={asked} keeps it"
    )
    return recipe.replaced("train.precision", taken, note)


def set_norm_precision(model: nn.Module, norm_precision: str, precision: Precision) -> None:
    """Make the batch norms of ``model`` compute as ``train.norm_precision`` says, in place.

    - "auto": input and output in ``precision``, everything inside in float32. This is what PyTorch's batch norm does
      under autocast, in one kernel (AMP O2 with batch norm kept in float32).
    - "fp32": the output is float32, too, and so is what follows up to the next convolution: ReLU, gate, addition (AMP
      O1, where batch norm is on the list of float32 operators).
    - "same": weights, statistics and arithmetic are rounded to ``precision`` (AMP O3).

    Parameters and buffers stay float32, so the state_dict does not change. With ``precision`` "fp32", nothing changes.

    Raises:
        ExciteError: "same" for a batch norm other than ``nn.BatchNorm2d`` (a synchronised one, for example).
    """
    if norm_precision == "auto" or precision == "fp32":
        return
    for module in model.modules():
        if not isinstance(module, _BatchNorm):
            continue
        if norm_precision == "fp32":
            module.register_forward_pre_hook(_to_float32)
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = LowPrecisionBatchNorm2d  # not a new module: names, buffers and hooks are kept
            module.dtype = DTYPES[precision]  # type: ignore[assignment]
        else:
            raise ExciteError(
                f"train.norm_precision=same is for plain batch norms, not for {type(module).__name__}; use auto or fp32"
            )


def _to_float32(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].float(),)


class LowPrecisionBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with weights, statistics and arithmetic in ``dtype``; (N, C, H, W) in and out.

    The parameters are float32 and rounded at each use, so that the optimiser has exact ("master") weights; the running
    statistics are float32 tensors that hold rounded values.
    """

    dtype: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            None if t is None else t.to(self.dtype)
            for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        assert self.momentum is not None  # an exponential moving average, not a cumulative one
        training = self.training or mean is None
        out = F.batch_norm(x.to(self.dtype), mean, var, weight, bias, training, self.momentum, self.eps)
        if self.training and self.running_mean is not None and self.running_var is not None:
            assert mean is not None
            assert var is not None
            self.running_mean.copy_(mean)
            self.running_var.copy_(var)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return out


class BufferGuard:
    """Restores a model's buffers after a step that overflowed, without waiting for the device.

    By the time the gradients turn out not to be finite, the forward pass has updated the running statistics of batch
    norm. If the activations overflowed, the statistics are now infinite and would stay so.

    Args:
        model: the model whose buffers are guarded.
    """

    def __init__(self, model: nn.Module) -> None:
        buffers = [b.view(-1) for b in model.buffers()]
        kinds = {b.dtype for b in buffers}
        self._groups = [[b for b in buffers if b.dtype == kind] for kind in kinds]
        self._kept: list[list[Tensor]] = [[b.clone() for b in group] for group in self._groups]

    def keep(self) -> None:
        """Save the buffers before a step."""
        for kept, group in zip(self._kept, self._groups, strict=True):
            torch._foreach_copy_(kept, group)

    def put_back(self) -> None:
        """Restore the buffers, after a step that was broken off."""
        for kept, group in zip(self._kept, self._groups, strict=True):
            torch._foreach_copy_(group, kept)

    def restore(self, overflowed: Tensor) -> None:
        """Restore the buffers if ``overflowed`` (0-d, 0 or 1, on the device) is 1.

        Uses one ``where`` over all buffers: a kernel for each would cost a deep net hundreds of launches per step.
        """
        for kept, group in zip(self._kept, self._groups, strict=True):
            chosen: Any = torch.where(overflowed.bool(), torch.cat(kept), torch.cat(group))
            torch._foreach_copy_(group, chosen.split([b.numel() for b in group]))
