"""Evaluation of every image exactly once, over all processes."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from excite.data import Preprocessing
from excite.data.views import WEIGHTS, Tta, combined, views
from excite.logits import finite, losses, number, sentence
from excite.measures import (
    MEASURES,
    MeasureName,
    average_precisions,
    balanced_accuracy,
    best_threshold,
    label_counts_at,
    uneven,
)
from excite.pages.inline import show_table
from excite.runtime.device import DTYPES
from excite.training.results import ClassRow, Summary

#: uint8 images (B, C, H, W), labels (B,), positions in the data (B,).
Batch = tuple[Tensor, Tensor, Tensor]
#: What gives (batch, the function's answer) for each batch in order.
Over = Callable[[Callable[[Batch], Tensor], Iterable[Batch]], Iterable[tuple[Batch, Tensor]]]


def one_by_one(function: Callable[[Batch], Tensor], batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
    """(batch, ``function(batch)``) for each batch."""
    for batch in batches:
        yield batch, function(batch)


@dataclass(frozen=True)
class Evaluation:
    """How a model does on a set of images.

    Attributes:
        images: number of images.
        loss: mean cross-entropy in nats over the images with finite logits; None if there are none (see
            ``excite.logits``).
        top1, top5: accuracy in percent (with K < 5 classes, top-5 is top-K).
        confusion: (K, K) counts; rows are true classes, columns predictions. Images without finite logits are left out.
        no_class: (K,) counts of the images without finite logits by true class; they count as wrong.
        first_not_finite: the name of the first of these images, or "#" and its position in the data.
        measured: which images these are: "validation", "test", "training" or "all".
        notes: one sentence for each thing a user should know about these images.
        of_logits: the measures that were asked for and need the logits of all images (see ``excite.measures``).
        metric: the measure that is shown in any case.
        tta: the test-time augmentation, if any.
    """

    images: int
    loss: float | None
    top1: float
    top5: float
    confusion: list[list[int]]
    no_class: list[int] = field(default_factory=list)
    first_not_finite: str | None = None
    measured: str = "validation"
    notes: tuple[str, ...] = ()
    of_logits: Mapping[MeasureName, float | None] = field(default_factory=dict)
    metric: MeasureName = "top1"
    tta: Tta | None = None

    @property
    def support(self) -> list[int]:
        """Number of images of each class."""
        without = self.no_class or [0] * len(self.confusion)
        return [sum(row) + extra for row, extra in zip(self.confusion, without, strict=True)]

    @property
    def balanced(self) -> float:
        """Balanced accuracy in percent: the mean of the per-class top-1 accuracies, over classes with images."""
        return balanced_accuracy(self.confusion, self.support)

    @property
    def uneven(self) -> bool:
        """Whether classes differ so much in size that balanced accuracy is shown beside top-1."""
        return uneven(self.support)

    @property
    def not_finite(self) -> int:
        """Number of images without finite logits."""
        return sum(self.no_class)

    @property
    def title(self) -> str:
        """What was measured, for the head of a table."""
        return f"{self.measured} images" + (f", tta={self.tta}" if self.tta else "")

    @property
    def usable(self) -> bool:
        """Whether the network gives finite logits for at least one image."""
        return self.not_finite < self.images

    @property
    def warning(self) -> str | None:
        """A sentence about images without finite logits; None if there are none."""
        return sentence(self.not_finite, self.images, self.first_not_finite)

    def value(self, name: MeasureName) -> float | None:
        """A measure; None if it is undefined, or needs the logits of all images and was not asked for."""
        of_counts = MEASURES[name].of_counts
        return self.of_logits.get(name) if of_counts is None else of_counts(self)

    def summary(self) -> Summary:
        """The scalar results, for a table or a JSON record: all measures that are known, and counts."""
        known = {name: self.value(name) for name in MEASURES if MEASURES[name].of_counts or name in self.of_logits}
        not_finite = {"not_finite": self.not_finite, "first_not_finite": self.first_not_finite}
        return cast(Summary, {"images": self.images, **known, **not_finite})

    def _repr_html_(self) -> str:
        heads = ["images", "loss", "top-1 %", "balanced %", "top-5 %"]
        loss = "-" if self.loss is None else f"{self.loss:.4f}"
        row = [f"{self.images:,}", loss, f"{self.top1:.2f}", f"{self.balanced:.2f}", f"{self.top5:.2f}"]
        if not MEASURES[self.metric].usual and self.metric != "balanced":
            value = self.value(self.metric)
            heads.append(MEASURES[self.metric].heading)
            row.append("-" if value is None else f"{value:.2f}")
        warning = [self.warning] if self.warning is not None else []
        return show_table(heads, [row], title=self.title, notes=[*self.notes, *warning])

    def per_class(self, classes: list[str]) -> list[ClassRow]:
        """One row per class: name, images, and recall (top-1) and precision in percent (None if undefined)."""
        rows: list[ClassRow] = []
        without = self.no_class or [0] * len(classes)
        for k, name in enumerate(classes):
            right, support = self.confusion[k][k], sum(self.confusion[k]) + without[k]
            predicted = sum(row[k] for row in self.confusion)
            rows.append(
                {
                    "class": name,
                    "images": support,
                    "top1": 100 * right / support if support else None,
                    "precision": 100 * right / predicted if predicted else None,
                }
            )
        return rows


@dataclass(frozen=True)
class LabelEvaluation(Evaluation):
    """How a model does on images that may have several labels each.

    ``top1`` and ``top5`` are the shares of images of which the most likely class, or one of the five most likely, is a
    label; ``loss`` is the binary cross-entropy, averaged over images and classes. There is no ``confusion``.

    Attributes:
        threshold: the probability from which on a class counts as predicted.
        counts: for each class, how often it is predicted rightly, is predicted, and is there.
        precisions: the average precision of each class in percent; None of a class without images.
    """

    threshold: float = 0.5
    counts: tuple[list[int], list[int], list[int]] = ([], [], [])
    precisions: tuple[float | None, ...] = ()

    @property
    def support(self) -> list[int]:
        return self.counts[2]

    @property
    def balanced(self) -> float:
        """The mean recall of the classes at the threshold, in percent."""
        shares = [right / n for right, _, n in zip(*self.counts, strict=True) if n]
        return 100 * sum(shares) / max(1, len(shares))

    @property
    def uneven(self) -> bool:
        return False

    @property
    def mean_precision(self) -> float | None:
        """mAP in percent: the mean of the average precisions of the classes with images."""
        known = [value for value in self.precisions if value is not None]
        return math.fsum(known) / len(known) if known else None

    @property
    def micro_f1(self) -> float:
        """F1 over all images and classes at the threshold, in percent."""
        right, said, there = map(sum, self.counts)
        return 100 * 2 * right / max(1, said + there)

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that are there or predicted, at the threshold, in percent."""
        shares = [2 * right / (said + there) for right, said, there in zip(*self.counts, strict=True) if said + there]
        return 100 * sum(shares) / max(1, len(shares))

    def value(self, name: MeasureName) -> float | None:
        own = {"map": self.mean_precision, "macro_f1": self.macro_f1, "top1": self.top1, "top5": self.top5}
        return self.loss if name == "loss" else own[name] if name in own else self.of_logits.get(name)

    def summary(self) -> Summary:
        names: tuple[MeasureName, ...] = ("map", "macro_f1", "top1", "top5", "loss")
        known = {name: self.value(name) for name in names}
        more = {"micro_f1": self.micro_f1, "threshold": self.threshold}
        not_finite = {"not_finite": self.not_finite, "first_not_finite": self.first_not_finite}
        return cast(Summary, {"images": self.images, **known, **more, **self.of_logits, **not_finite})

    def _repr_html_(self) -> str:
        heads = ["images", "loss", "mAP %", "macro F1 %", "micro F1 %", "threshold"]
        loss, ap = ("-" if v is None else f"{v:.{n}f}" for v, n in ((self.loss, 4), (self.mean_precision, 2)))
        row = [f"{self.images:,}", loss, ap, f"{self.macro_f1:.2f}", f"{self.micro_f1:.2f}", f"{self.threshold:.3f}"]
        warning = [self.warning] if self.warning is not None else []
        return show_table(heads, [row], title=self.title, notes=[*self.notes, *warning])

    def per_class(self, classes: list[str]) -> list[ClassRow]:
        """One row per class: name, images, and recall ("top1"), precision and F1 at the threshold and average
        precision, in percent (None if undefined)."""
        rows: list[ClassRow] = []
        for name, ap, right, said, there in zip(classes, self.precisions, *self.counts, strict=True):
            rows.append(
                {
                    "class": name,
                    "images": there,
                    "top1": 100 * right / there if there else None,
                    "precision": 100 * right / said if said else None,
                    "f1": 200 * right / (said + there) if said + there else None,
                    "ap": ap,
                }
            )
        return rows


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    preprocessing: Preprocessing,
    num_classes: int,
    device: torch.device,
    precision: str = "fp32",
    channels_last: bool = True,
    name_of: Callable[[int], str] | None = None,
    over: Over = one_by_one,
    metric: MeasureName = "top1",
    several: bool = False,
    threshold: float | None = None,
    tta: Tta | None = None,
) -> Evaluation:
    """Evaluate ``model`` on batches of images.

    Counts are kept on the device and taken over all processes (torchmetrics), and the losses of batches are added in
    the order of the data, in float64. The results then do not depend on the number of processes, nor, but for the
    rounding of single logits, on the batch size. That holds for a ``metric`` of logits, too: they are brought into the
    order of the data first. It takes 4 N K bytes in each process for N images of K classes (200 MB for 50,000 images of
    1,000 classes), and about three times as much for a moment if there are several.

    Args:
        model: the network; its training mode is restored afterwards.
        batches: (images (B, C, H, W) uint8, labels (B,) int64 or (B, K) uint8, indices (B,) int64).
        preprocessing: how images are normalised.
        num_classes: K.
        device: where the model is.
        precision: "fp32", "bf16" or "fp16" (autocast).
        channels_last: whether images are given in NHWC memory layout.
        name_of: index of an image -> its name, to name the first image without finite logits.
        over: how the batches are gone through.
        metric: a measure to compute, too, if it takes the logits of all images.
        several: whether images may have several labels; the logits of all are then gathered in any case.
        threshold: with several, the probability from which on a class counts as predicted; None: the best one for these
            images (:func:`excite.measures.best_threshold`).
        tta: test-time augmentation (:mod:`excite.data.views`).

    Returns:
        With ``several``, a :class:`LabelEvaluation`.
    """
    from excite.training.metrics import (
        MetricCollection,
        MinMetric,
        MulticlassAccuracy,
        MulticlassConfusionMatrix,
    )

    answers = num_classes + 1  # the last one: no class
    metrics = MetricCollection(
        {
            "top5": MulticlassAccuracy(answers, top_k=min(5, num_classes), average="micro", validate_args=False),
            "confusion": MulticlassConfusionMatrix(answers, validate_args=False),
        },
        compute_groups=False,
    ).to(device)
    first = MinMetric().to(device)
    of_logits, gathered = MEASURES[metric].of_logits, list[tuple[Tensor, Tensor, Tensor]]()
    sums, exact = list[Tensor](), torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have
    lowest = torch.full((), torch.inf, device=device)
    was_training = model.training
    model.eval()

    def logits_in(batch: Batch) -> Tensor:
        return logits_of(model, batch[0], preprocessing, device, precision, channels_last, tta, several)

    for (_, labels, indices), logits in over(logits_in, batches):
        sound = finite(logits)
        if not several:
            metrics.update(_with_no_class(logits, labels, sound), labels)
        of_sound = torch.where(sound, losses(logits, labels), 0.0).to(exact).sum()
        sums.append(torch.stack([indices[0].to(device, exact), of_sound, sound.sum().to(exact)]))
        lowest = torch.minimum(lowest, torch.where(sound, torch.inf, indices.to(device)).min())
        if of_logits is not None or several:
            gathered.append((indices.cpu(), labels.cpu(), logits.cpu()))
    model.train(was_training)
    first.update(lowest)
    with warnings.catch_warnings():  # a process without images never updates its metrics, and need not
        warnings.filterwarnings("ignore", ".*was called before the ``update`` method.*")
        values, position = metrics.compute(), float(first.compute())
    name = None
    if math.isfinite(position):
        name = f"#{position:.0f}" if name_of is None else name_of(int(position))
    loss = number(_mean_loss(sums))
    if several:
        return replace(_of_labels(*_in_order(gathered, num_classes), loss, threshold, name, metric), tta=tta)
    confusion = values["confusion"].long()
    count = int(confusion.sum())
    return Evaluation(
        images=count,
        loss=loss,
        top1=100 * float(confusion.trace()) / max(1, count),
        # A float32 share times the count is a whole number but for rounding: give exact quotients.
        top5=100 * round(float(values["top5"]) * count) / max(1, count),
        confusion=confusion[:-1, :-1].tolist(),
        no_class=confusion[:-1, -1].tolist(),
        first_not_finite=name,
        tta=tta,
        of_logits={} if of_logits is None else {metric: of_logits(*_in_order(gathered, num_classes))},
    )


