"""The network for export: preprocessing and the folded network, ready to be traced.

Supports networks of excite and of timm (``model.name=timm:...``), with or without grafted gates.

Notation: N images, C channels, h x w pixels of the image, H x W of the network's input, K classes.
"""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from excite.data import Preprocessing
from excite.errors import ExciteError
from excite.export.norms import fold_norms
from excite.export.resize import fitted
from excite.gates import Gate
from excite.models import fold
from excite.models.folding import FoldedGate
from excite.models.timm_models import is_timm_model, timms_gates

InputKind = Literal["uint8", "float"]
INPUT, OUTPUT = "image", "logits"
GATE_SCOPE = "gate_scale"  #: Part of the name of every graph node that belongs to a gate


_NO_LOGITS = "this network outputs feature maps, not logits; export one with a classifier"


class Deployable(nn.Module):
    """A module from pixels to logits, float32 (N, K).

    With ``uint8`` the input is (N, h, w, C), C being 3 (RGB), 1 (gray) or a number of bands, with any h and w, which
    are the same for all images of a batch; it is brought to H x W (cropped, padded or stretched) and normalised as in
    ``excite predict``. With ``float`` the input is float32 (N, C, H, W) in 0..1, already brought to that size; it is
    only normalised.

    Args:
        model: a network from ``create_model``, also one of timm, in evaluation mode; it is not changed.
        preprocessing: the preprocessing of its training.
        kind: ``uint8`` or ``float``.

    Raises:
        ExciteError: the model cannot be folded, or outputs no logits.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, kind: InputKind) -> None:
        super().__init__()
        self.folded = not is_timm_model(model)
        self.net: nn.Module = _folded(model) if self.folded else _ready(model)
        self.preprocessing, self.kind = preprocessing, kind
        level = 255.0 if kind == "uint8" else 1.0
        mean, std = (
            torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std)
        )
        self.register_buffer("scale", (1 / (level * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, image: Tensor) -> Tensor:
        if self.kind == "uint8":
            p = self.preprocessing
            image = fitted(image.permute(0, 3, 1, 2), p.size, p.crop_pct, p.interpolation, p.fit)
        return self.net(image * self.scale + self.shift)

    def trace(self) -> ExportedProgram:
        """Trace the graph for any number of images and, with ``uint8``, any image size."""
        channels, height, width = self.preprocessing.shape
        dynamic: dict[int, object] = {0: Dim.DYNAMIC}
        if self.kind == "uint8":
            # All sizes differ from each other and from H and W, so that the tracer does not identify any of them.
            side = max(height, width)
            example = torch.zeros(2, side + 3, side + 5, channels, dtype=torch.uint8)
            dynamic |= {1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
        else:
            example = torch.zeros(2, channels, height, width)
        with torch.no_grad():
            program = torch.export.export(self.eval(), (example,), dynamic_shapes={INPUT: dynamic}, strict=False)
            if not self.folded:
                fold_norms(program)
        return program


def _folded(model: nn.Module) -> nn.Module:
    net = fold(model.float(), portable=True)
    if net.net.out_indices is not None or not net.num_classes:
        raise ExciteError(_NO_LOGITS)
    _mark_gates(net)
    return net


def _ready(model: nn.Module) -> nn.Module:
    """A frozen copy of a timm model; its batch norms are folded after tracing."""
    net: Any = copy.deepcopy(model).float().eval().requires_grad_(False)
    if not getattr(net, "num_classes", 0):
        raise ExciteError(_NO_LOGITS)
    gates = {id(module) for module in timms_gates(net).values()}
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Gate) or id(child) in gates:
                setattr(parent, name, _Scope(child))
    return net


class _Scope(nn.Module):
    """Wraps a gate under a name that marks its nodes, for a network that calls the gate as a module."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.add_module(GATE_SCOPE, gate)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._modules[GATE_SCOPE](*args, **kwargs)  # type: ignore[misc]


class _GateScale(nn.Module):
    """``gate.scale`` as the forward pass of a module, because only modules leave their names in the graph."""

    def __init__(self, gate: FoldedGate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return FoldedGate.scale(self.gate, x)


class _MarkedGate(FoldedGate):
    """A folded gate whose nodes can be recognised by name, so that they can stay in float."""

    def __init__(self, gate: FoldedGate) -> None:
        super().__init__(gate.gate, gate.dtype, gate.portable)
        self.add_module(GATE_SCOPE, _GateScale(gate))

    def scale(self, x: Tensor) -> Tensor:
        return self._modules[GATE_SCOPE](x)  # type: ignore[misc]


def _mark_gates(net: nn.Module) -> None:
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FoldedGate) and not isinstance(module, _GateScale):
                setattr(module, name, _MarkedGate(child))
