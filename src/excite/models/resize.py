"""Adapts Gather-Excite kernels to another image size."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from excite.errors import ExciteError
from excite.gates import Gate
from excite.models.base import Classifier
from excite.models.timm_models import is_timm_model
from excite.size import as_size, plain_size

Model = TypeVar("Model", bound=nn.Module)


def resize_gates(model: Model, image_size: int | Sequence[int]) -> Model:
    """Resample, in place, every gate kernel that was built for one map size; returns ``model``.

    An image of ``image_size`` (a number of pixels, or (height, width)) is passed through the model in evaluation mode,
    and each such gate adapts to the map that it gets. Kernels are interpolated (bicubic) and keep their sum, and so
    their response to a constant map. Resampled kernels are new parameters: create the optimiser afterwards. In a model
    without such gates, only the recorded size changes.

    Raises:
        ExciteError: a gate cannot be resampled to that size, or the image's channels are unknown.
    """
    size = as_size(image_size)
    gates = [m for m in model.modules() if isinstance(m, Gate) and m.feature_size is not None]
    if gates:
        _adapt(model, gates, size)
    if isinstance(model, Classifier) or is_timm_model(model):
        described: Any = model
        described.image_size = size
        described.model_args["image_size"] = plain_size(size)
        if is_timm_model(model):  # ours derive it from their image_size
            described.input_size = (described.in_chans, *size)
    return model


def _adapt(model: nn.Module, gates: list[Gate], size: tuple[int, int]) -> None:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ExciteError("this model has gates but no convolution, so the shape of its images is unknown")
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
    """Replaces ``gate.scale`` for one pass: blocks call that method rather than the gate, so a hook would not run."""

    def scale(x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        gate.resize((h, w))
        return type(gate).scale(gate, x)

    return scale
