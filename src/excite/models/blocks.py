"""Residual blocks. Notation: N images, C channels, H x W positions."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.gates import Gate, GateSpec, create_gate
from excite.gates.base import must_be_called
from excite.models.activation import activation, norm_act, rides_along
from excite.models.convolution import conv
from excite.models.selective_kernel import SelectiveKernel, SelectiveKernelOptions
from excite.ops import excite_residual, norm_excite_residual
from excite.ops.boundaries import NotScriptable, is_plain, is_symbolic, one_node
from excite.size import Size

POSITIONS = ("standard", "pre", "post", "identity")

#: Dilations in a stage with dilated convolutions: that of the block's first 3x3 (in the first block, the previous
#: stage's), and the stage's own.
Dilation = tuple[int, int]


def out_size(size: Size, kernel: int, stride: int, padding: int) -> Size:
    """Size of the map after a convolution or (floor-mode) pooling."""
    h, w = ((n + 2 * padding - kernel) // stride + 1 for n in size)
    return h, w


@dataclass(frozen=True)
class BlockOptions:
    """Options that all blocks of a network share."""

    gate: GateSpec | None = None
    #: Position of the gate; see :class:`ResidualBlock`.
    gate_position: str = "standard"
    groups: int = 1
    #: Channels per group of a bottleneck's 3x3 convolution, per 64 planes.
    base_width: int = 64
    #: Width of a bottleneck's first convolution relative to its second: 0.5 in SENet-154.
    first_ratio: float = 1.0
    #: The bottleneck's convolution that has the stride: "conv2" (the 3x3; torchvision) or "conv1" (Caffe).
    stride_on: str = "conv2"
    #: Kernel of the strided projection shortcuts.
    down_kernel: int = 1
    #: "conv" (1x1 + BN) or "pad" (sub-sampling and zero channels: option A of He et al., section 3.3).
    shortcut: str = "conv"
    #: Options of the selective kernels that replace a bottleneck's 3x3 or a basic block's first 3x3; None: no
    #: selective kernels.
    selective_kernel: SelectiveKernelOptions | None = None
    #: Name of the activation after norms and the addition; see ``excite.models.activation``.
    act_layer: str = "relu"


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th position, with zero channels appended (as in fb.resnet.torch). No parameters."""

    def __init__(self, channels_added: int, stride: int) -> None:
        super().__init__()
        self.channels_added = channels_added
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels_added))


