"""Exponential moving average of the weights."""

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A moving average of the model's weights and buffers: ``ema += (1 - decay) * (weights - ema)``.

    The decay warms up as ``min(decay, (1 + step) / (10 + step))`` (as in TensorFlow's ExponentialMovingAverage), so
    that the initial weights do not dominate short runs. Integer buffers are copied. (Unlike
    ``torch.optim.swa_utils.AveragedModel``, it does not read a counter back from the device at every step.)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, skipped: Tensor | None = None) -> None:
        """Update the average after optimiser step ``step`` (from 0), unless ``skipped`` (0-d on the device) is 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.module.state_dict(), model.state_dict()
        floating = [k for k, v in mine.items() if v.is_floating_point()]
        old, new = [mine[k] for k in floating], [theirs[k] for k in floating]
        if skipped is None:
            torch._foreach_lerp_(old, new, weight)
        else:  # the weight is only known on the device
            change = torch._foreach_sub(new, old)
            torch._foreach_mul_(change, weight * (1 - skipped))
            torch._foreach_add_(old, change)
        for key in mine.keys() - set(floating):
            mine[key].copy_(theirs[key])
