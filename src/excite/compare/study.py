"""From runs to numbers: a :class:`Study`, ready for JSON, which the page, the terminal, the CSV and ``--json`` use.

Accuracies and differences are in percent and percentage points; N images, K classes, R runs.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Literal, NotRequired, TypedDict, cast

import numpy as np
import torch

from excite.compare.labels import Labelled
from excite.compare.recipes import Difference, differences
from excite.compare.runs import Run
from excite.data.labels import counts
from excite.logits import NO_CLASS, losses, mean_loss
from excite.measures import uneven
from excite.pages.intervals import Pairs, holm, mcnemar, mean_difference, paired_interval, wilson
from excite.trained.predictions import accuracy
from excite.training.results import Results
from excite.weights.header import Summary

#: The most pictures that only one of two runs gets right, for each of the two.
PICTURES = 6
#: The training loss is averaged over 1/SMOOTHING of the records of a run.
SMOOTHING = 40
WHAT_IT_SAYS = (
    "The test and the intervals are about these trained networks on images like these test images, not about the "
    "recipes or the gates: another seed gives another network. `excite twins` trains with several seeds."
)


class Measured(TypedDict):
    """The accuracy of a run, from present predictions or from its training; all None if neither is available.

    With several labels an image, ``top1`` is mAP and ``right`` counts image-label pairs; ``micro_f1``, ``macro_f1``
    and the ``threshold`` that they are measured at are known then only. Files name these as they are: see
    :func:`excite.compare.table.outward`.

    ``top1_low`` and ``top1_high`` are the ends of Wilson's interval; ``not_finite`` is the number of images without
    finite logits.
    """

    measured: Literal["predictions", "training"] | None
    images: int | None
    right: int | None
    top1: float | None
    top1_low: float | None
    top1_high: float | None
    balanced: float | None
    top5: float | None
    not_finite: int | None
    loss: float | None
    micro_f1: float | None
    micro_f1_low: float | None
    micro_f1_high: float | None
    macro_f1: float | None
    threshold: float | None


class AloneRow(Measured):
    """What is known about a run by itself. Speed and memory are from its own training.

    ``gate``: see ``Run``; ``recipe``: its name; ``epochs``: those of the recipe; ``finished``: None without a run
    folder; ``training_top1`` and ``last_top1``: measured in training, for the saved weights and after the last epoch;
    ``trained_in`` and ``precision``: precisions of the training and of the predictions.
    """

    label: str
    source: str
    model: str
    gate: str | None
    params: int
    gmacs: float | None
    epochs: int | None
    epochs_done: float | None
    best_epoch: float | None
    finished: bool | None
    seed: int | None
    recipe: str | None
    training_top1: float | None
    last_top1: float | None
    images_per_second: float | None
    ms_per_step: float | None
    batch_size: int | None
    memory_gb: float | None
    train_seconds: float | None
    device: str | None
    devices: int | None
    trained_in: str | None
    precision: str | None
    weights: str
    data_fingerprint: str | None


class Compared(TypedDict):
    """The paired comparison of a run with the baseline.

    ``difference`` is in percentage points (of ``top1``; ``f1_difference`` is that of micro F1 where there is one),
    ``loss_difference`` in nats. ``only_this`` and ``only_baseline`` count the images that only one of the two gets
    right; ``p`` is McNemar's, in the form ``test``; ``p_holm`` is adjusted for the number of runs; ``_low`` and
    ``_high`` are ends of intervals. All are None for the baseline itself and for a run that is not compared image by
    image.
    """

    difference: float | None
    difference_low: float | None
    difference_high: float | None
    only_this: int | None
    only_baseline: int | None
    both_right: int | None
    both_wrong: int | None
    p: float | None
    p_holm: float | None
    test: str | None
    loss_difference: float | None
    loss_difference_low: float | None
    loss_difference_high: float | None
    f1_difference: float | None
    f1_low: float | None
    f1_high: float | None


class RunRow(AloneRow, Compared):
    """One row of the table."""


class ValidationCurve(TypedDict):
    """Values at each evaluation; ``minutes`` counts training steps, None without a training record at that step."""

    epoch: list[float]
    minutes: list[float | None]
    top1: list[float | None]
    loss: list[float | None]


class TrainingCurve(TypedDict):
    """The training loss, as the mean over the last ``window`` records."""

    epoch: list[float]
    loss: list[float]
    window: int


class Curves(TypedDict):
    """The curves of a run."""

    label: str
    validation: ValidationCurve
    training: TrainingCurve


#: A class: ``top1`` (recall, percent; with several labels an image, average precision) by run and ``difference`` to
#: the first run, both in the order of the paired runs; None for a class without images.
ClassDifference = TypedDict(
    "ClassDifference", {"class": str, "images": int, "top1": list[float | None], "difference": list[float | None]}
)


class Agreement(TypedDict):
    """(R, R) matrices of shares of the images, in percent.

    With several labels an image, of the decisions on every class of every image.

    ``same``: both predict the same class, right or wrong; ``both_wrong``: both are wrong; ``chance``: both would be
    wrong if their errors were independent.
    """

    labels: list[str]
    same: list[list[float]]
    both_wrong: list[list[float]]
    chance: list[list[float]]


#: An image that only the run ``right`` gets right, with both predicted classes and their probabilities.
OneRight = TypedDict(
    "OneRight",
    {
        "position": int,
        "name": str,
        "class": str,
        "right": str,
        "baseline_says": str,
        "baseline_probability": float,
        "this_says": str,
        "this_probability": float,
    },
)


class OnlyOne(TypedDict):
    """The images that only one of a run and the baseline gets right, see :func:`_only_one`."""

    label: str
    baseline: str
    images: list[OneRight]


class Study(TypedDict):
    """The result of :func:`study`.

    Attributes:
        measure: "top-1", or "mAP" where images may have several labels; what ``top1`` in all rows then is.
        baseline: label of the baseline.
        confidence: confidence level of the intervals.
        rows: one row per run.
        paired: labels of the runs that are compared image by image, the baseline first; may be empty.
        recipe: differences between the recipes.
        recipes_known: labels of the runs that have a recipe.
        curves: training curves of the runs that have records.
        per_class: sorted by the difference of the second run, then by name. Like ``agreement`` and ``only_one``, None
            without paired runs.
        uneven: whether balanced accuracy is shown beside top-1, because the classes differ much in size.
        notes: notes, one sentence each.
        command: the command that makes the page again.
    """

    measure: Literal["top-1", "mAP"]
    baseline: str
    confidence: float
    rows: list[RunRow]
    paired: list[str]
    recipe: list[Difference]
    recipes_known: list[str]
    curves: list[Curves]
    per_class: list[ClassDifference] | None
    agreement: Agreement | None
    only_one: list[OnlyOne] | None
    uneven: bool
    notes: list[str]
    command: NotRequired[str]


def study(runs: Sequence[Run], baseline: int = 0, confidence: float = 0.95) -> Study:
    """Compare runs.

    Args:
        runs: two or more runs.
        baseline: position of the run that the others are compared with.
        confidence: confidence level of the intervals.
    """
    notes = [_problem(run) for run in runs if run.problem is not None]
    group = _paired_group(runs, baseline, notes)
    compared = _comparisons(runs, baseline, group, confidence)
    rows: list[RunRow] = [{**_row(run, confidence), **pairs} for run, pairs in zip(runs, compared, strict=True)]
    paired = [runs[i] for i in group]
    recipe = differences([run.recipe for run in runs])
    notes += _notes(runs, baseline, recipe)
    return {
        "measure": "mAP" if runs[baseline].several else "top-1",
        "baseline": runs[baseline].label,
        "confidence": confidence,
        "rows": rows,
        "paired": [run.label for run in paired],
        "recipe": recipe,
        "recipes_known": [run.label for run in runs if run.recipe is not None],
        "curves": [curve for run in runs if (curve := _curves(run))],
        "per_class": _per_class(paired) if paired else None,
        "agreement": _agreement(paired) if paired else None,
        "only_one": [_only_one(paired[0], run) for run in paired[1:]] if paired else None,
        "uneven": any(_uneven(run) for run in runs),
        "notes": notes,
    }


def _uneven(run: Run) -> bool:
    if run.several:
        return False
    if run.predictions is None:
        return bool((run.results or {}).get("uneven"))
    return uneven(np.bincount(run.predictions.labels).tolist())


# --- runs that can be paired ---------------------------------------------------------------------------------------


def _paired_group(runs: Sequence[Run], baseline: int, notes: list[str]) -> list[int]:
    """Positions of the runs with predictions for the baseline's images, the baseline first; [] if there are none."""
    base = runs[baseline]
    if base.predictions is None:
        notes.append(f"{base.label}, the baseline, has no predictions, so nothing is compared image by image.")
        return []
    group = [baseline]
    for i, run in enumerate(runs):
        if i == baseline or run.predictions is None:
            continue
        reason = _no_pairs(base, run)
        if reason is None:
            group.append(i)
        else:
            notes.append(f"{run.label} is not compared with {base.label} image by image: {reason}.")
    return group if len(group) > 1 else []


