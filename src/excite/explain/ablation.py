"""What each gate is worth: the network with that gate fixed at its mean, and the time without it.

Letters: N images, C channels, S pixels a side.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.explain.gates import changed_scales, fixed_gates, without_gates
from excite.explain.statistics import Batches
from excite.inference import Predictor

#: A fresh pass over the same images each time it is called.
Images = Callable[[], Batches]
_TIMING_SECONDS = 30.0
_NORMAL_95 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Ablation:
    """The price of fixing gates at their means.

    Attributes:
        gates: which ones.
        images: evaluated.
        top1: with the gates fixed, percent; None in an estimate.
        top1_lost: percentage points; below 0 where fixing helped. None in an estimate.
        low, high: 95 % interval of ``top1_lost``, from the images that turned right and wrong. None in an estimate.
        loss_added: nats of cross-entropy.
        estimated: whether ``loss_added`` is a first-order estimate instead of an evaluation.
    """

    gates: tuple[str, ...]
    images: int
    top1: float | None
    top1_lost: float | None
    low: float | None
    high: float | None
    loss_added: float
    estimated: bool = False


@dataclass(frozen=True)
class Outcome:
    """Of each image (N): whether the network was right, and its cross-entropy in nats."""

    right: Tensor
    loss: Tensor

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * float(self.right.double().mean())


def judge(predictor: Predictor, batches: Batches, advance: Callable[[int], None] = lambda images: None) -> Outcome:
    """Classify images and keep for each whether that was right, and the loss; ``advance`` is told their numbers.

    Raises:
        ExciteError: there are no images.
    """
    right, loss = [], []
    for images, labels, _ in batches:
        logits, labels = predictor.logits(images).cpu(), labels.cpu()
        right.append(logits.argmax(1) == labels)
        loss.append(F.cross_entropy(logits.double(), labels, reduction="none"))
        advance(len(labels))
    if not right:
        raise ExciteError("there are no images to evaluate the network on")
    return Outcome(torch.cat(right), torch.cat(loss))


def compare(gates: Sequence[str], before: Outcome, after: Outcome) -> Ablation:
    """Two outcomes on the same images, in their order.

    The interval is that of a mean of paired differences, which are -1, 0 or 1 (normal approximation; Agresti & Min
    2005, "Simple improved confidence intervals for comparing matched proportions": half an image is added to each of
    the four cells of the paired table, so that it is not of width 0 where no image changed sides).
    """
    n = len(before.right)
    lost = int((before.right & ~after.right).sum()) + 0.5
    won = int((~before.right & after.right).sum()) + 0.5
    middle, size = (lost - won) / (n + 2), n + 2
    half = _NORMAL_95 * math.sqrt(((lost + won) / size - middle**2) / size)
    return Ablation(
        gates=tuple(gates),
        images=n,
        top1=after.top1,
        top1_lost=before.top1 - after.top1,
        low=100 * (middle - half),
        high=100 * (middle + half),
        loss_added=float((after.loss - before.loss).mean()),
    )


def ablate_gates(
    predictor: Predictor,
    images: Images,
    means: Mapping[str, Tensor],
    groups: Iterable[Sequence[str]] | None = None,
    *,
    before: Outcome | None = None,
    progress: Callable[[int, int], None] | None = None,
    total: int = 0,
) -> list[Ablation]:
    """Fix gates at their means, one evaluation a group, on the same images as without.

    Args:
        predictor: what ``excite.load`` gives.
        images: gives the batches, anew each time it is called, in the same order.
        means: name -> (C), see ``ScaleStatistics.overall_mean``.
        groups: which gates to fix together; each alone, if None.
        before: the outcome with no gate fixed, where it is known.
        progress: called with (images done, images in all).
        total: images of one evaluation, for ``progress``.

    Raises:
        ExciteError: no such gate, or no images.
    """
    wanted = [tuple(group) for group in ([[name] for name in means] if groups is None else groups)]
    passes = len(wanted) + (before is None)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, passes * total)

    if before is None:
        before = judge(predictor, images(), advance)
    found = []
    for group in wanted:
        with fixed_gates(predictor.model, {name: means[name].float() for name in group}):
            found.append(compare(group, before, judge(predictor, images(), advance)))
    return found


def estimate_ablations(
    predictor: Predictor,
    batches: Batches,
    means: Mapping[str, Tensor],
    progress: Callable[[int, int], None] | None = None,
    total: int = 0,
) -> list[Ablation]:
    """The loss that fixing each gate at its mean adds, to first order: one forward and backward pass for all gates.

    ``mean over images of sum over scales of (mean - scale) * d loss / d scale``. What is left out grows with the square
    of what the gate does, so that a gate that does much is judged too cheaply; the order of the gates is worth more
    than the numbers. The Taylor criterion of Molchanov, Tyree, Karras, Aila, Kautz, "Pruning Convolutional Neural
    Networks for Resource Efficient Inference" (arXiv 1611.06440), section 2.2, for gates instead of channels.

    Raises:
        ExciteError: no gates, or no images.
    """
    added = dict.fromkeys(means, 0.0)
    count = 0
    for images, labels, _ in batches:
        loss, scales = _loss_and_scales(predictor, images, labels)
        gradients = torch.autograd.grad(loss, list(scales.values()), allow_unused=True)
        for (name, scale), gradient in zip(scales.items(), gradients, strict=True):
            if gradient is not None and name in added:
                mean = means[name].to(scale.device, scale.dtype).view(1, -1, *[1] * (scale.ndim - 2))
                added[name] += float(((mean - scale.detach()) * gradient).double().sum())
        count += len(labels)
        if progress is not None:
            progress(count, total)
    if not count:
        raise ExciteError("there are no images to evaluate the network on")
    return [Ablation((name,), count, None, None, None, None, value / count, True) for name, value in added.items()]


def _loss_and_scales(predictor: Predictor, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    scales: dict[str, Tensor] = {}

    def keep(name: str, scale: Tensor) -> Tensor:
        # A leaf where nothing before it is learnt; else it is part of the graph already.
        scales[name] = scale if scale.requires_grad else scale.detach().requires_grad_()
        return scales[name]

    x = predictor.preprocessing.normalize(images.to(predictor.device)).contiguous(memory_format=torch.channels_last)
    with torch.enable_grad(), changed_scales(predictor.model, keep):  # in float32: gradients of half types are coarse
        loss = F.cross_entropy(predictor.model(x).float(), labels.to(predictor.device), reduction="sum")
    return loss, scales


def time_without_gates(
    predictor: Predictor,
    groups: Sequence[Sequence[str]],
    *,
    batch: int = 16,
    rounds: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Milliseconds of a forward pass with all gates, and what is saved without those of each group.

    The networks are timed in turns, the order reversed every other round, so that a slow moment of the machine hits all
    of them. The saving is the median over rounds of the difference to the whole network in the same round.

    Args:
        predictor: what ``excite.load`` gives.
        groups: gates that are taken away together.
        batch: images of a pass.
        rounds: how often each network is timed, after one round that does not count; None takes from 5 to 25, as
            many as fit into half a minute.
        progress: called with (rounds done, rounds in all).

    Returns:
        For the whole network (``gates`` empty) and for each group: ``gates``, ``ms`` (median), ``saved_ms`` (median)
        with its quartiles ``saved_low`` and ``saved_high``.

    Raises:
        ExciteError: no such gate.
    """
    from excite.bench.timing import inference_step, time_steps

    p = predictor.preprocessing
    shape = (batch, p.in_chans, p.image_size, p.image_size)
    images = torch.zeros(shape, device=predictor.device).contiguous(memory_format=torch.channels_last)
    step = inference_step(predictor.model, images, predictor.precision)
    networks: list[Sequence[str]] = [(), *groups]
    milliseconds: list[list[float]] = [[] for _ in networks]

    def one_round(turn: int) -> list[float]:
        """Milliseconds of each network, in the order of ``networks``."""
        found = [0.0] * len(networks)
        for j in range(len(networks)) if turn % 2 else reversed(range(len(networks))):
            with without_gates(predictor.model, networks[j]):
                found[j] = 1000 * min(time_steps(step, predictor.device, 4)[1:])  # the first finds cold caches
        return found

    warm_up = sum(one_round(0))
    if rounds is None:
        rounds = min(25, max(5, int(_TIMING_SECONDS / (4e-3 * warm_up))))
    for i in range(1, rounds + 1):
        for found, ms in zip(milliseconds, one_round(i), strict=True):
            found.append(ms)
        if progress is not None:
            progress(i, rounds)
    return [_saving(group, own, milliseconds[0]) for group, own in zip(networks, milliseconds, strict=True)]


def _saving(group: Sequence[str], own: list[float], whole: list[float]) -> dict[str, Any]:
    saved = [a - b for a, b in zip(whole, own, strict=True)]
    quartiles = statistics.quantiles(saved, n=4, method="inclusive") if len(saved) > 1 else [saved[0]] * 3
    return {
        "gates": list(group),
        "ms": statistics.median(own),
        "saved_ms": quartiles[1],
        "saved_low": quartiles[0],
        "saved_high": quartiles[2],
    }
