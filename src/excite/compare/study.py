"""From runs to numbers: one JSON-able dict that the page, the terminal, the CSV and ``--json`` all read.

Accuracies and differences are in percent and percentage points; N images, K classes, R runs.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch

from excite.compare.recipes import differences
from excite.compare.runs import Run
from excite.logits import NO_CLASS, losses, mean_loss
from excite.pages.intervals import Pairs, holm, mcnemar, mean_difference, paired_interval, wilson
from excite.trained.predictions import accuracy

#: Pictures of a pair of runs: so many that only the one gets right, and as many that only the other does.
PICTURES = 6
#: What the training loss is averaged over: a 40th of the records of a run.
SMOOTHING = 40
WHAT_IT_SAYS = (
    "The test and the intervals are about these trained networks on images like these test images, not about the "
    "recipes or the gates: another seed gives another network, and `excite twins` trains several."
)


def study(runs: Sequence[Run], baseline: int = 0, confidence: float = 0.95) -> dict[str, Any]:
    """Compare.

    Args:
        runs: two or more.
        baseline: position of the run that the others are compared with.
        confidence: of the intervals.

    Returns:
        ``rows``, one a run, see :func:`_row`; ``paired``: the labels of the runs that are compared image by image (the
        baseline first; empty where none can be); ``recipe``, see ``recipes.differences``; ``curves``; ``per_class``,
        ``agreement`` and ``only_one`` for the paired runs, else None; ``notes``, sentences; ``confidence``;
        ``baseline``, its label.
    """
    notes = [_problem(run) for run in runs if run.problem is not None]
    group = _paired_group(runs, baseline, notes)
    rows = [_row(run, confidence) for run in runs]
    for row, comparison in zip(rows, _comparisons(runs, baseline, group, confidence), strict=True):
        row.update(comparison)
    paired = [runs[i] for i in group]
    recipe = differences([run.recipe for run in runs])
    notes += _notes(runs, baseline, recipe)
    return {
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
        "notes": notes,
    }


class Compared(TypedDict):
    """What the pairs of a run and the baseline say; ``difference`` in percentage points, ``loss_difference`` in nats.

    ``only_this`` and ``only_baseline`` count the images that only one of the two gets right; ``p`` is McNemar's, in the
    form ``test``; ``p_holm`` is adjusted for the number of runs; ``_low`` and ``_high`` are ends of intervals.
    """

    difference: float
    difference_low: float
    difference_high: float
    only_this: int
    only_baseline: int
    both_right: int
    both_wrong: int
    p: float
    p_holm: float
    test: str
    loss_difference: float | None
    loss_difference_low: float | None
    loss_difference_high: float | None


# --- which can be compared image by image ---------------------------------------------------------------------------


def _paired_group(runs: Sequence[Run], baseline: int, notes: list[str]) -> list[int]:
    """Positions of the runs with predictions for the baseline's images, the baseline first; [] for it alone."""
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
    """Why two sets of predictions are not about the same images; None where they are."""
    a, b = base.predictions, run.predictions
    assert a is not None
    assert b is not None
    if a.classes != b.classes:
        if set(a.classes) == set(b.classes):
            return "the same classes are in another order"
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


def _comparisons(runs: Sequence[Run], baseline: int, group: Sequence[int], confidence: float) -> list[dict[str, Any]]:
    """For each run what the pairs with the baseline say; None everywhere for those without."""
    others = [i for i in group if i != baseline]
    found = {i: _compare(runs[i], runs[baseline], confidence) for i in others}
    for i, adjusted in zip(others, holm([found[i]["p"] for i in others]), strict=True):
        found[i]["p_holm"] = adjusted
    return [dict(found[i]) if i in found else dict.fromkeys(Compared.__annotations__) for i in range(len(runs))]


def _compare(run: Run, base: Run, confidence: float) -> Compared:
    assert run.predictions is not None
    assert base.predictions is not None
    pairs = Pairs.count(run.predictions.right.tolist(), base.predictions.right.tolist())
    low, high = paired_interval(pairs, confidence)
    p, test = mcnemar(pairs)
    both = _losses(run) - _losses(base)
    both = both[~np.isnan(both)]  # of the images that have finite logits in both
    loss, loss_low, loss_high = mean_difference(both.tolist(), confidence) if len(both) else (None, None, None)
    return {
        "difference": 100 * pairs.difference,
        "difference_low": 100 * low,
        "difference_high": 100 * high,
        "only_this": pairs.only_first,
        "only_baseline": pairs.only_second,
        "both_right": pairs.both,
        "both_wrong": pairs.neither,
        "p": p,
        "p_holm": p,
        "test": test,
        "loss_difference": loss,
        "loss_difference_low": loss_low,
        "loss_difference_high": loss_high,
    }


