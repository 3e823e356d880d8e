"""``excite prune``: removes gates in the order of their effect, and shows what that costs and saves."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import nn

from excite.errors import ExciteError
from excite.files import check_new_folder, write_json, written_aside
from excite.grafting.fold import Scales, fold_gates, gate_holders, layer_before, recording
from excite.measures import named
from excite.models.base import Classifier
from excite.models.folding import form_of
from excite.models.listening import fixed_gates
from excite.pages.figures import COLORS, dispensable, style
from excite.pages.figures import write as write_figure
from excite.recipe import Overrides, override_words
from excite.runtime.timing import in_turns, inference_step
from excite.text import tell
from excite.trained.opened import Opened
from excite.trained.predictor import Predictor
from excite.training.evaluation import Evaluation, LabelEvaluation
from excite.weights.grafted import header
from excite.weights.header import Meta, Summary, several_labels
from excite.weights.locate import WEIGHTS, locate
from excite.weights.own import read_own, save_weights

Say = Callable[[str], None]


class PointValues(TypedDict):
    """A :class:`Point` in JSON."""

    place: str
    gates: int
    top1: float
    loss: float | None
    effect: float
    ms: float
    parameters: int
    not_finite: int


class PrunedValues(TypedDict):
    """A :class:`Pruned` in JSON, without the network."""

    points: list[PointValues]
    chosen: int
    constant: list[str]
    batch: int
    images: int
    timed: str


@dataclass(frozen=True)
class Point:
    """The network after removing some gates.

    Attributes:
        place: the gate removed last; "" for the original network, "constant gates" for all gates with a constant scale.
        gates: number of gates left.
        top1: accuracy on the validation images, percent; with several labels an image, mAP.
        loss: loss on the validation images, nats (None without finite logits).
        effect: percentage points of it that this gate is worth alone, with all others in place.
        ms: median milliseconds per batch.
        parameters: number of parameters of the whole network.
        not_finite: number of validation images without finite logits, which count as wrong (see ``excite.logits``).
        metrics: what the header of its weights says about it.
    """

    place: str
    gates: int
    top1: float
    loss: float | None
    effect: float
    ms: float
    parameters: int
    not_finite: int = 0
    metrics: Summary | None = None

    def to_dict(self) -> PointValues:
        """The values as JSON."""
        return {
            "place": self.place,
            "gates": self.gates,
            "top1": self.top1,
            "loss": self.loss,
            "effect": self.effect,
            "ms": self.ms,
            "parameters": self.parameters,
            "not_finite": self.not_finite,
        }


@dataclass
class Pruned:
    """The result of :func:`prune`.

    Attributes:
        model: the chosen network, with gates folded.
        points: the curve, starting with the original network.
        chosen: index of the chosen point.
        constant: places of gates with a constant scale.
        batch: number of images in a timed batch.
        images: number of validation images.
        meta: header of the original checkpoint.
        timed: how all networks of the curve were timed: whether batch norms were folded, and the precision.
    """

    model: nn.Module
    points: list[Point]
    chosen: int
    constant: list[str]
    batch: int
    images: int
    meta: Meta
    timed: str = ""

    def to_dict(self) -> PrunedValues:
        """The values as JSON; with several labels an image, accuracies are mAP (see :func:`excite.measures.named`)."""
        several = several_labels(self.meta)
        return {
            "points": [cast(PointValues, named(point.to_dict(), several)) for point in self.points],
            "chosen": self.chosen,
            "constant": self.constant,
            "batch": self.batch,
            "images": self.images,
            "timed": self.timed,
        }


def prune(
    source: str | Path,
    overrides: Overrides | None = None,
    *,
    tolerance: float = 1e-4,
    max_drop: float = 0.0,
    calibration: int = 2000,
    batch: int = 16,
    rounds: int = 5,
    out: str | Path | None = None,
    device: str = "auto",
    say: Say = lambda line: None,
) -> Pruned:
    """Remove gates from a trained network of ours.

    The scales of all gates are measured on ``calibration`` training images. A gate whose scale is constant, in every
    channel within ``tolerance``, is folded into the layer before it, and nothing is lost. Each of the others is fixed
    at its mean scale, one at a time, to measure its effect on the validation images. They are then removed one after
    the other, the least useful first. Each point of the curve is a network with those gates folded, evaluated and
    timed.

    Args:
        source: a run folder or checkpoint.
        overrides: ``data.key=value``, as for ``excite validate``; see ``load_recipe``.
        tolerance: largest distance of a scale from its channel's mean at which it counts as constant.
        max_drop: percentage points of top-1 (with several labels an image, mAP) that may be lost. The point with the
            fewest gates within it is chosen.
        calibration: number of training images for measuring the scales (class-balanced, seeded).
        batch: number of images in a timed batch.
        rounds: number of times that each network is timed, in turns.
        out: a new folder, into which :func:`write` puts the chosen network; None: write nothing.
        device: "auto", "cpu", "cuda" ...
        say: called with lines on the progress.

    Returns:
        The chosen network and the curve.

    Raises:
        ExciteError: the network has no gates, the data cannot be read, or a gate cannot be folded.
    """
    if tolerance < 0 or max_drop < 0:
        raise ExciteError("tolerance and max_drop must be at least 0")
    if out is not None and Path(out).exists():
        raise ExciteError(f"{out} already exists; name a new folder")
    result = take_out(source, override_words(overrides), tolerance, max_drop, calibration, batch, rounds, device, say)
    if out is not None:
        write(result, Path(out), str(source), say)
    return result


def take_out(
    source: str | Path,
    overrides: list[str],
    tolerance: float,
    max_drop: float,
    calibration: int,
    batch: int,
    rounds: int,
    device: str,
    say: Say,
) -> Pruned:
    """:func:`prune` with the same arguments, but it writes nothing."""
    checkpoint = read_own(source)
    predictor = Predictor(checkpoint, device, checkpoint.meta["precision"])  # so that results match those in training
    model = predictor.model
    holders = gate_holders(model)
    if not holders:
        raise ExciteError(f"{source} has no gates to prune")
    for name, holder in holders.items():
        layer_before(name, holder)
    opened = Opened(locate(source), predictor, overrides, limits={"limit_train": calibration}, train=True)
    for note in opened.data.notes:
        say(note)
    scales, images = _measure_scales(opened)
    measure = opened.evaluate
    constant = [name for name, found in scales.items() if found.constant(tolerance)]
    say(f"{len(constant)} of {len(holders)} gates have a constant scale on {images} images (within {tolerance:g})")
    before = measure(model)
    if not before.usable:
        raise ExciteError(f"{source}: {before.warning}; there is nothing to prune by")
    if before.warning is not None:
        say(f"warning: {before.warning}")
    effects = {}
    for name in holders:
        if name not in constant:
            with fixed_gates(model, {f"{name}.gate": scales[name].mean}):
                effects[name] = _accuracy(before) - _accuracy(measure(model))
            say(f"{name}: worth {effects[name]:+.2f} percentage points of {_measure(checkpoint.meta)} alone")
    order = sorted(effects, key=effects.__getitem__)
    networks, points = _curve(model, scales, constant, order, effects, before, measure)
    times = _time(networks, predictor, batch, rounds)
    points = [replace(point, ms=ms) for point, ms in zip(points, times, strict=True)]
    within = [
        i
        for i, point in enumerate(points)
        if point.top1 >= _accuracy(before) - max_drop and point.not_finite <= before.not_finite
    ]
    chosen = max(within, key=lambda i: (-points[i].gates, i))
    return Pruned(
        networks[chosen],
        points,
        chosen,
        constant,
        batch,
        before.images,
        predictor.meta,
        form_of(model, predictor.precision),
    )


def _measure_scales(opened: Opened) -> tuple[dict[str, Scales], int]:
    """Place -> its gate's scales; and the number of images, which may be less than asked for."""
    images = 0
    with recording(opened.predictor.model) as recorders:
        for pixels, _, _ in opened.batches(train=True):
            opened.predictor.logits(pixels)
            images += len(pixels)
        return {name: recorder.scales() for name, recorder in recorders.items()}, images


