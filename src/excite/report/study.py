"""The numbers of a report: from predictions to JSON-able values; nothing here draws or reads files.

Letters: N images, K classes.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch

from excite.data.images import stratified_split
from excite.logits import NO_CLASS
from excite.trained.predictions import Accuracy, Predictions, accuracy
from excite.training.metrics import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)
from excite.training.results import Record

#: Of the expected calibration error and the reliability diagram: equal widths over 0 to 1 (Guo et al. 2017 use 15).
BINS = 15
#: Up to so many classes the confusion matrix is kept whole; above, it is pooled into blocks of classes in their order.
WHOLE = 30
#: Pairs of classes that are listed as confused most often.
PAIRS = 20

#: A class's images, answers with its name, and percentages; None where there is nothing to divide by. "class" is a word
#: of Python's.
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
    """The plain means over the classes that have images, percent."""

    precision: float
    recall: float
    f1: float


class Classes(TypedDict):
    """``rows``: a class each, in their order."""

    rows: list[ClassScores]
    macro: MeanScores


class ConfusedPair(TypedDict):
    """So many images of the class ``true`` are taken for ``predicted``; their share of that class in percent."""

    true: str
    predicted: str
    images: int
    share: float


class ConfusionSummary(TypedDict):
    """A confusion matrix, whole or pooled.

    Attributes:
        matrix: counts, rows true.
        block: classes that a row and a column stand for; the last may stand for fewer.
        labels: of the rows.
        pairs: confused most often, the most frequent first.
    """

    matrix: list[list[int]]
    block: int
    labels: list[str]
    pairs: list[ConfusedPair]


class ReliabilityBin(TypedDict):
    """Images with a confidence in (low, high], shares; their means in percent, None without images."""

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


class HeldOut(TypedDict):
    """What a temperature does to the half of the images that it was not fitted on: ECE in percent, NLL in nats."""

    seed: int
    images_fitted: int
    images: int
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float


class Calibration(TypedDict):
    """How far probabilities can be believed, see :func:`calibration`; ``norm`` is that of the bins' differences."""

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
    """A wrong answer: the image, by its name and its position in the data; probabilities from 0 to 1."""

    name: str
    position: int
    true: str
    predicted: str
    probability: float
    probability_of_true: float


class Answers(TypedDict):
    """What the logits say."""

    accuracy: Accuracy
    classes: Classes
    confusion: ConfusionSummary
    calibration: Calibration
    mistakes: list[Mistake]


class TrainPoint(TypedDict):
    """A point of the curves of a training, see ``excite.training.results.TrainRecord``; older files lack some."""

    step: int
    epoch: float
    loss: float | None
    accuracy: float | None
    lr: float | None
    ms_per_step: float | None
    images_per_second: float | None


class EvalPoint(TypedDict):
    """The same of its evaluations."""

    step: int
    epoch: float
    loss: float | None
    top1: float
    top5: float | None


class Curves(TypedDict):
    """The points of a report's curves."""

    train: list[TrainPoint]
    eval: list[EvalPoint]


def study_predictions(predictions: Predictions, mistakes: int = 24) -> Answers:
    """Everything that the logits say.

    Args:
        predictions: of one network.
        mistakes: how many of the most confident ones to list.

    Returns:
        Shares of accuracy in percent.
        Images without finite logits are wrong: they are in ``accuracy`` and in the recall of ``classes``, but have no
        place in ``confusion`` and ``calibration``, which tell of answers, nor among ``mistakes``.
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
    """Counts int64 (K, K), rows true classes, columns predictions; without the images that have no class."""
    predictions = predictions.answered()
    found = multiclass_confusion_matrix(*_answers(predictions), num_classes=len(predictions.classes))
    return found.numpy()


def _answers(predictions: Predictions) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(predictions.predicted), torch.from_numpy(predictions.labels)


def per_class(predictions: Predictions) -> Classes:
    """Precision, recall and F1 of each class in percent, and their means."""
    size = len(predictions.classes)
    said, labels = _answers(predictions)
    answers = torch.where(said == NO_CLASS, size, said), labels
    measures = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}
    # "No class" is an answer, too, which is never right.
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
    """The matrix, whole up to ``WHOLE`` classes, else pooled into blocks; and the pairs confused most often.

    Args:
        counts: (K, K), rows true classes.
        classes: K names.
    """
    size = len(classes)
    block = -(-size // WHOLE)
    edges = np.arange(0, size, block)
    pooled = np.add.reduceat(np.add.reduceat(counts, edges, axis=0), edges, axis=1)
    labels = list(classes) if block == 1 else [f"{e + 1}-{min(e + block, size)}" for e in edges.tolist()]
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
    return {"matrix": pooled.tolist(), "block": block, "labels": labels, "pairs": pairs}


def calibration(predictions: Predictions, seed: int = 0) -> Calibration:
    """How far probabilities can be believed, and the temperature that would mend them.

    The expected calibration error (ECE) is that of the predicted class: ``BINS`` bins of equal width, absolute
    differences weighted by images (L1; Guo et al. 2017, arXiv 1706.04599, section 2), in percent. NLL: mean
    cross-entropy, nats. Brier: mean over images of the sum over classes of (p - y)^2, 0 to 2 (Brier 1950).

    The temperature is fitted by NLL (Guo et al., section 4.2) on half of each class's images, chosen by ``seed``;
    ``held_out`` has ECE and NLL of the other half, before and after.

    Images without finite logits have no probabilities and are left out; without any other, the numbers are None.
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
        "ece": _gap(rows),
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
    """Expected calibration error in percent, see :func:`calibration`. Arguments: (N, K), (N,)."""
    return _gap(reliability(probabilities, probabilities.argmax(1) == labels))


def _gap(rows: Sequence[ReliabilityBin]) -> float:
    """The error of the bins that :func:`reliability` gave: whoever adds up the rows of the diagram finds the number.

    torchmetrics' error is of other bins: [low, high), in float32, with one of its own for a confidence of 1.
    """
    some = [
        (row["images"], row["accuracy"], row["confidence"])
        for row in rows
        if row["accuracy"] is not None and row["confidence"] is not None
    ]
    return sum(images * abs(right - sure) for images, right, sure in some) / sum(images for images, *_ in some)


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy, nats; a probability that rounds to 0 counts as the least positive number."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images of the sum over classes of squared errors, 0 to 2."""
    errors = probabilities.copy()
    errors[np.arange(len(labels)), labels] -= 1
    return float((errors**2).sum(1).mean())


def reliability(probabilities: np.ndarray, right: np.ndarray) -> list[ReliabilityBin]:
    """The bins, whose sides are those of Guo et al.: (low, high], with 0 in the first."""
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
    """The T for which softmax(logits / T) has the least cross-entropy; None where none is best.

    In 1/T the loss is convex, but with all images right (or worse than chance) it falls for ever: such a T, outside of
    1/100 to 100, is not given.
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
    """The wrong answers with the highest probability."""
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


def curves(records: Sequence[Record]) -> Curves:
    """The points of the curves from the records of ``metrics.jsonl``."""
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
            {"step": r["step"], "epoch": r["epoch"], "loss": r["loss"], "top1": r["top1"], "top5": r.get("top5")}
            for r in records
            if r["kind"] == "eval"
        ],
    }
