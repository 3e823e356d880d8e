"""Effective Squeeze-Excitation. Notation: N images, C channels, H x W positions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError, nearest
from excite.gates.base import Gate, in_gate_precision
from excite.gates.facts import Facts, Form
from excite.gates.registry import register_gate

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"hard_sigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid}


@register_gate("ese")
class EffectiveSqueezeExcite(Gate):
    """``hard_sigmoid(fc(mean over positions))``: (N, C, H, W) -> scale (N, C).

    It has one dense layer of full width instead of SE's bottleneck, so that no channel information is lost.
    Parameters: ``C*C + C``; ``fc.weight`` is (C, C).

    ``activation`` is "hard_sigmoid", ``clip(z / 6 + 1/2, 0, 1)`` (the authors' code, timm), or "sigmoid" (the paper's
    formula). The hard sigmoid has no gradient for inputs below -3 or above 3.

    Source: Lee, Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation" (arXiv 1911.06667), section 3.3
    (VoVNetV2).

    Raises:
        ExciteError: ``activation`` is neither of these.
    """

    channelwise = True
    facts = Facts(
        title="Effective Squeeze-Excitation",
        paper="Lee, Park: CenterMask, CVPR 2020, arXiv 1911.06667",
        options={"activation": "hard_sigmoid (the authors' code) or sigmoid (the paper's formula)"},
        forms=(
            Form(
                squeeze="mean over positions",
                scales="channels",
                formula="hard_sigmoid(W mean(x) + b)",
                parameters="C*C + C",
            ),
        ),
    )

    def __init__(
        self, channels: int, *, activation: str = "hard_sigmoid", feature_size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ExciteError(
                f"the activation of the gate 'ese' must be one of {', '.join(ACTIVATIONS)}, not {activation!r}"
                f"{nearest(str(activation), ACTIVATIONS)}"
            )
        self.activation = activation
        self.fc = nn.Linear(channels, channels)

    def excitation(self, squeezed: Tensor) -> Tensor:
        return in_gate_precision(self._excite, squeezed)

    def _excite(self, squeezed: Tensor) -> Tensor:
        return self.squash(self.fc(squeezed), ACTIVATIONS[self.activation])

    def start_as_identity(self) -> bool:
        return self._zero_and_double(self.fc)
