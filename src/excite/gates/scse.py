"""Spatial and channel squeeze-and-excitation. Notation: N images, C channels, S squeezed channels, H x W positions."""

import torch
from torch import Tensor, nn

from excite.errors import ExciteError, nearest
from excite.gates.base import Gate, in_gate_precision, must_be_called
from excite.gates.facts import Facts, Form
from excite.gates.maps import broadcast
from excite.gates.registry import register_gate
from excite.gates.squeeze_excite import SqueezeExcite

MERGES = ("add", "max")
_PAPER = "Roy, Navab, Wachinger: Concurrent Spatial and Channel Squeeze & Excitation, MICCAI 2018, arXiv 1803.02579"
_BOTTLENECK = {
    "reduction": "S is C // reduction",
    "rd_divisor": "round S to a multiple of this; null: do not round",
    "bias": "whether the dense layers have biases",
}


@register_gate("cse")
class ChannelSqueezeExcite(SqueezeExcite):
    """SE as in the scSE paper: (N, C, H, W) -> scale (N, C), with a bottleneck of half the channels.

    Formula, parameters and options are those of :class:`SqueezeExcite`; only the default ``reduction`` differs.

    Source: Roy, Navab, Wachinger, "Concurrent Spatial and Channel 'Squeeze & Excitation' in Fully Convolutional
    Networks" (arXiv 1803.02579), section 2.1.
    """

    facts = Facts(
        title="Channel Squeeze-and-Excitation",
        paper=_PAPER,
        options=_BOTTLENECK,
        forms=(
            Form(
                squeeze="mean over positions",
                scales="channels",
                formula="sigmoid(W2 relu(W1 mean(x) + b1) + b2)",
                parameters="2*C*S + S + C",
                letters={"S": "C // 2"},
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        rd_divisor: int | None = None,
        bias: bool = True,
        feature_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(channels, reduction=reduction, rd_divisor=rd_divisor, bias=bias)


@register_gate("sse")
class SpatialSqueezeExcite(Gate):
    """``sigmoid(conv1x1(x))`` with one output channel: (N, C, H, W) -> scale (N, 1, H, W).

    It squeezes the channels of each position and scales positions. Parameters: C, and 1 more with ``bias``;
    ``conv.weight`` is (1, C, 1, 1).

    Source: the scSE paper (arXiv 1803.02579), section 2.2; the bias is from the authors' code.
    """

    facts = Facts(
        title="Spatial Squeeze-and-Excitation",
        paper=_PAPER,
        options={"bias": "whether the convolution has a bias"},
        forms=(
            Form(
                squeeze="weighted sum over channels",
                scales="positions",
                formula="sigmoid(w . x[h, w] + b)",
                parameters="C + 1",
                passes=17,
            ),
        ),
    )

    def __init__(self, channels: int, *, bias: bool = True, feature_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1, bias=bias)

    def scale(self, x: Tensor) -> Tensor:
        return in_gate_precision(self.squash, self.conv(x)).to(x.dtype)

    def start_as_identity(self) -> bool:
        return self._zero_and_double(self.conv)


@register_gate("scse")
class SpatialChannelSqueezeExcite(Gate):
    """cSE and sSE side by side on the same map: (N, C, H, W) -> scale (N, C, H, W).

    ``merge`` is "add", ``x * cse + x * sse`` (arXiv 1803.02579, section 2.3), with a scale in (0, 2); or "max", the
    larger of the two products at each position and channel (the authors' later code, and the best of four in arXiv
    1808.08127, section 2.3), with the larger scale where x is positive and the smaller one where x is negative.

    ``reduction`` and ``rd_divisor`` belong to cSE (2 and None by default), ``bias`` to both. Parameters: those of both
    gates, ``2*C*S + S + C`` and ``C + 1``, in ``channel.fc1``, ``channel.fc2`` and ``spatial.conv``.

    Raises:
        ExciteError: ``merge`` is neither of these, or ``reduction`` is invalid.
    """

    parts = ("channel", "spatial")
    facts = Facts(
        title="Concurrent Spatial and Channel Squeeze-and-Excitation",
        paper=_PAPER,
        options={**_BOTTLENECK, "merge": "how the two are combined: add (the paper) or max (the authors' later code)"},
        forms=(
            Form(
                squeeze="mean over positions; weighted sum over channels",
                scales="both",
                formula="cse(x)[c] + sse(x)[h, w]",
                parameters="2*C*S + S + C + C + 1",
                letters={"S": "C // 2"},
                passes=24,
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        rd_divisor: int | None = None,
        bias: bool = True,
        merge: str = "add",
        feature_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if merge not in MERGES:
            raise ExciteError(
                f"the merge of the gate 'scse' must be one of {', '.join(MERGES)}, not {merge!r}"
                f"{nearest(str(merge), MERGES)}"
            )
        self.merge = merge
        self.channel = ChannelSqueezeExcite(channels, reduction=reduction, rd_divisor=rd_divisor, bias=bias)
        self.spatial = SpatialSqueezeExcite(channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if "scale" in vars(self) or not (must_be_called(self.channel) or must_be_called(self.spatial)):
            return super().forward(x)
        merge = torch.add if self.merge == "add" else torch.maximum
        return merge(self.channel(x), self.spatial(x))

    def scale(self, x: Tensor) -> Tensor:
        channel, spatial = self.channel.scale(x)[:, :, None, None], self.spatial.scale(x)
        if self.merge == "add":
            return broadcast(torch.add, channel, spatial, x)
        return torch.where((x >= 0) == (channel > spatial), channel, spatial)

    def start_as_identity(self) -> bool:
        started = self.channel.start_as_identity() and self.spatial.start_as_identity()
        if self.merge == "add":  # 1/2 + 1/2 is 1 already
            self.channel.amplitude = self.spatial.amplitude = 1.0
        return started
