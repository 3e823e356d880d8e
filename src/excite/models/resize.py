"""Fit Gather-Excite kernels to another image size."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from excite.errors import ExciteError
from excite.gates import Gate
from excite.models.base import Classifier
from excite.models.blocks import as_size
from excite.models.timm_models import is_timm_model

Model = TypeVar("Model", bound=nn.Module)


def resize_gates(model: Model, image_size: int | Sequence[int]) -> Model:
    """Re-sample, in place, every gate kernel that was built for one map size; returns ``model``.

    One image of ``image_size`` goes through the model in evaluation mode, and each such gate adapts to the map it
    meets. Kernels are interpolated (bicubic) and keep their sum, and with it their answer to a constant map. Re-sampled
    kernels are new parameters: make the optimiser afterwards. A model without such gates only notes the size.
    """
    size = as_size(image_size)
    gates = [m for m in model.modules() if isinstance(m, Gate) and m.feature_size is not None]
    if gates:
        _adapt(model, gates, size)
    if isinstance(model, Classifier) or is_timm_model(model):
        described: Any = model
        described.image_size = size
        described.model_args["image_size"] = size[0] if size[0] == size[1] else list(size)
        if is_timm_model(model):  # ours has it by its image_size
            described.input_size = (described.in_chans, *size)
    return model


def _adapt(model: nn.Module, gates: list[Gate], size: tuple[int, int]) -> None:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ExciteError("this model has gates but no convolution, so the shape of its images cannot be told")
    training = {m: m.training for m in model.modules()}
    for gate in gates:
        gate.scale = _resizing_scale(gate)  # type: ignore[method-assign]
    try:
        model.eval()
        image = first.weight.new_zeros(1, first.in_channels, *size)
        with torch.no_grad():
            model(image)
    finally:
        for gate in gates:
            vars(gate).pop("scale", None)
        for module, mode in training.items():
            module.training = mode


def _resizing_scale(gate: Gate) -> Any:
    """Stands in for ``gate.scale`` for one pass: blocks call that method and not the gate, so no hook would see it."""

    def scale(x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        gate.resize((h, w))
        return type(gate).scale(gate, x)

    return scale
