"""``excite graft``: adds gates to a network from a file or by name, and proves that its output does not change."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, overload

import torch
from torch import Tensor, nn

from excite.data import Preprocessing
from excite.errors import ExciteError
from excite.files import check_new, written_aside
from excite.gates import GateSpec
from excite.gates.registry import GateTable
from excite.grafting.costs import CostValues, GateCosts, gate_costs
from excite.models.base import Classifier
from excite.models.catalog import VARIANTS
from excite.models.grafting.core import GraftPlan, GraftPlanValues, Init, Model, example_for
from excite.models.grafting.core import graft as graft_model
from excite.models.timm_models import PREFIX, classifier_name, first_name
from excite.progress import Advance, Progress, silent
from excite.weights.grafted import header
from excite.weights.header import Meta, several_labels
from excite.weights.locate import is_grafted_file

#: Number of images for the proof if a folder holds more, and of random ones if no folder is given.
MOST_IMAGES, RANDOM_IMAGES = 64, 8


@dataclass
class Network:
    """A network and its source.

    Attributes:
        model: the network, in evaluation mode.
        name: the source as given.
        meta: the header of a checkpoint of ours; None for others.
        preprocessing: preprocessing of images, if known.
        library: "timm" or "excite".
    """

    model: nn.Module
    name: str
    meta: Meta | None = None
    preprocessing: Preprocessing | None = None
    library: str = "excite"


class Proof(TypedDict):
    """Largest differences between the logits of two networks, in float32 and evaluation mode.

    Attributes:
        difference: in the textbook form (contiguous maps).
        fused_difference: for our own models, as they run on a CPU (channels-last maps, fused operator); 0 for others.
        largest: the largest absolute logit.
    """

    difference: float
    fused_difference: float
    largest: float


class GraftResult(GraftPlanValues):
    """What ``excite graft --json`` prints: the plan and, if it was carried out, the :class:`Proof`.

    Attributes:
        parameters: number of parameters of the network before grafting.
        images, images_are: number and kind of the images in the proof.
        latency: with ``latency``, what the gates add to the time of one image.
        out: the file that was written.
    """

    source: str
    parameters: int
    latency: NotRequired[CostValues]
    images: NotRequired[int]
    images_are: NotRequired[str]
    difference: NotRequired[float]
    fused_difference: NotRequired[float]
    largest: NotRequired[float]
    out: NotRequired[str]


@overload
def graft(
    model: str | Path,
    gate: GateSpec = ...,
    *,
    at: str | Sequence[str] = ...,
    init: Init = ...,
    dry_run: bool = ...,
    latency: bool = ...,
    images: str | Path | None = ...,
    weights: str | Path | None = ...,
    out: str | Path | None = ...,
    force: bool = ...,
    **options: Any,
) -> GraftResult: ...


@overload
def graft(
    model: Model,
    gate: GateSpec = ...,
    *,
    at: str | Sequence[str] = ...,
    init: Init = ...,
    dry_run: Literal[False] = ...,
    inplace: bool = ...,
    example: Any = ...,
    **options: Any,
) -> Model: ...


@overload
def graft(
    model: nn.Module,
    gate: GateSpec = ...,
    *,
    at: str | Sequence[str] = ...,
    init: Init = ...,
    dry_run: Literal[True],
    inplace: bool = ...,
    example: Any = ...,
    **options: Any,
) -> GraftPlan: ...


def graft(
    model: nn.Module | str | Path,
    gate: GateSpec = "se",
    *,
    at: str | Sequence[str] = "auto",
    init: Init = "identity",
    dry_run: bool = False,
    inplace: bool = False,
    example: Any = None,
    latency: bool = False,
    images: str | Path | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    **options: Any,
) -> nn.Module | GraftPlan | GraftResult:
    """Add gates to a network in memory, or to one given by name, as ``excite graft`` does.

    Args:
        model: any ``nn.Module`` that takes images (see ``excite.models.grafting.core.graft``); or a run folder, a
            checkpoint, ``timm:NAME`` or the name of one of our models.
        gate: a gate's name, or a table ``{"name": "se", "reduction": 8}``.
        at: "auto" (the ends of residual branches), or module names and shell patterns.
        init: "identity": at first, the network computes exactly what it did before. "paper": the gate's usual
            initialisation.
        dry_run: only show the places and the cost of the gates.
        inplace: only for a network in memory: change it rather than a copy.
        example: only for a network in memory: an input.
        latency: only for a network given by name: also measure what each gate adds to the time of one image (for a
            network in memory: ``excite.grafting.gate_costs``).
        images: only for a network given by name: a folder of images for the proof.
        weights: only for a network given by name: its weights, if it has none of its own.
        out: only for a network given by name: the file to write.
        force: only for a network given by name: overwrite an existing file.
        options: options of the gate.

    Returns:
        For a network in memory: the network with gates, or with ``dry_run`` the :class:`GraftPlan`. For one given by
        name: the plan and the proof that its output does not change, as printed by ``excite graft --json``.

    Raises:
        TypeError: an option is for the other kind of network.
        ExciteError: the gate or an option is unknown, there is no place for a gate, or the network cannot be read.
            Nothing is written.
    """
    named = {"latency": latency or None, "images": images, "weights": weights, "out": out, "force": force or None}
    held = {"inplace": inplace or None, "example": example}
    is_named = isinstance(model, str | os.PathLike)
    for name, value in (held if is_named else named).items():
        if value is not None:
            kind = "in memory" if is_named else "given by name (a run folder, a checkpoint, timm:NAME)"
            raise TypeError(f"{name}= is only for a network {kind}, which {str(model)[:80]!r} is not")
    if not isinstance(model, str | os.PathLike):
        settings: Any = {"at": at, "init": init, "dry_run": dry_run, "inplace": inplace, "example": example, **options}
        grafted: nn.Module | GraftPlan = graft_model(model, gate, **settings)
        return grafted
    places = [] if at == "auto" else [at] if isinstance(at, str) else list(at)
    return graft_and_prove(
        os.fspath(model),
        gate=gate,
        at=places,
        init=init,
        options=options,
        dry_run=dry_run,
        latency=latency,
        images=None if images is None else str(images),
        weights=None if weights is None else str(weights),
        out=None if out is None else Path(out),
        force=force,
    )


def graft_and_prove(
    source: str,
    *,
    gate: GateSpec = "se",
    at: Sequence[str] = (),
    init: str = "identity",
    options: GateTable | None = None,
    dry_run: bool = False,
    latency: bool = False,
    images: str | None = None,
    weights: str | None = None,
    out: Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
    show: Callable[[GraftPlan, GateCosts | None], None] = lambda plan, costs: None,
    progress: Progress = silent,
) -> GraftResult:
    """Graft, prove and write. ``progress`` shows reading, tracing, timing and the proof.

    Raises:
        ExciteError: as in :func:`graft`, or the proof fails. Nothing is written.
    """
    if dry_run and out is not None:
        raise ExciteError("--dry-run writes nothing; leave out --out")
    if out is not None:
        check_new(out, force)
    progress("reading", 0, 0)
    opened = open_network(source, weights)
    if out is not None and opened.library == "excite" and not opened.meta:
        raise ExciteError(
            f"--out: {source} is a model name without weights or classes; give a run folder or a checkpoint"
        )
    settings: dict[str, Any] = {"at": at or "auto", "init": init, **(options or {})}
    progress("tracing", 0, 0)
    plan: GraftPlan = graft_model(opened.model, gate, dry_run=True, **settings)
    costs = None
    if latency and plan.new:
        progress("timing", 0, 0)
        costs = gate_costs(opened.model, gate, progress=partial(progress, "timing"), **settings)
    show(plan, costs)
    if latency and costs is None:
        say("no place gets a new gate, so there is nothing to time")
    parameters = sum(p.numel() for p in opened.model.parameters())
    result: GraftResult = {"source": source, "parameters": parameters, **plan.to_dict()}
    if costs is not None:
        result["latency"] = costs.to_dict()
    if dry_run:
        return result
    progress("comparing", 0, 0)
    batch, what = proof_images(opened, images)
    grafted = graft_model(opened.model, gate, **settings)
    proof = prove(opened.model, grafted, batch, partial(progress, "comparing"))
    result |= {"images": len(batch), "images_are": what, **proof}
    if not all(map(math.isfinite, (proof["difference"], proof["fused_difference"], proof["largest"]))):
        raise ExciteError(
            f"nothing could be proved, because the logits before or after are not finite on {len(batch)} {what}; "
            "nothing was written"
        )
    say(
        f"largest difference between the logits before and after on {len(batch)} {what}: {proof['difference']:g} "
        f"(fp32; largest logit {proof['largest']:g})"
    )
    if proof["fused_difference"]:
        say(f"in the fused form, which rounds differently: {proof['fused_difference']:.1e}")
    if init == "identity" and proof["difference"] != 0.0:
        raise ExciteError(
            f"the grafted network does not compute the same: its logits differ by {proof['difference']:g}; "
            "nothing was written"
        )
    if out is not None:
        _write(opened, grafted, out)
        say(f"written: {out}")
        result["out"] = str(out)
    return result


def open_network(source: str, weights: str | None = None) -> Network:
    """Open a run folder, a checkpoint (ours or another system's), ``timm:NAME``, or one of our models by name.

    ``timm:NAME.TAG`` names timm's weights on the hub: a network that excite has is built here with them, and needs no
    timm; any other is timm's. ``weights`` is a file with a state dict for a model given by name, which otherwise has
    random weights.
    """
    tagged = source.startswith(PREFIX) and "." in source and weights is None
    if source.startswith(PREFIX) and not tagged:
        return _open_timm(source, weights)
    if source in VARIANTS and not Path(source).exists():
        from excite.models import create_model

        found = Network(create_model(source), source)
    elif Path(source).is_file() and is_grafted_file(source):
        raise ExciteError(f"{source} is already a grafted network; load it with excite.grafting.load_grafted")
    else:
        from excite.trained.predictor import load
        from excite.weights.hub import NotReached

        try:
            predictor = load(source, "cpu")
        except NotReached:
            raise
        except ExciteError:
            if not tagged:
                raise
            return _open_timm(source, source)
        found = Network(predictor.model, source, predictor.meta, predictor.preprocessing)
        found.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if weights is not None:
        if found.meta:
            raise ExciteError(f"--weights is only for a model given by name; {source} has its own weights")
        _load_state(found.model, _read_state(weights, found.model), weights)
    found.model.eval()
    return found


def _open_timm(source: str, weights: str | None) -> Network:
    """A timm model; with weights, its classes and channels are those of the weights."""
    from excite.models import create_model

    model: nn.Module = create_model(source)
    if weights is not None:
        tensors = _read_state(weights, model)
        classes, channels = _size(tensors, classifier_name(model), 0), _size(tensors, first_name(model), 1)
        model = create_model(source, num_classes=classes, in_chans=channels or 3)
        _load_state(model, tensors, weights)
    return Network(model.eval(), source, preprocessing=_timm_preprocessing(model), library="timm")


def _read_state(path: str, model: nn.Module) -> dict[str, Tensor]:
    from excite.weights.hub import local_weights
    from excite.weights.prefixes import unwrapped
    from excite.weights.read import read_weights

    return unwrapped(read_weights(local_weights(path)), model.state_dict(), classifier_name(model)).tensors


def _size(tensors: Mapping[str, Tensor], layer: str, axis: int) -> int | None:
    """A size of a layer's weight; None if there is no such layer."""
    weight = tensors.get(f"{layer}.weight")
    return int(weight.shape[axis]) if weight is not None and weight.ndim > axis else None


def _load_state(model: nn.Module, tensors: dict[str, Tensor], path: str) -> None:
    own = model.state_dict()
    wrong = [k for k in own if k not in tensors] + [k for k in tensors if k not in own]
    wrong += [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    if wrong:
        raise ExciteError(
            f"{path} does not fit {type(model).__name__}: {len(wrong)} tensors are missing, unexpected or of the wrong "
            f"shape ({', '.join(wrong[:3])}, ...)"
        )
    model.load_state_dict(tensors)


def _timm_preprocessing(model: nn.Module) -> Preprocessing | None:
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size", (0, 0, 0))
    if not height or config.get("interpolation") not in ("bilinear", "bicubic", "lanczos"):
        return None
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Preprocessing((height, width), config.get("crop_pct", 0.875), config["interpolation"], mean, std, channels)


def proof_images(source: Network, folder: str | None) -> tuple[Tensor, str]:
    """A batch for the proof, (N, C, H, W) float32, and a description of it."""
    if folder is None:
        (example,), _ = example_for(source.model)
        generator = torch.Generator().manual_seed(0)
        return torch.randn((RANDOM_IMAGES, *example.shape[1:]), generator=generator), "random images (normal noise)"
    if source.preprocessing is None:
        raise ExciteError(f"--images: the preprocessing of {source.name} is unknown; leave out --images")
    from excite.trained.given import find_images

    files = find_images([folder])[:MOST_IMAGES]
    pixels = torch.stack([source.preprocessing.load(file) for file in files])
    return source.preprocessing.normalize(pixels), f"images from {folder}"


@torch.inference_mode()
def prove(before: nn.Module, after: nn.Module, batch: Tensor, advance: Advance = lambda done, total: None) -> Proof:
    """Run both networks on a batch."""
    layouts = [torch.contiguous_format, *([torch.channels_last] if isinstance(before, Classifier) else [])]
    differences, largest, done = [], 0.0, 0
    for layout in layouts:
        results = []
        for model in (before, after):
            model.eval().to(memory_format=layout)  # type: ignore[call-overload]
            parts = []
            for part in batch.split(8):
                parts.append(_logits(model(part.contiguous(memory_format=layout))))
                done += len(part)
                advance(done, 2 * len(layouts) * len(batch))
            results.append(torch.cat(parts))
        differences.append(float((results[0] - results[1]).abs().max()))
        largest = max(largest, float(results[0].abs().max()))
    for model in (before, after):
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return {"difference": differences[0], "fused_difference": sum(differences[1:]), "largest": largest}


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise ExciteError(f"the network returns a {type(output).__name__}, not logits, so nothing can be compared")
    return logits.float()


def _write(source: Network, grafted: nn.Module, out: Path) -> None:
    """Write a checkpoint of ours, which every command accepts, with the source's header except for the gates."""
    from excite.weights.meta import describe_timm
    from excite.weights.own import save_weights

    described: Any = grafted
    meta = source.meta or describe_timm(described, source.preprocessing, source.name)
    with written_aside(out) as aside:
        # Nothing was measured, but the threshold of several labels still holds: the grafted network computes the same.
        metrics = meta["metrics"] if several_labels(meta) else None
        save_weights(aside, grafted, header(meta, described, metrics))
