"""Means, sample standard deviations, and Student's t interval of a mean."""

import statistics
from collections.abc import Sequence


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
