"""What a gate changes beside accuracy: calibration, and accuracy on corrupted images, from the reports of the runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from excite.twins.differences import Difference, difference, plus_minus, signed
from excite.twins.plan import Plan
from excite.twins.statistics import mean_sd


class Beside(Difference):
    """A measure of the runs of a gate: mean, sample standard deviation, and the difference to the baseline."""

    mean: float | None
    sd: float | None


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


def compared(runs: Sequence[Mapping[str, Any]], gate: str, plan: Plan, confidence: float) -> dict[str, Beside]:
    """Each measure that a gate's runs have -> its mean, and its difference to the baseline's runs."""
    told: dict[str, Beside] = {}
    for name in BESIDE:
        own, base = (
            {run[plan.unit]: run[name] for run in runs if run["gate"] == of and name in run}
            for of in (gate, plan.baseline)
        )
        if own:
            mean, sd = mean_sd(list(own.values()))
            found = difference({} if gate == plan.baseline else own, base, plan, confidence)
            told[name] = {"mean": mean, "sd": sd, **found}
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
        measure, found = BESIDE[name], row.get("beside", {}).get(name)
        cells[measure.heading] = "-" if found is None else plus_minus(found["mean"], found["sd"], measure.digits)
        cells[f"{measure.short}: difference to {baseline}"] = "-" if found is None else signed(found, measure.digits)
    return cells


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the measures mean, a sentence each."""
    there = [measure for name, measure in BESIDE.items() if any(name in row.get("beside", {}) for row in rows)]
    if not there:
        return []
    alone = "The intervals of what is beside accuracy are for one measure each: of several, one may be out by chance."
    return [*(measure.meaning for measure in there), alone]
