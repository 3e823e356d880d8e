"""The short form of ``make test-soak``, and that it would notice what it is there for."""

import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.soak.__main__ import AN_HOUR
from tests.soak.flat import ALLOWED, FEWEST, judge, theil_sen
from tests.soak.jobs import JOBS, LEAKS
from tests.soak.soak import KINDS, soak
from tests.soak.watch import MEASURES, Sample

#: Kind -> how much of it, and seconds between two samples.
SHORT = {"train": (0.35, 0.25), "evaluate": (12, 0.15), "predict": (1000, 0.1)}
#: In its first minute, an allocator has not settled.
LENIENCE = 2.0

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="the samples are read from /proc")


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_grows_and_nothing_is_left_behind(kind: str, tmp_path: Path):
    found = soak(kind, tmp_path, *SHORT[kind], lenience=LENIENCE)
    assert found.wrong == []
    assert found.done
    assert {v.measure for v in found.verdicts} == set(MEASURES)


@needs_proc
@pytest.mark.heavy
@pytest.mark.parametrize(
    "leak", [leak if leak == "descriptor" else pytest.param(leak, marks=pytest.mark.variation) for leak in LEAKS]
)
def test_a_leak_is_noticed(leak: str, tmp_path: Path):
    found = soak("nothing", tmp_path, 160, 0.05, leak)
    grown = {v.measure for v in found.verdicts if not v.flat}
    assert LEAKS[leak][1] in grown, found.verdicts
    assert found.wrong
    if leak == "temporary":
        assert any("left behind" in line for line in found.wrong)


@needs_proc
@pytest.mark.heavy
def test_where_nothing_leaks_nothing_is_noticed(tmp_path: Path):
    found = soak("nothing", tmp_path, 160, 0.05)
    assert found.wrong == []
    assert found.samples[0].descriptors > 0
    assert found.samples[0].memory > 10


@needs_proc
@pytest.mark.slow
def test_a_leak_among_real_work_is_noticed(tmp_path: Path):
    """One MB for every prediction, in a process whose memory goes up and down anyway."""
    found = soak("predict", tmp_path, 600, 0.1, "memory", LENIENCE)
    assert {"memory", "main"} <= {v.measure for v in found.verdicts if not v.flat}, found.verdicts


@needs_proc
def test_a_job_that_fails_is_wrong(tmp_path: Path):
    missing = soak("nothing", tmp_path / "a", 1, 0.05, "no such leak")
    assert ["KeyError" in line for line in missing.wrong] == [True]
    short = soak("nothing", tmp_path / "b", 1, 0.5)
    assert ["samples say nothing" in line for line in short.wrong] == [True]


def test_every_kind_has_a_short_form_and_a_job():
    assert SHORT.keys() == set(KINDS) == {"train", *AN_HOUR}
    assert set(KINDS) < JOBS.keys()
    assert ALLOWED.keys() == set(MEASURES)


# --- the rule ---------------------------------------------------------------------------------------------------------

_ONE = Sample(0.0, 500.0, 300.0, 60, 10, 4, 20, 0.5, 3, 20)


def series(values: list[float]) -> list[Sample]:
    """Samples of five seconds each, with these values of ``memory``."""
    return [replace(_ONE, seconds=5.0 * i, memory=value) for i, value in enumerate(values)]


def noise(count: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(0, 3) for _ in range(count)]


def test_noise_is_flat_and_growth_is_not():
    assert judge(series([500 + n for n in noise(720)]), "memory").flat
    assert not judge(series([500 + i / 10 + n for i, n in enumerate(noise(720))]), "memory").flat


def test_a_warm_up_is_left_out():
    values = [500 - 200 * math.exp(-i / 20) + n for i, n in enumerate(noise(720))]
    assert judge(series(values), "memory").flat


def test_two_levels_are_flat_however_the_samples_fall():
    """With workers of an evaluation and without them; the share of evaluations need not be the same everywhere."""
    draw = random.Random(1)
    for share in (0.3, 0.5, 0.7):
        values = [500 + 200 * (draw.random() < share) + n for n in noise(720)]
        assert judge(series(values), "memory").flat


def test_two_levels_that_grow_are_noticed():
    draw = random.Random(1)
    values = [500 + i / 10 + 200 * (draw.random() < 0.3) for i in range(720)]
    assert not judge(series(values), "memory").flat


def test_less_than_is_allowed_is_flat_and_more_is_not():
    absolute, _ = ALLOWED["descriptors"]

    def growing(by: float) -> list[Sample]:
        return [replace(_ONE, seconds=5.0 * i, descriptors=round(60 + by * i / 719)) for i in range(720)]

    assert judge(growing(absolute), "descriptors").flat
    assert not judge(growing(4 * absolute), "descriptors").flat


def test_shrinking_is_flat():
    assert judge(series([900 - i / 2 for i in range(720)]), "memory").flat


def test_too_few_samples_say_nothing():
    with pytest.raises(ValueError, match="say nothing"):
        judge(series([500.0] * (FEWEST - 1)), "memory")


def test_the_slope_is_that_of_the_line_and_ignores_outliers():
    times = [float(i) for i in range(1000)]
    values = [7 + 0.25 * t for t in times]
    values[::10] = [1e6] * 100
    assert theil_sen(times, values) == pytest.approx(0.25, rel=0.2)
    assert theil_sen(times[:3], [1.0, 2.0, 3.0]) == 1.0
