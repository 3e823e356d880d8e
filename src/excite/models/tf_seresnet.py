"""The SE-ResNet-110 of ModelZoo-TensorFlow, reproduced exactly. Notation: N images, C channels, H x W positions."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.gates import GateSpec, create_gate
from excite.gates.base import must_be_called
from excite.models.activation import activation, norm_act
from excite.models.base import Classifier, Stage
from excite.models.blocks import out_size
from excite.models.resnet import check_rates, set_batch_norms
from excite.ops import excite_residual, norm_excite_residual
from excite.ops.boundaries import NotScriptable, is_plain
from excite.size import Size, as_size

#: The reference's gate. With ``gate=None``, it is the ungated twin, which the reference does not have.
SE_WITHOUT_BIAS = {"name": "se", "bias": False}


class GatedConv(NotScriptable):
    """BN, ReLU, "same" convolution with bias, gate; BN and ReLU are optional."""

    fused: str = "auto"

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        gate: GateSpec | None,
        size: Size,
        *,
        stride: int = 1,
        norm: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels) if norm else None
        self.relu = relu
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2)
        self.out_size = out_size(size, kernel, stride, kernel // 2)
        self.gate = None if gate is None else create_gate(gate, channels, feature_size=self.out_size)

    def before_gate(self, x: Tensor) -> Tensor:
        if self.bn is not None:
            x = norm_excite_residual(x, self.bn, act="relu" if self.relu else None, fused=self.fused)
        elif self.relu:
            x = F.relu(x)
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before_gate(x)
        return y if self.gate is None else self.gate(y)


class TFBottleneck(NotScriptable):
    """Three gated convolutions, 1x1 (with the stride), 3x3, 1x1, plus the shortcut; nothing follows the addition.

    The scale of the last convolution's gate is applied in the addition. A projection is a gated convolution without BN
    and ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        planes: int,
        channels: int,
        stride: int,
        gate: GateSpec | None,
        size: Size,
        *,
        first: bool,
    ) -> None:
        super().__init__()
        # The first unit of the network has no BN, but a ReLU.
        self.unit1 = GatedConv(in_channels, planes, 1, gate, size, stride=stride, norm=not first)
        self.unit2 = GatedConv(planes, planes, 3, gate, self.unit1.out_size)
        self.unit3 = GatedConv(planes, channels, 1, gate, self.unit2.out_size)
        self.out_size = self.unit3.out_size
        self.downsample: GatedConv | None = None
        if stride > 1 or in_channels != channels:
            self.downsample = GatedConv(in_channels, channels, 1, gate, size, stride=stride, norm=False, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y, unit3 = self.unit2(self.unit1(x)), self.unit3
        if not is_plain(unit3, GatedConv) or (unit3.gate is not None and must_be_called(unit3.gate)):
            return excite_residual(unit3(y), None, identity)
        y = unit3.before_gate(y)
        return excite_residual(y, None if unit3.gate is None else unit3.gate.scale(y), identity)


class TFSEResNet(Classifier):
    """Pre-activation bottleneck network for 32x32 images with a gate after every convolution, of depth 9n+2.

    The widths are 64, 128, 256 (16, 64, 128 inside the bottlenecks), and BN's epsilon is 1e-3. Convolutions have a
    bias, gates and the dense layer do not. The three input channels are normalised by a batch norm. It has 3,504,422
    trainable parameters at depth 110 with 10 classes, and is checked against the reference's own checkpoints and logits
    (tests/models/test_fixtures.py).

    Differences from the SE paper, which has one gate per block, are intentional. As in the reference, initialisation is
    He-normal over fan-in with biases 0. The reference's moving averages decay by 0.9 per step (derived from its
    checkpoint after 3 steps: biased / unbiased mean = 1 - 0.9^3), which is ``bn_momentum`` 0.1. Unlike PyTorch, it also
    corrects the moving means' bias towards their initial 0; the difference vanishes after about fifty steps.
    """

    def __init__(
        self,
        *,
        depth: int = 110,
        gate: GateSpec | None = SE_WITHOUT_BIAS,
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.1,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        image_size: int | Sequence[int] = 32,
    ) -> None:
        super().__init__()
        check_rates(drop_rate=drop_rate)
        if (depth - 2) % 9 or depth < 11:
            raise ExciteError(f"the depth of this network must be 9n + 2 (11, 20, ... 110), not {depth}")
        size = image_shape = as_size(image_size)
        self.stem = GatedConv(in_chans, 16, 3, gate, size)
        channels, strides, maps = 16, 1, [(16, 1, "stem")]
        for i, (planes, width) in enumerate(((16, 64), (64, 128), (128, 256))):
            blocks: list[nn.Module] = []
            for j in range((depth - 2) // 9):
                stride = 2 if i > 0 and j == 0 else 1
                block = TFBottleneck(channels, planes, width, stride, gate, size, first=i == j == 0)
                blocks.append(block)
                channels, size, strides = width, block.out_size, strides * stride
            self.add_module(f"layer{i + 1}", Stage(*blocks))
            maps.append((channels, strides, f"layer{i + 1}" if i < 2 else "act"))
        self.norm = nn.BatchNorm2d(channels)
        self.act = activation("relu")
        self._finish(
            maps=maps,
            num_classes=num_classes,
            in_chans=in_chans,
            image_size=image_shape,
            drop_rate=drop_rate,
            fc_bias=False,
        )
        set_batch_norms(self, bn_eps, bn_momentum)
        _he_normal(self)

    def stem_map(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"layer{i}") for i in (1, 2, 3)]  # type: ignore[misc]

    def after_stages(self, x: Tensor) -> Tensor:
        return norm_act(x, self.norm, self.act, self.fused)


def _he_normal(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
