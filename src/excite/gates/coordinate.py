"""Coordinate attention. Notation: N images, C channels, S squeezed channels, H x W positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.gates.base import Gate, in_gate_precision
from excite.gates.facts import Facts, Form
from excite.gates.maps import broadcast, column_means, row_means
from excite.gates.registry import register_gate
from excite.gates.squeeze_excite import squeeze_width


@register_gate("coordinate")
class CoordinateAttention(Gate):
    """A scale per row times a scale per column, each for every channel: (N, C, H, W) -> scale (N, C, H, W).

        f = hard_swish(BN(conv1([mean over each row, mean over each column])))      (N, S, H + W, 1)
        scale = sigmoid(conv_h(f of the rows)) * sigmoid(conv_w(f of the columns))      (N, C, H, 1) * (N, C, 1, W)

    S is ``C // reduction``, but at least ``min_width``. Parameters: ``3*C*S + 2*S``, and ``S + 2*C`` more with
    ``bias``. ``conv1``, ``conv_h`` and ``conv_w`` are 1x1 convolutions, ``bn`` is a batch norm.

    Source: Hou, Zhou, Feng, "Coordinate Attention for Efficient Mobile Network Design" (arXiv 2103.02907), section
    3.2, equations 4-9. ``hard_swish``, ``min_width=8`` and the biases are from the authors' code; timm's version has no
    biases and a different rule for S.

    Raises:
        ExciteError: ``reduction`` or ``min_width`` is not a whole number of at least 1.
    """

    facts = Facts(
        title="Coordinate Attention",
        paper="Hou, Zhou, Feng: Coordinate Attention, CVPR 2021, arXiv 2103.02907",
        options={
            "reduction": "S is C // reduction",
            "min_width": "S is at least this",
            "bias": "whether the convolutions have biases (as in the authors' code; timm has none)",
        },
        forms=(
            Form(
                squeeze="mean over each row and over each column",
                scales="both",
                formula="f = hard_swish(BN(W1 [rows(x), columns(x)])); sigmoid(Wh f[h]) * sigmoid(Ww f[w])",
                parameters="3*C*S + 2*S + S + 2*C",
                letters={"S": "max(C // 32, 8)"},
                passes=31,
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 32,
        min_width: int = 8,
        bias: bool = True,
        feature_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(min_width, int) or min_width < 1:
            raise ExciteError(
                f"the min_width of the gate 'coordinate' must be a whole number of at least 1, not {min_width!r}"
            )
        width = max(squeeze_width(channels, reduction), min_width)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=bias)
        self.bn = nn.BatchNorm2d(width)
        self.conv_h = nn.Conv2d(width, channels, 1, bias=bias)
        self.conv_w = nn.Conv2d(width, channels, 1, bias=bias)

    def scale(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        squeezed = torch.cat([row_means(x), column_means(x).transpose(2, 3)], 2)
        scales = in_gate_precision(lambda squeezed: self._excite(squeezed, height), squeezed)
        return broadcast(torch.mul, scales[:, :, :height], scales[:, :, height:].transpose(2, 3), x)

    def _excite(self, squeezed: Tensor, height: int) -> Tensor:
        """(N, C, H + W, 1), rows first -> scales of the same shape."""
        f = F.hardswish(self.bn(self.conv1(squeezed)))
        return self.squash(torch.cat([self.conv_h(f[:, :, :height]), self.conv_w(f[:, :, height:])], 2))

    def start_as_identity(self) -> bool:
        return self._zero_and_double(self.conv_h, self.conv_w)
