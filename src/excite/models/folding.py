"""Folding: a copy of a network for inference, without batch norms and with prepacked weights.

Notation: N images, C channels, H x W positions, P = H * W, K classes.

A batch norm after a convolution is a factor and an offset per channel, which are folded into the convolution's weights
and bias (Jacob et al., arXiv 1712.05877, section 3.2). The end of a block is then the mean, the gate, and one pass for
scale, addition and ReLU (``excite.ops``). ReLUs after convolutions, and the addition and ReLU of an ungated block, are
done by the convolutions (oneDNN's post-ops). Their weights are put into oneDNN's layout once, not at every call.

Measured in ms, for seresnet50's layers at 224x224 in bfloat16 on one core of an AMD EPYC (Zen 4):

    batch 1                               F.conv2d   prepacked     and ReLU: separate   as post-op
    64 -> 256, 1x1, 56x56                     1.06          0.55                 0.68         0.55
    512 -> 512, 3x3, 7x7                      1.79          1.14                 1.76         1.09
    2048 -> 512, 1x1, 7x7                     2.03          0.68                 1.98         0.60
    batch 16, in all                   unfolded 769    folded 684

Tried and dropped, because they did not help: computing the mean of a 1x1 convolution's output from that of its input,
which has a quarter of the channels (batch 1: 56.0 ms instead of 55.5, batch 16: 698 instead of 684); with it, on large
maps, multiplying each image's scale into a copy of the weights, so that gate, addition and ReLU become post-ops, too
(54.1 instead of 53.5; 738 instead of 708); splitting large batches into parts of 4, 2 or 1 images to fit the caches
(728, 753, 803 instead of 670).
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from excite.errors import ExciteError
from excite.gates import Gate
from excite.models.activation import norm_act, rides_along
from excite.models.base import Classifier
from excite.models.blocks import ResidualBlock
from excite.models.efficientnet_lite import EfficientNetLite, InvertedResidual
from excite.models.fastnet import ConvGroup, FastNet
from excite.models.resnet import ResNet
from excite.models.selective_kernel import SelectiveKernel
from excite.models.tf_seresnet import GatedConv, TFSEResNet
from excite.ops import excite_residual, native, spatial_mean
from excite.ops.boundaries import NotScriptable
from excite.ops.same_padding import SameConv2d, pad_same

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
#: Float32 and bfloat16 reach 3.4e38; no 8-bit image gives maps 1e8 times as large as those of noise.
FAR_FROM_OVERFLOW = 1e30


def fold(model: nn.Module, *, dtype: torch.dtype | None = None, portable: bool = False) -> "FoldedClassifier":
    """A copy of ``model`` for inference in which every batch norm after a convolution is folded into it.

    The logits equal those of ``model`` up to rounding. ``model`` does not change, and later changes to it do not affect
    the copy. Batch norms before a convolution (pre-activation blocks, the TensorFlow network) and inside gates remain.
    Hooks on folded modules are lost.

    Args:
        model: a model from ``create_model``, in evaluation mode, on any device.
        dtype: dtype of weights and maps: float64, float32, bfloat16 or float16; None means that of the model. With
            bfloat16 or float16, the gates, the remaining norms, the dense layer and the logits are still float32. It is
            best to fold a float32 model: bfloat16 weights have already lost precision.
        portable: use only ordinary ATen operators, for ``torch.export`` and other tools that read graphs. Otherwise,
            oneDNN's fused convolutions and this package's kernels are used where possible (on a CPU, in float32 and
            bfloat16, not under ``torch.compile``). oneDNN's fused ReLU turns NaN into zero; it is not used for a
            network with non-finite weights, or with maps close to overflow for an image of noise.

    Raises:
        ExciteError: the model is in training mode, is not from ``create_model`` or is already folded, or the dtype is
            none of these.
    """
    if isinstance(model, FoldedClassifier):
        raise ExciteError("this model is already folded; fold the original model")
    if not isinstance(model, ResNet | TFSEResNet | EfficientNetLite | FastNet):
        raise ExciteError(f"fold takes a model from create_model, not a {type(model).__name__}")
    # A fresh dense layer (reset_classifier) is in training mode, which makes no difference to it.
    if any(module.training for module in model.modules() if not isinstance(module, nn.Linear | nn.Identity)):
        raise ExciteError("fold needs a model in evaluation mode: call model.eval() first")
    own = next(model.parameters()).dtype
    if (dtype or own) not in DTYPES:
        raise ExciteError(f"dtype is {dtype or own}; choose one of {', '.join(map(str, DTYPES))}")
    # Not in inference mode: its tensors have no version counter, which keeps the prepacked weights up to date.
    with torch.inference_mode(False), torch.no_grad():
        return FoldedClassifier(model, dtype or own, portable)


def folding_pays(model: nn.Module, device: torch.device, precision: str) -> bool:
    """Whether :func:`fold` takes the model and makes it faster there: on a CPU, it was measured to be 1.05 to 1.9 times
    as fast for all networks but the TensorFlow one (same speed), in fp32 and bf16."""
    return device.type == "cpu" and precision != "fp16" and isinstance(model, Classifier)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the small, sensitive parts (gates, norms, the dense layer) for maps of ``dtype``."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


class FoldedClassifier(NotScriptable):
    """The result of :func:`fold`: (N, in_chans, H, W) of any floating dtype -> logits (N, K), float32 or float64.

    A model with ``features_only`` returns its list of maps, in ``dtype``. ``forward_features``,
    ``forward_intermediates`` and ``forward_head`` work as in the original model. It can be copied, pickled and moved
    between devices, and its ``state_dict`` can be loaded into another folded model of the same kind. It has no training
    mode and, unless it is portable, no gradients.
    """

    def __init__(self, model: Classifier, dtype: torch.dtype, portable: bool) -> None:
        super().__init__()
        self.dtype = dtype
        self.portable = portable
        net = copy.deepcopy(model).requires_grad_(False)
        for parameter in net.parameters():
            parameter.grad = None
        net.grad_checkpointing = False
        if portable:
            net.set_fused("off")
        _Folder(dtype, portable).fold(net)
        if not portable:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net = net
        self.model_name, self.model_args, self.gate_spec = net.model_name, net.model_args, net.gate_spec
        self.num_features, self.num_classes = net.num_features, net.num_classes
        self.in_chans, self.image_size, self.feature_info = net.in_chans, net.image_size, net.feature_info
        self.eval()
        convolutions = [module for module in net.modules() if isinstance(module, FoldedConv)]
        if not portable and next(net.parameters()).device.type == "cpu" and _fused_convolutions(dtype):
            self._choose_relu(convolutions)

    def _choose_relu(self, convolutions: Sequence["FoldedConv"]) -> None:
        """Keep oneDNN's fused ReLU, which turns NaN into zero, only if no map of a noise image is close to overflow:
        a network that diverged must not look sound."""
        largest: list[Tensor] = []

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.numel():
                largest.append(output.abs().amax().double())

        before = [each.portable for each in convolutions]
        for each in convolutions:
            each.portable = True
        hooks = [module.register_forward_hook(note) for module in self.net.modules()]
        try:
            noise = torch.randn(1, *self.input_size, generator=torch.Generator().manual_seed(0))
            self(noise)
        finally:
            for hook in hooks:
                hook.remove()
        if not largest or bool(torch.stack(largest).amax() <= FAR_FROM_OVERFLOW):  # NaN is not
            for each, own in zip(convolutions, before, strict=True):
                each.portable = own

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) the model was built for."""
        return (self.in_chans, *self.image_size)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.net.out_indices is not None:
            maps = self.forward_intermediates(x)
            return [maps[i] for i in self.net.out_indices]
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> the last map, (N, num_features, H', W'), in ``dtype``."""
        with self._without_autocast(x):
            return self.net.forward_features(self._ready(x))

    def forward_intermediates(self, x: Tensor) -> list[Tensor]:
        """Every map of the model's ``feature_info``, in ``dtype``: the stem's, then one per stage."""
        with self._without_autocast(x):
            return self.net.forward_intermediates(self._ready(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map -> logits (N, K), or with ``pre_logits`` the dense layer's input; float32 or float64."""
        with self._without_autocast(x):
            net = self.net
            pooled = net.pooled(x).to(wide(x.dtype)) if isinstance(net, FastNet) else _means(x, self.portable)
            return pooled if pre_logits else net.fc(pooled)

    def train(self, mode: bool = True) -> "FoldedClassifier":
        """Only ``train(False)``. Raises ExciteError otherwise."""
        if mode:
            raise ExciteError("a folded model has no batch norms to train; train the original model")
        return super().train(False)

    def _ready(self, x: Tensor) -> Tensor:
        if self.portable:
            return x.to(self.dtype)
        if torch.jit.is_tracing():
            raise ExciteError("this folded model uses more than ATen operators; trace fold(model, portable=True)")
        if x.requires_grad and torch.is_grad_enabled():
            raise ExciteError("a folded model has no gradients; use the original model, or fold(model, portable=True)")
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _without_autocast(self, x: Tensor) -> AbstractContextManager[Any]:
        kind = x.device.type
        if self.portable or kind == "meta" or not torch.is_autocast_enabled(kind):
            return nullcontext()
        return torch.autocast(kind, enabled=False)

    def _apply(self, fn: Any, recurse: bool = True) -> "FoldedClassifier":
        if fn(torch.empty(0, dtype=self.dtype)).dtype is not self.dtype:
            raise ExciteError("the dtype of a folded model is fixed; choose it when folding: fold(model, dtype=...)")
        return super()._apply(fn, recurse)


