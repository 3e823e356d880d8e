"""Gather-Excite. Notation: N images, C channels, S squeezed channels, H x W positions, h x w gathered, e extent."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError, nearest
from excite.gates.base import Gate, in_gate_precision
from excite.gates.facts import Facts, Form
from excite.gates.registry import register_gate
from excite.gates.squeeze_excite import squeeze_width
from excite.ops import weighted_sum
from excite.ops.boundaries import is_plain, one_node
from excite.ops.same_padding import SameConv2d

VARIANTS = ("theta_minus", "theta", "theta_plus")
EXTENTS = (2, 4, 8)


@register_gate("ge")
class GatherExcite(Gate):
    """Gather context over ``extent`` positions, excite with a sigmoid: (N, C, H, W) -> scale (N, C) or (N, C, H, W).

    ``extent`` is 2, 4 or 8 (then h x w is ceil(H/e) x ceil(W/e), upsampled to H x W by nearest neighbour), or
    ``"global"`` (or 0; then h x w is 1 x 1 and the scale is (N, C)).

    - ``theta_minus``: average pooling with kernel 2e-1, stride e and padding e-1, not counting the padding. No
      parameters.
    - ``theta``: log2(e) depth-wise 3x3 stride-2 convolutions in a chain, each with batch norm, with ReLU between them:
      log2(e) * 11*C parameters. With global extent, one depth-wise convolution of the size of the map, with batch norm:
      C*H*W + 2*C parameters. Such a gate only takes maps of ``feature_size``.
    - ``theta_plus``: theta, then SE's bottleneck (1x1 to S channels, ReLU, 1x1 back): 2*C*S + S + C more parameters.

    ``reduction``, ``rd_divisor`` and ``bias`` (16, None and True by default) belong to the bottleneck of theta_plus.

    ``halve_from`` is for theta and theta_plus with global extent (None: off). A map with at least this many rows and
    columns is first halved by a dense 3x3 stride-2 convolution ("same" padding) with batch norm, 9*C*C + 2*C
    parameters, and the depth-wise kernel has half the size. MindSpore's GENet_Res50 is ``halve_from=56, bias=False``.

    Source: Hu, Shen, Albanie, Sun, Vedaldi, "Gather-Excite: Exploiting Feature Context in Convolutional Neural
    Networks" (arXiv 1810.12348), sections 2-3. The authors' Caffe net (RN50-GEPP.prototxt) differs: it has one more
    ReLU, between the batch norm of theta_plus's gather and its bottleneck. MindSpore's version does not have it, and
    neither does this one.

    In training, a global theta needs at least two images per batch: its batch norm has one value per image and channel.
    """

    facts = Facts(
        title="Gather-Excite",
        paper="Hu, Shen, Albanie, Sun, Vedaldi: Gather-Excite, NeurIPS 2018, arXiv 1810.12348",
        options={
            "variant": "theta_minus, theta or theta_plus",
            "extent": "gather over 2, 4 or 8 positions in each direction, or global (all positions)",
            "reduction": "theta_plus: S is C // reduction; 16 by default",
            "rd_divisor": "theta_plus: round S to a multiple of this; null: do not round",
            "bias": "theta_plus: whether the bottleneck has biases; true by default",
            "halve_from": "global theta, theta_plus: halve maps of at least this size first (MindSpore: 56)",
        },
        forms=(
            Form(
                squeeze="mean over positions (or over neighbourhoods: extent)",
                scales="channels",
                formula="sigmoid(mean(x))",
                parameters="0",
                options={"variant": "theta_minus"},
            ),
            Form(
                squeeze="depth-wise convolution as large as the map (or strided ones: extent)",
                scales="channels",
                formula="sigmoid(BN(sum of w * x over positions))",
                parameters="C*H*W + 2*C",
                passes=12,
                options={"variant": "theta"},
            ),
            Form(
                squeeze="depth-wise convolution as large as the map (or strided ones: extent)",
                scales="channels",
                formula="sigmoid(W2 relu(W1 BN(sum of w * x over positions) + b1) + b2)",
                parameters="C*H*W + 2*C + 2*C*S + S + C",
                letters={"S": "C // 16"},
                passes=12,
                options={"variant": "theta_plus"},
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        variant: str = "theta_minus",
        extent: int | str = "global",
        reduction: int | None = None,
        rd_divisor: int | None = None,
        bias: bool | None = None,
        halve_from: int | None = None,
        feature_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.extent = _check_options(variant, extent, reduction=reduction, rd_divisor=rd_divisor, bias=bias)
        self.variant = variant
        self.channelwise = variant == "theta_minus" and self.extent == 0
        self.gather: nn.Sequential | None = None
        self.halve_from = _check_halving(variant, self.extent, halve_from)
        if variant != "theta_minus":
            if self.extent == 0 and feature_size is None:
                raise ExciteError(
                    f"the gate 'ge' {variant} with global extent needs the size of its maps; give image_size="
                )
            self.feature_size = feature_size if self.extent == 0 else None
            self.gather = _gather_layers(channels, self.extent, feature_size, self._halves(feature_size))
        self.fc1: nn.Conv2d | None = None
        self.fc2: nn.Conv2d | None = None
        if variant == "theta_plus":
            width = squeeze_width(channels, 16 if reduction is None else reduction, rd_divisor)
            self.fc1 = nn.Conv2d(channels, width, 1, bias=bias is not False)
            self.fc2 = nn.Conv2d(width, channels, 1, bias=bias is not False)

    def excitation(self, squeezed: Tensor) -> Tensor:
        if not self.channelwise:
            return super().excitation(squeezed)
        return in_gate_precision(torch.sigmoid, squeezed)

    def scale(self, x: Tensor) -> Tensor:
        if self.channelwise:
            return super().scale(x)
        scale = in_gate_precision(self._excite, self._gather(x)).to(x.dtype)
        if self.extent == 0:
            return scale.flatten(1)
        # Upsample after the sigmoid, which is pointwise, because the gathered map is e*e times smaller.
        return F.interpolate(scale, size=x.shape[-2:], mode="nearest")

    def _gather(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, h, w)."""
        if self.gather is None:
            e = self.extent
            return F.avg_pool2d(x, 2 * e - 1, stride=e, padding=e - 1, count_include_pad=False)
        if self.feature_size is not None:
            x = _of_size(x, self.feature_size)
        if self.extent or not is_plain(self.gather, nn.Sequential):
            return self.gather(x)
        *halving, depthwise, norm = self.gather
        for layer in halving:
            x = layer(x)
        if not is_plain(depthwise, nn.Conv2d):
            return norm(depthwise(x))
        # One position is left, so the convolution is a dot product per channel.
        gathered = weighted_sum(x, cast(nn.Conv2d, depthwise).weight[:, 0])
        return norm(gathered[:, :, None, None])

    def _halves(self, size: tuple[int, int] | None) -> bool:
        return self.halve_from is not None and size is not None and min(size) >= self.halve_from

    def _excite(self, gathered: Tensor) -> Tensor:
        if self.fc1 is not None and self.fc2 is not None:
            gathered = self.fc2(F.relu(self.fc1(gathered)))
        return self.squash(gathered)

    def start_as_identity(self) -> bool:
        """Zeroes the last 1x1 convolution of theta_plus, or the last batch norm of theta; theta_minus has neither."""
        last = self.gather[-1] if self.fc2 is None and self.gather is not None else self.fc2
        return False if last is None else self._zero_and_double(last)

    def resize(self, feature_size: tuple[int, int]) -> None:
        """Resample a global kernel, preserving each channel's sum and so its response to a constant map.

        The kernel becomes a new ``nn.Parameter``: create the optimiser afterwards.

        Raises:
            ExciteError: ``halve_from`` lies between the two sizes, so the gate would need other layers.
        """
        if self.feature_size is None or self.feature_size == feature_size:
            return
        halves = self._halves(feature_size)
        if halves != self._halves(self.feature_size):
            (old_h, old_w), (h, w) = self.feature_size, feature_size
            raise ExciteError(
                f"this Gather-Excite gate halves maps from {self.halve_from} rows on, so it cannot be resampled from "
                f"{old_h}x{old_w} to {h}x{w}, where it has other layers"
            )
        conv = cast(nn.Conv2d, cast(nn.Sequential, self.gather)[-2])
        old = conv.weight
        size = _half(feature_size) if halves else feature_size
        kernel = resample_kernel(old.detach(), size)
        conv.weight = nn.Parameter(kernel, requires_grad=old.requires_grad)
        conv.kernel_size = size
        self.feature_size = feature_size


