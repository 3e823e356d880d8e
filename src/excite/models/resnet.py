"""The residual network behind most variants. Notation: N images, C channels, H x W positions."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from excite.errors import ExciteError, nearest
from excite.gates import GateSpec
from excite.models.activation import activation, norm_act
from excite.models.base import Classifier, Stage
from excite.models.blocks import (
    BLOCKS,
    POSITIONS,
    BlockOptions,
    Bottleneck,
    ResidualBlock,
    out_size,
)
from excite.models.convolution import conv, set_conv_padding
from excite.models.selective_kernel import BlockConvSpec, block_conv_options
from excite.size import Size, as_size

#: PyTorch's default momentum of batch norm.
TORCH_MOMENTUM = 0.1
CHOICES = {
    "stem": ("conv7", "conv3x3x3", "cifar"),
    "max_pool": ("pad1", "ceil"),
    "conv_padding": ("symmetric", "same"),
    "stride_on": ("conv2", "conv1"),
    "gate_position": POSITIONS,
    "fast_gate_position": ("standard", "post"),
    "lite_gate_position": ("expanded", "standard"),
    "shortcut": ("conv", "pad"),
    "init": ("he_normal", "he_uniform", "mindcv"),
}


class ResNet(Classifier):
    """ResNet, ResNeXt, SENet-154, CIFAR ResNets, pre-activation and wide ResNets, with or without gates.

    Arguments that are also options of ``create_model``:

    - ``gate``: a gate's name or table (see ``excite.gates.create_gate``), one gate per block; ``gate_position``:
      "standard", "pre", "post" or "identity" (see ``excite.models.blocks.ResidualBlock``).
    - ``stem``: "conv7" (7x7/2), "conv3x3x3" (three 3x3, the first /2, widths w/2, w/2, w: SENet-154 and ResNet-C/D),
      both followed by a max-pool; or "cifar" (one 3x3, no stride, no pool).
    - ``max_pool``: "pad1" (3x3/2 with padding 1: torchvision) or "ceil" (no padding, ceil mode: Caffe, Cadene, MindCV,
      whose "same" padding is on the right and bottom only).
    - ``conv_padding``: padding of the strided convolutions: "symmetric" (torchvision), or "same" as in TensorFlow and
      MindSpore, where an even map gets one row of zeros less at the top and left than at the bottom and right.
    - ``stride_on``: "conv2" puts a bottleneck's stride on the 3x3 (torchvision), "conv1" on the first 1x1 (He et al.,
      Caffe).
    - ``output_stride``: 32, 16 or 8. With 16 or 8, the last stages have dilated convolutions instead of strides, with
      the same weights (as in timm; Yu, Koltun, Funkhouser, arXiv 1705.09914). Not for CIFAR stems, whose last maps are
      a quarter of the image, nor with ``block_conv``.
    - ``block_conv``: "sk", or a table with that name and options, replaces each bottleneck's 3x3 convolution, or each
      basic block's first one, by selective kernels (see ``excite.models.selective_kernel.SelectiveKernel``; the paper
      only has bottlenecks, timm both). Not for pre-activation blocks.
    - ``down_kernel``: kernel size of the strided projections: 1, or 3 as in SENet-154.
    - ``act_layer``: the activation after norms and additions: "relu" or another of
      ``excite.models.activation.ACTIVATIONS``; gates keep their own. Only ReLUs are part of the two-pass form.
    - ``bn_eps``, ``bn_momentum``: settings of every batch norm, including those in gates. With momentum 0.1, the
      default, a gate with its own momentum keeps it (CBAM: 0.01).
    - ``init``: "he_normal" (convolutions He-normal over fan-out, dense layer and gates with their own defaults),
      "he_uniform" (every convolution, including those in gates, He-uniform over fan-in with bias 0; dense layers from
      a normal distribution with sd 0.01, truncated at two sd, with bias 0: MindSpore's GENet_Res50) or "mindcv" (as
      "he_normal", but every dense layer, including those in gates, from U(-b, b) with b = sqrt(3 / fan-in) and bias 0:
      MindCV's ResNets and SENets).
    - ``zero_init_last_gamma``: each block starts as its shortcut (Goyal et al., arXiv 1706.02677). Not for
      pre-activation blocks, which end in a convolution.
    - ``drop_rate``: dropout before the classifier; ``drop_path_rate``: stochastic depth, rising linearly from 0 at the
      first block to this rate at the last.
    - ``image_size``: a number or (height, width). Only Gather-Excite theta with global extent depends on it.

    Parameter names are torchvision's (conv1, bn1, layer1.0.conv1, layer1.0.downsample.0, fc), with ``layer1.0.gate.*``
    for the gates. Batch norms start at 1 and 0.

    Differences from the papers and reference systems:

    - ResNet-50 and deeper have the stride on the 3x3 ("ResNet v1.5", torchvision); He et al. have it on the first 1x1.
      The SE authors' Caffe nets are ``stride_on="conv1", max_pool="ceil"`` (their ResNeXts ``max_pool="ceil"``).
      MindCV's (0.3.0) are ``max_pool="ceil", rd_divisor=8, init="mindcv"`` (``rd_divisor`` for the rounded squeeze
      width), with the stride on the 3x3. ModelZoo-PyTorch's SE-ResNet-50 is ``gate_bias=False``. MindSpore's
      GENet_Res50 is ``max_pool="ceil", conv_padding="same", bn_momentum=0.003, init="he_uniform"`` (only its stem has
      epsilon 1e-4 and momentum 0.05).
    - ``cifar_preresnet110`` has bottlenecks, as depth 164 does; He et al. (arXiv 1603.05027) use basic blocks at depth
      110.
    - ``cifar_wrn16_8`` has no dropout inside its blocks.
    """

    def __init__(
        self,
        *,
        block: str,
        layers: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        stem: str = "conv7",
        stem_width: int = 64,
        max_pool: str = "pad1",
        conv_padding: str = "symmetric",
        groups: int = 1,
        base_width: int = 64,
        first_ratio: float = 1.0,
        stride_on: str = "conv2",
        down_kernel: int = 1,
        shortcut: str = "conv",
        output_stride: int = 32,
        block_conv: BlockConvSpec | None = None,
        gate: GateSpec | None = None,
        gate_position: str = "standard",
        act_layer: str = "relu",
        bn_eps: float = 1e-5,
        bn_momentum: float = TORCH_MOMENTUM,
        init: str = "he_normal",
        zero_init_last_gamma: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        image_size: int | Sequence[int] = 224,
    ) -> None:
        super().__init__()
        check_choices(stem=stem, max_pool=max_pool, stride_on=stride_on, gate_position=gate_position)
        check_choices(shortcut=shortcut, init=init, conv_padding=conv_padding)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        preact = block.startswith("pre")
        size = image_shape = as_size(image_size)
        self.conv1, size = _stem(stem, in_chans, stem_width, size, act_layer)
        self.bn1: nn.Module | None = None if preact else nn.BatchNorm2d(stem_width)
        if not preact:
            self.act1 = activation(act_layer)
        self.maxpool: nn.Module | None = None
        if stem != "cifar":
            self.maxpool = nn.MaxPool2d(3, 2, padding=1) if max_pool == "pad1" else nn.MaxPool2d(3, 2, ceil_mode=True)
            size = _pooled(size, max_pool)
        kernels = block_conv_options(block_conv)
        if preact and kernels is not None:
            raise ExciteError("block_conv is not supported in pre-activation blocks; leave it out")
        options = BlockOptions(
            gate, gate_position, groups, base_width, first_ratio, stride_on, down_kernel, shortcut, kernels, act_layer
        )
        channels, stride = stem_width, 1 if stem == "cifar" else 2
        maps = [(channels, stride, "act1" if not preact else "conv1")]
        stride = 1 if stem == "cifar" else 4
        check_output_stride(output_stride, stem, kernels is not None)
        index, total = 0, sum(layers)
        first = dilation = 1
        self.num_stages = len(layers)
        for i, (planes, count) in enumerate(zip(widths, layers, strict=True)):
            blocks: list[nn.Module] = []
            entry = 2 if i > 0 else 1
            if entry > 1 and stride >= output_stride:
                dilation, entry = dilation * 2, 1
            for j in range(count):
                step = entry if j == 0 else 1
                rate = drop_path_rate * index / max(total - 1, 1)
                spread = {} if preact else {"dilation": (first, dilation)}
                unit = BLOCKS[block](channels, planes, step, size, options, rate, **spread)
                blocks.append(unit)
                first = dilation
                channels, size, stride, index = planes * unit.expansion, unit.out_size, stride * step, index + 1
            self.add_module(f"layer{i + 1}", Stage(*blocks))
            maps.append((channels, stride, "act" if preact and i + 1 == len(layers) else f"layer{i + 1}"))
        self.norm: nn.Module | None = nn.BatchNorm2d(channels) if preact else None
        if preact:
            self.act = activation(act_layer)
        self._finish(maps=maps, num_classes=num_classes, in_chans=in_chans, image_size=image_shape, drop_rate=drop_rate)
        set_batch_norms(self, bn_eps, bn_momentum)
        set_conv_padding(self, conv_padding)
        if init == "he_uniform":
            _he_uniform(self)
        if init == "mindcv":
            _mindcv_dense(self)
        if zero_init_last_gamma:
            _zero_last_gammas(self)

    def stem_map(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return x if self.bn1 is None else norm_act(x, self.bn1, self.act1, self.fused)

    def before_stages(self, x: Tensor) -> Tensor:
        return x if self.maxpool is None else self.maxpool(x)

    def stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"layer{i + 1}") for i in range(self.num_stages)]  # type: ignore[misc]

    def after_stages(self, x: Tensor) -> Tensor:
        return x if self.norm is None else norm_act(x, self.norm, self.act, self.fused)


def check_choices(**options: str) -> None:
    for option, value in options.items():
        allowed = CHOICES[option]
        if value not in allowed:
            said = option.removeprefix("lite_").removeprefix("fast_")
            close = nearest(str(value), allowed)
            raise ExciteError(f"{said} must be one of {', '.join(allowed)}, not {value!r}{close}")


def check_output_stride(output_stride: int, stem: str, selective: bool) -> None:
    if output_stride not in (8, 16, 32):
        raise ExciteError(f"output_stride must be 32, 16 or 8, not {output_stride!r}")
    if output_stride != 32 and (stem == "cifar" or selective):
        why = "selective kernels have their own dilations" if selective else "a CIFAR net's last map has stride 4"
        raise ExciteError(f"this network does not support output_stride={output_stride}: {why}; leave it out")


def check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if not 0.0 <= rate < 1.0:
            raise ExciteError(f"{name} must be at least 0 and below 1, not {rate!r}")


def set_batch_norms(model: nn.Module, eps: float, momentum: float) -> None:
    """Set every batch norm. PyTorch's default momentum leaves gates with their own momentum (CBAM) unchanged."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
            if momentum != TORCH_MOMENTUM:
                module.momentum = momentum