class ResidualBlock(NotScriptable):
    """Base class for all blocks, with their common end: last norm, gate, stochastic depth, addition, activation.

    The gate is at one of four positions (SE paper, arXiv 1709.01507, ablation of integration strategies; the paper does
    not define them for projection shortcuts and pre-activation blocks, which is our interpretation):

    - ``standard``: on the branch, after its last norm and before the addition.
    - ``pre``: on the branch's input. The shortcut gets the ungated input, with or without projection. In a
      pre-activation block, the branch's input is the activated one.
    - ``post``: on the block's output, after the addition and its ReLU (a pre-activation block has no ReLU there).
    - ``identity``: on the shortcut, after its projection if it has one.

    Stochastic depth (Huang et al., arXiv 1603.09382) drops the branch per image and scales the remaining ones up. The
    factor is multiplied into the gate's (N, C) scale and takes no extra pass.

    ``act`` is the activation after every norm and the addition. Norms, gate, projection and ``act`` are called as
    modules if that is observable (hooks, replaced modules; see ``excite.ops.boundaries``). Otherwise the end of the
    block does their work in two passes.
    """

    expansion: ClassVar[int] = 1
    #: How batch norms and what follows them run: "auto", "on", "plain" or "off" (see excite.ops.norm_excite_residual).
    fused: str = "auto"
    #: Post-activation blocks end in an activation, pre-activation blocks do not.
    last_act: ClassVar[bool] = True

    def __init__(self, options: BlockOptions, drop_path: float) -> None:
        super().__init__()
        self.position = options.gate_position
        self.drop_path = drop_path
        self.act = activation(options.act_layer)
        self.gate: Gate | None = None
        self.downsample: nn.Module | None = None

    def _add_gate(self, options: BlockOptions, in_channels: int, in_size: Size, channels: int, size: Size) -> None:
        if options.gate is None:
            return
        if self.position == "pre":
            self.gate = create_gate(options.gate, in_channels, feature_size=in_size)
        else:
            self.gate = create_gate(options.gate, channels, feature_size=size)

    def _enter(self, x: Tensor) -> Tensor:
        return self.gate(x) if self.gate is not None and self.position == "pre" else x

    def _activate(self, y: Tensor, norm: nn.Module | None) -> Tensor:
        """Norm and activation after a convolution; selective kernels have already applied theirs."""
        return y if norm is None else norm_act(y, norm, self.act, self.fused)

    def _shortcut(self, x: Tensor) -> tuple[Tensor, nn.Module | None]:
        """The shortcut up to its norm, and that norm (or None), which the end of the block runs."""
        if not is_plain(self.downsample, nn.Sequential) or len(cast(nn.Sequential, self.downsample)) != 2:
            return x if self.downsample is None else self.downsample(x), None
        projection, norm = cast(nn.Sequential, self.downsample)
        return projection(x), norm

    def _leave(
        self, y: Tensor, norm: nn.Module | None, identity: Tensor | None, identity_norm: nn.Module | None = None
    ) -> Tensor:
        """The branch's last convolution ``y`` (N, C, H, W) and the shortcut, if any -> the block's output."""
        act = rides_along(self.act) if self.last_act and not is_symbolic(y) else None
        gate = self.gate
        if gate is not None and must_be_called(gate) and self.position in ("standard", "identity"):
            out = self._with_gate_called(y, norm, gate, identity, identity_norm, act)
        else:
            out = self._with_scale(y, norm, identity, identity_norm, act)
        if self.last_act and act is None:
            out = self.act(out)
        return gate(out) if gate is not None and self.position == "post" else out

    def _with_gate_called(
        self,
        y: Tensor,
        norm: nn.Module | None,
        gate: nn.Module,
        identity: Tensor | None,
        identity_norm: nn.Module | None,
        act: str | None,
    ) -> Tensor:
        z = y if norm is None else norm_excite_residual(y, norm, fused=self.fused)
        if identity is not None and identity_norm is not None:
            identity = norm_excite_residual(identity, identity_norm, fused=self.fused)
        if self.position == "standard":
            z = gate(z)
        else:
            identity = gate(identity)
        return excite_residual(z, self._keep(y), identity, act, self.fused)

    def _with_scale(
        self,
        y: Tensor,
        norm: nn.Module | None,
        identity: Tensor | None,
        identity_norm: nn.Module | None,
        act: str | None,
    ) -> Tensor:
        keep = self._keep(y)
        gate = self.gate if self.position == "standard" else None
        if norm is not None and self.position != "identity" and (gate is None or gate.channelwise):
            excitation = None if gate is None else gate.excitation
            return norm_excite_residual(
                y, norm, excitation, identity, identity_norm=identity_norm, keep=keep, act=act, fused=self.fused
            )
        if identity is not None and identity_norm is not None:
            identity = norm_excite_residual(identity, identity_norm, fused=self.fused)
        z = y if norm is None else norm_excite_residual(y, norm, fused=self.fused)
        if self.gate is not None and self.position == "identity" and identity is not None:
            z = z if keep is None else excite_residual(z, keep)
            return excite_residual(identity, self.gate.scale(identity), z, act, self.fused)
        return excite_residual(z, _scale(gate, z, keep), identity, act, self.fused)

    def _keep(self, z: Tensor) -> Tensor | None:
        """(N, 1, 1, 1): 0 for an image whose branch is dropped, 1 / (1 - drop_path) for the others."""
        if not self.training or self.drop_path == 0.0:
            return None
        keep = 1.0 - self.drop_path
        return z.new_empty(z.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)


def _scale(gate: Gate | None, z: Tensor, keep: Tensor | None) -> Tensor | None:
    """The factor of the branch: the gate's scale, the factor per image, their product, or None."""
    if gate is None:
        return keep
    scale = gate.scale(z)
    return scale if keep is None else _joined(scale, keep)


@one_node
def _joined(scale: Tensor, keep: Tensor) -> Tensor:
    return scale * (keep.flatten(1) if scale.ndim == 2 else keep)


class BasicBlock(ResidualBlock):
    """3x3, 3x3 (He et al., arXiv 1512.03385, figure 5 left)."""

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        in_size: Size,
        options: BlockOptions,
        drop_path: float = 0.0,
        dilation: Dilation = (1, 1),
    ) -> None:
        super().__init__(options, drop_path)
        self.conv1, self.bn1 = _wide_conv(in_channels, planes, stride, 1, options, dilation[0])
        self.conv2 = conv(planes, planes, 3, dilation=dilation[1])
        self.bn2 = nn.BatchNorm2d(planes)
        self.out_size = out_size(in_size, 3, stride, 1)
        self._add_gate(options, in_channels, in_size, planes, self.out_size)
        self.downsample = _projection(in_channels, planes, stride, options, dilation)

    def forward(self, x: Tensor) -> Tensor:
        y = self._activate(self.conv1(self._enter(x)), self.bn1)
        return self._leave(self.conv2(y), self.bn2, *self._shortcut(x))