class _Folder:
    """Folds the parts of a network in place, into ``dtype``."""

    def __init__(self, dtype: torch.dtype, portable: bool) -> None:
        self.dtype = dtype
        self.portable = portable

    def fold(self, net: Classifier) -> None:
        if isinstance(net, EfficientNetLite):
            net.conv2, net.bn2 = self.conv(net.conv2, net.bn2, net.act2), None  # type: ignore[assignment]
            net.feature_info[-1] = {**net.feature_info[-1], "module": "conv2"}
        if isinstance(net, ResNet | EfficientNetLite):
            self._stem(net)
            for stage in net.stages():
                for i, block in enumerate(stage):
                    stage[i] = FoldedBlock(cast(ResidualBlock, block), self)
        if isinstance(net, FastNet):
            net.conv1 = self.conv(net.conv1, None)  # type: ignore[assignment]
            for stage in net.stages():
                for i, group in enumerate(stage):
                    stage[i] = FoldedGroup(cast(ConvGroup, group), self)
        for module in list(net.modules()):
            if isinstance(module, GatedConv):
                module.conv = self.conv(module.conv, None)  # type: ignore[assignment]
                module.gate = self.gate(module.gate)
        for module in net.modules():  # norms, gates, the dense layer
            if not isinstance(module, FoldedConv):
                module._apply(lambda t: t.to(wide(self.dtype)) if t.is_floating_point() else t, recurse=False)
        sums = [t.sum(dtype=wide(t.dtype)) for t in net.state_dict().values() if t.is_floating_point()]
        if not torch.stack(sums).isfinite().all():
            for module in net.modules():
                if isinstance(module, FoldedConv):
                    module.portable = True  # oneDNN's ReLU turns NaN into zero: what diverged must not look sound

    def _stem(self, net: ResNet | EfficientNetLite) -> None:
        norm, act = net.bn1, None if net.bn1 is None else net.act1
        if isinstance(net.conv1, nn.Sequential):
            first, norm1, act1, second, norm2, act2, last = net.conv1
            folded = [self.conv(first, norm1, act1), self.conv(second, norm2, act2)]
            net.conv1 = nn.Sequential(*folded, self.conv(last, norm, act))
        else:
            net.conv1 = self.conv(net.conv1, norm, act)
        net.bn1 = None
        net.feature_info = [{**entry, "module": entry["module"].replace("act1", "conv1")} for entry in net.feature_info]

    def conv(self, conv: nn.Module, norm: nn.Module | None, act: nn.Module | None = None) -> "FoldedConv":
        """``conv``, the norm after it and an activation as one module."""
        if not isinstance(conv, nn.Conv2d):
            raise ExciteError(f"fold cannot handle a {type(conv).__name__} in place of a convolution")
        return FoldedConv(conv, norm, act, self.dtype, self.portable)

    def gate(self, gate: nn.Module | None) -> "FoldedGate | None":
        if gate is not None and not isinstance(gate, Gate):
            raise ExciteError(f"fold cannot handle a {type(gate).__name__} in place of one of excite's gates")
        return None if gate is None else FoldedGate(gate, self.dtype, self.portable)


