"""What a gate changes beside accuracy: calibration, and accuracy on corrupted images, from the reports of the runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from excite.twins.statistics import mean_sd

#: (mean, low, high) of paired differences.
Interval = Callable[[Sequence[float]], tuple[float | None, float | None, float | None]]


class Beside(TypedDict):
    """A measure of the runs of a gate, and the mean of its paired differences to the baseline, with its interval."""

    mean: float
    sd: float | None
    pairs: int
    difference: float | None
    difference_low: float | None
    difference_high: float | None


@dataclass(frozen=True)
class Measure:
    """A measure that a run's report has.

    Attributes:
        heading: its name in a table, with the unit.
        short: its name in a longer heading.
        path: where it is in the report.
        digits: decimal places.
        meaning: a sentence for the notes.
    """

    heading: str
    short: str
    path: tuple[str, ...]
    digits: int
    meaning: str


BESIDE = {
    "ece": Measure(
        "calibration error %",
        "calibration",
        ("calibration", "ece"),
        2,
        "Calibration error: by how many points the network's confidence is off, as trained (15 bins; lower is better).",
    ),
    "scaled_nll": Measure(
        "log loss, scaled",
        "log loss",
        ("calibration", "held_out", "nll_after"),
        4,
        "Log loss, scaled: after temperature scaling fitted to one half of the images, on the other half (lower is "
        "better).",
    ),
    "robust_top1": Measure(
        "corrupted images: top-1 %",
        "corrupted",
        ("robustness", "mean_top1"),
        2,
        "Corrupted: mean top-1 of up to 1,000 of the images with noise, blur and the like, in five strengths.",
    ),
}


def figures(report: Mapping[str, Any] | None) -> dict[str, float]:
    """The measures that the report of a run has."""
    found = {}
    for name, measure in BESIDE.items():
        value: Any = report
        for key in measure.path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            found[name] = float(value)
    return found


def compared(
    runs: Sequence[Mapping[str, Any]], gate: str, baseline: str, unit: str, interval: Interval
) -> dict[str, Beside]:
    """Each measure that a gate's runs have -> its mean, and its differences to the baseline's runs of the same seeds or
    folds, in their order."""
    told: dict[str, Beside] = {}
    for name in BESIDE:
        values = {(run["gate"], run[unit]): run[name] for run in runs if name in run}
        own = {number: value for (of, number), value in values.items() if of == gate}
        if not own:
            continue
        differences = [value - values[baseline, n] for n, value in own.items() if (baseline, n) in values]
        mean, sd = mean_sd(list(own.values()))
        middle, low, high = interval(differences) if gate != baseline else (None, None, None)
        told[name] = {
            "mean": mean if mean is not None else 0.0,
            "sd": sd,
            "pairs": len(differences) if gate != baseline else 0,
            "difference": middle,
            "difference_low": low,
            "difference_high": high,
        }
    return told


def table(rows: Sequence[Mapping[str, Any]], baseline: str) -> list[dict[str, str]]:
    """One row per gate as text, heading -> cell; none if no run has such measures."""
    there = [name for name in BESIDE if any(name in row.get("beside", {}) for row in rows)]
    if not there:
        return []
    return [{"gate": row["gate"]} | _cells(row, there, baseline) for row in rows]


def _cells(row: Mapping[str, Any], there: Sequence[str], baseline: str) -> dict[str, str]:
    cells: dict[str, str] = {}
    for name in there:
        found: Beside | None = row.get("beside", {}).get(name)
        measure = BESIDE[name]
        digits = measure.digits
        mean, difference = "-", "-"
        if found is not None:
            sd = found["sd"]
            mean = f"{found['mean']:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")
            if found["difference"] is not None:
                ends = (found["difference_low"], found["difference_high"])
                within = "no interval" if None in ends else ", ".join(f"{end:+.{digits}f}" for end in ends)
                difference = f"{found['difference']:+.{digits}f} [{within}]"
        cells |= {measure.heading: mean, f"{measure.short}: difference to {baseline}": difference}
    return cells


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the measures mean, a sentence each."""
    there = [measure for name, measure in BESIDE.items() if any(name in row.get("beside", {}) for row in rows)]
    if not there:
        return []
    alone = "The intervals of what is beside accuracy are for one measure each: of several, one may be out by chance."
    return [*(measure.meaning for measure in there), alone]
