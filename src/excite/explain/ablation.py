"""The contribution of each gate: accuracy with the gate fixed at its mean, and time without it.

Notation: N images, C channels, H x W pixels.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from excite.data.labels import several
from excite.errors import ExciteError
from excite.explain.statistics import Batches
from excite.logits import finite, hits, losses, mean_loss, number
from excite.measures import mean_average_precision
from excite.models.listening import changed_scales, fixed_gates, without_gates
from excite.pages.intervals import Pairs, paired_interval
from excite.pages.resampling import interval, resampled
from excite.progress import Advance
from excite.runtime.rows import Rows
from excite.runtime.timing import in_turns, inference_step, quartiles
from excite.trained.predictor import Predictor

#: Each call starts a new pass over the same images.
Images = Callable[[], Batches]
_TIMING_SECONDS = 30.0
#: How often images are drawn for the interval of a gate's mAP: for each gate again, so fewer than elsewhere.
RESAMPLES = 500


@dataclass(frozen=True)
class Ablation:
    """The cost of fixing gates at their means.

    Attributes:
        gates: names of the gates.
        images: number of images evaluated.
        top1: top-1 in percent with the gates fixed; None for an estimate. With several labels an image, mAP.
        top1_lost: percentage points of it lost, negative if fixing helped; None for an estimate.
        low, high: 95 % interval of ``top1_lost``, from the images that became right or wrong, or by resampling images
            (mAP); None for an estimate.
        loss_added: increase of the cross-entropy in nats, the mean over images with finite logits before and after;
            None if there are none.
        estimated: whether ``loss_added`` is a first-order estimate.
        not_finite: images without finite logits with the gates fixed, which count as wrong (see ``excite.logits``); in
            an estimate, the images left out.
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
    """An :class:`Ablation` as JSON."""

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
    """Time of a forward pass in milliseconds: medians, and quartiles of the time saved.

    Attributes:
        gates: the gates removed; [] for the whole network.
        ms: median time.
        saved_ms: median time saved compared with the whole network.
        saved_low, saved_high: quartiles of ``saved_ms``.
    """

    gates: list[str]
    ms: float
    saved_ms: float
    saved_low: float
    saved_high: float


@dataclass(frozen=True)
class Outcome:
    """For each image (N,): whether the network is right, and its cross-entropy in nats (NaN without finite logits).

    ``labelled``: with several labels an image, logits float32 (N, K) and labels uint8 (N, K); else None.
    """

    right: Tensor
    loss: Tensor
    labelled: tuple[np.ndarray, np.ndarray] | None = None

    @cached_property
    def top1(self) -> float:
        """Top-1 accuracy in percent; with several labels an image, mAP (0 without any label)."""
        if self.labelled is not None:
            return mean_average_precision(*self.labelled) or 0.0
        return 100 * float(self.right.double().mean())

    @cached_property
    def resampled(self) -> np.ndarray:
        """float64 (B,): mAP in percent in each resample of the images."""
        assert self.labelled is not None
        return resampled(*self.labelled, 0.5, RESAMPLES).map

    @property
    def not_finite(self) -> int:
        """The number of images without finite logits."""
        return int(self.loss.isnan().sum())


def judge(predictor: Predictor, batches: Batches, advance: Callable[[int], None] = lambda images: None) -> Outcome:
    """Classify images; keep whether each is right, and its loss. ``advance`` is called with the size of each batch.

    Raises:
        ExciteError: there are no images.
    """
    right, loss, kept, truth = Rows(), Rows(), Rows(), Rows()
    for images, labels, _ in batches:
        logits, labels = predictor.logits(images).cpu(), labels.cpu()
        right.add(hits(logits, labels).numpy())
        loss.add(losses(logits.double(), labels).numpy())
        if several(labels):
            kept.add(logits.numpy())
            truth.add(labels.numpy())
        advance(len(labels))
    if not len(right):
        raise ExciteError("there are no images to evaluate the network on")
    labelled = (kept.all(), truth.all()) if len(kept) else None
    return Outcome(torch.from_numpy(right.all()), torch.from_numpy(loss.all()), labelled)


def compare_outcomes(gates: Sequence[str], before: Outcome, after: Outcome) -> Ablation:
    """Compare two outcomes on the same images in the same order.

    The interval is that of ``excite compare``: Tango's score interval for paired shares, or for mAP that of resampled
    images.
    """
    low: float | None
    high: float | None
    if before.labelled is None:
        low, high = (100 * end for end in paired_interval(Pairs.count(before.right.tolist(), after.right.tolist())))
    else:
        low, high = interval(before.top1 - after.top1, before.resampled - after.resampled, least=-100)
    return Ablation(
        gates=tuple(gates),
        images=len(before.right),
        top1=after.top1,
        top1_lost=before.top1 - after.top1,
        low=low,
        high=high,
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
    """Evaluate the network with gates fixed at their means, one evaluation per group, all on the same images.

    Args:
        predictor: a network from ``excite.load``.
        images: a function that starts a new pass over the batches, always in the same order.
        means: gate name -> (C,), see ``ScaleStatistics.overall_mean``.
        groups: groups of gates to fix together; None: each gate alone.
        before: the outcome with no gate fixed, if known.
        progress: called with (images done, images in total).
        total: images per evaluation, for ``progress``.

    Raises:
        ExciteError: there is no such gate, or there are no images.
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
    """First-order estimate of the loss added by fixing each gate at its mean, in one forward and backward pass.

    The estimate is the mean over images of the sum over scales of (mean - scale) * d loss / d scale. The neglected
    terms grow with the square of a gate's effect, so the cost of important gates is underestimated; the order of the
    gates is more reliable than the numbers. This is the Taylor criterion of Molchanov, Tyree, Karras, Aila, Kautz,
    "Pruning Convolutional Neural Networks for Resource Efficient Inference" (arXiv 1611.06440), section 2.2, for gates
    instead of channels.

    Raises:
        ExciteError: there are no gates or no images.
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
    """The loss, summed over images with finite logits; the scales by gate; and bool (N,), which images these are."""
    scales: dict[str, Tensor] = {}

    def keep(name: str, scale: Tensor) -> Tensor:
        # A new leaf, unless the scale is already part of the graph.
        scales[name] = scale if scale.requires_grad else scale.detach().requires_grad_()
        return scales[name]

    x = predictor.preprocessing.normalize(images.to(predictor.device)).contiguous(memory_format=torch.channels_last)
    with torch.enable_grad(), changed_scales(predictor.model, keep):  # in float32: half-precision gradients are coarse
        logits = predictor.model(x).float()
        sound = finite(logits.detach())
        loss = losses(logits[sound], labels.to(predictor.device)[sound]).sum()
    return loss, scales, sound


def time_without_gates(
    predictor: Predictor,
    groups: Sequence[Sequence[str]],
    *,
    batch: int = 16,
    rounds: int | None = None,
    progress: Advance | None = None,
) -> list[GateTiming]:
    """Time a forward pass with all gates, and without the gates of each group.

    The networks are timed in turns, in reversed order every other round, so that a slow phase of the machine affects
    all of them. The time saved is the median over rounds of the difference to the whole network in the same round.

    Args:
        predictor: a network from ``excite.load``.
        groups: groups of gates to remove together.
        batch: batch size.
        rounds: timed rounds, after one warm-up round; None: 5 to 25, as many as fit into half a minute.
        progress: called with (rounds done, rounds in total).

    Returns:
        The timing of the whole network, then of each group.

    Raises:
        ExciteError: there is no such gate.
    """
    p = predictor.preprocessing
    shape = (batch, *p.shape)
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