def fold_norm(conv: nn.Conv2d, norm: _BatchNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias, in ``dtype``, of the convolution that is equivalent to ``conv`` followed by ``norm``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.double()
    offset = norm.running_mean.double() if conv.bias is None else norm.running_mean.double() - conv.bias.double()
    bias = -offset * factor if norm.bias is None else norm.bias.double() - offset * factor
    exact = torch.promote_types(conv.weight.dtype, wide(dtype))
    weight = conv.weight.to(exact) * factor[:, None, None, None].to(exact)
    return weight.to(dtype), bias.to(dtype)


class Prepared(NamedTuple):
    """A convolution's weights in oneDNN's layout, and what they were made for: address, version, size of the map."""

    source: tuple[int, int, torch.Size]
    packed: Tensor


class FoldedConv(nn.Module):
    """Convolution, optional addition of a shortcut, optional activation: (N, C, H, W) -> (N, C', H', W').

    A norm without running statistics cannot be folded and remains after the convolution.

    Attributes:
        weight, bias: frozen, with the norm folded in.
        relu: whether it ends with a ReLU.
        act: the activation at the end, if it is not a ReLU.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.Module | None, act: nn.Module | None, dtype: torch.dtype, portable: bool
    ) -> None:
        super().__init__()
        fixed = isinstance(norm, _BatchNorm) and norm.running_mean is not None
        weight, bias = fold_norm(conv, cast(_BatchNorm, norm), dtype) if fixed else (conv.weight, conv.bias)
        self.weight = nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype, copy=True), requires_grad=False)
        self.norm = None if fixed else norm
        self.relu = type(act) is nn.ReLU
        #: What the operators of excite.ops call the activation, if they can include it.
        self.act_name = None if act is None else rides_along(act)
        self.act = None if self.relu else act
        self.stride, self.padding, self.dilation = conv.stride, cast(tuple[int, ...], conv.padding), conv.dilation
        self.groups = conv.groups
        self.pads_same = isinstance(conv, SameConv2d)
        self.portable = portable
        self._prepared: Prepared | None = None

    def forward(self, x: Tensor, identity: Tensor | None = None, *, overwrite: bool = False) -> Tensor:
        """``relu(conv(x) + identity)``; with ``overwrite``, the result may overwrite ``identity``."""
        return self.activate(self._run(x, identity, self.relu, overwrite))

    def activate(self, y: Tensor) -> Tensor:
        """Apply the activation, if it is not a ReLU."""
        return y if self.act is None else self.act(y)

    def without_act(self, x: Tensor) -> Tensor:
        """``conv(x)``."""
        return self._run(x, None, False, False)

    def _run(self, x: Tensor, identity: Tensor | None, relu: bool, overwrite: bool) -> Tensor:
        x = x.to(self.weight.dtype)  # a remaining norm may return float32
        if self.pads_same:
            x = pad_same(x, tuple(self.weight.shape[2:]), self.stride, self.dilation)
        if self.fuses(x):
            return self._fused(x, self._pack(x), self.bias, identity, relu, overwrite)
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        y = y if self.norm is None else self.norm(y)
        y = y if identity is None else y + identity.to(y.dtype)
        return y.relu() if relu else y

    def fuses(self, x: Tensor) -> bool:
        """Whether oneDNN's fused convolutions are used for ``x``."""
        if self.portable or self.norm is not None or x.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        return _fused_convolutions(x.dtype)

    def _fused(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, identity: Tensor | None, relu: bool, overwrite: bool
    ) -> Tensor:
        mkldnn = torch.ops.mkldnn
        shape = (self.padding, self.stride, self.dilation, self.groups)
        if identity is None:
            return mkldnn._convolution_pointwise(x, weight, bias, *shape, "relu" if relu else "none", [], "")
        end: tuple[Any, ...] = ("add", None, "relu" if relu else None, [], "")
        if not overwrite and identity.shape[2:] == (1, 1):
            # PyTorch 2.11 adds maps of one pixel in place only (else: "could not create a memory").
            identity, overwrite = identity.clone(), True
        if overwrite:
            return mkldnn._convolution_pointwise_.binary(identity, x, weight, bias, *shape, *end)
        return mkldnn._convolution_pointwise.binary(x, identity, weight, bias, *shape, *end)

    def _pack(self, x: Tensor) -> Tensor:
        """The weights in oneDNN's layout for maps of this size; repacked when the weights or the size change.

        The layout was the same for 1 and 16 images; if it is not, oneDNN reorders at each call.
        """
        source = (self.weight.data_ptr(), self.weight._version, x.shape[1:])
        if self._prepared is None or self._prepared.source != source:
            shape = (self.padding, self.stride, self.dilation, self.groups)
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *shape, list(x.shape))
            self._prepared = Prepared(source, packed)
        return self._prepared.packed

    def extra_repr(self) -> str:
        out, each, *kernel = self.weight.shape
        text = f"{each * self.groups}, {out}, kernel_size={tuple(kernel)}, stride={self.stride}"
        return text + f", groups={self.groups}" * (self.groups > 1) + ", relu" * self.relu

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}  # opaque: it can be neither copied nor pickled


