"""The learning rate against the formulas, worked out by hand."""

import math

import pytest

from excite.recipe import ScheduleConfig
from excite.training.schedule import learning_rate


def rates(epochs=10, steps=4, peak=1.0, **fields):
    schedule = ScheduleConfig(**fields)
    return [learning_rate(schedule, peak, s, steps, epochs) for s in range(epochs * steps)]


def test_cosine_per_step_starts_at_the_peak_and_would_end_at_end_lr():
    got = rates(name="cosine", end_lr=0.1)
    assert got == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * s / 40)) / 2 for s in range(40)])


def test_warm_up_reaches_the_peak_in_its_last_step_and_the_curve_gets_the_rest():
    got = rates(name="linear", warmup_epochs=2.0, warmup_lr=0.2)
    assert got[:8] == pytest.approx([0.2 + 0.8 * (i + 1) / 8 for i in range(8)])
    assert got[8:] == pytest.approx([1 - i / 32 for i in range(32)])


def test_per_epoch_changes_only_between_epochs():
    # 5 warm-up epochs, then cosine per epoch: the ModelZoo-PyTorch recipe (peak 0.6) at a tenth of its length
    got = rates(name="cosine", unit="epoch", warmup_epochs=5.0, peak=0.6)
    assert all(len(set(got[e * 4 : e * 4 + 4])) == 1 for e in range(10))
    assert got[::4][:5] == pytest.approx([0.12, 0.24, 0.36, 0.48, 0.6])
    assert got[::4][5:] == pytest.approx([0.6 * (1 + math.cos(math.pi * e / 5)) / 2 for e in range(5)])


def test_fractional_warm_up_never_exceeds_the_peak():
    got = rates(name="constant", warmup_epochs=0.6)
    assert got[:4] == pytest.approx([1 / 2.4, 2 / 2.4, 1.0, 1.0])


def test_step_multistep_and_polynomial():
    assert rates(name="step", step_epochs=3, gamma=0.5)[::4] == pytest.approx([0.5 ** (e // 3) for e in range(10)])
    multi = rates(name="multistep", milestones=[2, 7])[::4]
    assert multi == pytest.approx([1.0] * 2 + [0.1] * 5 + [0.01] * 3)
    assert rates(name="polynomial", power=3.0) == pytest.approx([(1 - s / 40) ** 3 for s in range(40)])