def _no_pairs(base: Run, run: Run) -> str | None:
    """Why two sets of predictions cannot be paired; None if they can."""
    a, b = base.predictions, run.predictions
    assert a is not None
    assert b is not None
    if a.classes != b.classes:
        if set(a.classes) == set(b.classes):
            return "its classes are in another order"
        return (
            f"it has other classes ({len(b.classes)} instead of {len(a.classes)})"
            if len(a.classes) != len(b.classes)
            else "it has other classes"
        )
    if a.fingerprint != b.fingerprint:
        return "the data are not the same (their fingerprints differ)"
    if not (np.array_equal(a.positions, b.positions) and np.array_equal(a.labels, b.labels)):
        return "the images or their labels are not the same"
    return None


def _comparisons(runs: Sequence[Run], baseline: int, group: Sequence[int], confidence: float) -> list[Compared]:
    """The paired comparison of each run with the baseline; values are None for runs that are not paired."""
    others = [i for i in group if i != baseline]
    without = cast(Compared, dict.fromkeys(Compared.__annotations__))
    if runs[baseline].several:
        labelled = {i: _compare_labels(runs[i], runs[baseline], confidence) for i in others}
        return [labelled.get(i, without) for i in range(len(runs))]
    pairs = {i: _pairs(runs[i], runs[baseline]) for i in others}
    adjusted = dict(zip(others, holm([mcnemar(pairs[i])[0] for i in others]), strict=True))
    found = {i: _compare(runs[i], runs[baseline], pairs[i], adjusted[i], confidence) for i in others}
    return [found.get(i, without) for i in range(len(runs))]


