"""The numbers of a report on images that may have several labels each; see :mod:`excite.report.study` for one class
each.

Notation: N images, K classes. "At the threshold": a class counts as predicted from that probability on.
"""

from typing import Literal, TypedDict

import numpy as np

from excite.measures import average_precisions, by_class, label_counts_at, mean_average_precision, predicted_at
from excite.pages.resampling import RESAMPLES, SEED, interval, resampled
from excite.report.study import BINS, ReliabilityBin, calibration_gap, pooled_matrix, reliability
from excite.trained.predictions import Predictions

#: Thresholds of the curve of F1.
THRESHOLDS = tuple(k / 50 for k in range(1, 50))
#: The most points of a curve of precision and recall.
POINTS = 100
#: The most pairs of classes listed.
PAIRS = 20


class LabelAccuracy(TypedDict):
    """Measures in percent, with the ends of their intervals (images resampled ``resamples`` times, ``seed``).

    Attributes:
        threshold: the probability from which on a class counts as predicted; 0 to 1.
        map: mean average precision.
        micro_f1, macro_f1: F1 at the threshold, over all image-label pairs and as the mean of the classes.
        exact: images whose predicted classes are exactly their labels, at the threshold.
        hit_at_1: images of which the most likely class is a label.
        labels: labels of all images together.
        unlabelled: images without any label.
        not_finite: images without finite logits, for which nothing is predicted.
    """

    images: int
    labels: int
    unlabelled: int
    threshold: float
    map: float | None
    map_low: float | None
    map_high: float | None
    micro_f1: float
    micro_f1_low: float | None
    micro_f1_high: float | None
    macro_f1: float
    macro_f1_low: float | None
    macro_f1_high: float | None
    exact: float
    hit_at_1: float
    confidence: float
    resamples: int
    seed: int
    not_finite: int


#: Scores of a class: its images, how often it is predicted, and percentages (None if undefined); "ece" is the
#: calibration error of its probabilities. "class" is a Python keyword.
LabelScores = TypedDict(
    "LabelScores",
    {
        "class": str,
        "support": int,
        "predicted": int,
        "ap": float | None,
        "precision": float | None,
        "recall": float | None,
        "f1": float | None,
        "ece": float | None,
    },
)


class ThresholdPoint(TypedDict):
    """Measures over all image-label pairs at a threshold, percent; ``precision`` is None if nothing is predicted."""

    threshold: float
    micro_f1: float
    macro_f1: float
    precision: float | None
    recall: float | None


#: Precision over recall in percent, of one class, or of all image-label pairs (None).
PrecisionCurve = TypedDict("PrecisionCurve", {"class": str | None, "recall": list[float], "precision": list[float]})


class Together(TypedDict):
    """How often labels occur together: ``matrix`` counts images with both (on the diagonal, with the label), pooled
    like a confusion matrix into blocks of ``block`` classes."""

    matrix: list[list[int]]
    block: int
    labels: list[str]


class MixedUp(TypedDict):
    """``images`` in which the label ``missed`` is not predicted and ``invented``, which is none, is; ``share`` in
    percent of the images with the first."""

    missed: str
    invented: str
    images: int
    share: float


class LabelCalibration(TypedDict):
    """Calibration over all image-label pairs: ``ece`` in percent (``bins`` of equal width), ``nll`` the mean binary
    cross-entropy in nats, ``brier`` the mean squared error of the probability. None without finite logits."""

    bins: int
    reliability: list[ReliabilityBin]
    ece: float | None
    nll: float | None
    brier: float | None


#: A label that is predicted though absent, or absent though a label: with its probability, 0 to 1, and all classes of
#: the image, true and predicted; ``position`` is that in the data.
LabelMistake = TypedDict(
    "LabelMistake",
    {
        "kind": Literal["invented", "missed"],
        "name": str,
        "position": int,
        "class": str,
        "probability": float,
        "true": list[str],
        "predicted": list[str],
    },
)


