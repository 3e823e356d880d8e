"""The figures of a comparison, drawn only from the numbers of ``study``.

Colours are those of Okabe & Ito, which colour-blind readers can distinguish, and every run also has its own marker.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from excite.compare.study import Curves, OneRight, OnlyOne, Study
from excite.pages.figures import COLORS, MARKS, Undrawn, attempt, save, shortened, style
from excite.pages.pictures import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GRAY = "#808080"  # readable on white and on black
#: With more classes, only those with the largest differences are drawn, half from each end.
MOST_CLASSES = 40
#: The most markers on a line.
_MARKS_ON_LINE = 15


def figures(found: Study) -> "dict[str, Figure | Undrawn]":
    """The figures that the numbers of ``study`` allow, by name."""
    drawn: dict[str, Callable[[Study], Figure]] = {}
    if any(row["top1"] is not None for row in found["rows"]):
        drawn["accuracy"] = _accuracy
    if found["curves"]:
        drawn["curves"] = _curves
    if found["paired"]:
        drawn["classes"] = _classes
    if len(found["paired"]) > 2:  # for two runs it is a single number
        drawn["agreement"] = _agreement
    return {name: attempt(draw, found) for name, draw in drawn.items()}


class _Look(TypedDict):
    color: str
    marker: str


def _look(position: int) -> _Look:
    """Colour and marker of the run at a position: 49 different combinations."""
    return {
        "color": COLORS[position % len(COLORS)],
        "marker": MARKS[(position + position // len(COLORS)) % len(MARKS)],
    }


def _labels(found: Study) -> list[str]:
    return [row["label"] for row in found["rows"]]


def short(text: str, most: int = 28) -> str:
    """A label shortened for a figure."""
    return shortened(text, most)


def _panel(axis: Any, title: str, x: str, y: str = "") -> None:
    axis.set_title(title, fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _accuracy(found: Study) -> "Figure":
    """Top-1 with Wilson's interval, and the paired difference to the baseline with its interval: one row per run."""
    rows, percent = found["rows"], f"{100 * found['confidence']:g} %"
    figure = _figure(8.5, 1.4 + 0.42 * len(rows))
    axes = figure.subplots(1, 2 if found["paired"] else 1, sharey=True, squeeze=False)[0]
    for y, row in enumerate(rows):
        _interval(axes[0], y, row["top1"], row["top1_low"], row["top1_high"])
        if found["paired"]:
            _interval(axes[1], y, row["difference"], row["difference_low"], row["difference_high"])
    axes[0].set_yticks(range(len(rows)), [short(label) for label in _labels(found)])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    _panel(
        axes[0],
        "mAP" if found["measure"] == "mAP" else "accuracy",
        f"{found['measure']}, %, with its {percent} interval",
    )
    if found["paired"]:
        axes[1].axvline(0, color=_GRAY, linewidth=1)
        axes[1].tick_params(axis="y", length=0)
        _panel(axes[1], f"difference to {short(found['baseline'])}", f"points, with the paired {percent} interval")
    return figure


def _interval(axis: Any, y: int, value: float | None, low: float | None, high: float | None) -> None:
    if value is not None:
        look = _look(y)
        if low is not None:
            axis.plot([low, high], [y, y], color=look["color"], linewidth=2, solid_capstyle="butt")
        axis.plot(value, y, markersize=7, **look)


def _curves(found: Study) -> "Figure":
    """Validation by epoch and by time, and the training loss, of all runs in the same panels."""
    timed = any(m is not None for curve in found["curves"] for m in curve["validation"]["minutes"])
    panels = [
        (f"validation {found['measure']}", "epoch", "%"),
        (f"validation {found['measure']} by time", "minutes of training", ""),
        ("validation loss", "epoch", "nats"),
        ("training loss, smoothed", "epoch", ""),
    ]
    lines = [(curve["label"], _lines(curve, timed)) for curve in found["curves"]]
    # A panel that no run has data for is left out.
    drawn = [k for k in range(len(panels)) if any(own[k] for _, own in lines)]
    columns = min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = _figure(4.25 * columns, 3.2 * rows)
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(len(drawn))]
    names = _labels(found)
    for label, own in lines:
        look = _look(names.index(label))
        for axis, k in zip(axes, drawn, strict=True):
            if points := own[k]:
                every = -(-len(points) // _MARKS_ON_LINE)
                axis.plot(
                    *zip(*points, strict=True), label=short(label), linewidth=1.5, markersize=4, markevery=every, **look
                )
    for axis, k in zip(axes, drawn, strict=True):
        _panel(axis, *panels[k])
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False)
    return figure


