"""Tests of distributions without scipy: thresholds with false-alarm probabilities below one in a million."""

import math
from collections.abc import Callable, Sequence

import numpy as np


def binomial_ok(hits: int, trials: int, p: float) -> bool:
    """Whether `hits` lies within 5 standard deviations (6e-7) of what probability `p` gives."""
    return abs(hits - trials * p) <= 5 * math.sqrt(trials * p * (1 - p))


def chi_square_ok(counts: Sequence[int] | np.ndarray, shares: np.ndarray | None = None) -> bool:
    """Whether counts fit `shares` (uniform by default): Wilson and Hilferty's chi-square quantile at z = 5 (3e-7)."""
    observed = np.asarray(counts, dtype=float).ravel()
    shares = np.full(observed.size, 1 / observed.size) if shares is None else shares
    expected = observed.sum() * shares
    assert expected.min() >= 5, "too few draws for this test"
    k = observed.size - 1
    limit = k * (1 - 2 / (9 * k) + 5 * math.sqrt(2 / (9 * k))) ** 3
    return float(((observed - expected) ** 2 / expected).sum()) <= limit


def ks_ok(sample: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Kolmogorov-Smirnov against a continuous distribution; 2.7 / sqrt(n) is its quantile at 1 - 1e-6."""
    ordered = np.sort(np.asarray(sample, dtype=float).ravel())
    n, at = len(ordered), cdf(ordered)
    above, below = np.arange(1, n + 1) / n - at, at - np.arange(n) / n
    return max(above.max(), below.max()) <= 2.7 / math.sqrt(n)


def ks_same(first: np.ndarray, second: np.ndarray) -> bool:
    """Two-sample Kolmogorov-Smirnov, the same quantile."""
    a, b = np.sort(np.ravel(first)), np.sort(np.ravel(second))
    every = np.concatenate([a, b])
    gap = np.abs(np.searchsorted(a, every, "right") / len(a) - np.searchsorted(b, every, "right") / len(b)).max()
    return gap <= 2.7 * math.sqrt((len(a) + len(b)) / (len(a) * len(b)))


def uniform(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.clip((x - low) / (high - low), 0, 1)
