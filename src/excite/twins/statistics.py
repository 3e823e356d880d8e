"""Means, sample standard deviations, Student's t interval of a mean, and intervals that hold after every value."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal


def mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (divisor n - 1); None if there are too few values."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def mean_interval(
    values: Sequence[float], confidence: float, shared: float = 0.0
) -> tuple[float | None, float | None, float | None]:
    """Mean and its Student t interval at level ``confidence``, n - 1 degrees of freedom: (mean, low, high).

    For paired differences this is the paired t interval. The interval is None for fewer than two values, and so is
    the mean for none.

    Args:
        values: one for each run.
        confidence: level of the interval.
        shared: for folds, the number of images in a fold over that of those trained on. Folds are not independent,
            because they share training images; the variance of the mean is then taken as 1 / n + ``shared`` times that
            of a value (Nadeau and Bengio, Inference for the generalization error, Machine Learning 52, 2003, section
            3.3: the corrected resampled t).
    """
    mean, sd = mean_sd(values)
    if mean is None or sd is None:
        return mean, None, None
    half = student_t(confidence, len(values) - 1) * sd * (1 / len(values) + shared) ** 0.5
    return mean, mean - half, mean + half


#: Spread of the effects, in standard deviations of a difference, that :func:`mean_sequence` is best at.
EFFECTS = 1.0


def mean_sequence(values: Sequence[float], confidence: float) -> tuple[float | None, float | None, float | None]:
    """Mean and its confidence sequence: intervals after 2, 3, ... values that ALL hold with probability ``confidence``,
    however often one looks, and whenever one stops (for values that are Gaussian, with any standard deviation).

    It is Wang and Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance"
    (arXiv 2310.03722, section 4.4), with effects from a Gaussian of mean 0 and standard deviation ``EFFECTS``: for n
    values x with sum S and sum of squares V around a mean to be tested, and c = 1 / ``EFFECTS``, the likelihood ratio
    ``sqrt(c^2 / (n + c^2)) * (V / (V - S^2 / (n + c^2)))^(n / 2)`` is a martingale that starts at 1, so that it reaches
    1 / (1 - confidence) with a probability of at most 1 - confidence (Ville). The interval has the means for which it
    has not.

    Returns:
        (mean, low, high) after the last value, where low and high are those of all intervals so far, intersected.
        None while the interval is infinite (the first four values at 95 %).
    """
    low, high = -math.inf, math.inf
    for n in range(2, len(values) + 1):
        half, centre = _half_width(values[:n], 1 - confidence), statistics.fmean(values[:n])
        low, high = max(low, centre - half), min(high, centre + half)
    mean = statistics.fmean(values) if values else None
    return (mean, None, None) if math.isinf(high) else (mean, low, high)


def _half_width(values: Sequence[float], alpha: float) -> float:
    n, more = len(values), 1 / EFFECTS**2
    squares = sum((value - statistics.fmean(values)) ** 2 for value in values)
    share = 1 - (alpha * math.sqrt(more / (n + more))) ** (2 / n)
    room = n * n - share * n * (n + more)
    return math.sqrt(share * (n + more) * squares / room) if room > 0 else math.inf


#: What a sequential experiment says of a gate.
Verdict = Literal["better", "worse", "equivalent", "undecided"]


def verdict(low: float | None, high: float | None, margin: float) -> Verdict:
    """The verdict on a difference whose interval is [low, high]: better or worse than the baseline if 0 is outside;
    equivalent if all of it is within the margin, in points; else undecided."""
    if low is None or high is None:
        return "undecided"
    if low > 0 or high < 0:
        return "better" if low > 0 else "worse"
    return "equivalent" if -margin < low and high < margin else "undecided"


def seeds_needed(sd: float, difference: float, confidence: float, power: float = 0.8) -> int:
    """Pairs of runs with which a paired t-test sees a true difference in ``power`` of all experiments.

    Args:
        sd: standard deviation of the differences between the runs of a pair.
        difference: the true mean difference, in the same unit.
        confidence: that of the two-sided test.
        power: at least 0.5.
    """

    def sees(n: int) -> bool:
        both = student_t(confidence, n - 1) + (student_t(2 * power - 1, n - 1) if power > 0.5 else 0.0)
        return both * sd / math.sqrt(n) <= difference

    enough = 2
    while not sees(enough) and enough < 1 << 20:
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        too_few, enough = (too_few, middle) if sees(middle) else (middle, enough)
    return enough


def student_t(confidence: float, df: int) -> float:
    """The t for which a Student-distributed T with ``df`` degrees of freedom has P(-t < T < t) = ``confidence``.

    It solves I_x(df/2, 1/2) = 1 - confidence, with I the regularised incomplete beta function and
    x = df / (df + t^2) (Abramowitz & Stegun, 26.7.1 and 26.5.27).
    """
    # mpmath comes with torch (through sympy); SciPy would be 100 MB for one number.
    from mpmath import betainc, findroot, mp, mpf  # type: ignore[import-untyped]

    with mp.workdps(30):
        tail = 1 - mpf(confidence)
        x = findroot(
            lambda x: betainc(mpf(df) / 2, mpf(1) / 2, 0, x, regularized=True) - tail,
            (0, 1),
            solver="bisect",
            tol=mpf(10) ** -22,
            maxsteps=500,
        )
        return float(mp.sqrt(df * (1 - x) / x))
