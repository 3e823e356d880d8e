"""Exponential moving average of the weights."""

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A copy of the model whose weights and buffers follow the trained ones: ``ema += (1 - decay) * (weights - ema)``.

    Not ``torch.optim.swa_utils.AveragedModel``: that one reads a counter back from the device at every step. The decay
    warms up as ``min(decay, (1 + step) / (10 + step))`` (as in TensorFlow's ExponentialMovingAverage), so that short
    runs are not held back by their first weights. Integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, skipped: Tensor | None = None) -> None:
        """Follow ``model`` after optimiser step ``step`` (from 0), unless ``skipped`` (0-d on the device) is 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.module.state_dict(), model.state_dict()
        floating = [k for k, v in mine.items() if v.is_floating_point()]
        old, new = [mine[k] for k in floating], [theirs[k] for k in floating]
        if skipped is None:
            torch._foreach_lerp_(old, new, weight)
        else:  # a weight that only the device knows
            change = torch._foreach_sub(new, old)
            torch._foreach_mul_(change, weight * (1 - skipped))
            torch._foreach_add_(old, change)
        for key in mine.keys() - set(floating):
            mine[key].copy_(theirs[key])
