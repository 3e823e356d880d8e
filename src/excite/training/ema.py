"""Exponential moving average of the weights."""

import copy

import torch
from torch import nn


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
    def update(self, model: nn.Module, step: int) -> None:
        """Follow ``model`` after optimiser step ``step`` (from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.module.state_dict(), model.state_dict()
        floating = [k for k, v in mine.items() if v.is_floating_point()]
        torch._foreach_lerp_([mine[k] for k in floating], [theirs[k] for k in floating], weight)
        for key in mine.keys() - set(floating):
            mine[key].copy_(theirs[key])