def _curve(
    model: nn.Module,
    scales: dict[str, Scales],
    constant: list[str],
    order: list[str],
    effects: dict[str, float],
    before: Evaluation,
    measure: Callable[[nn.Module], Evaluation],
) -> tuple[list[nn.Module], list[Point]]:
    """The original network, then without its constant gates, then with one gate less at a time."""
    steps = [("constant gates", constant)] if constant else []
    steps += [(name, [name]) for name in order]
    networks, points = [model], [_point("", model, before, 0.0)]
    for label, names in steps:
        network = copy.deepcopy(networks[-1])
        fold_gates(network, {name: scales[name].mean for name in names})
        networks.append(network)
        points.append(_point(label, network, measure(network), effects.get(label, 0.0)))
    return networks, points


def _point(place: str, model: nn.Module, result: Evaluation, effect: float) -> Point:
    parameters = sum(p.numel() for p in model.parameters())
    gates = len(gate_holders(model))
    told: dict[str, Any] = {"top1": result.top1, "loss": result.loss}
    if isinstance(result, LabelEvaluation):  # among them the threshold, without which nothing could be predicted
        told |= {key: value for key, value in result.summary().items() if key not in ("top5", "first_not_finite")}
    found = Point(place, gates, _accuracy(result), result.loss, effect, 0.0, parameters, result.not_finite)
    return replace(found, metrics=cast(Summary, told))


