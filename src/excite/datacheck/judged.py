"""Which labels look wrong, and what that does to a measured accuracy: from features and logits to findings.

Shapes: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from excite.datacheck.contents import LabelNoise, Restated, RestatedRow
from excite.datacheck.decisions import Decisions, Rate, fit_decisions, judged_classes, true_precision
from excite.datacheck.features import Features
from excite.datacheck.items import PARTS, Items, combined
from excite.datacheck.labels import FEWEST, PERHAPS, SURE, Noise, enough, fit_noise, informative
from excite.datacheck.probe import cross_fitted
from excite.datacheck.restated import Share, joined, measured, true_accuracy
from excite.measures import mean_average_precision, named, predicted_at
from excite.pages.resampling import interval, resampled
from excite.progress import Progress

#: Labels of one image that are told apart in words, and classes that are named as not judged.
_TOLD, _NAMED = 3, 5


class Suspect(NamedTuple):
    """An image whose label looks wrong: its position, the probability, why, and the class or classes it looks like."""

    item: int
    wrong: float
    detail: str
    instead: str


@dataclass(frozen=True)
class Judged:
    """What the labels of a part are worth, and rows that say so."""

    part: str
    noise: Noise | Decisions
    rows: list[LabelNoise]


def judge_labels(
    is_run: bool, items: Items, shown: np.ndarray, features: Features, groups: np.ndarray, tell: Progress
) -> tuple[list[Suspect], list[Judged], list[str]]:
    """The labels that may be wrong, the surest first, the noise by part, what is not judged.

    Without a run, all parts are judged together. A run's network judges the parts that it was not trained on by itself;
    its training images are judged by a cross-fitted classifier on its features. Copies of training images in other
    parts are not judged there: the network has seen them.

    Args:
        is_run: whether the features are those of a run on these data.
        items: the images.
        shown: int64, positions of the images to be judged.
        features: of all images.
        groups: int64 (N,), equal for copies of each other.
        tell: called during the work.
    """
    todo: list[tuple[str, np.ndarray, np.ndarray | None, str]] = []
    if not is_run:
        todo.append(("all parts", shown, None, f"a classifier on {features.source}, five-fold"))
    else:
        assert features.logits is not None
        shown = shown[np.isfinite(features.logits[shown]).all(1) & np.isfinite(features.values[shown]).all(1)]
        trained = shown[items.parts[shown] == 0]
        todo.append((PARTS[0], trained, None, "a classifier on the network's features, five-fold"))
        seen = np.isin(groups, groups[trained])
        for number, part in list(enumerate(PARTS))[1:]:
            some = shown[(items.parts[shown] == number) & ~seen[shown]]
            todo.append((part, some, features.logits[some], "the network"))
    found: list[Suspect] = []
    judged, missing = [], []
    for part, some, logits, judge in todo:
        if not len(some):
            continue
        labels = items.given[some]
        if not (enough(labels) if items.several is None else len(some) >= FEWEST):
            missing.append(f"labels of {part}: {len(some):,} images are too few")
            continue
        if logits is None:
            tell("fitting a classifier", 0, 0)
            logits = _log_odds(
                cross_fitted(features.values[some], labels, len(items.each_class), groups[some], tell), labels.ndim == 2
            )
        more, noise, unknown = (_one_class if items.several is None else _several)(part, judge, items, some, logits)
        found += more
        judged += [noise] if noise is not None else []
        missing += unknown
    return sorted(found, key=lambda each: -each.wrong), judged, missing


def _log_odds(chances: np.ndarray, several: bool) -> np.ndarray:
    """Logits of probabilities, float32 (N, K): of a softmax, or of a sigmoid for each class."""
    chances = np.clip(chances.astype(np.float64), 1e-12, 1 - 1e-7 if several else 1)
    return np.log(chances) - (np.log1p(-chances) if several else 0)


def _one_class(
    part: str, judge: str, items: Items, some: np.ndarray, logits: np.ndarray
) -> tuple[list[Suspect], Judged | None, list[str]]:
    labels = items.labels[some]
    if not informative(logits, labels):
        return [], None, [f"labels of {part}: {judge} does no better than naming the largest class"]
    noise = fit_noise(logits, labels)
    found = [
        Suspect(
            int(some[k]), float(noise.wrong[k]), f"{_percent(noise.wrong[k])} % likely to be wrong", items.classes[c]
        )
        for k, c in ((k, noise.instead[k]) for k in noise.order(PERHAPS).tolist())
    ]
    share = Rate(noise.rate, noise.low, noise.high)
    row = _row(part, len(some), judge, "wrong", share, noise.temperature, len(noise.order(SURE)))
    return found, Judged(part, noise, [row]), []


def _several(
    part: str, judge: str, items: Items, some: np.ndarray, logits: np.ndarray
) -> tuple[list[Suspect], Judged | None, list[str]]:
    labels = items.given[some]
    classes = judged_classes(logits, labels)
    unknown = []
    if not classes.all():
        names = [items.each_class[k] for k in np.flatnonzero(~classes)]
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        which = "" if not classes.any() else f" for {', '.join(names[:_NAMED])}{more}"
        unknown.append(f"labels of {part}{which}: there are too few images, or {judge} does no better than guessing")
    if not classes.any():
        return [], None, unknown
    noise = fit_decisions(logits, labels, classes)
    if noise.vague:
        return (
            [],
            None,
            [f"labels of {part}: {judge} is too unsure of what is there to tell missing labels from errors"],
        )
    worst = noise.wrong.max(1)
    found = []
    for k in np.flatnonzero(worst >= PERHAPS).tolist():
        order = np.argsort(-noise.wrong[k], kind="stable")
        doubted = order[noise.wrong[k][order] >= PERHAPS]
        changed = labels[k].copy()
        flipped = doubted[noise.wrong[k][doubted] >= SURE] if worst[k] >= SURE else doubted[:1]
        changed[flipped] = 1 - changed[flipped]
        faults = [(c, "is not there" if labels[k, c] else "is missing") for c in doubted[:_TOLD].tolist()]
        why = ", ".join(f"{items.each_class[c]} {fault} ({_percent(noise.wrong[k, c])} %)" for c, fault in faults)
        found.append(Suspect(int(some[k]), float(worst[k]), why, combined(items.each_class, changed)))
    sure = noise.wrong >= SURE
    rows = [
        _row(part, len(some), judge, what, share, 1 / noise.curve[1], int((sure & (labels == given)).sum()))
        for what, share, given in (("missing", noise.missing, 0), ("invented", noise.given_wrongly, 1))
    ]
    return found, Judged(part, noise, rows), unknown


def _percent(wrong: float) -> int:
    return min(99, round(100 * float(wrong)))


def _row(part: str, images: int, judge: str, what: str, share: Rate, temperature: float, sure: int) -> LabelNoise:
    return {
        "part": part,
        "images": images,
        "judged_by": judge,
        "what": what,  # type: ignore[typeddict-item]
        "percent": 100 * share.share,
        "percent_low": 100 * share.low,
        "percent_high": 100 * share.high,
        "temperature": temperature,
        "sure": sure,
    }


# --- the number -------------------------------------------------------------------------------------------------------


def restate(
    items: Items,
    good: np.ndarray,
    features: Features,
    groups: np.ndarray,
    judged: Sequence[Judged],
    threshold: float,
) -> list[Restated]:
    """The accuracy, or mAP, on each part that the network was not trained on; see ``excite.datacheck.restated``.

    Args:
        items: the images.
        good: int64, positions of the readable ones.
        features: with the logits of the run's network.
        groups: int64 (N,), equal for copies of each other.
        judged: from :func:`judge_labels`.
        threshold: the probability from which on a class is predicted, if several may be.
    """
    assert features.logits is not None
    logits, given = features.logits, items.given
    seen = np.isin(groups, groups[good[items.parts[good] == 0]])
    several = items.several is not None
    if several:
        right = (predicted_at(logits, threshold) == (given > 0)).all(1) & np.isfinite(logits).all(1)
    else:
        right = np.where(np.isfinite(logits).all(1), logits.argmax(1), -1) == given
    found: list[Restated] = []
    for number, part in list(enumerate(PARTS))[1:]:
        some = good[items.parts[good] == number]
        if not len(some):
            continue
        clean, leaked = some[~seen[some]], some[seen[some]]
        noise = next((each.noise for each in judged if each.part == part), None)
        rows = (
            _precisions(logits, given, some, clean, noise) if several else _accuracies(right, some, clean, noise, items)
        )
        said = (_AS_MEASURED, _WITHOUT, _BY_TRUTH)
        found.append(
            {
                "part": part,
                "measure": "map" if several else "top1",
                "leaked": len(leaked),
                "leaked_right": int(right[leaked].sum()),
                "rows": [_restated_row(what, row, several) for what, row in zip(said, rows, strict=False)],
            }
        )
    return found


_AS_MEASURED = "as measured"
_WITHOUT = "without copies of training images"
_BY_TRUTH = "and by the true labels, estimated"


def _accuracies(
    right: np.ndarray, some: np.ndarray, clean: np.ndarray, noise: Noise | Decisions | None, items: Items
) -> list[Share]:
    rows = [measured(int(right[some].sum()), len(some))]
    if len(clean):
        rows.append(measured(int(right[clean].sum()), len(clean)))
        if isinstance(noise, Noise):
            rows.append(true_accuracy(rows[-1], noise.rate, noise.low, noise.high, len(items.classes)))
    return rows


def _precisions(
    logits: np.ndarray, given: np.ndarray, some: np.ndarray, clean: np.ndarray, noise: Noise | Decisions | None
) -> list[Share]:
    rows: list[Share] = []
    for which in (some, clean):
        value = mean_average_precision(logits[which], given[which]) if len(which) else None
        if value is None:
            return rows
        low, high = interval(value, resampled(logits[which], given[which], 0.5).map)
        assert low is not None
        assert high is not None
        rows.append(Share(len(which), value / 100, low / 100, high / 100))
    best = restated_precision(logits[clean], given[clean], rows[-1], noise) if isinstance(noise, Decisions) else None
    return rows if best is None else [*rows, best]


def restated_precision(logits: np.ndarray, given: np.ndarray, by_labels: Share, noise: Decisions) -> Share | None:
    """mAP by the true labels, with its 95 % interval; None if nothing is left of any class.

    The interval joins those of the mAP by the given labels, stretched as the mAP is, and of both rates by MOVER, as in
    :func:`excite.datacheck.restated.true_accuracy`.

    Args:
        logits: float32 (N, K).
        given: uint8 (N, K), the labels.
        by_labels: mAP by the given labels of these images.
        noise: from the same images.
    """
    m, i = noise.missing, noise.invented

    def solved(missing: float, invented: float) -> float | None:
        value = true_precision(logits, given, missing, invented)
        return None if value is None else value / 100

    best = solved(m.share, i.share)
    if best is None:
        return None
    stretch = best / max(by_labels.share, 1e-9)
    below, above = [stretch * (by_labels.share - by_labels.low)], [stretch * (by_labels.high - by_labels.share)]
    for low, high in (((m.low, i.share), (m.high, i.share)), ((m.share, i.low), (m.share, i.high))):
        ends = [best if (value := solved(*rates)) is None else value for rates in (low, high)]
        below.append(best - min(best, *ends))
        above.append(max(best, *ends) - best)
    return Share(len(given), best, max(0.0, best - joined(*below)), min(1.0, best + joined(*above)))


def _restated_row(what: str, share: Share, several: bool) -> RestatedRow:
    values = {"top1": 100 * share.share, "top1_low": 100 * share.low, "top1_high": 100 * share.high}
    return {"what": what, "images": share.images, **named(values, several)}  # type: ignore[typeddict-item]
