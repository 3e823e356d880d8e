"""Lookahead: slow weights that average the trained ones, which then go on from them."""

import torch
from torch import Tensor, nn

from excite.recipe import LookaheadConfig


class Lookahead:
    """Slow weights of a network (Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", arXiv 1907.08610).

    Every ``every`` steps, ``slow = decay * slow + (1 - decay) * fast; fast = slow``, with a decay that may grow
    (Jordan, arXiv 2404.00498, section 3.4). Statistics of batch norms are averaged, too. After the last step, the
    network has the slow weights.

    Attributes:
        slow: name -> slow weights and statistics, as in the network's state_dict.
    """

    def __init__(self, model: nn.Module, config: LookaheadConfig) -> None:
        self.config = config
        self.slow: dict[str, Tensor] = {}
        self.restart(model)

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Begin again from a network's weights."""
        self.slow = {name: value.detach().clone() for name, value in self._fast(model).items()}

    @torch.no_grad()
    def after(self, model: nn.Module, steps: int, total: int) -> None:
        """To be called when so many steps of all have been done."""
        if steps % self.config.every and steps != total:
            return
        fast = self._fast(model)
        slow, values = [self.slow[name] for name in fast], list(fast.values())
        if steps % self.config.every == 0:
            decay = self.config.decay * (steps / total) ** self.config.power
            torch._foreach_lerp_(slow, values, 1 - decay)
        torch._foreach_copy_(values, slow)

    def load(self, slow: dict[str, Tensor]) -> None:
        """Go on from saved ``slow`` weights."""
        for name, value in self.slow.items():
            value.copy_(slow[name])

    def _fast(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
