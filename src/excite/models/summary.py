"""The size of a model, without building its weights."""

import copy
from typing import Any, TypedDict

import torch
from torch import nn

from excite.gates.registry import GateTable
from excite.models.base import Classifier
from excite.models.factory import create_model
from excite.models.published import PUBLISHED, PublishedAccuracy
from excite.models.timm_models import PREFIX

# Convolutions and dense layers; the batched product is Gather-Excite's global convolution.
_COUNTED = ("convolution", "_convolution", "addmm", "mm", "bmm")


class ModelSize(TypedDict):
    """The size of a network.

    Attributes:
        params: number of trainable parameters.
        gmacs: multiply-accumulates for one image in convolutions and dense layers, 1e9.
        input_size: [channels, height, width].
    """

    params: int
    gmacs: float
    input_size: list[int]
    gate: GateTable | None


class ModelRow(ModelSize):
    """The same with the name. ``published`` belongs to the name and ignores the network's other arguments."""

    name: str
    published: list[PublishedAccuracy]


def describe(name: str, **args: Any) -> ModelRow:
    """Name, parameters, GMACs, input size, gate and published accuracies of ``create_model(name, **args)``."""
    if is_timm := name.startswith(PREFIX):
        model = create_model(name, **args)  # much of timm's code computes with real numbers while it builds
    else:
        with torch.device("meta"):
            model = create_model(name, **args)
    return {"name": name, **_measure(model, "cpu" if is_timm else "meta"), "published": PUBLISHED.get(name, [])}


def _measure(model: Classifier, device: str) -> ModelSize:
    return {
        "params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "gmacs": round(_count_in_place(model, device) / 1e9, 6),
        "input_size": list(model.input_size),
        "gate": model.gate_spec,
    }


def count_macs(model: Classifier) -> int:
    """Multiply-accumulates of the forward pass for one image."""
    return _count_in_place(copy.deepcopy(model).to("meta"), "meta")


def _count_in_place(model: Classifier, device: str) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # 0.3 s, twice that with Triton: not before training starts

    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # It is not counted, and is the slowest operator on the meta device (0.75 ms each).
            module.forward = nn.Identity().forward  # type: ignore[method-assign]
    image = torch.empty(1, *model.input_size, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    per_operator = counter.get_flop_counts()["Global"]
    flops = sum(n for operator, n in per_operator.items() if str(operator).split(".")[-1] in _COUNTED)
    return flops // 2
