"""Intervals and tests against published values, brute force and other formulations."""

import itertools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from excite.pages.intervals import (
    FEW_DISCORDANT,
    Pairs,
    holm,
    mcnemar,
    mean_difference,
    normal_quantile,
    paired_interval,
    wilson,
)

# (both, only first, only second, neither): airway reactivity (Bentur et al. 2009) and complete response (Cavo et al.
# 2012), as used by Fagerland, Lydersen & Laake, Statistics in Medicine 33:2850, 2014.
BENTUR = Pairs(1, 1, 7, 12)
CAVO = Pairs(59, 6, 16, 80)
FEW = [Pairs(1, 1, 0, 0), Pairs(1, 0, 1, 0), Pairs(0, 1, 1, 1), Pairs(2, 1, 0, 0), Pairs(3, 0, 1, 1), Pairs(9, 1, 0, 0)]


def test_pairs_are_counted():
    first = [True, True, False, False, True]
    second = [True, False, True, False, False]
    assert Pairs.count(first, second) == Pairs(both=1, only_first=2, only_second=1, neither=1)
    assert Pairs.count(first, second).difference == pytest.approx(np.mean(first) - np.mean(second))
    with pytest.raises(ValueError, match="zip"):
        Pairs.count(first, second[:-1])


# Newcombe, Statistics in Medicine 17:857, 1998, table I, method 3.
@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(right, images, low, high):
    assert wilson(right, images) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilsons_ends_are_so_many_standard_errors_away(confidence):
    for end in wilson(7, 50, confidence):
        assert abs(end - 7 / 50) == pytest.approx(normal_quantile(confidence) * math.sqrt(end * (1 - end) / 50))
    assert wilson(50, 50)[1] == pytest.approx(1)


def test_wilson_stays_within_0_and_1():
    """Rounding would carry the ends out of it at some of these sizes."""
    for images in range(1, 500):
        assert wilson(0, images)[0] >= 0
        assert wilson(images, images)[1] <= 1


@pytest.mark.parametrize(("pairs", "low", "high"), [(BENTUR, -0.517, -0.026), (CAVO, -0.1240, -0.0054)])
def test_tango_gives_the_published_intervals(pairs, low, high):
    places = len(str(high).split(".")[1])
    assert [round(end, places) for end in paired_interval(pairs)] == pytest.approx([low, high])


@pytest.mark.parametrize("pairs", [BENTUR, CAVO, Pairs(50, 9, 3, 5), Pairs(5, 0, 4, 11), *FEW])
def test_tangos_ends_are_where_the_score_of_the_likelihood_says(pairs):
    """The restricted likelihood maximised by search instead of by formula."""
    z, n = normal_quantile(0.95), pairs.images
    for end in paired_interval(pairs):
        floor = max(0.0, -end)
        grid = np.linspace(floor, (1 - end) / 2, 2_000_001)[1:-1]  # share of "only the second"
        same = pairs.both + pairs.neither
        likelihood = same * np.log1p(-2 * grid - end) + pairs.only_second * np.log(grid)
        likelihood += pairs.only_first * np.log(grid + end)
        q = grid[likelihood.argmax()]
        variance = (2 * q + end - end**2) / n
        assert abs(pairs.difference - end) / math.sqrt(variance) == pytest.approx(z, rel=1e-4)


def test_tangos_interval_leaves_out_0_exactly_where_mcnemars_statistic_is_large():
    z = normal_quantile(0.95)
    for b, c in itertools.product(range(25), repeat=2):
        low, high = paired_interval(Pairs(40, b, c, 10))
        large = abs(b - c) > z * math.sqrt(b + c)
        assert (low > 0 or high < 0) == large


def test_tango_at_the_edges_and_mirrored():
    low, high = paired_interval(Pairs(10, 0, 0, 0))
    assert -0.3 < low == pytest.approx(-high)
    assert paired_interval(Pairs(0, 5, 0, 0))[1] == pytest.approx(1)
    low, high = paired_interval(Pairs(8, 5, 2, 7))
    assert paired_interval(Pairs(7, 2, 5, 8)) == pytest.approx((-high, -low))


def test_tango_covers_as_often_as_it_says():
    """All tables of 30 images: how often the interval holds the truth."""
    n, truth = 30, (0.5, 0.2, 0.1, 0.2)
    covered = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            rest = n - b - c
            chance = math.comb(n, b) * math.comb(n - b, c) * 0.2**b * 0.1**c * 0.7**rest
            if chance > 1e-9:
                low, high = paired_interval(Pairs(rest, b, c, 0))
                covered += chance * (low <= truth[1] - truth[2] <= high)
    assert 0.94 < covered < 0.97


def _brute_force(b: int, c: int) -> tuple[float, float]:
    """(exact, mid-p) by going through every way in which b + c coins can fall."""
    n = b + c
    heads = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
    as_extreme = sum(abs(2 * h - n) >= abs(b - c) for h in heads) / len(heads)
    seen = sum(abs(2 * h - n) == abs(b - c) for h in heads) / len(heads)
    return as_extreme, as_extreme - seen / 2


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (7, 1), (2, 9), (5, 6), (0, 11)])
def test_mcnemar_is_what_all_outcomes_add_up_to(b, c):
    exact, mid = _brute_force(b, c)
    assert mcnemar(Pairs(4, b, c, 2), "exact")[0] == pytest.approx(exact, rel=1e-12)
    assert mcnemar(Pairs(4, b, c, 2), "mid-p")[0] == pytest.approx(mid, rel=1e-12)


def test_mcnemar_gives_the_published_values():
    assert mcnemar(BENTUR) == (pytest.approx(0.0703, abs=5e-5), "exact")
    assert mcnemar(CAVO, "mid-p")[0] == pytest.approx(0.034690, abs=5e-7)


def test_mcnemar_is_exact_for_few_and_mid_p_for_many():
    page = (Path(__file__).parents[1] / "docs" / "compare.md").read_text(encoding="utf-8")
    assert f"exact binomial below {FEW_DISCORDANT} images" in page
    assert mcnemar(Pairs(0, FEW_DISCORDANT - 1, 0, 0))[1] == "exact"
    assert mcnemar(Pairs(0, FEW_DISCORDANT, 0, 0))[1] == "mid-p"
    p, _ = mcnemar(Pairs(8012, 466, 444, 1078))
    tail = sum(math.comb(910, k) for k in range(444)) + Fraction(math.comb(910, 444), 2)
    assert p == pytest.approx(float(2 * tail / 2**910), rel=1e-12)
    assert mcnemar(Pairs(0, 40_000, 10_000, 0))[0] == 0.0


def test_holm_adjusts_in_order():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and not less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_mean_difference_has_the_normal_interval():
    values = np.random.default_rng(0).normal(0.1, 1, 400)
    mean, low, high = mean_difference(values.tolist(), 0.9)
    assert mean == pytest.approx(values.mean())
    half = 1.6448536 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((mean - half, mean + half))
    assert mean_difference([0.5]) == (0.5, None, None)
    assert mean_difference([0.0, 2.0]) == pytest.approx((1.0, 1 - 1.959964, 1 + 1.959964), abs=1e-6)  # 95 % unless said
