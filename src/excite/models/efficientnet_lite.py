"""EfficientNet-Lite, a network for phones and laptops, with or without gates.

Notation: N images, C channels, H x W positions.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from excite.gates import GateSpec, create_gate
from excite.models.activation import activation, norm_act
from excite.models.base import Classifier, Stage
from excite.models.blocks import BlockOptions, ResidualBlock, out_size
from excite.models.convolution import conv, set_conv_padding
from excite.models.resnet import check_choices, check_rates, set_batch_norms
from excite.size import Size, as_size

#: (kernel, stride, expansion) of the seven stages: Tan and Le, arXiv 1905.11946, table 1.
STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))


class InvertedResidual(ResidualBlock):
    """1x1 (expand), depth-wise kxk, 1x1 (project), with narrow maps at both ends (MobileNetV2, arXiv 1801.04381, figure
    3b). Without expansion, there is no first 1x1. There is no activation after the addition.

    A gate is on the wide map, after the depth-wise convolution ("expanded", as in MnasNet, MobileNetV3 and
    EfficientNet), or at the end of the branch ("standard", see :class:`ResidualBlock`). If the size or width changes,
    there is no shortcut and so no stochastic depth.
    """

    last_act: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        stride: int,
        expansion: int,
        in_size: Size,
        options: BlockOptions,
        drop_path: float = 0.0,
    ) -> None:
        self.has_shortcut = stride == 1 and in_channels == channels
        super().__init__(options, drop_path if stride == 1 and in_channels == channels else 0.0)
        width = in_channels * expansion
        layers = [conv(in_channels, width, 1)] if expansion > 1 else []
        layers += [conv(width, width, kernel, stride, groups=width), conv(width, channels, 1)]
        for i, layer in enumerate(layers, start=1):
            self.add_module(f"conv{i}", layer)
            self.add_module(f"bn{i}", nn.BatchNorm2d(layer.out_channels))
        self.count = len(layers)
        self.out_size = out_size(in_size, kernel, stride, kernel // 2)
        if options.gate is not None:
            gated = width if self.position == "expanded" else channels
            self.gate = create_gate(options.gate, gated, feature_size=self.out_size)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.count):
            y = self._activate(self.get_submodule(f"conv{i}")(y), self.get_submodule(f"bn{i}"))
        if self.gate is not None and self.position == "expanded":
            y = self.gate(y)
        last, norm = self.get_submodule(f"conv{self.count}"), self.get_submodule(f"bn{self.count}")
        return self._leave(last(y), norm, x if self.has_shortcut else None)


class EfficientNetLite(Classifier):
    """EfficientNet-Lite (TensorFlow's ``lite`` version of arXiv 1905.11946: ReLU6 instead of Swish, no SE), with any
    gate.

    Arguments that are also options of ``create_model``:

    - ``gate``, ``gate_position``: one gate per block, at "expanded" (the wide map after the depth-wise convolution, as
      SE in EfficientNet) or "standard" (the end of the branch, as in SE-ResNet).
    - ``conv_padding``: padding of the strided convolutions: TensorFlow's "same" (for weights that timm calls
      ``tf_efficientnet_lite0``), or "symmetric" (timm's own ``efficientnet_lite0``).
    - ``act_layer``, ``bn_eps``, ``bn_momentum``, ``drop_rate``, ``drop_path_rate``, ``image_size``: as in
      :class:`excite.models.resnet.ResNet`.

    ``se_efficientnet_lite0`` squeezes the wide map to 1/16, as in the SE paper. EfficientNet squeezes it to a quarter
    of the block's input, which is 1/24 (``reduction=24``).
    """

    def __init__(
        self,
        *,
        layers: Sequence[int],
        widths: Sequence[int],
        stem_width: int = 32,
        head_width: int = 1280,
        conv_padding: str = "same",
        gate: GateSpec | None = None,
        gate_position: str = "expanded",
        act_layer: str = "relu6",
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.1,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        image_size: int | Sequence[int] = 224,
    ) -> None:
        super().__init__()
        check_choices(conv_padding=conv_padding, lite_gate_position=gate_position)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        image_shape = as_size(image_size)
        self.conv1 = conv(in_chans, stem_width, 3, 2)
        self.bn1: nn.Module | None = nn.BatchNorm2d(stem_width)
        self.act1 = activation(act_layer)
        options = BlockOptions(gate, gate_position, act_layer=act_layer)
        channels, size, reduction = stem_width, out_size(image_shape, 3, 2, 1), 2
        maps = [(stem_width, 2, "act1")]
        index, total = 0, sum(layers)
        for i, (width, count, (kernel, stride, expansion)) in enumerate(zip(widths, layers, STAGES, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(count):
                rate = drop_path_rate * index / max(total - 1, 1)
                step = stride if j == 0 else 1
                block = InvertedResidual(channels, width, kernel, step, expansion, size, options, rate)
                blocks.append(block)
                channels, size, reduction, index = width, block.out_size, reduction * step, index + 1
            self.add_module(f"layer{i + 1}", Stage(*blocks))
            maps.append((channels, reduction, f"layer{i + 1}"))
        self.num_stages = len(layers)
        self.conv2 = conv(channels, head_width, 1)
        self.bn2: nn.Module | None = nn.BatchNorm2d(head_width)
        self.act2 = activation(act_layer)
        maps[-1] = (head_width, reduction, "act2")
        self._finish(maps=maps, num_classes=num_classes, in_chans=in_chans, image_size=image_shape, drop_rate=drop_rate)
        set_batch_norms(self, bn_eps, bn_momentum)
        set_conv_padding(self, conv_padding)

    def stem_map(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return x if self.bn1 is None else norm_act(x, self.bn1, self.act1, self.fused)

    def stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"layer{i + 1}") for i in range(self.num_stages)]  # type: ignore[misc]

    def after_stages(self, x: Tensor) -> Tensor:
        x = self.conv2(x)
        return x if self.bn2 is None else norm_act(x, self.bn2, self.act2, self.fused)