def _pairs(run: Run, base: Run) -> Pairs:
    return Pairs.count(_right(run).tolist(), _right(base).tolist())


def _right(run: Run) -> np.ndarray:
    """bool (N,): whether each image is classified correctly; with several labels, bool (N K,) for each decision."""
    assert run.predictions is not None
    return run.predictions.right if run.labelled is None else run.labelled.right.ravel()


def _decided(run: Run) -> np.ndarray:
    """What the network decides on each image, int64 (N,); with several labels, on each image and class, int64 (N
    K,)."""
    assert run.predictions is not None
    if run.labelled is None:
        return run.predictions.predicted
    return np.where(run.predictions.finite[:, None], run.labelled.decided, NO_CLASS).ravel()


def _compare_labels(run: Run, base: Run, confidence: float) -> Compared:
    """The comparison by mAP and F1; the counts are of decisions, of which those on one image depend on each other, so
    that there is no test of them."""
    assert run.labelled is not None
    assert base.labelled is not None
    pairs = _pairs(run, base)
    counts = (pairs.only_first, pairs.only_second, pairs.both, pairs.neither)
    names = ("only_this", "only_baseline", "both_right", "both_wrong")
    found = {**dict.fromkeys(Compared.__annotations__), **dict(zip(names, counts, strict=True))}
    return cast(Compared, {**found, **run.labelled.against(base.labelled, confidence), **_loss(run, base, confidence)})