class LabelAnswers(TypedDict):
    """Everything computed from the logits."""

    accuracy: LabelAccuracy
    classes: list[LabelScores]
    curves: list[PrecisionCurve]
    thresholds: list[ThresholdPoint]
    together: Together
    mixed_up: list[MixedUp]
    calibration: LabelCalibration


def study_labels(predictions: Predictions, threshold: float) -> LabelAnswers:
    """Compute everything that follows from the logits, but for the mistakes.

    Images without finite logits are put where they do most harm in mAP, have no class predicted in F1, and are left
    out of the calibration.
    """
    return {
        "accuracy": label_accuracy(predictions, threshold),
        "classes": label_scores(predictions, threshold),
        "curves": precision_curves(predictions),
        "thresholds": [_at(predictions, threshold) for threshold in THRESHOLDS],
        "together": together(predictions),
        "mixed_up": mixed_up(predictions, threshold),
        "calibration": label_calibration(predictions),
    }


def label_accuracy(predictions: Predictions, threshold: float, confidence: float = 0.95) -> LabelAccuracy:
    """mAP and F1 with bootstrap intervals over images (see :mod:`excite.pages.resampling`)."""
    logits, labels = predictions.logits, predictions.labels
    said, own = predicted_at(logits, threshold), labels > 0
    found, again = _at(predictions, threshold), resampled(logits, labels, threshold)
    ap = mean_average_precision(logits, labels)

    def ends(value: float | None, values: np.ndarray) -> tuple[float | None, float | None]:
        return interval(value, values, confidence)

    map_ends, micro, macro = (
        ends(ap, again.map),
        ends(found["micro_f1"], again.micro_f1),
        ends(found["macro_f1"], again.macro_f1),
    )
    return {
        "images": len(predictions),
        "labels": int(own.sum()),
        "unlabelled": int((~own.any(1)).sum()),
        "threshold": threshold,
        "map": ap,
        "map_low": map_ends[0],
        "map_high": map_ends[1],
        "micro_f1": found["micro_f1"],
        "micro_f1_low": micro[0],
        "micro_f1_high": micro[1],
        "macro_f1": found["macro_f1"],
        "macro_f1_low": macro[0],
        "macro_f1_high": macro[1],
        "exact": 100 * float(((said == own).all(1) & predictions.finite).mean()),
        "hit_at_1": 100 * float(predictions.right.mean()),
        "confidence": confidence,
        "resamples": RESAMPLES,
        "seed": SEED,
        "not_finite": int((~predictions.finite).sum()),
    }


def _at(predictions: Predictions, threshold: float) -> ThresholdPoint:
    right, said, there = label_counts_at(predictions.logits, predictions.labels, threshold)
    some = said + there > 0
    macro = 200 * right[some] / (said + there)[some]
    hits, answers, labels = int(right.sum()), int(said.sum()), int(there.sum())
    return {
        "threshold": threshold,
        "micro_f1": 200 * hits / max(1, answers + labels),
        "macro_f1": float(macro.mean()) if len(macro) else 0.0,
        "precision": 100 * hits / answers if answers else None,
        "recall": 100 * hits / labels if labels else None,
    }


def label_scores(predictions: Predictions, threshold: float) -> list[LabelScores]:
    """The scores of each class, in order."""
    counts = [each.tolist() for each in label_counts_at(predictions.logits, predictions.labels, threshold)]
    precisions = average_precisions(predictions.logits, predictions.labels)
    answered = predictions.answered()
    chances = answered.probabilities()
    rows: list[LabelScores] = []
    for k, (name, ap, right, said, there) in enumerate(zip(predictions.classes, precisions, *counts, strict=True)):
        bins = reliability(chances[:, k, None], answered.labels[:, k] > 0)
        rows.append(
            {
                "class": name,
                "support": there,
                "predicted": said,
                "ap": ap,
                "precision": 100 * right / said if said else None,
                "recall": 100 * right / there if there else None,
                "f1": 200 * right / (said + there) if said + there else None,
                "ece": calibration_gap(bins) if len(answered) else None,
            }
        )
    return rows


