"""The measures that a network is judged by, each as one object: what chooses the best epoch, and what tables show.

To add one: a line in :data:`MEASURES`, and its name in :data:`MeasureName`. Nothing heavy is imported.

Notation: N images, K classes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    import numpy as np

MeasureName = Literal["top1", "balanced", "macro_f1", "auroc", "map", "loss", "top5"]

#: From this ratio of the largest class to the smallest, balanced accuracy is shown beside top-1.
UNEVEN = 2
#: Rows of logits that are computed with at a time, in float64.
_ROWS = 4096


class Judged(Protocol):
    """What every evaluation gathers; see :class:`excite.training.evaluation.Evaluation`."""

    @property
    def loss(self) -> float | None: ...
    @property
    def top1(self) -> float: ...
    @property
    def top5(self) -> float: ...
    @property
    def confusion(self) -> Sequence[Sequence[int]]: ...
    @property
    def support(self) -> Sequence[int]: ...


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure of a network on a set of images. It is computed from counts or from the logits of all images.

    Attributes:
        label: its name for people.
        larger: whether larger is better.
        percent: whether its values are percentages.
        usual: whether lines about a network show it anyway.
        of_counts: computes it from what every evaluation gathers.
        of_logits: computes it from finite or infinite logits float32 (N, K) and labels int64 (N,) of all images, in the
            order of the data. They are only gathered for the measure that a recipe names.
    """

    label: str
    larger: bool = True
    percent: bool = True
    usual: bool = False
    of_counts: Callable[[Judged], float | None] | None = None
    of_logits: "Callable[[np.ndarray, np.ndarray], float | None] | None" = None

    @property
    def heading(self) -> str:
        """Its name with its unit: "top-1 %", "loss"."""
        return f"{self.label} %" if self.percent else self.label

    def text(self, value: float | None) -> str:
        """A value for people: "87.50 %", "0.4321", or "none"."""
        if value is None:
            return "none"
        return f"{value:.2f} %" if self.percent else f"{value:.4f}"


def uneven(support: Sequence[int]) -> bool:
    """Whether classes differ so much in their number of images that balanced accuracy is shown beside top-1."""
    there = [n for n in support if n]
    return bool(there) and max(there) >= UNEVEN * min(there)


def balanced_accuracy(confusion: Sequence[Sequence[int]], support: Sequence[int]) -> float:
    """The mean of the per-class top-1 accuracies in percent, over classes with images.

    Args:
        confusion: (K, K) counts; rows are true classes.
        support: (K,) images of each class, with those that have no class predicted.
    """
    shares = [row[k] / n for k, (row, n) in enumerate(zip(confusion, support, strict=True)) if n]
    return 100 * sum(shares) / max(1, len(shares))


def macro_f1(confusion: Sequence[Sequence[int]], support: Sequence[int]) -> float:
    """The mean of the per-class F1 in percent, over classes with images or predictions; the arguments are those of
    :func:`balanced_accuracy`. F1 = 2 TP / (images + predictions) is the harmonic mean of precision and recall."""
    predicted = [sum(row[k] for row in confusion) for k in range(len(confusion))]
    shares = [2 * confusion[k][k] / (n + p) for k, (n, p) in enumerate(zip(support, predicted, strict=True)) if n + p]
    return 100 * sum(shares) / max(1, len(shares))


def auroc(logits: "np.ndarray", labels: "np.ndarray") -> float | None:
    """The area under the ROC curve of each class against all others in percent, averaged over the classes that have
    both images and non-images; None if there is none.

    It is the share of pairs (an image of the class, another image) that the softmax probability of the class puts in
    the right order; ties count half (Hanley and McNeil, 1982). The pairs are counted, so that nothing is rounded but
    the quotient. An image without finite logits is put in the wrong order in each of its pairs. It takes about
    K N log N steps.

    Args:
        logits: float32 (N, K).
        labels: int64 (N,); or (N, K), 1 for each class that an image has.
    """
    import numpy as np

    areas = []
    for own, score in by_class(logits, labels):
        pairs = int(own.sum()) * int((~own).sum())
        if not pairs:
            continue
        others = np.sort(score[~own])
        below, up_to = (int(np.searchsorted(others, score[own], side).sum()) for side in ("left", "right"))
        areas.append((below + up_to) / (2 * pairs))
    return 100 * math.fsum(areas) / len(areas) if areas else None