def _compare(run: Run, base: Run, pairs: Pairs, p_holm: float, confidence: float) -> Compared:
    low, high = paired_interval(pairs, confidence)
    p, test = mcnemar(pairs)
    found: dict[str, float | str | None] = {
        "difference": 100 * pairs.difference,
        "difference_low": 100 * low,
        "difference_high": 100 * high,
        "only_this": pairs.only_first,
        "only_baseline": pairs.only_second,
        "both_right": pairs.both,
        "both_wrong": pairs.neither,
        "p": p,
        "p_holm": p_holm,
        "test": test,
        **_loss(run, base, confidence),
    }
    return cast(Compared, {**dict.fromkeys(Compared.__annotations__), **found})


def _loss(run: Run, base: Run, confidence: float) -> dict[str, float | None]:
    """The mean difference of the losses, with its interval."""
    both = _losses(run) - _losses(base)
    both = both[~np.isnan(both)]  # images with finite logits in both
    loss, low, high = mean_difference(both.tolist(), confidence) if len(both) else (None, None, None)
    return {"loss_difference": loss, "loss_difference_low": low, "loss_difference_high": high}


def _losses(run: Run) -> np.ndarray:
    """float64 (N,): cross-entropy of each image, nats; NaN where its logits are not finite."""
    assert run.predictions is not None
    logits, labels = torch.from_numpy(run.predictions.logits), torch.from_numpy(run.predictions.labels)
    return losses(logits.double(), labels).numpy()


# --- one run --------------------------------------------------------------------------------------------------------


def _row(run: Run, confidence: float) -> AloneRow:
    results: Results = run.results or {}
    recipe, evaluations, told = run.recipe, run.evaluations, run.meta.get("metrics")
    key: Literal["map", "top1"] = "map" if run.several else "top1"
    last = evaluations[-1].get(key) if evaluations else None
    return {
        "label": run.label,
        "source": run.source,
        "model": run.meta["model"]["name"],
        "gate": run.gate,
        "params": run.params,
        "gmacs": results.get("gmacs", run.gmacs),
        "epochs": None if recipe is None else recipe["train"].get("epochs"),
        "epochs_done": results.get("last_epoch", evaluations[-1]["epoch"] if evaluations else None),
        "best_epoch": run.meta.get("epoch") if recipe is not None else None,
        "finished": None if not run.started else not run.unfinished,
        "seed": None if recipe is None else recipe["train"].get("seed"),
        "recipe": None if recipe is None else recipe.get("name"),
        **_accuracy(run, confidence),
        "training_top1": None if told is None else told.get(key),
        "last_top1": last if run.several else results.get("last_top1", last),
        "images_per_second": results.get("images_per_second"),
        "ms_per_step": results.get("ms_per_step"),
        "batch_size": results.get("batch_size"),
        "memory_gb": results.get("memory_gb"),
        "train_seconds": results.get("train_seconds"),
        "device": results.get("device"),
        "devices": results.get("devices"),
        "trained_in": run.meta.get("precision"),
        "precision": None if run.predictions is None else run.predictions.precision,
        "weights": run.weights,
        "data_fingerprint": results.get("data_fingerprint") if run.predictions is None else run.predictions.fingerprint,
    }


