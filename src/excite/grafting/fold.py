"""A gate that always answers alike is a factor of the layer before it.  Letters: N images, C channels."""

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
    """What a gate multiplied each channel by, over some images and all positions.

    Attributes:
        mean: (C), float32; (1) of a gate that gives all channels the same.
        spread: likewise, the largest distance of one scale from the mean; infinite where some scales were not finite.
    """

    mean: Tensor
    spread: Tensor

    def constant(self, tolerance: float) -> bool:
        """Whether no scale of any channel was further than ``tolerance`` from the channel's mean."""
        return bool((self.spread <= tolerance).all())


def gate_holders(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> the module with the attribute ``gate``, of all gates: blocks of ours, ``Grafted`` elsewhere."""
    if isinstance(model, Classifier):
        return {name: block for name, block in model.gate_slots().items() if isinstance(block.gate, Gate)}
    return {name: module for name, module in model.named_modules() if isinstance(module, Grafted)}


class Recorder:
    """What one gate says, over all images and positions."""

    def __init__(self) -> None:
        self.count = self.not_finite = 0
        self.total: Tensor | float = 0.0  # on the device, in float64: millions of scales
        self.least: Tensor | None = None
        self.most: Tensor | None = None

    def note(self, scale: Tensor) -> None:
        """Take in (N, C) scales, or (N, C, H, W); C is 1 where a gate gives all channels the same."""
        flat = scale.float()
        flat = flat if flat.ndim == 2 else flat.movedim(1, -1).flatten(0, -2)
        sound = flat.isfinite().all(1)
        if not bool(sound.all()):  # one NaN would be the mean of all, and then in the weights that it is folded into
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
        """Mean and spread so far. Raises ExciteError where there is nothing finite."""
        if self.least is None or self.most is None or isinstance(self.total, float):
            if self.not_finite:
                raise ExciteError(
                    "a gate has no finite scale for any image: the network is broken, or its numbers overflow in a "
                    "precision other than fp32"
                )
            raise ExciteError("a gate was never asked: no images went through the network")
        mean = (self.total / self.count).float()
        spread = torch.maximum(self.most - mean, mean - self.least)
        return Scales(mean, spread if not self.not_finite else torch.full_like(spread, torch.inf))


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, Recorder]]:
    """Within the block every gate of :func:`gate_holders` is noted; ``recorder.scales()`` gives what it said."""
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
        ExciteError: there is none, because something that is not linear stands between, or nothing that has weights.
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
        what = "the block's gate does not stand behind its last layer" if layer is None else type(layer).__name__
        raise ExciteError(
            f"the gate at {name} cannot be folded: no convolution or affine norm right before it ({what})"
        )
    return layer


def _can_take(layer: nn.Module) -> bool:
    if isinstance(layer, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
        activation = getattr(layer, "act", None)  # timm's norms may bring one along; a ReLU passes a positive factor on
        return layer.weight is not None and (activation is None or isinstance(activation, nn.Identity | nn.ReLU))
    return isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)


@torch.no_grad()
def fold_scale(layer: nn.Module, scale: Tensor) -> None:
    """Multiply what ``layer`` gives by ``scale`` (C or 1), in its weights."""
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
    """Take gates away, in place, and multiply the layer before each by the scale (C) that is to stand for it.

    Raises:
        ExciteError: a layer cannot take it; nothing is changed then.
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