def _lines(curve: Curves, timed: bool) -> list[list[tuple[float, float]]]:
    """The points of a run, for each panel of :func:`_curves`."""
    seen, learned = curve["validation"], curve["training"]
    lines = (
        (seen["epoch"], seen["top1"]),
        (seen["minutes"] if timed else [], seen["top1"] if timed else []),
        (seen["epoch"], seen["loss"]),
        (learned["epoch"], learned["loss"]),
    )
    return [[(x, y) for x, y in zip(*line, strict=True) if x is not None and y is not None] for line in lines]


def _classes(found: Study) -> "Figure":
    """The difference of each class to the baseline in percentage points; one marker per run."""
    known = [row for row in found["per_class"] or [] if row["difference"][0] is not None]
    shown = known if len(known) <= MOST_CLASSES else known[: MOST_CLASSES // 2] + known[-MOST_CLASSES // 2 :]
    figure = _figure(8.5, 1.5 + 0.26 * len(shown))
    axis = figure.subplots()
    axis.axvline(0, color=_GRAY, linewidth=1)
    names = _labels(found)
    single = len(found["paired"]) == 2
    for i, label in enumerate(found["paired"][1:], start=1):
        look = _look(names.index(label))
        values = [value for row in shown if (value := row["difference"][i]) is not None]
        if single:
            axis.hlines(range(len(shown)), 0, values, color=look["color"], linewidth=2, alpha=0.6)
        axis.plot(values, range(len(shown)), linestyle="", markersize=6, label=short(label), **look)
    ticks = [f"{short(row['class'], 24)} ({row['images']:,})" for row in shown]
    axis.set_yticks(range(len(shown)), ticks)
    axis.set_ylim(len(shown) - 0.4, -0.6)
    cut = "" if len(shown) == len(known) else f", the {MOST_CLASSES // 2} lowest and highest of {len(known)} classes"
    what = "average precision" if found["measure"] == "mAP" else "top-1"
    _panel(
        axis,
        f"{what} of each class against {short(found['baseline'])}{cut}",
        "points (number of images after each class)",
    )
    if not single:
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _agreement(found: Study) -> "Figure":
    """Two matrices: how often two runs agree, and how often both are wrong. The diagonal is left out."""
    agreement = found["agreement"]
    assert agreement is not None
    names = [short(label, 20) for label in agreement["labels"]]
    size = len(names)
    figure = _figure(8.5, 2.4 + 0.36 * size)
    panels = figure.subplots(1, 2)
    same = "same decision, %" if found["measure"] == "mAP" else "same class, %"
    shares = ((agreement["same"], same), (agreement["both_wrong"], "both wrong, %"))
    for panel, (share, title) in zip(panels, shares, strict=True):
        known = [share[i][j] for i in range(size) for j in range(size) if i != j]
        table = [[share[i][j] if i != j else float("nan") for j in range(size)] for i in range(size)]
        low, high = min(known) - 1, max(known) + 1
        panel.imshow(table, cmap="Blues", vmin=low, vmax=high, aspect="auto", alpha=0.9)
        for i in range(size):
            for j in range(size):
                if i != j:
                    # Not pure black or white, which the page replaces by its own colours.
                    ink = "#fefefe" if table[i][j] > (low + high) / 2 else "#010101"
                    panel.text(j, i, f"{table[i][j]:.1f}", ha="center", va="center", color=ink, fontsize=9)
        panel.set_xticks(range(size), names, rotation=30, ha="right")
        panel.set_yticks(range(size), names if panel is panels[0] else [""] * size)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        panel.set_title(title, fontsize=11)
    return figure


def draw_images(pair: OnlyOne, pixels: Sequence[Any], path: Path) -> list[Path]:
    """Draw the images that only one of two runs gets right, and write them as PNG and SVG.

    Args:
        pair: an entry of ``only_one``.
        pixels: its images, uint8 (H, W, C) each.
        path: the path without suffix.
    """
    columns = min(6, len(pixels))
    lines = -(-len(pixels) // columns)
    with style():
        figure = _figure(2.1 * columns, 0.5 + 2.7 * lines)
        axes = figure.subplots(lines, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, image, array in zip(axes.flat, pair["images"], pixels, strict=False):
            axis.imshow(visible(array), cmap="gray", vmin=0, vmax=255)
            told = (image["class"], f"only {image['right']}", f"else {wrong_answer(pair, image)}")
            axis.set_title("\n".join(short(line, 26) for line in told), fontsize=8)
        return save(figure, path)


def wrong_answer(pair: OnlyOne, image: OneRight) -> str:
    """The class predicted by the network that gets the image wrong."""
    return image["this_says"] if image["right"] == pair["baseline"] else image["baseline_says"]
