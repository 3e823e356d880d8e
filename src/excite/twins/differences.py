"""The difference between two gates over the runs of common seeds or folds, and how it is written in a table."""

from collections.abc import Mapping
from typing import Any, TypedDict

from excite.twins.plan import Plan
from excite.twins.statistics import mean_interval, mean_sequence


class Difference(TypedDict):
    """Mean of a measure minus the baseline's over ``pairs`` common seeds or folds, in its unit, and the ends of its
    interval."""

    pairs: int
    difference: float | None
    difference_low: float | None
    difference_high: float | None


def difference(own: Mapping[int, float], base: Mapping[int, float], plan: Plan, confidence: float) -> Difference:
    """The difference over runs with equal seeds or folds; one that only one of the two has is left out. With a margin,
    in the order of the seeds, with an interval that holds whenever one stops, for all gates together."""
    values = [own[number] - base[number] for number in plan.numbers if number in own and number in base]
    if plan.margin is not None:
        mean, low, high = mean_sequence(values, 1 - (1 - confidence) / max(1, len(plan.gates) - 1))
    else:
        mean, low, high = mean_interval(values, confidence, 1 / (plan.folds - 1) if plan.folds else 0.0)
    return {"pairs": len(values), "difference": mean, "difference_low": low, "difference_high": high}


def plus_minus(mean: float | None, sd: float | None, digits: int = 2) -> str:
    """ "84.35 ± 0.16", "84.35" or "-"."""
    return "-" if mean is None else f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def signed(found: Mapping[str, Any], digits: int = 2) -> str:
    """A :class:`Difference` as "+0.06 [-0.11, +0.24]", "+0.06 [no interval]" or "-"."""
    middle, low, high = (found[f"difference{end}"] for end in ("", "_low", "_high"))
    if middle is None:
        return "-"
    ends = "no interval" if low is None else f"{low:+.{digits}f}, {high:+.{digits}f}"
    return f"{middle:+.{digits}f} [{ends}]"
