"""The measures that a network is judged by, each as one object: what chooses the best epoch, and what tables show.

To add one: a line in :data:`MEASURES`, and its name in :data:`MeasureName`. Nothing heavy is imported.

Notation: N images, K classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    import numpy as np

MeasureName = Literal["top1", "balanced", "macro_f1", "auroc", "loss", "top5"]

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
        labels: int64 (N,).
    """
    import numpy as np

    total = np.empty(len(logits))
    finite = np.isfinite(logits).all(axis=1)
    for start in range(0, len(logits), _ROWS):
        rows = np.where(finite[start : start + _ROWS, None], logits[start : start + _ROWS], 0).astype(np.float64)
        highest = rows.max(axis=1)
        total[start : start + _ROWS] = highest + np.log(np.exp(rows - highest[:, None]).sum(axis=1))
    areas = []
    for k in range(logits.shape[1]):
        own = labels == k
        pairs = int(own.sum()) * int((~own).sum())
        if not pairs:
            continue
        # The logarithm of the probability: near 1, float32 probabilities would tie.
        score = np.where(finite, logits[:, k] - total, np.where(own, -np.inf, np.inf))
        others = np.sort(score[~own])
        below, up_to = (int(np.searchsorted(others, score[own], side).sum()) for side in ("left", "right"))
        areas.append((below + up_to) / (2 * pairs))
    return 100 * math.fsum(areas) / len(areas) if areas else None


MEASURES: dict[MeasureName, Measure] = {
    "top1": Measure(label="top-1", usual=True, of_counts=lambda found: found.top1),
    "balanced": Measure(
        label="balanced accuracy", of_counts=lambda found: balanced_accuracy(found.confusion, found.support)
    ),
    "macro_f1": Measure(label="macro F1", of_counts=lambda found: macro_f1(found.confusion, found.support)),
    "auroc": Measure(label="AUROC", of_logits=auroc),
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
    return name if name in MEASURES else "top1"


def rank(result: Mapping[str, Any], name: MeasureName) -> tuple[float, float]:
    """Sort key of an evaluation, larger is better: by a measure, then by loss; what has no value comes last."""
    return _oriented(result.get(name), MEASURES[name].larger), _oriented(result.get("loss"), False)


def _oriented(value: float | None, larger: bool) -> float:
    return -math.inf if value is None or math.isnan(value) else value if larger else -value