def _accuracy(run: Run, confidence: float) -> Measured:
    without = cast(Measured, dict.fromkeys(Measured.__annotations__))
    if run.labelled is not None:
        predictions = run.labelled.predictions
        of_labels = {
            "measured": "predictions",
            "images": len(predictions),
            "right": int(run.labelled.right.sum()),
            "not_finite": int((~predictions.finite).sum()),
            "loss": mean_loss(torch.from_numpy(_losses(run))),
            "threshold": run.labelled.threshold,
        }
        return cast(Measured, {**without, **of_labels, **run.labelled.ends(confidence)})
    if run.predictions is not None:
        measured = accuracy(run.predictions, confidence)
        return {
            **without,
            "measured": "predictions",
            "images": measured["images"],
            "right": measured["right"],
            "top1": measured["top1"],
            "top1_low": measured["top1_low"],
            "top1_high": measured["top1_high"],
            "balanced": measured["balanced"],
            "top5": measured["top5"],
            "not_finite": measured["not_finite"],
            "loss": mean_loss(torch.from_numpy(_losses(run))),
        }
    told = _told(run)
    if told is None:
        return without
    found, top1, images = told
    if run.several:
        known = {key: found.get(key) for key in ("micro_f1", "macro_f1", "threshold", "not_finite", "loss")}
        return cast(Measured, {**without, **known, "measured": "training", "images": images, "top1": top1})
    right = round(top1 * images / 100)
    low, high = wilson(right, images, confidence)
    return {
        **without,
        "measured": "training",
        "images": images,
        "right": right,
        "top1": 100 * right / images,
        "top1_low": 100 * low,
        "top1_high": 100 * high,
        "balanced": found.get("balanced"),
        "top5": found.get("top5"),
        "not_finite": found.get("not_finite", 0),
        "loss": found.get("loss"),
    }


def _curves(run: Run) -> Curves | None:
    """Training curves by epoch and by minutes of training steps; None without records."""
    train, validation = [r for r in run.records if r["kind"] == "train"], run.evaluations
    if not train and not validation:
        return None
    minutes = {r["step"]: seconds / 60 for r in train if (seconds := r.get("seconds")) is not None}
    # in fp16 a loss is None if the whole window overflowed
    known = [(r["epoch"], r["loss"]) for r in train if r["loss"] is not None]
    window = max(1, round(len(known) / SMOOTHING))
    smooth = [statistics.fmean(loss for _, loss in known[max(0, i - window + 1) : i + 1]) for i in range(len(known))]
    return {
        "label": run.label,
        "validation": {
            "epoch": [r["epoch"] for r in validation],
            "minutes": [minutes.get(r["step"]) for r in validation],
            "top1": [r.get("map") if run.several else r["top1"] for r in validation],
            "loss": [r["loss"] for r in validation],
        },
        "training": {"epoch": [epoch for epoch, _ in known], "loss": smooth, "window": window},
    }


# --- the paired runs ------------------------------------------------------------------------------------------------


def _per_class(runs: Sequence[Run]) -> list[ClassDifference]:
    predictions = [run.predictions for run in runs]
    first = predictions[0]
    assert first is not None
    count = counts(first.labels, len(first.classes))
    columns: list[list[float | None]] = [run.labelled.precisions for run in runs if run.labelled is not None]
    for p in [] if columns else predictions:
        assert p is not None
        right = counts(p.labels[p.right], len(first.classes)).tolist()
        columns.append([100 * r / int(n) if n else None for r, n in zip(right, count, strict=True)])
    rows: list[ClassDifference] = []
    for k, name in enumerate(first.classes):
        top1 = [each[k] for each in columns]
        change = [None if value is None or top1[0] is None else value - top1[0] for value in top1]
        rows.append({"class": name, "images": int(count[k]), "top1": top1, "difference": change})
    return sorted(rows, key=lambda row: (row["difference"][1] is None, row["difference"][1] or 0.0, row["class"]))