def _accuracy(result: Evaluation) -> float:
    """What gates are judged by: top-1 in percent, with several labels an image mAP (0 without any label)."""
    return result.mean_precision or 0.0 if isinstance(result, LabelEvaluation) else result.top1


def _measure(meta: Meta) -> str:
    return "mAP" if several_labels(meta) else "top-1"


def _time(networks: list[nn.Module], predictor: Predictor, batch: int, rounds: int) -> list[float]:
    """Median milliseconds of each network's forward pass on the same normalised noise, measured in turns.

    Batch norms are not folded: copies folded as in ``excite predict`` would double the memory.
    """
    images = torch.randn(batch, *predictor.preprocessing.shape, device=predictor.device)
    images = images.contiguous(memory_format=torch.channels_last)
    steps = {i: inference_step(network, images, predictor.precision) for i, network in enumerate(networks)}
    timed = in_turns(steps, predictor.device, rounds=(rounds, rounds), passes=3)
    return [timed[i].median_ms for i in steps]


def draw(result: Pruned, path: Path, title: str) -> Path:
    """Plot the curve as PNG: top-1 (or mAP) and time per batch over the number of gates left."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with style():
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        accuracy, time = figure.subplots(1, 2)
        gates, several = [point.gates for point in result.points], several_labels(result.meta)
        label = "mAP, %" if several else "top-1 accuracy, %"
        for axis, values, name, color in (
            (accuracy, [p.top1 for p in result.points], label, COLORS[1]),
            (time, [p.ms for p in result.points], f"ms for {result.batch} images (median; {result.timed})", COLORS[3]),
        ):
            axis.plot(gates, values, "o-", color=color)
            place = (gates[result.chosen], values[result.chosen])
            axis.plot(*place, "o", ms=13, mfc="none", mec=COLORS[2], mew=2, label="chosen")
            axis.set(xlabel="gates left", ylabel=name)
            axis.invert_xaxis()
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
        # The uncertainty of top-1 with this many images: the standard error of a proportion.
        error = [100 * (p.top1 / 100 * (1 - p.top1 / 100) / result.images) ** 0.5 for p in result.points]
        low, high = ([p.top1 + sign * e for p, e in zip(result.points, error, strict=True)] for sign in (-1, 1))
        band = f"standard error of {result.images:,} images"
        if not several:
            accuracy.fill_between(gates, low, high, color=COLORS[1], alpha=0.15, linewidth=0, label=band)
        accuracy.legend(frameon=False)
        figure.suptitle(title)
        return write_figure(figure, path)


def write(result: Pruned, folder: Path, source: str, say: Say = tell) -> None:
    """Write ``model.safetensors``, ``prune.json`` and ``prune.png`` into a new folder, atomically.

    If the picture cannot be drawn, it is left out, and ``say`` gets a line.

    Raises:
        ExciteError: the folder already exists, or cannot be written.
    """
    check_new_folder(folder)
    model = cast(Classifier, result.model)  # or one of timm's, which has the same attributes
    point = result.points[result.chosen]
    meta = header(result.meta, model, point.metrics or {"top1": point.top1, "loss": point.loss})
    with written_aside(folder) as aside:
        aside.mkdir(parents=True)
        save_weights(aside / WEIGHTS, model, meta)
        write_json(aside / "prune.json", result.to_dict())
        with dispensable("prune.png", say):
            draw(result, aside / "prune.png", f"{source}: gates removed, the least useful first")
