"""Convolutional Block Attention Module. Notation: N images, C channels, S squeezed channels, H x W positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.gates.base import Gate, in_gate_precision
from excite.gates.facts import Facts, Form
from excite.gates.maps import broadcast, spatial_max
from excite.gates.registry import register_gate
from excite.gates.squeeze_excite import squeeze_width
from excite.ops import excite_residual, spatial_mean

#: Settings of the batch norm in the spatial part, as in the authors' code.
BN_MOMENTUM = 0.01


@register_gate("cbam")
class CBAM(Gate):
    """Channel attention, then spatial attention: (N, C, H, W) -> scale (N, C, H, W).

        channel = sigmoid(mlp(mean over positions) + mlp(max over positions))           (N, C)
        spatial = sigmoid(BN(conv_k([mean over channels, max over channels])))          (N, 1, H, W), of x * channel

    ``mlp`` is SE's bottleneck, shared by mean and max. ``channel`` and ``spatial`` switch the two parts on and off;
    with only one of them, the scale is (N, C) or (N, 1, H, W). Parameters: ``2*C*S`` (and ``S + C`` with ``bias``) for
    the channel part; ``2*k*k + 2`` for the spatial part. Layers: ``fc1``, ``fc2``, ``conv``, ``bn``.

    ``reduction`` and ``rd_divisor`` (which give S; 16 and None by default) and ``bias`` (of the mlp; true in the
    authors' code, false in timm) belong to the channel part, ``kernel_size`` (k, odd; 7 by default) to the spatial
    part.

    Source: Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module" (arXiv 1807.06521), section 3,
    equations 1-3. The batch norm is not in equation 3, but in the authors' code (with momentum 0.01) and in timm.

    The weights are initialised as in the authors' code (github.com/Jongchan/attention-module, MODELS/cbam.py and the
    loop at the end of ResNet in model_resnet.py): He-normal over fan-out for the spatial convolution, weight 0 for its
    batch norm (so a fresh spatial scale is 1/2 everywhere), PyTorch's default for the weights of the mlp, and 0 for
    every bias.

    Raises:
        ExciteError: both parts are off, or ``reduction`` or ``kernel_size`` is invalid.
    """

    facts = Facts(
        title="Convolutional Block Attention Module",
        paper="Woo, Park, Lee, Kweon: CBAM, ECCV 2018, arXiv 1807.06521",
        options={
            "reduction": "S is C // reduction",
            "rd_divisor": "round S to a multiple of this; null: do not round",
            "bias": "whether the dense layers have biases (as in the authors' code; timm has none)",
            "kernel_size": "k of the spatial part, odd",
            "channel": "whether to use the channel part",
            "spatial": "whether to use the spatial part",
        },
        forms=(
            Form(
                squeeze="mean and max over positions; then over channels",
                scales="both",
                formula="c = sigmoid(mlp(mean(x)) + mlp(max(x))); c * sigmoid(BN(conv_k([mean(c x), max(c x)])))",
                parameters="2*C*S + S + C + 2*k*k + 2",
                letters={"S": "C // 16", "k": "7"},
                passes=48,
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        rd_divisor: int | None = None,
        bias: bool = True,
        kernel_size: int = 7,
        channel: bool = True,
        spatial: bool = True,
        feature_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if not (channel or spatial):
            raise ExciteError("the gate 'cbam' does nothing with channel=False and spatial=False; set one to True")
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ExciteError(f"the kernel_size of the gate 'cbam' must be an odd whole number, not {kernel_size!r}")
        width = squeeze_width(channels, reduction, rd_divisor)
        self.fc1 = nn.Linear(channels, width, bias=bias) if channel else None
        self.fc2 = nn.Linear(width, channels, bias=bias) if channel else None
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False) if spatial else None
        self.bn = nn.BatchNorm2d(1, momentum=BN_MOMENTUM) if spatial else None
        self._start()

    def _start(self) -> None:
        for layer in (self.fc1, self.fc2):
            if layer is not None and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.conv is not None and self.bn is not None:
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(self.bn.weight)

    def scale(self, x: Tensor) -> Tensor:
        if self.fc1 is None:
            return self._spatial(x)
        # Both squeezes at once: (2, N, C).
        channel = in_gate_precision(self._excite_channels, torch.stack([spatial_mean(x), spatial_max(x)]))
        if self.conv is None:
            return channel
        spatial = self._spatial(excite_residual(x, channel))
        return broadcast(torch.mul, channel[:, :, None, None], spatial, x)

    def _excite_channels(self, squeezed: Tensor) -> Tensor:
        assert self.fc1 is not None
        assert self.fc2 is not None
        return self.squash(self.fc2(F.relu(self.fc1(squeezed))).sum(0))

    def _spatial(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W)."""
        # ``max`` rather than ``amax``, because it remembers the position; see excite.gates.maps.spatial_max.
        squeezed = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return in_gate_precision(self._excite_positions, squeezed)

    def _excite_positions(self, squeezed: Tensor) -> Tensor:
        assert self.conv is not None
        assert self.bn is not None
        return self.squash(self.bn(self.conv(squeezed)))

    def start_as_identity(self) -> bool:
        return self._zero_and_double(*(layer for layer in (self.fc2, self.bn) if layer is not None))