def _of_labels(
    logits: np.ndarray,
    labels: np.ndarray,
    loss: float | None,
    threshold: float | None,
    name: str | None,
    metric: MeasureName,
) -> LabelEvaluation:
    """The evaluation of images with several labels, from logits and labels (N, K) in the order of the data."""
    count = len(logits)
    finite_rows = np.isfinite(logits).all(axis=1)
    best = np.argsort(np.where(finite_rows[:, None], -logits, 0), axis=1, kind="stable")
    among = np.take_along_axis(labels, best, axis=1)[finite_rows] > 0
    threshold = best_threshold(logits, labels) if threshold is None else threshold
    of_logits = MEASURES[metric].of_logits
    return LabelEvaluation(
        images=count,
        loss=loss,
        top1=100 * int(among[:, :1].any(axis=1).sum()) / max(1, count),
        top5=100 * int(among[:, :5].any(axis=1).sum()) / max(1, count),
        confusion=[],
        no_class=[int((~finite_rows).sum())],
        first_not_finite=name,
        of_logits={} if of_logits is None or metric == "map" else {metric: of_logits(logits, labels)},
        threshold=threshold,
        counts=tuple(each.tolist() for each in label_counts_at(logits, labels, threshold)),
        precisions=tuple(average_precisions(logits, labels)),
    )