def _losses(run: Run) -> np.ndarray:
    """float64 (N,): cross-entropy of each image, nats; NaN where its logits are not finite."""
    assert run.predictions is not None
    logits, labels = torch.from_numpy(run.predictions.logits), torch.from_numpy(run.predictions.labels)
    return losses(logits.double(), labels).numpy()


# --- one run --------------------------------------------------------------------------------------------------------


def _row(run: Run, confidence: float) -> dict[str, Any]:
    """What is known of a run by itself.

    ``top1``, ``top5`` and ``loss`` are of the predictions made now, or of the training (``measured``: "predictions",
    "training"); ``top1_low`` and ``top1_high`` Wilson's interval. Speed and memory are those of its own training.
    """
    results = run.results or {}
    recipe = run.recipe or {}
    evaluations = run.evaluations
    return {
        "label": run.label,
        "source": run.source,
        "model": run.meta["model"]["name"],
        "gate": run.gate,
        "params": run.params,
        "gmacs": results.get("gmacs", run.gmacs),
        "epochs": None if run.recipe is None else recipe["train"]["epochs"],
        "epochs_done": evaluations[-1]["epoch"] if evaluations else None,
        "best_epoch": run.meta.get("epoch") if run.recipe is not None else None,
        "finished": None if not run.started else not run.unfinished,
        "seed": recipe.get("train", {}).get("seed"),
        "recipe": recipe.get("name"),
        **_accuracy(run, confidence),
        "training_top1": (run.meta.get("metrics") or {}).get("top1"),
        "last_top1": results.get("last_top1", evaluations[-1]["top1"] if evaluations else None),
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


def _accuracy(run: Run, confidence: float) -> dict[str, Any]:
    keys = ("images", "right", "top1", "top1_low", "top1_high", "top5", "not_finite")
    if run.predictions is not None:
        measured: Mapping[str, Any] = accuracy(run.predictions, confidence)
        return {
            "measured": "predictions",
            **{key: measured[key] for key in keys},
            "loss": mean_loss(torch.from_numpy(_losses(run))),
        }
    found = run.meta.get("metrics")
    if not found:
        return dict.fromkeys(("measured", *keys, "loss"))
    images, right = found["images"], round(found["top1"] * found["images"] / 100)
    low, high = wilson(right, images, confidence)
    values = (images, right, 100 * right / images, 100 * low, 100 * high, found["top5"], found.get("not_finite", 0))
    return {"measured": "training", **dict(zip(keys, values, strict=True)), "loss": found["loss"]}


def _curves(run: Run) -> dict[str, Any] | None:
    """What happened in training, by epoch and by minutes of training steps; None without records."""
    train = [r for r in run.records if r["kind"] == "train"]
    minutes = {r["step"]: r["seconds"] / 60 for r in train}
    validation = [{**r, "minutes": minutes.get(r["step"])} for r in run.evaluations]
    if not train and not validation:
        return None
    known = [r for r in train if r["loss"] is not None]  # fp16: not where all of a window overflowed
    window = max(1, round(len(known) / SMOOTHING))
    smooth = [statistics.fmean(r["loss"] for r in known[max(0, i - window + 1) : i + 1]) for i in range(len(known))]
    return {
        "label": run.label,
        "validation": {k: [r[k] for r in validation] for k in ("epoch", "minutes", "top1", "loss")},
        "training": {"epoch": [r["epoch"] for r in known], "loss": smooth, "window": window},
    }


# --- the paired runs ------------------------------------------------------------------------------------------------


def _per_class(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row a class: ``class``, ``images``, ``top1`` (recall, percent) by run and ``difference`` to the first, both
    in the order of the runs (None for a class without images); sorted by the difference of the second, then by name."""
    predictions = [run.predictions for run in runs]
    first = predictions[0]
    assert first is not None
    count = np.bincount(first.labels, minlength=len(first.classes))
    right = [np.bincount(p.labels[p.right], minlength=len(first.classes)) for p in predictions if p is not None]
    rows = []
    for k, name in enumerate(first.classes):
        top1 = [100 * int(each[k]) / int(count[k]) if count[k] else None for each in right]
        change = [None if value is None or top1[0] is None else value - top1[0] for value in top1]
        rows.append({"class": name, "images": int(count[k]), "top1": top1, "difference": change})
    return sorted(rows, key=lambda row: (row["difference"][1] is None, row["difference"][1] or 0.0, row["class"]))


def _agreement(runs: Sequence[Run]) -> dict[str, Any]:
    """(R, R) shares in percent: ``same``: both give the same class, right or wrong; ``both_wrong``; and ``chance``:
    how often both would be wrong if the errors of one had nothing to do with those of the other."""
    predicted, right = [], []
    for run in runs:
        assert run.predictions is not None
        predicted.append(run.predictions.predicted)
        right.append(run.predictions.right)

    def table(cell: Any) -> list[list[float]]:
        return [[100 * float(cell(i, j)) for j in range(len(runs))] for i in range(len(runs))]

    # Two that have no class for an image do not agree on it.
    return {
        "labels": [run.label for run in runs],
        "same": table(lambda i, j: ((predicted[i] == predicted[j]) & (predicted[i] != NO_CLASS)).mean()),
        "both_wrong": table(lambda i, j: (~right[i] & ~right[j]).mean()),
        "chance": table(lambda i, j: (~right[i]).mean() * (~right[j]).mean() if i != j else (~right[i]).mean()),
    }


def _only_one(base: Run, run: Run) -> dict[str, Any]:
    """The images that only one of two networks gets right and on which both are most sure of themselves: the largest
    product of the right one's probability of the true class and the wrong one's of its class. One that has no finite
    logits is sure of nothing."""
    a, b = base.predictions, run.predictions
    assert a is not None
    assert b is not None
    pa, pb = a.probabilities().max(1), b.probabilities().max(1)
    images: list[dict[str, Any]] = []
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


# --- sentences ------------------------------------------------------------------------------------------------------


def _problem(run: Run) -> str:
    if run.predictions is not None:
        return f"{run.label}: the images cannot be opened ({run.problem}), so its stored predictions are used."
    found = run.meta.get("metrics")
    what = "its accuracy is the one found in its training" if found else "its accuracy is not known"
    return f"{run.label} could not be evaluated here ({run.problem}), so {what}."


def _notes(runs: Sequence[Run], baseline: int, recipe: Sequence[dict[str, Any]]) -> list[str]:
    notes = [
        f"{run.label} is unfinished: {_epochs_done(run)}; compared are its "
        f"{'best weights so far' if run.evaluations else 'latest weights'}."
        for run in runs
        if run.unfinished
    ]
    notes += [
        f"{run.label}: {run.predictions.warning}."
        for run in runs
        if run.predictions is not None and run.predictions.warning is not None
    ]
    notes += [
        f"{run.label} comes from elsewhere: how it was trained is not known." for run in runs if run.recipe is None
    ]
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
            f"Accuracies are those found here and now; the trainings themselves had found: {'; '.join(moved)} (other "
            "images, or other rounding by another machine, precision or version)."
        )
    return notes


def _epochs_done(run: Run) -> str:
    done = run.evaluations[-1]["epoch"] if run.evaluations else 0
    return f"{done:g} of {'?' if run.recipe is None else run.recipe['train']['epochs']} epochs are done"


def _fairness(runs: Sequence[Run], baseline: int, recipe: Sequence[dict[str, Any]]) -> list[str]:
    """What else differs than the gates."""
    notes = []
    keys = [row["key"] for row in recipe if row["kind"] == "training"]
    if keys:
        notes.append(
            f"The gates are not all that differs between the recipes ({', '.join(keys)})."
            if len({run.gate for run in runs}) > 1
            else f"The recipes differ in what decides the training ({', '.join(keys)})."
        )
    others = [run for run in runs if run.body != runs[baseline].body]
    if others:
        names = f"{', '.join(run.label for run in others)} and {runs[baseline].label}"
        notes.append(
            f"{names} differ in more than their gates: in other layers, too."
            if any(run.gate != runs[baseline].gate for run in others)
            else f"{names} differ in layers that are no gates."
        )
    known = {run.results["data_fingerprint"] for run in runs if run.results and "data_fingerprint" in run.results}
    if len(known) > 1:
        notes.append("The runs were not trained on the same data (their fingerprints differ).")
    machines = {_machine(run) for run in runs if run.results}
    if len(machines) > 1:
        notes.append("The runs were not trained under equal conditions, so do not compare their speeds and memory:")
        notes[-1] += f" {'; '.join(sorted(machines))}."
    return notes


def _machine(run: Run) -> str:
    results = run.results or {}
    parts = (f"{results.get(key)}" for key in ("devices", "device"))
    return f"{' x '.join(parts)}, {results.get('precision')}, batch {results.get('batch_size')}"


def _moved(run: Run) -> str | None:
    """What the training found, where it is not what is found now."""
    found = run.meta.get("metrics") or {}
    if run.predictions is None or not found or not run.started:
        return None
    now = 100 * int(run.predictions.right.sum()) / len(run.predictions)
    if abs(now - found["top1"]) < 1e-9 and found["images"] == len(run.predictions):
        return None
    return f"{run.label} {found['top1']:.2f} % on {found['images']:,} images"
