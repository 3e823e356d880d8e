"""What each gate is worth: the network with that gate fixed at its mean, and the time without it.

Letters: N images, C channels, S pixels a side.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.explain.statistics import Batches
from excite.logits import finite, losses, mean_loss, number, predicted
from excite.models.listening import changed_scales, fixed_gates, without_gates
from excite.pages.intervals import Pairs, paired_interval
from excite.progress import Advance
from excite.runtime.timing import in_turns, inference_step, quartiles
from excite.trained.predictor import Predictor

#: A fresh pass over the same images each time it is called.
Images = Callable[[], Batches]
_TIMING_SECONDS = 30.0


@dataclass(frozen=True)
class Ablation:
    """The price of fixing gates at their means.

    Attributes:
        gates: which ones.
        images: evaluated.
        top1: with the gates fixed, percent; None in an estimate.
        top1_lost: percentage points; below 0 where fixing helped. None in an estimate.
        low, high: 95 % interval of ``top1_lost``, from the images that turned right and wrong. None in an estimate.
        loss_added: nats of cross-entropy, the mean over the images that have finite logits before and after; None
            where there are none.
        estimated: whether ``loss_added`` is a first-order estimate instead of an evaluation.
        not_finite: images without finite logits with the gates fixed, which are wrong (see ``excite.logits``); in an
            estimate those left out of it.
    """

    gates: tuple[str, ...]
    images: int
    top1: float | None
    top1_lost: float | None
    low: float | None
    high: float | None
    loss_added: float | None
    estimated: bool = False
    not_finite: int = 0


class AblationValues(TypedDict):
    """An :class:`Ablation` in JSON."""

    gates: Sequence[str]
    images: int
    top1: float | None
    top1_lost: float | None
    low: float | None
    high: float | None
    loss_added: float | None
    estimated: bool
    not_finite: int


class GateTiming(TypedDict):
    """A network's forward pass, milliseconds: medians, and the quartiles of what it saves.

    Attributes:
        gates: those that are taken away; none for the whole network.
    """

    gates: list[str]
    ms: float
    saved_ms: float
    saved_low: float
    saved_high: float


@dataclass(frozen=True)
class Outcome:
    """Of each image (N): whether the network was right, and its cross-entropy in nats (NaN without finite logits)."""

    right: Tensor
    loss: Tensor

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * float(self.right.double().mean())

    @property
    def not_finite(self) -> int:
        """How many images have no finite logits."""
        return int(self.loss.isnan().sum())


def judge(predictor: Predictor, batches: Batches, advance: Callable[[int], None] = lambda images: None) -> Outcome:
    """Classify images and keep for each whether that was right, and the loss; ``advance`` is told their numbers.

    Raises:
        ExciteError: there are no images.
    """
    right, loss = [], []
    for images, labels, _ in batches:
        logits, labels = predictor.logits(images).cpu(), labels.cpu()
        right.append(predicted(logits) == labels)
        loss.append(losses(logits.double(), labels))
        advance(len(labels))
    if not right:
        raise ExciteError("there are no images to evaluate the network on")
    return Outcome(torch.cat(right), torch.cat(loss))


def compare_outcomes(gates: Sequence[str], before: Outcome, after: Outcome) -> Ablation:
    """Two outcomes on the same images, in their order.

    The interval is Tango's score interval of paired shares, as in ``excite compare``.
    """
    low, high = paired_interval(Pairs.count(before.right.tolist(), after.right.tolist()))
    return Ablation(
        gates=tuple(gates),
        images=len(before.right),
        top1=after.top1,
        top1_lost=before.top1 - after.top1,
        low=100 * low,
        high=100 * high,
        loss_added=mean_loss(after.loss - before.loss),
        not_finite=after.not_finite,
    )


def ablate_gates(
    predictor: Predictor,
    images: Images,
    means: Mapping[str, Tensor],
    groups: Iterable[Sequence[str]] | None = None,
    *,
    before: Outcome | None = None,
    progress: Advance | None = None,
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
            found.append(compare_outcomes(group, before, judge(predictor, images(), advance)))
    return found


def estimate_ablations(
    predictor: Predictor,
    batches: Batches,
    means: Mapping[str, Tensor],
    progress: Advance | None = None,
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
    count = without = 0
    for images, labels, _ in batches:
        loss, scales, sound = _loss_and_scales(predictor, images, labels)
        gradients = torch.autograd.grad(loss, list(scales.values()), allow_unused=True)
        for (name, scale), gradient in zip(scales.items(), gradients, strict=True):
            if gradient is not None and name in added:
                mean = means[name].to(scale.device, scale.dtype).view(1, -1, *[1] * (scale.ndim - 2))
                change = ((mean - scale.detach()) * gradient).double()
                added[name] += float((change if bool(sound.all()) else change[sound]).sum())
        count += len(labels)
        without += len(labels) - int(sound.sum())
        if progress is not None:
            progress(count, total)
    if not count:
        raise ExciteError("there are no images to evaluate the network on")
    known = count - without
    per_image = {name: number(value / known) if known else None for name, value in added.items()}
    return [Ablation((n,), count, None, None, None, None, value, True, without) for n, value in per_image.items()]


def _loss_and_scales(predictor: Predictor, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The loss, summed over the images with finite logits; scale by gate; bool (N,), which images these are."""
    scales: dict[str, Tensor] = {}

    def keep(name: str, scale: Tensor) -> Tensor:
        # A leaf where nothing before it is learnt; else it is part of the graph already.
        scales[name] = scale if scale.requires_grad else scale.detach().requires_grad_()
        return scales[name]

    x = predictor.preprocessing.normalize(images.to(predictor.device)).contiguous(memory_format=torch.channels_last)
    with torch.enable_grad(), changed_scales(predictor.model, keep):  # in float32: gradients of half types are coarse
        logits = predictor.model(x).float()
        sound = finite(logits.detach())
        loss = F.cross_entropy(logits[sound], labels.to(predictor.device)[sound], reduction="sum")
    return loss, scales, sound


def time_without_gates(
    predictor: Predictor,
    groups: Sequence[Sequence[str]],
    *,
    batch: int = 16,
    rounds: int | None = None,
    progress: Advance | None = None,
) -> list[GateTiming]:
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
        For the whole network, then for each group.

    Raises:
        ExciteError: no such gate.
    """
    p = predictor.preprocessing
    shape = (batch, p.in_chans, p.image_size, p.image_size)
    images = torch.zeros(shape, device=predictor.device).contiguous(memory_format=torch.channels_last)
    step = inference_step(predictor.model, images, predictor.precision)
    networks: list[Sequence[str]] = [(), *groups]
    timed = in_turns(
        dict.fromkeys(range(len(networks)), step),
        predictor.device,
        seconds=_TIMING_SECONDS,
        rounds=(5, 25) if rounds is None else (rounds, rounds),
        passes=3,
        cold=1,
        within=lambda i: without_gates(predictor.model, networks[i]),
        progress=progress or (lambda done, total: None),
    )
    return [_saving(group, timed[i].best_ms, timed[0].best_ms) for i, group in enumerate(networks)]


def _saving(group: Sequence[str], own: list[float], whole: list[float]) -> GateTiming:
    saved = [a - b for a, b in zip(whole, own, strict=True)]
    low, middle, high = quartiles(saved)
    return {
        "gates": list(group),
        "ms": statistics.median(own),
        "saved_ms": middle,
        "saved_low": low,
        "saved_high": high,
    }