def _stem(kind: str, in_chans: int, width: int, size: Size, act_layer: str) -> tuple[nn.Module, Size]:
    """Everything before the stem's last norm, and the size of the map after it."""
    if kind == "conv7":
        return conv(in_chans, width, 7, 2), out_size(size, 7, 2, 3)
    if kind == "cifar":
        return conv(in_chans, width, 3), size
    half = width // 2
    # Not in place, because backward hooks on the norms do not allow it.
    layers: list[nn.Module] = [conv(in_chans, half, 3, 2), nn.BatchNorm2d(half), activation(act_layer)]
    layers += [conv(half, half, 3), nn.BatchNorm2d(half), activation(act_layer), conv(half, width, 3)]
    return nn.Sequential(*layers), out_size(size, 3, 2, 1)


def _pooled(size: Size, max_pool: str) -> Size:
    if max_pool == "pad1":
        return out_size(size, 3, 2, 1)
    # Ceil mode without padding: every position is in some window, so it is half the size, rounded down, from 2 on.
    h, w = (max(n // 2, 1) for n in size)
    return h, w


def _he_uniform(model: nn.Module) -> None:
    """MindSpore's HeUniform and TruncatedNormal with their defaults, as in GENet_Res50's train.py."""
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module.weight.is_meta:
            continue
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
        else:
            nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _mindcv_dense(model: nn.Module) -> None:
    """MindSpore's HeUniform(mode="fan_in", nonlinearity="sigmoid"), whose gain is 1, as in MindCV's resnet.py and
    senet.py. Their convolutions (He-normal over fan-out) and norms (1 and 0) are initialised as ours."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.is_meta:
            nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="sigmoid")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _zero_last_gammas(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            if not module.last_act:
                raise ExciteError(
                    "zero_init_last_gamma is not supported in pre-activation blocks, which do not end in a batch norm"
                )
            last = module.get_submodule("bn3" if isinstance(module, Bottleneck) else "bn2")
            nn.init.zeros_(cast(nn.BatchNorm2d, last).weight)
