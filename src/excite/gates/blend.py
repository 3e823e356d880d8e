"""A gate with a learnt strength. Notation: N images, C channels, H x W positions."""

import torch
from torch import Tensor, nn

from excite.gates.base import Gate, must_be_called
from excite.ops.boundaries import one_node


class Blend(Gate):
    """``1 + strength * (gate.scale - 1)``: the identity at strength 0 (the start), the gate at strength 1.

    It is for gates without a last layer to zero (Gather-Excite theta_minus has no parameters at all) that should start
    as the identity. ``strength`` (C,), one number per channel, has a gradient from the first step on, the gate's own
    parameters from the second. ``create_gate({..., "identity": True})`` creates it; it is not registered as a gate.

    Source: learnt factors that start at 0 on residual branches, as in ReZero (Bachlechner et al., arXiv 2003.04887) and
    SkipInit (De & Smith, arXiv 2002.10444).
    """

    identity = True
    parts = ("gate",)

    def __init__(self, gate: Gate, channels: int) -> None:
        super().__init__()
        self.gate = gate
        self.channelwise = gate.channelwise
        self.strength = nn.Parameter(torch.zeros(channels))

    @property
    def feature_size(self) -> tuple[int, int] | None:  # type: ignore[override]
        return self.gate.feature_size

    def excitation(self, squeezed: Tensor) -> Tensor:
        return self._blend(self.gate.excitation(squeezed))

    def scale(self, x: Tensor) -> Tensor:
        return self._blend(self.gate.scale(x))

    def forward(self, x: Tensor) -> Tensor:
        if "scale" in vars(self) or not must_be_called(self.gate):
            return super().forward(x)
        strength = self.strength[:, None, None]
        return torch.addcmul(x.to(strength.dtype), strength, (self.gate(x) - x).to(strength.dtype)).to(x.dtype)

    def _blend(self, scale: Tensor) -> Tensor:
        return _blended(scale, self.strength)

    def resize(self, feature_size: tuple[int, int]) -> None:
        self.gate.resize(feature_size)

    def start_as_identity(self) -> bool:
        nn.init.zeros_(self.strength)
        return True


@one_node
def _blended(scale: Tensor, strength: Tensor) -> Tensor:
    strength = strength if scale.ndim == 2 else strength[:, None, None]
    # Computed in the dtype of strength (float32) for any dtype of scale, so that strength 0 gives exactly 1.
    return torch.addcmul(torch.ones_like(strength), strength, scale.to(strength.dtype) - 1).to(scale.dtype)
