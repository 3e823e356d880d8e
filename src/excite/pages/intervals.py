"""Intervals and tests for accuracies and paired differences on the same images, shared by all commands.

Formulas are closed or solved to machine precision with the standard library: SciPy or statsmodels would be 100 MB for a
binomial sum. The tests compare with both.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist, fmean, stdev

#: With fewer discordant pairs, McNemar's test is exact, otherwise mid-p.
FEW_DISCORDANT = 25


@dataclass(frozen=True)
class Pairs:
    """Counts for two networks on the same images.

    Attributes:
        both: images that both get right.
        only_first, only_second: images that only one of them gets right, the discordant pairs.
        neither: images that both get wrong.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def count(cls, first: Sequence[bool], second: Sequence[bool]) -> "Pairs":
        """Count pairs from whether each network is right, image by image. Raises ValueError for unequal lengths."""
        cells = [0, 0, 0, 0]
        for a, b in zip(first, second, strict=True):
            cells[2 * (not a) + (not b)] += 1
        return cls(*cells)

    @property
    def images(self) -> int:
        """The number of images."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def discordant(self) -> int:
        """Images that exactly one of the two gets right: the only ones that the test uses."""
        return self.only_first + self.only_second

    @property
    def difference(self) -> float:
        """Accuracy of the first minus that of the second, as a share (-1 to 1)."""
        return (self.only_first - self.only_second) / self.images


def normal_quantile(confidence: float) -> float:
    """The z for which a standard normal Z has P(-z < Z < z) = ``confidence``."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(right: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share ``right / images``: (low, high), shares.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927; formula of
    Newcombe, Statistics in Medicine 17:857, 1998, method 3. It stays within 0..1, and has
    a width above 0 at shares of 0 and 1, too.
    """
    z = normal_quantile(confidence)
    middle = 2 * right + z * z
    half = z * math.sqrt(z * z + 4 * right * (images - right) / images)
    size = 2 * (images + z * z)
    return max(0.0, (middle - half) / size), min(1.0, (middle + half) / size)


def paired_interval(pairs: Pairs, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's score interval for the difference of two paired shares: (low, high), shares.

    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17:891, 1998, equations for the restricted maximum-likelihood estimate and the score. Of the
    intervals recommended by Fagerland, Lydersen & Laake (Statistics in Medicine 33:2850, 2014) it is the one that
    agrees with McNemar's statistic: it excludes 0 exactly if that statistic exceeds the normal quantile.
    """
    z = normal_quantile(confidence)
    low = _solve(lambda delta: _score(pairs, delta) - z, -1.0, pairs.difference)
    high = _solve(lambda delta: _score(pairs, delta) + z, pairs.difference, 1.0)
    return low, high


def _score(pairs: Pairs, delta: float) -> float:
    """The observed difference minus ``delta``, in standard errors; decreases with ``delta``."""
    n, b, c = pairs.images, pairs.only_first, pairs.only_second
    # The most likely share of "only the second" given that the difference is delta: a root of A q^2 + B q + C.
    linear = -b - c + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    q = (math.sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
    distance, variance = b - c - n * delta, n * (2 * q + delta * (1 - delta))
    # No variance: all images are discordant in the same way, or none is, and delta equals the observed difference.
    return distance / math.sqrt(variance) if variance > 0 else 0.0


def _solve(falling: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a decreasing function between ``low`` and ``high``, to float precision."""
    for _ in range(100):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mcnemar(pairs: Pairs, form: str | None = None) -> tuple[float, str]:
    """McNemar's test of equal accuracy: (two-sided p, "exact" or "mid-p").

    ``form`` selects one of the two; None chooses by :data:`FEW_DISCORDANT`.

    Q. McNemar, Psychometrika 12:153, 1947. With fewer than 25 discordant pairs it is the exact conditional test: twice
    the tail of a binomial with probability 1/2. With more it is the mid-p version, in which the observed count has half
    weight: the exact test is then needlessly conservative, while mid-p keeps its level (Fagerland, Lydersen & Laake,
    BMC Medical Research Methodology 13:91, 2013). Both are computed in integers; a p below 1e-308 is 0.
    """
    n, least = pairs.discordant, min(pairs.only_first, pairs.only_second)
    form = form or ("exact" if n < FEW_DISCORDANT else "mid-p")
    tail, term = 0, 1  # sum of binomial coefficients up to ``least``
    for k in range(least + 1):
        tail += term
        observed = term
        term = term * (n - k) // (k + 1)
    exact = min(2 * tail, 2**n)
    # The observed count has half weight in each of two tails; if the tails coincide, it is counted once.
    half = Fraction(observed, 2) if pairs.only_first == pairs.only_second else observed
    return float(Fraction(exact if form == "exact" else exact - half) / 2**n), form


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order; they control the family-wise error rate.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6:65, 1979.
    """
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def mean_difference(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None, float | None]:
    """Mean of paired differences with a normal interval: (mean, low, high); for hundreds of images or more.

    A single difference has no interval.
    """
    mean = fmean(differences)
    if len(differences) < 2:
        return mean, None, None
    half = normal_quantile(confidence) * stdev(differences) / math.sqrt(len(differences))
    return mean, mean - half, mean + half