def _agreement(runs: Sequence[Run]) -> Agreement:
    predicted, right = [], []
    for run in runs:
        assert run.predictions is not None
        predicted.append(_decided(run))
        right.append(_right(run))

    def table(cell: Callable[[int, int], np.floating]) -> list[list[float]]:
        return [[100 * float(cell(i, j)) for j in range(len(runs))] for i in range(len(runs))]

    # Two networks without a class for an image do not agree on it.
    return {
        "labels": [run.label for run in runs],
        "same": table(lambda i, j: ((predicted[i] == predicted[j]) & (predicted[i] != NO_CLASS)).mean()),
        "both_wrong": table(lambda i, j: (~right[i] & ~right[j]).mean()),
        "chance": table(lambda i, j: (~right[i]).mean() * (~right[j]).mean() if i != j else (~right[i]).mean()),
    }


def _only_one(base: Run, run: Run) -> OnlyOne:
    """The images that only one of two networks gets right and on which both are most confident.

    These have the largest product of the probabilities of the two predicted classes; images without finite logits are
    left out.
    """
    a, b = base.predictions, run.predictions
    assert a is not None
    assert b is not None
    if base.labelled is not None and run.labelled is not None:
        return _only_one_of_labels(base, run, base.labelled, run.labelled)
    pa, pb = a.probabilities().max(1), b.probabilities().max(1)
    images: list[OneRight] = []
    for winner, chosen in ((run.label, b.right & ~a.right), (base.label, a.right & ~b.right)):
        positions = np.flatnonzero(chosen & a.finite & b.finite)
        best = positions[np.argsort(-(pa * pb)[positions], kind="stable")][:PICTURES]
        images += [
            {
                "position": int(a.positions[i]),
                "name": a.names[i],
                "class": a.classes[a.labels[i]],
                "right": winner,
                "baseline_says": a.classes[a.predicted[i]],
                "baseline_probability": float(pa[i]),
                "this_says": b.classes[b.predicted[i]],
                "this_probability": float(pb[i]),
            }
            for i in best
        ]
    return {"label": run.label, "baseline": base.label, "images": images}


def _only_one_of_labels(base: Run, run: Run, a: Labelled, b: Labelled) -> OnlyOne:
    """Like :func:`_only_one`, of images of which only one network predicts exactly the labels."""
    whole, pa, pb = (a.right.all(1), b.right.all(1)), a.sure(), b.sure()
    sound = a.predictions.finite & b.predictions.finite
    images: list[OneRight] = []
    for winner, chosen in ((run.label, whole[1] & ~whole[0]), (base.label, whole[0] & ~whole[1])):
        positions = np.flatnonzero(chosen & sound)
        images += [
            {
                "position": int(a.predictions.positions[i]),
                "name": a.predictions.names[i],
                "class": a.labels(i),
                "right": winner,
                "baseline_says": a.names(i),
                "baseline_probability": float(pa[i]),
                "this_says": b.names(i),
                "this_probability": float(pb[i]),
            }
            for i in positions[np.argsort(-(pa * pb)[positions], kind="stable")][:PICTURES].tolist()
        ]
    return {"label": run.label, "baseline": base.label, "images": images}


# --- sentences ------------------------------------------------------------------------------------------------------


def _problem(run: Run) -> str:
    if run.predictions is not None:
        return f"{run.label}: the images cannot be opened ({run.problem}), so its stored predictions are used."
    what = "its accuracy is unknown" if _told(run) is None else "its accuracy is that measured in training"
    return f"{run.label} could not be evaluated here ({run.problem}), so {what}."


