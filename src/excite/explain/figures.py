"""Figures over many images: scales by channel and class, their spread, and the health of the gates.

Each is written as PNG and SVG. Colours are those of Okabe & Ito, which colour-blind readers can distinguish, and every
line also has its own marker.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from excite.explain.rows import GateRow
from excite.explain.statistics import HIGH, LOW, ScaleStatistics
from excite.pages.figures import COLORS, MARKS, drawn_width, save, shortened, style
from excite.text import counted

_GRAY = "#666666"
#: The most channels for which each channel gets a marker.
_FEW_CHANNELS = 64
COLUMNS = 3
#: Legend: most characters of a class name; inches per character; inches for the line sample.
_LEGEND_NAME, _LEGEND_CHARACTER, _LEGEND_HANDLE = 40, 0.09, 0.7


def choose_depths(names: Sequence[str], most: int = 9) -> list[str]:
    """At most ``most`` of the names, spread evenly, including the first and the last."""
    if len(names) <= most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def draw_excitations(
    statistics: Mapping[str, ScaleStatistics], classes: Sequence[str], shown: Sequence[int], path: Path, title: str
) -> list[Path]:
    """Draw the mean scale by channel: a panel per gate, a line per class and one for all images.

    As in the SE paper (arXiv 1709.01507, section 6.3, "Role of Excitation").

    Args:
        statistics: statistics of the gates to draw.
        classes: all class names.
        shown: indices of the classes to draw.
        path: the path without suffix.
        title: title of the figure.

    Returns:
        The paths of the PNG and SVG files.
    """
    with _panels(statistics, path, title, "mean scale") as (axes, written):
        for axis, (name, found) in zip(axes, statistics.items(), strict=False):
            _panel(axis, name, found)
            marks = found.channels <= _FEW_CHANNELS
            axis.plot(*_steps(found.overall_mean()), color="black", linewidth=2, linestyle="--", label="all images")
            for i, k in enumerate(shown):
                style = {"marker": MARKS[i % len(MARKS)], "markersize": 3.5} if marks else {}
                axis.plot(
                    *_steps(found.mean[k]), color=COLORS[1 + i % 6], linewidth=1, alpha=0.9, label=classes[k], **style
                )
    return written


def draw_spread(
    statistics: Mapping[str, ScaleStatistics], classes: Sequence[str], shown: Sequence[int], path: Path, title: str
) -> list[Path]:
    """Draw mean and standard deviation of the scale over the images of each class, by channel: a panel per gate.

    As in the SE paper (arXiv 1709.01507, section 6.3). Arguments as for :func:`draw_excitations`.
    """
    with _panels(statistics, path, title, "scale: mean ± sd") as (axes, written):
        for axis, (name, found) in zip(axes, statistics.items(), strict=False):
            _panel(axis, name, found)
            for i, k in enumerate(shown):
                color = COLORS[1 + i % 6]
                (channels, mean), (_, sd) = _steps(found.mean[k]), _steps(found.class_sd(k))
                band = [[m - s for m, s in zip(mean, sd, strict=True)], [m + s for m, s in zip(mean, sd, strict=True)]]
                axis.fill_between(channels, *band, color=color, alpha=0.25, linewidth=0)
                axis.plot(channels, mean, color=color, linewidth=1.4, linestyle=("-", "--")[i % 2], label=classes[k])
    return written


def draw_health(rows: Sequence[GateRow], path: Path, title: str, measure: str = "top-1") -> list[Path]:
    """Draw the table of gates, one row per gate: scales, variance between classes, cost of fixing, time saved.

    The last two are only drawn if they were measured.

    Args:
        rows: ``Explanation.rows``.
        path: the path without suffix.
        title: title of the figure.
        measure: what fixing a gate costs points of.

    Returns:
        The paths of the PNG and SVG files.
    """
    from matplotlib.figure import Figure

    with style():
        drawn: list[tuple[Callable[[Any, Sequence[GateRow]], None], float]]
        drawn = [(_scales_panel, 1.6), (_classes_panel, 1.0)]
        drawn += (
            [(partial(_price_panel, measure=measure), 1.2)]
            if any(row["loss_added"] is not None for row in rows)
            else []
        )
        drawn += [(_time_panel, 1.0)] if any(row["saved_ms"] is not None for row in rows) else []
        widths = [width for _, width in drawn]
        figure = Figure(figsize=(2.7 * sum(widths), 1.9 + 0.4 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(drawn), sharey=True, width_ratios=widths)
        for (draw, _), panel in zip(drawn, panels, strict=True):
            panel.grid(axis="x", alpha=0.3)
            panel.set_axisbelow(True)
            panel.tick_params(axis="y", length=0)
            panel.spines[["top", "right", "left"]].set_visible(False)
            draw(panel, rows)
            panel.locator_params(axis="x", nbins=4)  # small numbers have long labels
        panels[0].set_yticks(range(len(rows)), [("○ " if row["could_go"] else "") + row["gate"] for row in rows])
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        figure.suptitle(title)
        return save(figure, path)


def _scales_panel(panel: Any, rows: Sequence[GateRow]) -> None:
    top = max(row["range_top"] for row in rows)
    panel.axvspan(0, LOW * top, color=_GRAY, alpha=0.12, linewidth=0)
    panel.axvspan(HIGH * top, top, color=_GRAY, alpha=0.12, linewidth=0)
    for y, row in enumerate(rows):
        q = row["quantiles"]
        panel.plot([q["0.0"], q["1.0"]], [y, y], color=COLORS[1], linewidth=1)
        panel.plot([q["0.05"], q["0.95"]], [y, y], color=COLORS[1], linewidth=4, alpha=0.35, solid_capstyle="butt")
        panel.plot([q["0.25"], q["0.75"]], [y, y], color=COLORS[1], linewidth=9, alpha=0.55, solid_capstyle="butt")
        panel.plot(q["0.5"], y, "|", color="black", markersize=13, markeredgewidth=2)
    panel.set_xlim(left=min(0.0, *(row["quantiles"]["0.0"] for row in rows)))
    _heading(panel, "distribution of scales", "median, middle half, 5-95 %, range; gray: saturated")


def _classes_panel(panel: Any, rows: Sequence[GateRow]) -> None:
    for y, row in enumerate(rows):
        _bar(panel, y, None if row["class_share"] is None else 100 * row["class_share"], ".0f", COLORS[3])
    panel.set_xlim(0, 100)
    _heading(panel, "set by the class", "variance between classes / total, %")


def _price_panel(panel: Any, rows: Sequence[GateRow], measure: str) -> None:
    panel.axvline(0, color=_GRAY, linewidth=1)
    estimated = any(row["estimated"] for row in rows)
    for y, row in enumerate(rows):
        if row["top1_lost"] is not None:
            panel.plot([row["top1_lost_low"], row["top1_lost_high"]], [y, y], color=COLORS[2], linewidth=2)
            panel.plot(row["top1_lost"], y, "D", color=COLORS[2], markersize=6)
        elif row["loss_added"] is not None:
            panel.plot(row["loss_added"], y, "D", color=COLORS[2], markersize=6, fillstyle="none")
    unit = "loss added, nats (first-order estimate)" if estimated else f"points of {measure} lost, 95 % interval"
    _heading(panel, "fixed at its mean", unit)


def _time_panel(panel: Any, rows: Sequence[GateRow]) -> None:
    panel.axvline(0, color=_GRAY, linewidth=1)
    for y, row in enumerate(rows):
        if row["saved_ms"] is not None:
            panel.plot([row["saved_ms_low"], row["saved_ms_high"]], [y, y], color=COLORS[4], linewidth=2)
            panel.plot(row["saved_ms"], y, "o", color=COLORS[4], markersize=6)
    batch = next((row["batch"] for row in rows if row["batch"] is not None), None)
    _heading(panel, "saved without it", "ms: median, quartiles" + (f" ({batch} images)" if batch else ""))


def _bar(panel: Any, y: int, value: float | None, spec: str, color: str) -> None:
    if value is not None:
        panel.barh(y, value, height=0.62, color=color, alpha=0.45)
        panel.annotate(format(value, spec), (value, y), (4, 0), textcoords="offset points", va="center")


def _heading(panel: Any, title: str, unit: str) -> None:
    panel.set_title(title, fontsize=11)
    panel.set_xlabel(unit)


def _panel(axis: Any, name: str, found: ScaleStatistics) -> None:
    axis.set_title(f"{name} ({counted(found.channels, 'channel')})", fontsize=10)
    axis.set_ylim(min(0.0, float(found.least.min())), found.ceiling())
    axis.set_xlim(-0.5, found.channels - 0.5)
    axis.grid(alpha=0.3)


def _steps(values: Any) -> tuple[list[float], list[float]]:
    """Points of a line; a single channel becomes a horizontal line, which is visible."""
    listed = values.tolist()
    return ([float(c) for c in range(len(listed))], listed) if len(listed) > 1 else ([-0.5, 0.5], listed * 2)


@contextmanager
def _panels(
    statistics: Mapping[str, ScaleStatistics], path: Path, title: str, unit: str
) -> Iterator[tuple[list[Any], list[Path]]]:
    """Axes, one per gate, in a figure that is written when the block ends; the second list then holds its files."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(statistics))
    rows = -(-len(statistics) // columns)
    written: list[Path] = []
    with style():
        figure = Figure(figsize=(max(5.0, 4.1 * columns), 1.2 + 2.3 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(statistics) :]:
            axis.remove()
        used = list(axes.flat[: len(statistics)])
        for axis in axes[:, 0]:
            axis.set_ylabel(unit)
        for i, axis in enumerate(used):
            if i + columns >= len(used):
                axis.set_xlabel("channel")
        yield used, written
        figure.suptitle(title)
        handles, labels = used[0].get_legend_handles_labels()
        room = figure.get_figwidth()
        labels = [
            shortened(label, min(_LEGEND_NAME, int((room - _LEGEND_HANDLE) / _LEGEND_CHARACTER))) for label in labels
        ]
        inches = _LEGEND_HANDLE + _LEGEND_CHARACTER * max(map(drawn_width, labels))
        ncols = max(1, min(len(labels), int(room / inches)))
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False)
        written += save(figure, path)