def average_precisions(logits: "np.ndarray", labels: "np.ndarray") -> list[float | None]:
    """The average precision of each class in percent; None of a class without images.

    It is the sum over the distinct scores, from the highest down, of precision times the recall gained there (as in
    scikit-learn; no interpolation). Scores are those of :func:`auroc`, as are its arguments; images without finite
    logits are put where they do most harm.
    """
    import numpy as np

    found: list[float | None] = []
    for own, score in by_class(logits, labels):
        once = np.ones((len(own), 1), np.int32)
        found.append(float(weighted_precisions(own, score, once)[0]) if own.any() else None)
    return found


def weighted_precisions(own: "np.ndarray", score: "np.ndarray", weights: "np.ndarray") -> "np.ndarray":
    """float64 (B,): the average precision of one class in percent, with the images counted in B ways.

    Args:
        own, score: one item of :func:`by_class`.
        weights: int (N, B), how often each image counts; NaN comes of a column in which no image of the class does.
    """
    import numpy as np

    order = np.argsort(-score, kind="stable")
    ordered, hit = score[order], np.flatnonzero(own[order])
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # the last of each run of equal scores
    there = ends[np.searchsorted(ends, hit)]
    last = np.append(there[1:] != there[:-1], True)  # precision is needed only where recall is gained
    hits = np.cumsum(weights[order[hit]], axis=0)[last]
    seen = np.cumsum(weights[order], axis=0)[there[last]]
    gained = np.diff(hits, prepend=0, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * (gained * (hits / np.maximum(seen, 1))).sum(axis=0) / hits[-1]


def mean_average_precision(logits: "np.ndarray", labels: "np.ndarray") -> float | None:
    """mAP: the mean of :func:`average_precisions` over the classes with images; None if there are none."""
    known = [value for value in average_precisions(logits, labels) if value is not None]
    return math.fsum(known) / len(known) if known else None


def best_threshold(logits: "np.ndarray", labels: "np.ndarray") -> float:
    """The probability from which on a class counts as predicted, for the highest micro F1: over all images and classes.

    It lies halfway between the two neighbouring probabilities, so that it is as good as can be for new images; 0.5 if
    there is nothing to choose by.

    Args:
        logits: float32 (N, K), of which rows that are not finite are left out.
        labels: (N, K), 1 for each class that an image has.
    """
    import numpy as np

    finite = np.isfinite(logits).all(axis=1)
    score, own = logits[finite].astype(np.float64).ravel(), np.asarray(labels)[finite].ravel() > 0
    if not own.any():
        return 0.5
    order = np.argsort(-score, kind="stable")
    hits, ordered = np.cumsum(own[order]), score[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    f1 = 2 * hits[ends] / (ends + 1 + hits[-1])
    at = ends[int(f1.argmax())]
    chance = [float(sigmoid(value)) for value in ordered[at : at + 2]]
    return sum(chance) / 2 if len(chance) == 2 else chance[0] / 2


def label_counts_at(
    logits: "np.ndarray", labels: "np.ndarray", threshold: float
) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """int64 (K,) each: how often each class is predicted rightly, is predicted, and is there.

    Args:
        logits: float32 (N, K); nothing is predicted for rows that are not finite.
        labels: (N, K).
        threshold: see :func:`best_threshold`.
    """
    import numpy as np

    predicted, own = predicted_at(logits, threshold), np.asarray(labels) > 0
    counts = ((predicted & own), predicted, own)
    right, said, there = (each.sum(axis=0, dtype=np.int64) for each in counts)
    return right, said, there


def predicted_at(logits: "np.ndarray", threshold: float) -> "np.ndarray":
    """bool (N, K): whether each class is predicted for each image; the arguments are those of
    :func:`label_counts_at`."""
    import numpy as np

    finite = np.isfinite(logits).all(axis=1)
    return (sigmoid(np.where(finite[:, None], logits, -np.inf).astype(np.float64)) >= threshold) & finite[:, None]


def sigmoid(value: Any) -> Any:
    """1 / (1 + exp(-value)), of numbers or arrays; logits of several labels become probabilities by it."""
    import numpy as np

    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-value))