def _notes(runs: Sequence[Run], baseline: int, recipe: Sequence[Difference]) -> list[str]:
    notes = [
        f"{run.label} is unfinished: {_epochs_done(run)}; its "
        f"{'best weights so far' if run.evaluations else 'latest weights'} are compared."
        for run in runs
        if run.unfinished
    ]
    notes += [
        f"{run.label}: {run.predictions.warning}."
        for run in runs
        if run.predictions is not None and run.predictions.warning is not None
    ]
    notes += [f"{run.label} was not trained by excite: its training is unknown." for run in runs if run.recipe is None]
    by_weights: dict[str, list[str]] = {}
    for run in runs:
        by_weights.setdefault(run.weights, []).append(run.label)
    notes += [f"{' and '.join(same)} have the same weights." for same in by_weights.values() if len(same) > 1]
    of_images: dict[str, list[str]] = {}
    for run in runs:
        for note in [] if run.data is None else run.data.notes:
            of_images.setdefault(note, []).append(run.label)
    notes += [
        f"{note[:1].upper()}{note[1:]}." if len(labels) == len(runs) else f"{', '.join(labels)}: {note}."
        for note, labels in of_images.items()
    ]
    notes += _fairness(runs, baseline, recipe)
    if moved := [words for run in runs if (words := _moved(run))]:
        notes.append(
            f"Accuracies were measured now; in training they were: {'; '.join(moved)} (other images, or other rounding "
            "with another machine, precision or version)."
        )
    return notes


def _epochs_done(run: Run) -> str:
    done = run.evaluations[-1]["epoch"] if run.evaluations else 0
    return f"{done:g} of {'?' if run.recipe is None else run.recipe['train'].get('epochs', '?')} epochs are done"


def _fairness(runs: Sequence[Run], baseline: int, recipe: Sequence[Difference]) -> list[str]:
    """Notes on differences other than the gates."""
    notes = []
    keys = [row["key"] for row in recipe if row["kind"] == "training"]
    if keys:
        notes.append(
            f"The recipes differ in more than their gates ({', '.join(keys)})."
            if len({run.gate for run in runs}) > 1
            else f"The recipes differ in keys that affect training ({', '.join(keys)})."
        )
    others = [run for run in runs if run.body != runs[baseline].body]
    if others:
        names = f"{', '.join(run.label for run in others)} and {runs[baseline].label}"
        notes.append(
            f"{names} differ not only in their gates but also in other layers."
            if any(run.gate != runs[baseline].gate for run in others)
            else f"{names} differ in layers other than gates."
        )
    known = {run.results["data_fingerprint"] for run in runs if run.results and "data_fingerprint" in run.results}
    if len(known) > 1:
        notes.append("The runs were not trained on the same data (their fingerprints differ).")
    machines = {_machine(run) for run in runs if run.results}
    if len(machines) > 1:
        notes.append("The runs were trained under different conditions, so their speed and memory are not comparable:")
        notes[-1] += f" {'; '.join(sorted(machines))}."
    return notes


def _machine(run: Run) -> str:
    results = run.results or {}
    parts = (f"{results.get(key)}" for key in ("devices", "device"))
    return f"{' x '.join(parts)}, {results.get('precision')}, batch {results.get('batch_size')}"


def _moved(run: Run) -> str | None:
    """The accuracy measured in training, if it differs from the present one."""
    told = _told(run)
    if run.predictions is None or told is None or not run.started:
        return None
    _, top1, images = told
    now = 100 * int(run.predictions.right.sum()) / len(run.predictions)
    if run.labelled is not None:
        now = run.labelled.map or 0.0
    if abs(now - top1) < 1e-9 and images == len(run.predictions):
        return None
    return f"{run.label} {top1:.2f} % on {images:,} images"


def _told(run: Run) -> tuple[Summary, float, int] | None:
    """The metrics of the training, top-1 (with several labels, mAP) in percent and the number of images.

    None if either number is missing, as for pruned weights: without the number of images there is no interval.
    """
    found = run.meta.get("metrics")
    key: Literal["map", "top1"] = "map" if run.several else "top1"
    top1, images = (None, None) if found is None else (found.get(key), found.get("images"))
    return None if found is None or top1 is None or not images else (found, top1, images)
