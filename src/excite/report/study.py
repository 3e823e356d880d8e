"""The numbers of a report: from predictions to values ready for JSON; nothing here draws or reads files.

Notation: N images, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np
import torch

from excite.data.images import stratified_split
from excite.logits import NO_CLASS
from excite.measures import MeasureName
from excite.trained.predictions import Accuracy, Predictions, accuracy
from excite.training.metrics import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)
from excite.training.results import Record

#: Bins of the expected calibration error and reliability diagram: equal widths over 0..1 (15, as in Guo et al. 2017).
BINS = 15
#: The most classes with a full confusion matrix; with more, it is pooled into blocks of consecutive classes.
WHOLE = 30
#: The most pairs of classes listed as confused most often.
PAIRS = 20

#: Scores of a class: its images and predictions, and percentages (None if undefined). "class" is a Python keyword.
ClassScores = TypedDict(
    "ClassScores",
    {
        "class": str,
        "support": int,
        "predicted": int,
        "precision": float | None,
        "recall": float | None,
        "f1": float | None,
    },
)


class MeanScores(TypedDict):
    """Unweighted means over the classes that have images, percent."""

    precision: float
    recall: float
    f1: float


class Classes(TypedDict):
    """Scores per class, in order, and their means."""

    rows: list[ClassScores]
    macro: MeanScores


class ConfusedPair(TypedDict):
    """Images of class ``true`` predicted as ``predicted``: their number, and their share of that class in percent."""

    true: str
    predicted: str
    images: int
    share: float


class ConfusionSummary(TypedDict):
    """A confusion matrix, whole or pooled.

    Attributes:
        matrix: counts; rows are true classes.
        block: classes per row and column; the last may have fewer.
        labels: row labels.
        pairs: the pairs confused most often, most frequent first.
    """

    matrix: list[list[int]]
    block: int
    labels: list[str]
    pairs: list[ConfusedPair]


class ReliabilityBin(TypedDict):
    """Images with a confidence in (low, high], from 0 to 1; means in percent, None without images."""

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


class HeldOut(TypedDict):
    """The effect of a temperature on the half of the images it was not fitted on: ECE in percent, NLL in nats."""

    seed: int
    images_fitted: int
    images: int
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float


class Calibration(TypedDict):
    """Calibration of the probabilities, see :func:`calibration`; ``norm`` is the norm of the differences per bin."""

    bins: int
    norm: str
    reliability: list[ReliabilityBin]
    ece: float | None
    nll: float | None
    brier: float | None
    mean_confidence: float | None
    temperature: float | None
    held_out: HeldOut | None


class Mistake(TypedDict):
    """A wrong prediction: name of the image and its position in the data; probabilities from 0 to 1."""

    name: str
    position: int
    true: str
    predicted: str
    probability: float
    probability_of_true: float


class Answers(TypedDict):
    """Everything computed from the logits."""

    accuracy: Accuracy
    classes: Classes
    confusion: ConfusionSummary
    calibration: Calibration
    mistakes: list[Mistake]


class TrainPoint(TypedDict):
    """A point of the training curves, see ``excite.training.results.TrainRecord``; older files lack some values."""

    step: int
    epoch: float
    loss: float | None
    accuracy: float | None
    lr: float | None
    ms_per_step: float | None
    images_per_second: float | None


class EvalPoint(TypedDict):
    """A point of the validation curves; ``metric`` is the value of the measure that chooses the best epoch."""

    step: int
    epoch: float
    loss: float | None
    top1: float
    top5: float | None
    metric: float | None


class Curves(TypedDict):
    """The points of a report's curves."""

    train: list[TrainPoint]
    eval: list[EvalPoint]


def study_predictions(predictions: Predictions, mistakes: int = 24) -> Answers:
    """Compute everything that follows from the logits.

    Args:
        predictions: the predictions of one network.
        mistakes: how many of the most confident mistakes to list.

    Returns:
        The numbers; accuracies are in percent. Images without finite logits count as wrong in ``accuracy`` and in the
        recall of ``classes``; they are left out of ``confusion``, ``calibration`` and ``mistakes``.
    """
    counts = confusion(predictions)
    return {
        "accuracy": accuracy(predictions),
        "classes": per_class(predictions),
        "confusion": confusion_summary(counts, predictions.classes),
        "calibration": calibration(predictions),
        "mistakes": confident_mistakes(predictions, mistakes),
    }