class Bottleneck(ResidualBlock):
    """1x1, (grouped) 3x3, 1x1 (He et al., figure 5 right; Xie et al., arXiv 1611.05431; SENet-154)."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        in_size: Size,
        options: BlockOptions,
        drop_path: float = 0.0,
        dilation: Dilation = (1, 1),
    ) -> None:
        super().__init__(options, drop_path)
        width = int(planes * options.base_width / 64) * options.groups
        first = int(width * options.first_ratio)
        stride1, stride2 = (stride, 1) if options.stride_on == "conv1" else (1, stride)
        self.conv1 = conv(in_channels, first, 1, stride1)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2, self.bn2 = _wide_conv(first, width, stride2, options.groups, options, dilation[0])
        self.conv3 = conv(width, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.out_size = out_size(in_size, 3, stride, 1)
        self._add_gate(options, in_channels, in_size, planes * self.expansion, self.out_size)
        self.downsample = _projection(in_channels, planes * self.expansion, stride, options, dilation)

    def forward(self, x: Tensor) -> Tensor:
        y = self._activate(self.conv1(self._enter(x)), self.bn1)
        y = self._activate(self.conv2(y), self.bn2)
        return self._leave(self.conv3(y), self.bn3, *self._shortcut(x))


class PreactBasicBlock(ResidualBlock):
    """BN-ReLU-3x3, BN-ReLU-3x3 (He et al., arXiv 1603.05027; Wide ResNets, arXiv 1605.07146).

    If the shape changes, the first BN-ReLU is shared with the projection (a bare 1x1 convolution), as in the authors'
    Torch code; otherwise the shortcut is the raw input.
    """

    last_act = False

    def __init__(
        self, in_channels: int, planes: int, stride: int, in_size: Size, options: BlockOptions, drop_path: float = 0.0
    ) -> None:
        super().__init__(options, drop_path)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv(planes, planes, 3)
        self.out_size = out_size(in_size, 3, stride, 1)
        self._add_gate(options, in_channels, in_size, planes, self.out_size)
        self.downsample = _bare_projection(in_channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self._activate(x, self.bn1)
        y = self.conv1(self._enter(active))
        y = self.conv2(self._activate(y, self.bn2))
        return self._leave(y, None, x if self.downsample is None else self.downsample(active))


class PreactBottleneck(ResidualBlock):
    """BN-ReLU-1x1, BN-ReLU-3x3, BN-ReLU-1x1 (He et al., arXiv 1603.05027), stride on the 3x3; see PreactBasicBlock."""

    expansion = 4
    last_act = False

    def __init__(
        self, in_channels: int, planes: int, stride: int, in_size: Size, options: BlockOptions, drop_path: float = 0.0
    ) -> None:
        super().__init__(options, drop_path)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, planes, 1)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv(planes, planes, 3, stride)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = conv(planes, planes * self.expansion, 1)
        self.out_size = out_size(in_size, 3, stride, 1)
        self._add_gate(options, in_channels, in_size, planes * self.expansion, self.out_size)
        self.downsample = _bare_projection(in_channels, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self._activate(x, self.bn1)
        y = self.conv1(self._enter(active))
        y = self.conv2(self._activate(y, self.bn2))
        y = self.conv3(self._activate(y, self.bn3))
        return self._leave(y, None, x if self.downsample is None else self.downsample(active))


BLOCKS: dict[str, type[BasicBlock | Bottleneck | PreactBasicBlock | PreactBottleneck]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
    "pre_basic": PreactBasicBlock,
    "pre_bottleneck": PreactBottleneck,
}


def _wide_conv(
    in_channels: int, channels: int, stride: int, groups: int, options: BlockOptions, dilation: int
) -> tuple[nn.Module, nn.BatchNorm2d | None]:
    """A block's 3x3 convolution and its norm, or selective kernels, which have their own."""
    if options.selective_kernel is None:
        return conv(in_channels, channels, 3, stride, groups, dilation), nn.BatchNorm2d(channels)
    unit = SelectiveKernel(
        in_channels,
        channels,
        stride=stride,
        groups=groups,
        act_layer=options.act_layer,
        **options.selective_kernel,
    )
    return unit, None


def _projection(
    in_channels: int, channels: int, stride: int, options: BlockOptions, dilation: Dilation
) -> nn.Module | None:
    if stride == 1 and in_channels == channels:
        return None
    if options.shortcut == "pad":
        if channels < in_channels:
            raise ExciteError(f"a 'pad' shortcut cannot go from {in_channels} to {channels} channels")
        return PadShortcut(channels - in_channels, stride)
    # A dilated stage keeps the kernel that it would have with a stride, so that the same weights fit.
    kernel = options.down_kernel if stride > 1 or dilation[1] > 1 else 1
    return nn.Sequential(
        conv(in_channels, channels, kernel, stride, 1, dilation[0] if kernel > 1 else 1), nn.BatchNorm2d(channels)
    )


def _bare_projection(in_channels: int, channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(conv(in_channels, channels, 1, stride))