@cache
def _fused_convolutions(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's fused convolutions (internal operators) for a dtype on this processor."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    x, weight, shape = torch.ones(1, 2, 3, 3, dtype=dtype), torch.ones(2, 2, 1, 1, dtype=dtype), ([0, 0], [1, 1])
    try:
        mkldnn = torch.ops.mkldnn
        packed = mkldnn._reorder_convolution_weight(weight, *shape, [1, 1], 1, [1, 2, 3, 3])
        y = mkldnn._convolution_pointwise(x, packed, None, *shape, [1, 1], 1, "relu", [], "")
        z = mkldnn._convolution_pointwise.binary(x, y, packed, None, *shape, [1, 1], 1, "add", None, "relu", [], "")
        mkldnn._convolution_pointwise_.binary(z, x, packed, None, *shape, [1, 1], 1, "add", None, "relu", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((z == 6).all())


class FoldedGate(Gate):
    """A gate computed in float32 (or float64) for maps of any dtype."""

    def __init__(self, gate: Gate, dtype: torch.dtype, portable: bool) -> None:
        super().__init__()
        self.gate = gate
        self.channelwise = gate.channelwise
        self.dtype = dtype
        self.portable = portable

    def excitation(self, squeezed: Tensor) -> Tensor:
        """(N, C) -> (N, C), both float32 or float64."""
        return self.gate.excitation(squeezed.to(wide(self.dtype)))

    def scale(self, x: Tensor) -> Tensor:
        scale = self._scale(x)
        # In this shape, none of our kernels takes it, wherever it is used.
        return scale[:, :, None, None] if self.portable and scale.ndim == 2 else scale

    def _scale(self, x: Tensor) -> Tensor:
        if self.channelwise:
            return self.excitation(_means(x, self.portable))
        if self.portable or wide(self.dtype) is self.dtype:
            return self.gate.scale(x.to(wide(self.dtype)))
        with torch.autocast(x.device.type, self.dtype):  # float32 weights on maps of lower precision
            return self.gate.scale(x)


class FoldedSelectiveKernel(SelectiveKernel):
    """Selective kernels with paths of one convolution each; the selection is float32 (or float64)."""

    def __init__(self, unit: SelectiveKernel, folder: _Folder) -> None:
        nn.Module.__init__(self)
        self.fused, self.split_input = unit.fused, unit.split_input
        paths = [cast(nn.Sequential, path) for path in unit.paths]
        self.paths = nn.ModuleList(folder.conv(path[0], path[1], unit.act) for path in paths)
        self.fc1, self.bn, self.fc2, self.act = unit.fc1, unit.bn, unit.fc2, unit.act

    def _path(self, path: nn.Module, x: Tensor) -> Tensor:
        return path(x)

    def _select(self, squeezed: Tensor) -> Tensor:
        return super()._select(squeezed.to(self.fc1.weight.dtype))


class FoldedBlock(NotScriptable):
    """A residual block of any kind, as :class:`excite.models.blocks.ResidualBlock` computes it in evaluation mode.

    The parts have the same names as there. ``norm`` is the first norm of a pre-activation block.
    """

    def __init__(self, block: ResidualBlock, folder: _Folder) -> None:
        super().__init__()
        self.position, self.portable = block.position, folder.portable
        parts = dict(block.named_children())
        count = 3 if "conv3" in parts else 2
        self.has_shortcut = not isinstance(block, InvertedResidual) or block.has_shortcut
        preact = not block.last_act and not isinstance(block, InvertedResidual)
        self.norm = parts["bn1"] if preact else None
        self.act = block.act
        for i in range(1, count + 1):
            conv, norm = parts[f"conv{i}"], parts.get(f"bn{i + preact}")
            if isinstance(conv, SelectiveKernel):
                self.add_module(f"conv{i}", FoldedSelectiveKernel(conv, folder))
            else:
                self.add_module(f"conv{i}", folder.conv(conv, norm, block.act if i < count or block.last_act else None))
        self.gate = folder.gate(block.gate)
        self.downsample = block.downsample
        if isinstance(block.downsample, nn.Sequential):
            projection, *norms = block.downsample
            self.downsample = folder.conv(projection, norms[0] if norms else None)

    def forward(self, x: Tensor) -> Tensor:
        active = x
        if self.norm is not None:
            active = self.act(self.norm(x)) if self.portable else norm_act(x, self.norm, self.act, "auto")
        y = self.gate(active) if self.gate is not None and self.position == "pre" else active
        for conv in self.convs[:-1]:
            y = conv(y)
        if self.gate is not None and self.position == "expanded":
            y = self.gate(y)
        if not self.has_shortcut:
            return self._leave(y, None)
        return self._leave(y, x if self.downsample is None else self.downsample(active))

    @property
    def convs(self) -> list[Any]:
        """The convolutions in order; the last is a FoldedConv."""
        return [conv for name, conv in self._modules.items() if name.startswith("conv")]

    def _leave(self, y: Tensor, identity: Tensor | None) -> Tensor:
        """The last convolution's input and the shortcut, if any -> the block's output."""
        last, gate = self.convs[-1], self.gate
        if gate is None or self.position in ("pre", "post", "expanded"):
            out = last(y, identity, overwrite=isinstance(self.downsample, FoldedConv))
            return gate(out) if gate is not None and self.position == "post" else out
        if self.position == "identity" and identity is not None:
            out = excite_residual(identity, gate.scale(identity), last.without_act(y), last.act_name)
        else:
            z = last.without_act(y)
            out = excite_residual(z, gate.scale(z), identity, last.act_name)
        return out if last.act_name is not None else last.activate(out)


class FoldedGroup(FoldedBlock):
    """A :class:`excite.models.fastnet.ConvGroup`. The norm behind the pooling is folded into the convolution before it
    if all its factors are positive: then the maximum stays where it is."""

    def __init__(self, group: ConvGroup, folder: _Folder) -> None:
        super().__init__(group, folder)
        conv, norm = group.get_submodule("conv1"), group.get_submodule("bn1")
        weight = cast(_BatchNorm, norm).weight
        fixed = isinstance(norm, _BatchNorm) and norm.running_mean is not None
        commutes = fixed and (weight is None or bool((weight > 0).all()))
        self.conv1 = folder.conv(conv, norm if commutes else None)
        self.pool, self.depth = group.pool, group.depth
        self.behind = None if commutes else norm

    def _pooled(self, y: Tensor) -> Tensor:
        """2x2 maxima. In graphs for others they are maxima of four maps: OpenVINO 2026.4 computes an activation before
        the pooling that it follows, which is another function for those that fall somewhere, as GELU does."""
        if not self.portable:
            return self.pool(y)
        rows, columns = (2 * (length // 2) for length in y.shape[2:])
        y = y[:, :, :rows, :columns]
        tops, bottoms = y[:, :, ::2], y[:, :, 1::2]
        above = torch.maximum(tops[..., ::2], tops[..., 1::2])
        return torch.maximum(above, torch.maximum(bottoms[..., ::2], bottoms[..., 1::2]))

    def forward(self, x: Tensor) -> Tensor:
        y = self._pooled(self.conv1(x))
        y = identity = self.act(y if self.behind is None else self.behind(y).to(y.dtype))
        for conv in self.convs[1:-1]:
            y = conv(y)
        return self._leave(y, identity if self.depth > 2 else None)


def _means(x: Tensor, portable: bool) -> Tensor:
    """(N, C, H, W) -> (N, C), float32 or float64: the means over positions."""
    if portable or torch.compiler.is_compiling():
        return x.mean((2, 3), dtype=wide(x.dtype))
    if native.takes(x):
        return native.moments(x)[0]
    return spatial_mean(x).to(wide(x.dtype))


def form_of(net: nn.Module, precision: str) -> str:
    """The form of a timed network, for a column heading: whether it is folded, and its precision."""
    return f"{'folded' if isinstance(net, FoldedClassifier) else 'not folded'}, {precision}"