def confusion(predictions: Predictions) -> np.ndarray:
    """Counts, int64 (K, K): rows are true classes, columns predictions; images without a class are left out."""
    predictions = predictions.answered()
    found = multiclass_confusion_matrix(*_answers(predictions), num_classes=len(predictions.classes))
    return found.numpy()


def _answers(predictions: Predictions) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(predictions.predicted), torch.from_numpy(predictions.labels)


def per_class(predictions: Predictions) -> Classes:
    """Precision, recall and F1 of each class in percent, and their unweighted means."""
    size = len(predictions.classes)
    said, labels = _answers(predictions)
    answers = torch.where(said == NO_CLASS, size, said), labels
    measures = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}
    # "No class" is a prediction that is never right.
    measured = {key: take(*answers, num_classes=size + 1, average="none")[:size] for key, take in measures.items()}
    support = np.bincount(predictions.labels, minlength=size)
    predicted = np.bincount(answers[0].numpy(), minlength=size + 1)[:size]
    defined = {"precision": predicted > 0, "recall": support > 0, "f1": support + predicted > 0}
    present = torch.from_numpy(support > 0)

    def percent(key: str, k: int) -> float | None:
        return 100 * float(measured[key][k]) if defined[key][k] else None

    def mean(key: str) -> float:
        return 100 * float(measured[key].double()[present].mean())

    rows: list[ClassScores] = [
        {
            "class": name,
            "support": int(support[k]),
            "predicted": int(predicted[k]),
            "precision": percent("precision", k),
            "recall": percent("recall", k),
            "f1": percent("f1", k),
        }
        for k, name in enumerate(predictions.classes)
    ]
    return {"rows": rows, "macro": {"precision": mean("precision"), "recall": mean("recall"), "f1": mean("f1")}}


def confusion_summary(counts: np.ndarray, classes: Sequence[str]) -> ConfusionSummary:
    """The matrix, pooled into blocks above ``WHOLE`` classes, and the pairs confused most often.

    Args:
        counts: int64 (K, K); rows are true classes.
        classes: K class names.
    """
    size = len(classes)
    matrix, block, labels = pooled_matrix(counts, classes)
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:PAIRS]
    pairs: list[ConfusedPair] = []
    for place in order.tolist():
        true, other = divmod(place, size)
        if off[true, other]:
            share = 100 * int(off[true, other]) / int(counts[true].sum())
            pairs.append(
                {"true": classes[true], "predicted": classes[other], "images": int(off[true, other]), "share": share}
            )
    return {"matrix": matrix, "block": block, "labels": labels, "pairs": pairs}


