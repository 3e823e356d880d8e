"""The figure of an experiment: accuracy, difference to the ungated twin, and speed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from excite.pages.figures import COLORS, style, write
from excite.text import counted
from excite.twins.report import Report, known, last_of, latency_form, measure_label, paired


def draw(report: Report, path: Path) -> Path:
    """Draw a report into a PNG or SVG file, by the suffix of ``path``; return the path.

    There is one row per gate and up to four panels, the last one only if latencies were measured. Dots are seeds or
    folds. Lines are mean ± sample standard deviation in the first panel, the interval of the mean difference in the
    second, and the quartiles in the last.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    gates = report["gates"]
    with style():
        layout = ConstrainedLayoutEngine(w_pad=0.12)  # inches: otherwise the numbers below two panels may touch
        drawn = [(_accuracy, 1.2), (_difference, 1.2), (_speed, 1.0)]
        drawn += [(_latency, 1.0)] if report["latency"] is not None else []
        widths = [width for _, width in drawn]
        figure = Figure(figsize=(13 * sum(widths) / 4.4, 1.9 + 0.46 * len(gates)), layout=layout)
        panels = figure.subplots(1, len(drawn), sharey=True, width_ratios=widths)
        for panel in panels:
            panel.grid(axis="x", alpha=0.3)
            panel.tick_params(axis="y", length=0)
            panel.spines[["top", "right", "left"]].set_visible(False)
        panels[0].set_yticks(range(len(gates)), gates)
        panels[0].set_ylim(len(gates) - 0.4, -0.6)  # the first gate on top
        for panel, (draw_panel, _) in zip(panels, drawn, strict=True):
            draw_panel(panel, report)
        figure.suptitle(f"{report['recipe']}: {_counts(report)}, {_epochs(report)}")
        return write(figure, path, dpi=130)


def _counts(report: Report) -> str:
    """ "3 seeds", "5 folds"; "12 to 14 seeds" where a verdict ends a gate's runs."""
    if "margin" not in report:
        return counted(report.get("folds") or len(report["seeds"]), _unit(report))
    runs = [row["finished"] for row in report["rows"]]
    return (f"{min(runs)} to " if min(runs) < max(runs) else "") + counted(max(runs), _unit(report))


def _epochs(report: Report) -> str:
    return counted(report["runs"][0]["epochs"] or 0, "epoch") if report["runs"] else "no run finished"


def _unit(report: Report) -> Literal["seed", "fold"]:
    return "fold" if report.get("folds") else "seed"


def _accuracy(panel: Any, report: Report) -> None:
    for y, row in enumerate(report["rows"]):
        mean, sd = row["top1_mean"], row["top1_sd"]
        ends = None if mean is None or sd is None else (mean - sd, mean + sd)
        _values(panel, y, mean, ends, known(last_of(r) for r in report["runs"] if r["gate"] == row["gate"]))
    _title(panel, "accuracy after the last epoch", f"{measure_label(report)}, %: mean ± sd, {_unit(report)}s")


def _difference(panel: Any, report: Report) -> None:
    base = report["baseline"]
    panel.axvline(0, color="#666666", linewidth=1)
    for y, row in enumerate(report["rows"]):
        low, high = row["difference_low"], row["difference_high"]
        ends = None if low is None or high is None else (low, high)
        _values(panel, y, row["difference"], ends, paired(report, row["gate"]))
    _title(panel, f"difference to {base}", f"points: mean, {100 * report['confidence']:g} % interval, pairs")


def _values(panel: Any, y: int, mean: float | None, ends: tuple[float, float] | None, values: Sequence[float]) -> None:
    """A marker for the mean with a line through it, and the individual values as dots below."""
    if mean is None:
        return
    color = COLORS[y % len(COLORS)]
    if ends is not None:
        panel.plot(ends, [y - 0.12] * 2, color=color, linewidth=2, solid_capstyle="butt")
    panel.plot(mean, y - 0.12, "D", color=color, markersize=6)
    panel.plot(values, [y + 0.2] * len(values), "o", color=color, markersize=5, alpha=0.5, markeredgewidth=0)


def _speed(panel: Any, report: Report) -> None:
    for y, row in enumerate(report["rows"]):
        values = known(r["images_per_second"] for r in report["runs"] if r["gate"] == row["gate"])
        _bar(panel, y, row["images_per_second"], ",.0f")
        panel.plot(values, [y + 0.2] * len(values), "o", color="white", markersize=4, markeredgecolor="#333333")
    _title(panel, "training speed", "images/s (more is better)")


def _latency(panel: Any, report: Report) -> None:
    for y, row in enumerate(report["rows"]):
        _bar(panel, y, row["latency_ms"], ".2f")
        if row["latency_ms"] is not None:
            panel.plot([row["latency_low"], row["latency_high"]], [y + 0.2] * 2, color="#333333", linewidth=2)
    form = f"\nbatch norms {latency_form(report['latency'])}" if report["latency"] is not None else ""
    _title(panel, "latency of one image", f"ms (less is better){form}")


def _bar(panel: Any, y: int, value: float | None, spec: str) -> None:
    if value is not None:
        panel.barh(y, value, height=0.62, color=COLORS[y % len(COLORS)], alpha=0.35)
        panel.annotate(format(value, spec), (0, y - 0.05), (4, 0), textcoords="offset points", va="center")


def _title(panel: Any, title: str, unit: str) -> None:
    panel.set_title(title, fontsize=11)
    panel.set_xlabel(unit)
