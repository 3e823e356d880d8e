"""Decides whether a series of measurements is flat."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tests.soak.watch import Sample

#: Measure -> (absolute, relative) growth that is allowed from the beginning to the end of a watch; the larger counts.
#:
#: Memory: the allocator keeps what is freed, in pieces, and with them a job that leaks nothing gets a few MB larger
#: in its first minutes and a few more now and then. Descriptors, threads, processes, files: none may be left. The
#: allowance is for what a library opens late and once; a leak adds one for every evaluation, checkpoint or prediction,
#: of which there are many more.
ALLOWED: dict[str, tuple[float, float]] = {
    "memory": (10.0, 0.03),
    "main": (8.0, 0.03),
    "descriptors": (3, 0),
    "threads": (2, 0),
    "processes": (1, 0),
    "shm_files": (2, 0),
    "shm_mb": (4.0, 0),
    "temporary": (3, 0),
    "run_files": (3, 0),
}
#: The fewest samples that say anything.
FEWEST = 25
#: The most points that the slope is computed from: it takes every pair.
POINTS = 300


@dataclass(frozen=True)
class Verdict:
    """How a measure developed.

    Attributes:
        start, end: medians of the second fifth and of the last fifth of the samples.
        per_hour: Theil and Sen's slope over the last four fifths: the median of the slopes of all pairs.
        flat: whether it did not grow.
    """

    measure: str
    start: float
    end: float
    per_hour: float
    flat: bool


def judge(samples: Sequence[Sample], measure: str, lenience: float = 1.0) -> Verdict:
    """Whether a measure is flat.

    The first fifth is left out: memory settles. Medians, since an evaluation, a checkpoint or the garbage collector
    change every number for a while: up to half of the samples may be anything. It grows if both the medians and the
    slope say so: a last fifth with more evaluations in it than the second lifts a median, but not the slope.

    Args:
        samples: at equal distances.
        measure: one of ``watch.MEASURES``.
        lenience: factor on what is allowed of memory, for short watches, in which the allocator has not settled.
    """
    if len(samples) < FEWEST:
        raise ValueError(f"{len(samples)} samples say nothing; at least {FEWEST} do")
    fifth = len(samples) // 5
    values = [float(getattr(sample, measure)) for sample in samples]
    times = [sample.seconds for sample in samples]
    start, end = statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:])
    slope = theil_sen(times[fifth:], values[fifth:])
    absolute, relative = ALLOWED[measure]
    allowed = max(absolute, relative * start)
    if measure in ("memory", "main", "shm_mb"):
        allowed *= lenience
    grows = end - start > allowed and slope * (times[-1] - times[fifth]) > allowed
    return Verdict(measure, start, end, 3600 * slope, not grows)


def theil_sen(times: Sequence[float], values: Sequence[float]) -> float:
    """The median slope of all pairs of points (of at most ``POINTS`` of them, evenly spread)."""
    step = -(-len(times) // POINTS)
    points = list(zip(times, values, strict=True))[::step]
    return statistics.median((b - a) / (t - s) for (s, a), (t, b) in combinations(points, 2))
