"""Folds gates with a constant scale into the layer before them. Notation: N images, C channels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from excite.errors import ExciteError
from excite.gates import Gate
from excite.models.base import Classifier
from excite.models.blocks import PreactBasicBlock, PreactBottleneck, ResidualBlock
from excite.models.grafting.core import record_gates, record_wrappers, unwrap
from excite.models.grafting.wrapper import Grafted
from excite.models.listening import listening
from excite.models.tf_seresnet import GatedConv


@dataclass
class Scales:
    """The scales of a gate, over some images and all positions.

    Attributes:
        mean: mean scale per channel, (C,) float32; (1,) for a gate that scales all channels equally.
        spread: largest distance of a scale from the mean, in the same shape; infinite if some scales were not finite.
    """

    mean: Tensor
    spread: Tensor

    def constant(self, tolerance: float) -> bool:
        """Whether all scales were within ``tolerance`` of their channel's mean."""
        return bool((self.spread <= tolerance).all())


def gate_holders(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> the module that holds a gate as its attribute ``gate``: our blocks, or ``Grafted`` in other networks."""
    if isinstance(model, Classifier):
        return {name: block for name, block in model.gate_slots().items() if isinstance(block.gate, Gate)}
    return {name: module for name, module in model.named_modules() if isinstance(module, Grafted)}


class Recorder:
    """Accumulates the scales of a gate over all images and positions."""

    def __init__(self) -> None:
        self.count = self.not_finite = 0
        self.total: Tensor | float = 0.0  # on the device, in float64: millions of scales
        self.least: Tensor | None = None
        self.most: Tensor | None = None

    def note(self, scale: Tensor) -> None:
        """Add scales (N, C) or (N, C, H, W); C is 1 for a gate that scales all channels equally."""
        flat = scale.float()
        flat = flat if flat.ndim == 2 else flat.movedim(1, -1).flatten(0, -2)
        sound = flat.isfinite().all(1)
        if not bool(sound.all()):  # a single NaN would become the mean, and then end up in the folded weights
            self.not_finite += int((~sound).sum())
            flat = flat[sound]
            if not len(flat):
                return
        self.count += len(flat)
        self.total = self.total + flat.double().sum(0)
        least, most = flat.amin(0), flat.amax(0)
        self.least = least if self.least is None else torch.minimum(self.least, least)
        self.most = most if self.most is None else torch.maximum(self.most, most)

    def scales(self) -> Scales:
        """Mean and spread so far. Raises ExciteError if there are no finite scales."""
        if self.least is None or self.most is None or isinstance(self.total, float):
            if self.not_finite:
                raise ExciteError(
                    "a gate has no finite scale for any image: the network is broken, or overflows in a precision "
                    "other than fp32"
                )
            raise ExciteError("a gate never ran: no images went through the network")
        mean = (self.total / self.count).float()
        spread = torch.maximum(self.most - mean, mean - self.least)
        return Scales(mean, spread if not self.not_finite else torch.full_like(spread, torch.inf))


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, Recorder]]:
    """Context that records the scales of all gates of :func:`gate_holders`; see ``recorder.scales()``."""
    recorders = {name: Recorder() for name in gate_holders(model)}
    by_gate = {f"{name}.gate": recorder for name, recorder in recorders.items()}

    def note(gate: str, scale: Tensor) -> None:
        if gate in by_gate:
            by_gate[gate].note(scale)

    with listening(model, note):
        yield recorders


def layer_before(name: str, holder: nn.Module) -> nn.Module:
    """The layer that a gate's constant scale can be folded into.

    Raises:
        ExciteError: there is no layer with weights right before the gate, or something non-linear is in between.
    """
    layer: nn.Module | None = None
    if isinstance(holder, Grafted):
        layer = holder.inner
    elif isinstance(holder, GatedConv):
        layer = holder.conv
    elif isinstance(holder, ResidualBlock) and holder.position == "standard":
        bare = isinstance(holder, PreactBasicBlock | PreactBottleneck)
        last = "3" if hasattr(holder, "conv3") else "2"
        layer = holder.get_submodule(f"{'conv' if bare else 'bn'}{last}")
    if layer is None or not _can_take(layer):
        what = "the block's gate does not follow its last layer" if layer is None else type(layer).__name__
        raise ExciteError(
            f"the gate at {name} cannot be folded: there is no convolution or affine norm right before it ({what})"
        )
    return layer


def _can_take(layer: nn.Module) -> bool:
    if isinstance(layer, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
        activation = getattr(layer, "act", None)  # timm's norms may include one; a positive factor passes a ReLU
        return layer.weight is not None and (activation is None or isinstance(activation, nn.Identity | nn.ReLU))
    return isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)


@torch.no_grad()
def fold_scale(layer: nn.Module, scale: Tensor) -> None:
    """Multiply the output of ``layer`` by ``scale``, (C,) or (1,), by changing its weights."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    scale = scale.to(weight.device)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        grouped = weight.view(layer.groups, -1, *weight.shape[1:])
        shaped = scale.expand(layer.groups * weight.shape[1]).reshape(layer.groups, 1, -1, *[1] * (weight.ndim - 2))
        weight.copy_((grouped * shaped).view_as(weight))
    else:
        weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)).to(weight.dtype))
    if isinstance(bias, Tensor):
        bias.mul_(scale.to(bias.dtype))


def fold_gates(model: nn.Module, scales: dict[str, Tensor]) -> None:
    """Remove gates, in place, and multiply the layer before each by the scale (C,) that replaces it.

    Raises:
        ExciteError: there is a gate whose scale cannot be folded; nothing is changed.
    """
    holders = gate_holders(model)
    layers = {name: layer_before(name, holders[name]) for name in scales}
    for name, scale in scales.items():
        fold_scale(layers[name], scale)
        holder = holders[name]
        if not isinstance(holder, Grafted):
            holder.gate = None  # type: ignore[assignment]
    folded = [holders[name] for name in scales]
    unwrap(model, lambda wrapper: wrapper in folded)
    if isinstance(model, Classifier) and model.gate_spec is not None:
        record_gates(model, model.gate_spec)
    record_wrappers(model)
