"""The figures of the report, for ``Page.draw``.

Fonts stay readable on a phone, colour alone never carries meaning, and black becomes the page's text colour.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import log1p
from typing import TYPE_CHECKING, Any

from excite.measures import MEASURES, rank
from excite.pages.figures import COLORS, MARKS, Undrawn, attempt, shortened, style
from excite.pages.page import STYLE
from excite.report.contents import LabelNumbers, Numbers, RobustMeasure, RobustnessRow, clean_of, robust_measure
from excite.report.labels import LabelScores, PrecisionCurve, ThresholdPoint
from excite.report.study import ReliabilityBin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Label -> points (epoch, value).
Lines = dict[str, list[tuple[float, float | None]]]
_BLUE, _RED, _GREEN = COLORS[1], COLORS[2], COLORS[3]


@contextmanager
def _axes(width: float, height: float, **options: Any) -> Iterator[tuple[Any, Any]]:
    from matplotlib.figure import Figure

    with style(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(**options)


def drawings(numbers: Numbers | LabelNumbers) -> "dict[str, Figure | Undrawn]":
    """The figures of a report, by name, except those of the gates."""
    found: dict[str, Figure | Undrawn | None] = {}
    curves = numbers["curves"]
    if curves is not None:
        train, evals = curves["train"], curves["eval"]
        metric = numbers["summary"].get("metric") or "top1"
        known = [r for r in evals if r["loss"] is not None and r["metric"] is not None]
        best = max(known, key=lambda r: rank({**r, metric: r["metric"]}, metric), default=None)
        star = None if best is None or best["metric"] is None else (best["epoch"], best["metric"])
        lines: Lines = {"training": [(r["epoch"], r["loss"]) for r in train]}
        lines["validation"] = [(r["epoch"], r["loss"]) for r in evals]
        found["loss"] = attempt(curve, lines, "loss, nats", star if metric == "loss" else None)
        lines = {"training": [(r["epoch"], r["accuracy"]) for r in train]}
        lines["validation"] = [(r["epoch"], r["top1"]) for r in evals]
        if "labels" not in numbers:
            found["accuracy"] = attempt(curve, lines, "top-1 accuracy, %", star if metric == "top1" else None)
        if star is not None and metric not in ("top1", "loss"):
            lines = {"validation": [(r["epoch"], r["metric"]) for r in evals]}
            found["metric"] = attempt(curve, lines, f"{MEASURES[metric].label}, %", star)
        lines = {"learning rate": [(r["epoch"], r["lr"]) for r in train]}
        found["learning-rate"] = attempt(curve, lines, "learning rate")
    if "labels" in numbers:
        labels, both = numbers["labels"], numbers["labels"]["together"]
        found["precision-recall"] = attempt(precision_recall, labels["curves"], labels["classes"])
        found["thresholds"] = attempt(thresholds, labels["thresholds"], labels["accuracy"]["threshold"])
        found["together"] = attempt(confusion, both["matrix"], both["labels"], both["block"], ("label", "also has"))
        names = ("images with the label, %", "probability of a label, %", "pairs, %")
        bins = labels["calibration"]["reliability"]
        found["reliability"] = attempt(reliability, bins, sum(row["images"] for row in bins), names)
    else:
        matrix, images = numbers["confusion"], numbers["accuracy"]["images"]
        found["confusion"] = attempt(confusion, matrix["matrix"], matrix["labels"], matrix["block"])
        found["reliability"] = attempt(reliability, numbers["calibration"]["reliability"], images)
    robust = numbers["robustness"]
    if robust is not None:
        found["robustness"] = attempt(robustness, robust["rows"], clean_of(robust), robust_measure(robust))
    return {name: drawing for name, drawing in found.items() if drawing is not None}


def curve(lines: Lines, title: str, best: tuple[float, float] | None = None) -> "Figure | None":
    """Draw values over epochs; None if there are no values.

    Args:
        lines: label -> points.
        title: title, with the unit.
        best: a point (epoch, value) to mark.
    """
    finite = {label: [point for point in points if point[1] is not None] for label, points in lines.items()}
    known = [(label, points) for label, points in finite.items() if points]
    if not known:
        return None
    with _axes(3.4, 2.7) as (figure, axis):
        for label, points in known:
            validation = label == "validation"
            mark = "o" if len(points) <= 40 and (validation or len(known) == 1) else ""
            style = {"color": _RED, "linewidth": 2} if validation else {"color": _BLUE, "linewidth": 1.3}
            axis.plot(*zip(*points, strict=True), label=label, marker=mark, markersize=4, **style)
        if best is not None:
            axis.plot(*best, "*", color=_RED, markersize=13)
            axis.annotate(f"best: {best[1]:.2f}", best, (-4, -20), textcoords="offset points", ha="right", color=_RED)
        if len(known) > 1:
            axis.legend()
        axis.set(xlabel="epoch", title=title)
        axis.grid(alpha=0.3)
    return figure


def confusion(
    matrix: Sequence[Sequence[int]],
    labels: Sequence[str],
    block: int,
    axes: tuple[str, str] = ("true", "predicted"),
) -> "Figure":
    """Draw the confusion matrix: darker cells are larger shares of their row; counts are shown if there is room.

    Args:
        matrix: counts; rows are true classes.
        labels: row labels.
        block: classes per row; above 1, the scale is logarithmic, to show few errors among many classes.
        axes: what rows and columns are.
    """
    size = len(labels)
    side = max(3.4, 1.6 + 0.42 * size) if block == 1 else 7.0
    with _axes(side, side) as (figure, axis):
        for i, row in enumerate(matrix):
            total = max(1, sum(row))
            for j, count in enumerate(row):
                if count:
                    share = count / total
                    dark = share if block == 1 else log1p(1000 * share) / log1p(1000)
                    _cell(axis, i, j, dark, _GREEN if i == j else _RED)
                    if block == 1:
                        # #fefefe stays white on the page, in light and dark.
                        color = "#fefefe" if dark > 0.6 else "black"
                        axis.text(j, i, f"{count}", ha="center", va="center", color=color, fontsize=8)
        axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel=axes[1], ylabel=axes[0], aspect="equal")
        names = [shortened(label, 14) for label in labels]
        axis.set_xticks(range(size), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=8)
        axis.set_yticks(range(size), names, fontsize=8)
        axis.tick_params(length=0)
    return figure


def _cell(axis: Any, i: int, j: int, dark: float, color: str) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, color=color, alpha=max(0.06, dark), linewidth=0))


def reliability(
    rows: Sequence[ReliabilityBin],
    images: int,
    names: tuple[str, str, str] = (
        "accuracy, %",
        "confidence (probability of the predicted class), %",
        "images, %",
    ),
) -> "Figure":
    """Draw accuracy over confidence, one bar per bin, with the diagonal; below, the share of images in each bin.

    Args:
        rows: the bins.
        images: how many images (or image-label pairs) there are.
        names: of accuracy, confidence and shares.
    """
    some = [row for row in rows if row["images"]]
    said = "accuracy" if names[0].startswith("accuracy") else "share"
    width = 100 * (rows[0]["high"] - rows[0]["low"])
    with _axes(4.8, 4.6, nrows=2, sharex=True, height_ratios=(3, 1)) as (figure, (top, below)):
        middles = [50 * (row["low"] + row["high"]) for row in some]
        top.plot([0, 100], [0, 100], "--", color="black", linewidth=1, label="calibrated")
        top.bar(
            middles,
            [row["accuracy"] for row in some],
            0.92 * width,
            color=_BLUE,
            alpha=0.55,
            label=f"{said} in a bin",
        )
        top.plot(
            [row["confidence"] for row in some],
            [row["accuracy"] for row in some],
            "D",
            color=_RED,
            markersize=4,
            label="at its mean confidence",
        )
        top.set(ylabel=names[0], xlim=(0, 100), ylim=(0, 103), title="reliability")
        top.legend(fontsize=8, loc="upper left")
        below.bar(middles, [100 * row["images"] / images for row in some], 0.92 * width, color=_GREEN, alpha=0.6)
        below.set(xlabel=names[1], ylabel=names[2])
        for axis in (top, below):
            axis.grid(alpha=0.3)
            axis.set_axisbelow(True)
    return figure


def robustness(rows: Sequence[RobustnessRow], clean: float, measure: RobustMeasure = "top1") -> "Figure":
    """Draw top-1 (or mAP) over severity, one line per corruption; severity 0 means no corruption."""
    with _axes(5.0, 3.5) as (figure, axis):
        names = list(dict.fromkeys(row["corruption"] for row in rows))
        for k, name in enumerate(names):
            points = [(0, clean), *((r["severity"], r[measure]) for r in rows if r["corruption"] == name)]
            axis.plot(
                *zip(*points, strict=True),
                marker=MARKS[k % len(MARKS)],
                markersize=5,
                color=COLORS[1 + k % 6],
                label=name.replace("_", " "),
            )
        axis.set(xlabel="severity", ylabel=f"{MEASURES[measure].label}, %", xticks=range(6))
        axis.set_title(f"{'mAP' if measure == 'map' else 'accuracy'} under corruptions")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="best")
    return figure


def precision_recall(curves: Sequence[PrecisionCurve], classes: Sequence[LabelScores]) -> "Figure":
    """Draw precision over recall: of all image-label pairs, and of the best and the weakest classes."""
    known = sorted((row["ap"], row["class"]) for row in classes if row["ap"] is not None)
    chosen = [name for _, name in (known if len(known) <= 6 else known[:3] + known[-3:])]
    precision = {name: ap for ap, name in known}
    by_class = {curve["class"]: curve for curve in curves}
    with _axes(5.0, 4.2) as (figure, axis):
        whole = by_class.get(None)
        if whole is not None:
            axis.plot(whole["recall"], whole["precision"], color="black", linewidth=2.2, label="all labels")
        for k, name in enumerate(reversed(chosen)):
            own, look = by_class[name], {"color": COLORS[1 + k % 6], "marker": MARKS[k % len(MARKS)]}
            label = f"{shortened(name, 20)} (AP {precision[name]:.1f})"
            axis.plot(own["recall"], own["precision"], linewidth=1.3, markevery=12, markersize=4, label=label, **look)
        axis.set(xlabel="recall, %", ylabel="precision, %", xlim=(0, 101), ylim=(0, 102))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="best")
    return figure


def thresholds(points: Sequence[ThresholdPoint], kept: float) -> "Figure":
    """Draw F1, precision and recall over the threshold; a dashed line marks the one that is kept."""
    lines = (
        ("micro F1", [p["micro_f1"] for p in points], _RED, "-"),
        ("macro F1", [p["macro_f1"] for p in points], _BLUE, "-"),
        ("precision", [p["precision"] for p in points], _GREEN, ":"),
        ("recall", [p["recall"] for p in points], "black", ":"),
    )
    with _axes(5.0, 3.5) as (figure, axis):
        for label, values, color, style in lines:
            some = [(p["threshold"], v) for p, v in zip(points, values, strict=True) if v is not None]
            axis.plot(*zip(*some, strict=True), style, color=color, label=label, linewidth=1.8)
        axis.axvline(kept, color="black", linestyle="--", linewidth=1)
        axis.annotate(f"kept: {kept:.3f}", (kept, 3), (5, 0), textcoords="offset points", fontsize=9)
        axis.set(xlabel="threshold", ylabel="%", xlim=(0, 1), ylim=(0, 102))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="best")
    return figure
