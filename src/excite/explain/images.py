"""One image: its classes, where the network looked (Grad-CAM), what each gate did to it.

Letters: C channels, H x W positions, S pixels a side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.data.decode import BadImageError
from excite.errors import ExciteError, nearest
from excite.explain.statistics import ScaleStatistics
from excite.logits import NoFiniteLogits
from excite.models.listening import listening
from excite.storage import local_file
from excite.trained.predictor import ClassProbability, Predictor


class ChannelAnswer(TypedDict):
    """What a gate did to one channel of an image, by its number; see :class:`GateAnswer`."""

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
    """An :class:`ExplainedImage` in JSON, without its maps."""

    path: str
    top: list[ClassProbability]
    target: str
    layer: str
    gates: list[GateExtremes]


@dataclass(frozen=True)
class GateAnswer:
    """What one gate did to one image.

    Attributes:
        scale: (C), the mean over positions; (1) where all channels have the same.
        difference: (C), to the mean over the data; None without data.
        deviations: (C), the same in standard deviations over the data; None without data.
        positions: (H, W), the mean over channels; None for a gate that weighs channels only.
    """

    scale: Tensor
    difference: Tensor | None
    deviations: Tensor | None
    positions: Tensor | None

    def extremes(self, count: int) -> tuple[list[ChannelAnswer], list[ChannelAnswer]]:
        """The channels (raised most, lowered most), at most ``count`` each, against the mean over the data.

        Without data: those with the largest and the smallest scales.
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
    """One image and what a network made of it.

    Attributes:
        path: of the image.
        pixels: uint8 (1 or 3, S, S), as the network sees it before normalisation.
        top: (class name, probability), best first.
        target: the class that ``cam`` is about.
        layer: the module whose maps ``cam`` was computed on.
        cam: float32 (S, S) in 0..1, how much each place speaks for ``target``; all 0 where nothing does.
        gates: name -> what the gate did.
    """

    path: str
    pixels: Tensor
    top: list[tuple[str, float]]
    target: str
    layer: str
    cam: Tensor
    gates: dict[str, GateAnswer]

    def to_dict(self, channels: int = 5) -> ImageValues:
        """JSON-able; ``channels``: how many raised and lowered ones to list for each gate. Maps are left out."""
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
    """What a network makes of an image file.

    Args:
        predictor: what ``excite.load`` gives.
        path: an image of any size and format.
        statistics: what the gates say on average, from :func:`excite.explain.collect_scales`.
        target: the class to explain; None takes the most likely one.
        layer: the module to compute Grad-CAM on; None takes the last that gives a map.
        top_k: how many classes to list.

    Raises:
        ExciteError: no gates, no such class or layer, or a layer that gives no map.
        BadImageError: the image cannot be read.
        NoFiniteLogits: the network has no answer to explain.
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
    if not top:
        raise NoFiniteLogits("the network has no finite logits for it")
    target = top[0][0] if target is None else target
    x = predictor.preprocessing.normalize(pixels[None].to(predictor.device)).contiguous(
        memory_format=torch.channels_last
    )
    place = last_map(predictor.model, x) if layer is None else layer
    cam = grad_cam(predictor.model, place, x, predictor.classes.index(target))
    answers = {name: _answer(scale, (statistics or {}).get(name)) for name, scale in scales.items()}
    return ExplainedImage(str(path), pixels, top, target, place, cam.cpu(), answers)


def _answer(scale: Tensor, statistics: ScaleStatistics | None) -> GateAnswer:
    """``scale``: (C), or anything that broadcasts to (C, H, W)."""
    mean = scale if scale.ndim == 1 else scale.mean((1, 2))
    positions = None if scale.ndim == 1 else scale.mean(0)
    if statistics is None:
        return GateAnswer(mean, None, None, positions)
    difference = mean.double() - statistics.overall_mean()
    sd = statistics.overall_sd()
    # A channel that never varies is no outlier by its rounding errors.
    deviations = torch.where(sd > 1e-6, difference / sd, 0.0)
    return GateAnswer(mean, difference.float(), deviations.float(), positions)


def last_map(model: nn.Module, x: Tensor) -> str:
    """The name of the last module, in the order of computation, that gives a map (N, C, H, W) of several positions.

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
        raise ExciteError("no module of the network gives a map of several positions, so there is no Grad-CAM")
    return found[-1]


def check_class(name: str, classes: Sequence[str]) -> None:
    """Raises ExciteError where ``name`` is none of ``classes``."""
    if name not in classes:
        raise ExciteError(f"the network has no class {name!r}{nearest(name, classes)}")


def check_layer(name: str, model: nn.Module) -> nn.Module:
    """The module of that name. Raises ExciteError where there is none."""
    modules = {known: module for known, module in model.named_modules() if known}
    if name not in modules:
        like = nearest(name, modules) or f" (its modules are {', '.join(n for n, _ in model.named_children())} ...)"
        raise ExciteError(f"the network has no layer {name!r}{like}")
    return modules[name]


def grad_cam(model: nn.Module, layer: str, x: Tensor, target: int) -> Tensor:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391, section 3) by Captum: float32 (S, S) in 0..1.

    Args:
        model: (1, C, S, S) -> logits (1, K); in eval mode.
        layer: name of a module that gives a map.
        x: (1, C, S, S), normalised.
        target: number of the class.

    Raises:
        ExciteError: no such layer, or its output is no map.
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
        what = "is not called as a module" if not seen else "does not give a map (N, C, H, W)"
        raise ExciteError(
            f"Grad-CAM cannot look at the layer {layer!r}: it {what}; choose another, such as a whole block"
        )
    with torch.enable_grad():
        # The input asks for a gradient, so that a network with frozen weights has one too.
        cam = LayerGradCam(model, module).attribute(x.clone().requires_grad_(), target=target, relu_attributions=True)
    cam = F.interpolate(cam.detach().float(), size=x.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    return cam / cam.max().clamp(min=1e-12)