def by_class(logits: "np.ndarray", labels: "np.ndarray") -> "Iterator[tuple[np.ndarray, np.ndarray]]":
    """For each class: whether each image has it, bool (N,), and how likely the network finds it, float64 (N,).

    Of images with one class each, that is the logarithm of the softmax probability: near 1, probabilities in float32
    would tie. Of images with several, the logit itself, whose order is that of the probabilities.
    """
    import numpy as np

    finite = np.isfinite(logits).all(axis=1)
    total = np.zeros(len(logits))
    for start in range(0, len(logits) if np.ndim(labels) == 1 else 0, _ROWS):
        rows = np.where(finite[start : start + _ROWS, None], logits[start : start + _ROWS], 0).astype(np.float64)
        highest = rows.max(axis=1)
        total[start : start + _ROWS] = highest + np.log(np.exp(rows - highest[:, None]).sum(axis=1))
    for k in range(logits.shape[1]):
        own = labels == k if np.ndim(labels) == 1 else labels[:, k] > 0
        yield own, np.where(finite, logits[:, k].astype(np.float64) - total, np.where(own, -np.inf, np.inf))


MEASURES: dict[MeasureName, Measure] = {
    "top1": Measure(label="top-1", usual=True, of_counts=lambda found: found.top1),
    "balanced": Measure(
        label="balanced accuracy", of_counts=lambda found: balanced_accuracy(found.confusion, found.support)
    ),
    "macro_f1": Measure(label="macro F1", of_counts=lambda found: macro_f1(found.confusion, found.support)),
    "auroc": Measure(label="AUROC", of_logits=auroc),
    "map": Measure(label="mAP", of_logits=mean_average_precision),
    "loss": Measure(label="loss", larger=False, percent=False, usual=True, of_counts=lambda found: found.loss),
    "top5": Measure(label="top-5", usual=True, of_counts=lambda found: found.top5),
}
assert tuple(MEASURES) == get_args(MeasureName)


def superlative(name: MeasureName) -> str:
    """What is best by a measure: "highest macro F1", "lowest loss"."""
    return f"{'highest' if MEASURES[name].larger else 'lowest'} {MEASURES[name].label}"


def measure_of(recipe: Mapping[str, Any]) -> MeasureName:
    """The measure that chooses the best epoch of a stored recipe; older ones, which lack the key, are about top-1."""
    name = (recipe.get("eval") or {}).get("metric")
    return name if name in MEASURES else usual_measure((recipe.get("data") or {}).get("task"))


def named(values: Mapping[str, Any], several: bool, name: MeasureName = "map") -> dict[str, Any]:
    """Values as files have them: with several labels an image, what is held as ``top1...`` is another measure, mAP, and
    called ``map...``."""
    return {key.replace("top1", name) if several else key: value for key, value in values.items()}


def usual_measure(task: str | None) -> MeasureName:
    """What chooses the best epoch if the recipe does not say."""
    return "map" if task == "multilabel" else "top1"


def rank(result: Mapping[str, Any], name: MeasureName) -> tuple[float, float]:
    """Sort key of an evaluation, larger is better: by a measure, then by loss; what has no value comes last."""
    return _oriented(result.get(name), MEASURES[name].larger), _oriented(result.get("loss"), False)


def _oriented(value: float | None, larger: bool) -> float:
    return -math.inf if value is None or math.isnan(value) else value if larger else -value