def _in_order(gathered: list[tuple[Tensor, Tensor, Tensor]], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (B,), labels (B,) and logits (B, K) of the batches of all processes -> logits (N, K) and labels (N,) in
    the order of the data."""
    none = torch.empty(0, dtype=torch.int64)
    parts = [none, none, torch.empty(0, classes)]
    if gathered:  # a process without images has labels of no shape, which are left out below
        parts = [torch.cat(each) for each in zip(*gathered, strict=True)]
    shares: list[Any] = [tuple(part.numpy() for part in parts)]
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        mine, shares = shares[0], [None] * distributed.get_world_size()
        distributed.all_gather_object(shares, mine)
    filled = [share for share in shares if len(share[0])] or shares[:1]
    indices, labels, logits = (np.concatenate([share[i] for share in filled]) for i in range(3))
    order = np.argsort(indices)
    return logits[order], labels[order]


def _mean_loss(sums: list[Tensor]) -> float:
    """The mean of all processes' losses, from (3,) for each batch: the index of its first image, the sum of its losses
    and the number of images in it. NaN if there are none."""
    rows: list[list[float]] = torch.stack(sums).tolist() if sums else []
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        shares: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(shares, rows)
        rows = [row for share in shares for row in share]
    rows.sort()
    count = sum(row[2] for row in rows)
    return sum(row[1] for row in rows) / count if count else math.nan


def logits_of(
    model: nn.Module,
    images: Tensor,
    preprocessing: Preprocessing,
    device: torch.device,
    precision: str,
    channels_last: bool,
    tta: Tta | None = None,
    several: bool = False,
) -> Tensor:
    """uint8 images (B, C, H, W) -> float32 logits (B, K), computed as in every evaluation.

    With ``tta``, those of the mean probabilities over the views of each image (:func:`excite.data.views.combined`);
    the images may have a margin. Views are computed one after another, so that they take no more memory.
    """
    if tta is not None:
        seen = views(images, tta, preprocessing.size)
        return combined(
            [logits_of(model, each, preprocessing, device, precision, channels_last) for each in seen],
            several,
            WEIGHTS.get(tta),
        )
    x = preprocessing.normalize(images)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
        logits = model(x)
    return logits.float()


def _with_no_class(logits: Tensor, labels: Tensor, sound: Tensor) -> Tensor:
    """(B, K + 1): logits with a last column for "no class". It is the smallest, except in rows that are not ``sound``:
    there it is the largest and the true class the smallest. Leaving images out instead would wait for the device."""
    sane = F.pad(logits, (0, 1), value=-torch.inf)
    none = torch.zeros_like(sane)
    none.scatter_(1, labels[:, None], -1.0)
    none[:, -1] = 1.0
    return torch.where(sound[:, None], sane, none)
