"""Timing in turns, by a clock that the steps themselves move."""

from contextlib import contextmanager

import pytest
import torch

from excite.runtime import timing
from excite.runtime.timing import in_turns, quartiles

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    now = {"time": 0.0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now["time"])
    return now


def steps(clock, log, **seconds):
    def make(name, takes):
        def step():
            log.append(name)
            clock["time"] += takes

        return step

    return {name: make(name, takes) for name, takes in seconds.items()}


def test_turns_alternate_and_the_warm_up_and_cold_passes_do_not_count(clock):
    log, told = [], []

    @contextmanager
    def within(name):
        log.append(f"<{name}")
        clock["time"] += 100.0  # what it costs to enter is nobody's
        yield
        log.append(">")

    found = in_turns(
        steps(clock, log, a=1.0, b=2.0),
        CPU,
        rounds=(2, 2),
        passes=2,
        cold=1,
        within=within,
        progress=lambda *state: told.append(state),
    )
    assert {name: taken.rounds for name, taken in found.items()} == {"a": [[1.0] * 2] * 2, "b": [[2.0] * 2] * 2}
    a, b = ["<a", *"aaa", ">"], ["<b", *"bbb", ">"]
    assert log == [*a, *b, *a, *b, *b, *a]  # the first round warms up, the last is reversed
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 5), (40.0, 13), (1e9, 20)])
def test_as_many_rounds_as_fit(clock, seconds, rounds):
    """A round takes 3 s here."""
    found = in_turns(steps(clock, [], a=1.0, b=2.0), CPU, seconds=seconds, rounds=(5, 20))
    assert [len(taken.rounds) for taken in found.values()] == [rounds, rounds]
    assert found["b"].median_ms == 2000.0
    assert found["b"].ms == [2000.0] * rounds


def test_the_best_of_each_round_and_quartiles():
    taken = timing.Timed([[3.0, 1.0], [2.0, 5.0]])
    assert (taken.ms, taken.best_ms, taken.median_ms) == ([3000.0, 1000.0, 2000.0, 5000.0], [1000.0, 2000.0], 2500.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert quartiles([4.0, 1.0, 2.0, 3.0]) == (1.75, 2.5, 3.25)