def precision_curves(predictions: Predictions) -> list[PrecisionCurve]:
    """Precision over recall: of all image-label pairs first, then of each class with images."""
    each = list(by_class(predictions.logits, predictions.labels))
    own, score = (np.concatenate(part) for part in zip(*each, strict=True))
    curves: list[PrecisionCurve] = []
    for name, of, by in [(None, own, score), *((n, *pair) for n, pair in zip(predictions.classes, each, strict=True))]:
        if not of.any():
            continue
        order = np.argsort(-by, kind="stable")
        hits, ordered = np.cumsum(of[order]), by[order]
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        some = ends[np.unique(np.linspace(0, len(ends) - 1, POINTS).round().astype(int))]
        recall, precision = 100 * hits[some] / hits[-1], 100 * hits[some] / (some + 1)
        curves.append({"class": name, "recall": recall.tolist(), "precision": precision.tolist()})
    return curves


def together(predictions: Predictions) -> Together:
    """How often labels occur together in the images."""
    own = predictions.labels.astype(np.int64)
    matrix, block, names = pooled_matrix(own.T @ own, predictions.classes)
    return {"matrix": matrix, "block": block, "labels": names}


def mixed_up(predictions: Predictions, threshold: float) -> list[MixedUp]:
    """The pairs of a missed and an invented label that occur most often in one image, most frequent first."""
    said, own = predicted_at(predictions.logits, threshold), predictions.labels > 0
    counts = (own & ~said).astype(np.int64).T @ (said & ~own).astype(np.int64)
    support, size, pairs = own.sum(0), len(predictions.classes), list[MixedUp]()
    for place in np.argsort(-counts, axis=None, kind="stable")[:PAIRS].tolist():
        i, j = divmod(place, size)
        if counts[i, j]:
            share = 100 * int(counts[i, j]) / int(support[i])
            names = predictions.classes[i], predictions.classes[j]
            pairs.append({"missed": names[0], "invented": names[1], "images": int(counts[i, j]), "share": share})
    return pairs


def label_calibration(predictions: Predictions) -> LabelCalibration:
    """Calibration over all image-label pairs of the images with finite logits."""
    predictions = predictions.answered()
    chances, own = predictions.probabilities().reshape(-1, 1), predictions.labels.reshape(-1) > 0
    rows = reliability(chances, own)
    if not len(predictions):
        return {"bins": BINS, "reliability": rows, "ece": None, "nll": None, "brier": None}
    logits = predictions.logits.astype(np.float64).reshape(-1)
    return {
        "bins": BINS,
        "reliability": rows,
        "ece": calibration_gap(rows),
        "nll": float((np.logaddexp(0, logits) - np.where(own, logits, 0)).mean()),
        "brier": float(np.square(chances[:, 0] - own).mean()),
    }


def label_mistakes(predictions: Predictions, threshold: float, most: int) -> list[LabelMistake]:
    """The ``most`` most confident mistakes, first invented labels (most likely first), then as many missed ones (least
    likely first)."""
    chances, own = np.nan_to_num(predictions.probabilities(), nan=0.5), predictions.labels > 0
    said, sound = predicted_at(predictions.logits, threshold), predictions.finite[:, None]

    def names(row: np.ndarray) -> list[str]:
        return [predictions.classes[k] for k in np.flatnonzero(row).tolist()]

    found: list[LabelMistake] = []
    kinds: tuple[tuple[Literal["invented", "missed"], np.ndarray, np.ndarray, int], ...] = (
        ("invented", said & ~own, -chances, most - most // 2),
        ("missed", own & ~said & sound, chances, most // 2),
    )
    for kind, wrong, key, some in kinds:
        images, classes = np.nonzero(wrong)
        order = np.argsort(key[images, classes], kind="stable")[:some]
        for i, k in zip(images[order].tolist(), classes[order].tolist(), strict=True):
            found.append(
                {
                    "kind": kind,
                    "name": predictions.names[i],
                    "position": int(predictions.positions[i]),
                    "class": predictions.classes[k],
                    "probability": float(chances[i, k]),
                    "true": names(own[i]),
                    "predicted": names(said[i]),
                }
            )
    return found
