"""The short form of ``make test-faults``: a few faults of each kind into real processes."""

import os
from pathlib import Path

import pytest

from tests.faults import kinds
from tests.faults.__main__ import KINDS
from tests.faults.hooks import Trap
from tests.faults.kinds import Row

#: Kind -> how many faults; each is a process killed and one or two started again.
SHORT = {
    "file": 5,
    "step": 2,
    "save": 2,
    "evaluation": 1,
    "worker": 1,
    "rank0": 1,
    "rank1": 1,
    "node": 1,
    "upload": 1,
    "stall": 2,
    "break": 2,
    "convert": 2,
    "graft": 2,
    "export": 1,
    "report": 1,
    "prune": 1,
    "twins": 1,
    "full": 2,
    "read-only": 1,
    "damaged": 16,
}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", SHORT)
def test_nothing_is_lost_hung_or_wrong(kind: str, tmp_path: Path):
    if kind in ("full", "read-only") and os.geteuid() != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        row = KINDS[kind](tmp_path, SHORT[kind])
    except PermissionError as error:
        pytest.skip(f"needs the right to mount a small file system: {error}")
    assert row.fine, row


def test_every_kind_has_a_short_form():
    assert SHORT.keys() == KINDS.keys()


def test_a_trap_acts_once_at_its_count():
    acted: list[int] = []
    trap = Trap(3, lambda: acted.append(1))
    step = trap.around(lambda x: x + 1)
    assert [step(x) for x in range(5)] == [1, 2, 3, 4, 5]
    assert (trap.count, acted) == (5, [1])


def test_a_row_that_reached_nothing_proves_nothing():
    assert not Row("x", planted=3).fine
    assert Row("x", planted=3, reached=3).fine
    for count in ("lost", "hung", "tracebacks", "wrong"):
        assert not Row("x", planted=3, reached=3, **{count: 1}).fine


def test_a_wrong_result_is_noticed(tmp_path: Path, monkeypatch):
    """A harness that compares nothing would find nothing."""
    monkeypatch.setattr(kinds, "RESTARTS", 1)
    results = iter([{"model.safetensors": "a"}, {"model.safetensors": "b"}])
    monkeypatch.setattr(kinds, "result_of", lambda run: next(results))
    monkeypatch.setattr(kinds, "run_job", lambda *args, **kwargs: kinds.Outcome([0]))
    made = lambda place: ("", place / "run")  # noqa: E731
    row = kinds.plant(Row("x"), made, iter([kinds.Fault("step", 1)]), tmp_path, 1)
    assert row.wrong == 1