def pooled_matrix(counts: np.ndarray, classes: Sequence[str]) -> tuple[list[list[int]], int, list[str]]:
    """Counts (K, K), above ``WHOLE`` classes pooled into blocks; the classes in a block; and the name of each row."""
    size = len(classes)
    block = -(-size // WHOLE)
    edges = np.arange(0, size, block)
    pooled = np.add.reduceat(np.add.reduceat(counts, edges, axis=0), edges, axis=1)
    labels = list(classes) if block == 1 else [f"{e + 1}-{min(e + block, size)}" for e in edges.tolist()]
    return pooled.tolist(), block, labels


def calibration(predictions: Predictions, seed: int = 0) -> Calibration:
    """Calibration of the probabilities, and the temperature that would correct it.

    The expected calibration error (ECE), in percent, is that of the predicted class: ``BINS`` bins of equal width,
    absolute differences weighted by images (L1; Guo et al. 2017, arXiv 1706.04599, section 2). NLL is the mean
    cross-entropy in nats. The Brier score is the mean over images of the sum over classes of (p - y)^2, 0 to 2 (Brier
    1950).

    The temperature minimises NLL (Guo et al., section 4.2) on half of each class's images, chosen by ``seed``;
    ``held_out`` has ECE and NLL of the other half, before and after.

    Images without finite logits are left out; if no others remain, the numbers are None.
    """
    predictions = predictions.answered()
    if not len(predictions):
        return {
            "bins": BINS,
            "norm": "l1",
            "reliability": reliability(np.zeros((0, 1)), np.zeros(0, dtype=bool)),
            "ece": None,
            "nll": None,
            "brier": None,
            "mean_confidence": None,
            "temperature": None,
            "held_out": None,
        }
    probabilities = predictions.probabilities()
    labels = predictions.labels
    rows = reliability(probabilities, predictions.right)
    result: Calibration = {
        "bins": BINS,
        "norm": "l1",
        "ece": calibration_gap(rows),
        "nll": nll(probabilities, labels),
        "brier": brier(probabilities, labels),
        "mean_confidence": 100 * float(probabilities.max(1).mean()),
        "reliability": rows,
        "temperature": None,
        "held_out": None,
    }
    if len(labels) < 2:
        return result
    held, fitted = stratified_split(labels, 0.5, seed)
    temperature = fit_temperature(predictions.logits[fitted], labels[fitted])
    if temperature is None:
        return result
    after, before = predictions.probabilities(temperature)[held], probabilities[held]
    result["temperature"] = temperature
    result["held_out"] = {
        "seed": seed,
        "images_fitted": len(fitted),
        "images": len(held),
        "ece_before": ece(before, labels[held]),
        "ece_after": ece(after, labels[held]),
        "nll_before": nll(before, labels[held]),
        "nll_after": nll(after, labels[held]),
    }
    return result


def ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error in percent of probabilities (N, K) and labels (N,), see :func:`calibration`."""
    return calibration_gap(reliability(probabilities, probabilities.argmax(1) == labels))


def calibration_gap(rows: Sequence[ReliabilityBin]) -> float:
    """The ECE of the bins from :func:`reliability`, in percent; it can be recomputed from the rows of the diagram.

    torchmetrics uses other bins: [low, high), in float32, with an extra bin for a confidence of 1.
    """
    some = [
        (row["images"], row["accuracy"], row["confidence"])
        for row in rows
        if row["accuracy"] is not None and row["confidence"] is not None
    ]
    return sum(images * abs(right - sure) for images, right, sure in some) / sum(images for images, *_ in some)


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats; a probability of 0 counts as the smallest positive float64."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Brier score: mean over images of the sum over classes of squared errors, 0 to 2."""
    errors = probabilities.copy()
    errors[np.arange(len(labels)), labels] -= 1
    return float(np.square(errors, out=errors).sum(1).mean())


def reliability(probabilities: np.ndarray, right: np.ndarray) -> list[ReliabilityBin]:
    """The bins of Guo et al.: (low, high], with 0 in the first one."""
    confidence = probabilities.max(1)
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    rows: list[ReliabilityBin] = []
    for b in range(BINS):
        inside = place == b
        some = bool(inside.any())
        rows.append(
            {
                "low": float(edges[b]),
                "high": float(edges[b + 1]),
                "images": int(inside.sum()),
                "confidence": 100 * float(confidence[inside].mean()) if some else None,
                "accuracy": 100 * float(right[inside].mean()) if some else None,
            }
        )
    return rows


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The T that minimises the cross-entropy of softmax(logits / T); None if there is no minimum.

    The loss is convex in 1/T, but has no minimum if all images are right (or predictions are worse than chance); a T
    outside 1/100 to 100 is therefore not returned.
    """
    if (logits.argmax(1) == labels).all():
        return None
    values, truth = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)  # log of 1/T
    optimizer = torch.optim.LBFGS([scale], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(values * scale.exp(), truth)
        loss.backward()
        return loss

    optimizer.step(closure)
    temperature = float((-scale).exp().detach())
    return temperature if 0.01 < temperature < 100 else None


def confident_mistakes(predictions: Predictions, most: int) -> list[Mistake]:
    """The ``most`` wrong predictions with the highest probability, most confident first."""
    probabilities = predictions.probabilities()
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(~predictions.right & predictions.finite)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return [
        {
            "name": predictions.names[i],
            "position": int(predictions.positions[i]),
            "true": predictions.classes[predictions.labels[i]],
            "predicted": predictions.classes[predictions.predicted[i]],
            "probability": float(confidence[i]),
            "probability_of_true": float(probabilities[i, predictions.labels[i]]),
        }
        for i in worst.tolist()
    ]


def curves(records: Sequence[Record], metric: MeasureName = "top1") -> Curves:
    """The points of the curves, from the records of ``metrics.jsonl``."""
    return {
        "train": [
            {
                "step": r["step"],
                "epoch": r["epoch"],
                "loss": r["loss"],
                "accuracy": r.get("accuracy"),
                "lr": r.get("lr"),
                "ms_per_step": r.get("ms_per_step"),
                "images_per_second": r.get("images_per_second"),
            }
            for r in records
            if r["kind"] == "train"
        ],
        "eval": [
            {
                "step": r["step"],
                "epoch": r["epoch"],
                "loss": r["loss"],
                "top1": r["top1"],
                "top5": r.get("top5"),
                "metric": cast(Mapping[str, Any], r).get(metric),
            }
            for r in records
            if r["kind"] == "eval"
        ],
    }