@one_node
def _of_size(x: Tensor, built: tuple[int, int]) -> Tensor:
    """Return ``x`` unchanged. Raises ExciteError if the map does not have the size that a kernel was built for."""
    if tuple(x.shape[-2:]) != built:
        (built_h, built_w), (h, w) = built, x.shape[-2:]
        raise ExciteError(
            f"this Gather-Excite gate was built for {built_h}x{built_w} maps, but the input is {h}x{w}; "
            "excite.resize_gates(model, image_size) resamples its kernel for another image size"
        )
    return x


def resample_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, 1, H, W) -> (C, 1, *size), bicubic, preserving the sum over positions."""
    wide = kernel.double()
    area = wide.shape[-2] * wide.shape[-1] / (size[0] * size[1])
    shrinks = size[0] < wide.shape[-2] or size[1] < wide.shape[-1]
    new = F.interpolate(wide, size=size, mode="bicubic", antialias=shrinks) * area
    # The change in the sum is spread evenly; scaling by the quotient would blow up if a sum is near zero.
    missing = wide.sum((-2, -1), keepdim=True) - new.sum((-2, -1), keepdim=True)
    return (new + missing / (size[0] * size[1])).to(kernel.dtype)


def _half(size: tuple[int, int]) -> tuple[int, int]:
    """Half the size, rounded up as by a "same" convolution."""
    return -(-size[0] // 2), -(-size[1] // 2)


def _gather_layers(
    channels: int, extent: int, feature_size: tuple[int, int] | None, halves: bool = False
) -> nn.Sequential:
    layers: list[nn.Module] = []
    if halves and feature_size is not None:
        dense = SameConv2d(channels, channels, 3, stride=2, bias=False)
        nn.init.kaiming_normal_(dense.weight, mode="fan_in", nonlinearity="relu")
        layers += [dense, nn.BatchNorm2d(channels)]
        feature_size = _half(feature_size)
    if extent == 0:
        layers += [_depthwise(channels, feature_size), nn.BatchNorm2d(channels)]
    for step in range(extent.bit_length() - 1):
        layers += [nn.ReLU()] if step else []
        layers += [_depthwise(channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers)


def _depthwise(
    channels: int, kernel_size: int | tuple[int, int] | None, *, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    assert kernel_size is not None
    conv = nn.Conv2d(channels, channels, kernel_size, stride=stride, padding=padding, groups=channels, bias=False)
    # fan_in, as in the authors' "msra" filler: PyTorch's fan_out ignores groups and would be C times too large.
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
    return conv


def _check_halving(variant: str, extent: int, halve_from: int | None) -> int | None:
    if halve_from is None:
        return None
    if variant == "theta_minus" or extent:
        raise ExciteError("halve_from is only for the gate 'ge' theta or theta_plus with global extent; leave it out")
    if not isinstance(halve_from, int) or halve_from < 2:  # True is 1
        raise ExciteError(f"the halve_from of the gate 'ge' must be a whole number of at least 2, not {halve_from!r}")
    return halve_from


def _check_options(variant: str, extent: int | str, **bottleneck: object) -> int:
    """The extent as a number, 0 for global."""
    if variant not in VARIANTS:
        raise ExciteError(
            f"the gate 'ge' has no variant {variant!r}{nearest(str(variant), VARIANTS)} (known: {', '.join(VARIANTS)})"
        )
    if extent not in (*EXTENTS, 0, "global"):
        raise ExciteError(f"the extent of the gate 'ge' must be one of 2, 4, 8, 0 or 'global', not {extent!r}")
    given = [name for name, value in bottleneck.items() if value is not None]
    if given and variant != "theta_plus":
        raise ExciteError(
            f"the gate 'ge' {variant} takes no {' or '.join(given)}, because it has no bottleneck; theta_plus has one"
        )
    return 0 if isinstance(extent, str) else extent
