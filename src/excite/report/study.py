"""The numbers of a report: from predictions to JSON-able values; nothing here draws or reads files.

Letters: N images, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from excite.data.images import stratified_split
from excite.logits import NO_CLASS
from excite.trained.predictions import Predictions, accuracy
from excite.training.metrics import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

#: Of the expected calibration error and the reliability diagram: equal widths over 0 to 1 (Guo et al. 2017 use 15).
BINS = 15
#: Up to so many classes the confusion matrix is kept whole; above, it is pooled into blocks of classes in their order.
WHOLE = 30
#: Pairs of classes that are listed as confused most often.
PAIRS = 20


def study_predictions(predictions: Predictions, mistakes: int = 24) -> dict[str, Any]:
    """Everything that the logits say.

    Args:
        predictions: of one network.
        mistakes: how many of the most confident ones to list.

    Returns:
        ``accuracy``, ``classes``, ``confusion``, ``calibration`` and ``mistakes``; shares of accuracy in percent.
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


def per_class(predictions: Predictions) -> dict[str, Any]:
    """Precision, recall and F1 of each class in percent (None where there is nothing to divide by), and their means.

    ``rows``: a class each, in their order. ``macro``: the plain means over the classes that have images.
    """
    size = len(predictions.classes)
    arguments: dict[str, Any] = {
        "num_classes": size + 1,
        "average": "none",
    }  # "no class" is an answer, too, which is never right
    said, labels = _answers(predictions)
    answers = torch.where(said == NO_CLASS, size, said), labels
    measured = {
        "precision": multiclass_precision(*answers, **arguments)[:size],
        "recall": multiclass_recall(*answers, **arguments)[:size],
        "f1": multiclass_f1_score(*answers, **arguments)[:size],
    }
    support = np.bincount(predictions.labels, minlength=size)
    predicted = np.bincount(answers[0].numpy(), minlength=size + 1)[:size]
    defined = {"precision": predicted > 0, "recall": support > 0, "f1": support + predicted > 0}
    rows = [
        {
            "class": name,
            "support": int(support[k]),
            "predicted": int(predicted[k]),
            **{key: 100 * float(values[k]) if defined[key][k] else None for key, values in measured.items()},
        }
        for k, name in enumerate(predictions.classes)
    ]
    present = torch.from_numpy(support > 0)
    macro = {key: 100 * float(values.double()[present].mean()) for key, values in measured.items()}
    return {"rows": rows, "macro": macro}


def confusion_summary(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The matrix, whole up to ``WHOLE`` classes, else pooled into blocks; and the pairs confused most often.

    Args:
        counts: (K, K), rows true classes.
        classes: K names.

    Returns:
        ``matrix`` (counts; rows true), ``block`` (classes a row and column stand for; the last may stand for fewer),
        ``labels`` of the rows, ``pairs``: {true, predicted, images, share: percent of the true class}.
    """
    size = len(classes)
    block = -(-size // WHOLE)
    edges = np.arange(0, size, block)
    pooled = np.add.reduceat(np.add.reduceat(counts, edges, axis=0), edges, axis=1)
    labels = list(classes) if block == 1 else [f"{e + 1}-{min(e + block, size)}" for e in edges.tolist()]
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:PAIRS]
    pairs = []
    for place in order.tolist():
        true, other = divmod(place, size)
        if off[true, other]:
            share = 100 * int(off[true, other]) / int(counts[true].sum())
            pairs.append(
                {"true": classes[true], "predicted": classes[other], "images": int(off[true, other]), "share": share}
            )
    return {"matrix": pooled.tolist(), "block": block, "labels": labels, "pairs": pairs}


def calibration(predictions: Predictions, seed: int = 0) -> dict[str, Any]:
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
        keys = ("ece", "nll", "brier", "mean_confidence", "temperature", "held_out")
        empty = reliability(np.zeros((0, 1)), np.zeros(0, dtype=bool))
        return {"bins": BINS, "norm": "l1", "reliability": empty, **dict.fromkeys(keys)}
    probabilities = predictions.probabilities()
    labels = predictions.labels
    rows = reliability(probabilities, predictions.right)
    result: dict[str, Any] = {
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


def _gap(rows: Sequence[Mapping[str, Any]]) -> float:
    """The error of the bins that :func:`reliability` gave: whoever adds up the rows of the diagram finds the number.

    torchmetrics' error is of other bins: [low, high), in float32, with one of its own for a confidence of 1.
    """
    some = [row for row in rows if row["images"]]
    total = sum(row["images"] for row in some)
    return sum(row["images"] * abs(row["accuracy"] - row["confidence"]) for row in some) / total


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy, nats; a probability that rounds to 0 counts as the least positive number."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images of the sum over classes of squared errors, 0 to 2."""
    errors = probabilities.copy()
    errors[np.arange(len(labels)), labels] -= 1
    return float((errors**2).sum(1).mean())


def reliability(probabilities: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """A bin each: low, high (shares), images, mean confidence and accuracy in percent (None without images)."""
    confidence = probabilities.max(1)
    # The sides of Guo et al.: (low, high], with 0 in the first.
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    rows = []
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


def confident_mistakes(predictions: Predictions, most: int) -> list[dict[str, Any]]:
    """The wrong answers with the highest probability: name, true class, predicted class, both probabilities (0..1)."""
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


def curves(records: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The points of the curves from the records of ``metrics.jsonl``: ``train`` and ``eval``."""
    keys = {
        "train": ("step", "epoch", "loss", "accuracy", "lr", "ms_per_step", "images_per_second"),
        "eval": ("step", "epoch", "loss", "top1", "top5"),
    }
    return {
        kind: [{key: r.get(key) for key in names} for r in records if r["kind"] == kind] for kind, names in keys.items()
    }
