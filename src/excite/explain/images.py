"""Explain one image: its classes, Grad-CAM, and what each gate did to it.

Notation: C channels, H x W pixels or positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.data.decode import BadImageError
from excite.errors import ExciteError, nearest
from excite.explain.statistics import ScaleStatistics
from excite.logits import NoFiniteLogits, finite
from excite.models.listening import listening
from excite.storage import local_file
from excite.trained.predictor import ClassProbability, Predictor


class ChannelAnswer(TypedDict):
    """What a gate did to one channel of an image; see :class:`GateAnswer`."""

    channel: int
    scale: float
    difference: float | None
    deviations: float | None


class GateExtremes(TypedDict):
    """The channels that a gate raised and lowered most."""

    gate: str
    raised: list[ChannelAnswer]
    lowered: list[ChannelAnswer]


class ImageValues(TypedDict):
    """An :class:`ExplainedImage` as JSON, without maps."""

    path: str
    top: list[ClassProbability]
    target: str
    layer: str
    gates: list[GateExtremes]


@dataclass(frozen=True)
class GateAnswer:
    """What one gate did to one image.

    Attributes:
        scale: float32 (C,), the mean scale over positions; (1,) if it is the same for all channels.
        difference: float32 (C,), ``scale`` minus its mean over the data; None without data.
        deviations: float32 (C,), ``difference`` in standard deviations over the data; None without data.
        positions: float32 (H, W), the mean scale over channels; None for a gate that scales channels only.
    """

    scale: Tensor
    difference: Tensor | None
    deviations: Tensor | None
    positions: Tensor | None

    def extremes(self, count: int) -> tuple[list[ChannelAnswer], list[ChannelAnswer]]:
        """The channels (raised most, lowered most) relative to the mean over the data, at most ``count`` each.

        Without data: the channels with the largest and the smallest scales.
        """
        values = self.scale if self.difference is None else self.difference
        order = values.argsort(descending=True).tolist()
        if self.difference is None:
            high, low = order[:count], order[::-1][:count]
        else:
            high = [c for c in order[:count] if values[c] > 0]
            low = [c for c in order[::-1][:count] if values[c] < 0]
        return [self._channel(c) for c in high], [self._channel(c) for c in low]

    def _channel(self, c: int) -> ChannelAnswer:
        return {
            "channel": c,
            "scale": float(self.scale[c]),
            "difference": None if self.difference is None else float(self.difference[c]),
            "deviations": None if self.deviations is None else float(self.deviations[c]),
        }


@dataclass(frozen=True)
class ExplainedImage:
    """One image and its explanation.

    Attributes:
        path: path of the image.
        pixels: uint8 (C, H, W), the network's input before normalisation.
        top: (class name, probability), most likely first; with several labels, all from the threshold on, maybe none.
        target: the class for ``cam``.
        layer: the module whose maps ``cam`` was computed from.
        cam: float32 (H, W) in 0..1, the evidence for ``target`` at each position; all 0 if there is none.
        gates: gate name -> what the gate did.
        others: with several labels, class name -> the same as ``cam`` for the other classes in ``top``.
    """

    path: str
    pixels: Tensor
    top: list[tuple[str, float]]
    target: str
    layer: str
    cam: Tensor
    gates: dict[str, GateAnswer]
    others: dict[str, Tensor] = field(default_factory=dict)

    def to_dict(self, channels: int = 5) -> ImageValues:
        """Values for JSON, without maps; ``channels``: how many raised and lowered channels to list per gate."""
        rows: list[GateExtremes] = []
        for name, answer in self.gates.items():
            raised, lowered = answer.extremes(channels)
            rows.append({"gate": name, "raised": raised, "lowered": lowered})
        return {
            "path": self.path,
            "top": [{"class": name, "probability": value} for name, value in self.top],
            "target": self.target,
            "layer": self.layer,
            "gates": rows,
        }


def explain_image(
    predictor: Predictor,
    path: str | Path,
    statistics: Mapping[str, ScaleStatistics] | None = None,
    *,
    target: str | None = None,
    layer: str | None = None,
    top_k: int = 5,
) -> ExplainedImage:
    """Explain a network's prediction for an image file.

    Args:
        predictor: a network from ``excite.load``.
        path: an image file of any size and format.
        statistics: statistics of the gates, from :func:`excite.explain.collect_scales`, to compare with.
        target: the class to explain; None: the most likely one, and with several labels all predicted ones.
        layer: the module for Grad-CAM; None: the last one that outputs a map.
        top_k: number of classes to list, if images have one each.

    Raises:
        ExciteError: the network has no gates, no such class or layer, or the layer outputs no map.
        BadImageError: the image cannot be read.
        NoFiniteLogits: the logits are not finite.
    """
    try:
        pixels = predictor.preprocessing.load(local_file(str(path)))
    except BadImageError as error:
        raise BadImageError(str(path), error.reason) from error
    if target is not None:
        check_class(target, predictor.classes)
    scales: dict[str, Tensor] = {}

    def keep(name: str, scale: Tensor) -> None:
        scales[name] = scale[0].float().cpu()

    with listening(predictor.model, keep):
        logits = predictor.logits(pixels[None])[0]
    top = predictor.top(logits, top_k)
    if not bool(finite(logits[None])):
        raise NoFiniteLogits("the network has no finite logits for it")
    others = [name for name, _ in top[1:]] if predictor.several and target is None else []
    target = predictor.classes[int(logits.argmax())] if target is None else target
    x = predictor.preprocessing.normalize(pixels[None].to(predictor.device)).contiguous(
        memory_format=torch.channels_last
    )
    place = last_map(predictor.model, x) if layer is None else layer
    cams = {
        name: grad_cam(predictor.model, place, x, predictor.classes.index(name)).cpu() for name in (target, *others)
    }
    answers = {name: _answer(scale, (statistics or {}).get(name)) for name, scale in scales.items()}
    return ExplainedImage(str(path), pixels, top, target, place, cams.pop(target), answers, cams)


def _answer(scale: Tensor, statistics: ScaleStatistics | None) -> GateAnswer:
    """``scale``: (C,), or a shape that broadcasts to (C, H, W)."""
    mean = scale if scale.ndim == 1 else scale.mean((1, 2))
    positions = None if scale.ndim == 1 else scale.mean(0)
    if statistics is None:
        return GateAnswer(mean, None, None, positions)
    difference = mean.double() - statistics.overall_mean()
    sd = statistics.overall_sd()
    # Rounding errors must not make an outlier of a channel that never varies.
    deviations = torch.where(sd > 1e-6, difference / sd, 0.0)
    return GateAnswer(mean, difference.float(), deviations.float(), positions)


def last_map(model: nn.Module, x: Tensor) -> str:
    """The name of the last module, in order of computation, that outputs a map (N, C, H, W) with H x W > 1.

    Raises:
        ExciteError: there is none.
    """
    found: list[str] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1:
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ExciteError(
            "no module of the network outputs a map with more than one position, so Grad-CAM is impossible"
        )
    return found[-1]


def check_class(name: str, classes: Sequence[str]) -> None:
    """Raise ExciteError if ``name`` is not one of ``classes``."""
    if name not in classes:
        raise ExciteError(f"the network has no class {name!r}{nearest(name, classes)}")


def check_layer(name: str, model: nn.Module) -> nn.Module:
    """The module of that name. Raises ExciteError if there is none."""
    modules = {known: module for known, module in model.named_modules() if known}
    if name not in modules:
        like = nearest(name, modules) or f" (its modules are {', '.join(n for n, _ in model.named_children())} ...)"
        raise ExciteError(f"the network has no layer {name!r}{like}")
    return modules[name]


def grad_cam(model: nn.Module, layer: str, x: Tensor, target: int) -> Tensor:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391, section 3) by Captum: float32 (H, W) in 0..1.

    Args:
        model: network in eval mode: (1, C, H, W) -> logits (1, K).
        layer: name of a module that outputs a map.
        x: normalised image (1, C, H, W).
        target: index of the class.

    Raises:
        ExciteError: there is no such layer, or it does not output a map.
    """
    from captum.attr import LayerGradCam

    module = check_layer(layer, model)
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            model(x)
    finally:
        hook.remove()
    if not seen or not isinstance(seen[0], Tensor) or seen[0].ndim != 4:
        what = "is not called as a module" if not seen else "does not output a map (N, C, H, W)"
        raise ExciteError(
            f"Grad-CAM cannot use the layer {layer!r}: it {what}; choose another one, such as a whole block"
        )
    with torch.enable_grad():
        # The input requires a gradient, so that this also works with frozen weights.
        cam = LayerGradCam(model, module).attribute(x.clone().requires_grad_(), target=target, relu_attributions=True)
    cam = F.interpolate(cam.detach().float(), size=x.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    return cam / cam.max().clamp(min=1e-12)
