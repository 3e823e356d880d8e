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


def test_exponential_falls_from_the_end_of_the_warm_up_on():
    """MindCV's exponential_decay (scheduler/dynamic_lr.py): rate * decay_rate ** epochs, in fractions or whole ones."""
    fields = {"name": "exponential", "gamma": 0.5, "warmup_epochs": 2.0}
    got = rates(**fields, step_epochs=1)
    assert got[8:] == pytest.approx([0.5 ** (s / 4) for s in range(32)])
    assert max(got) == got[7] == got[8] == 1.0
    assert rates(**fields, step_epochs=1, unit="epoch")[8:] == pytest.approx([0.5 ** (s // 4) for s in range(32)])
    assert rates(**fields, step_epochs=3)[8:] == pytest.approx([0.5 ** (s / 12) for s in range(32)])


def test_warm_up_may_start_at_warmup_lr_and_end_before_the_peak():
    got = rates(name="constant", warmup_epochs=2.0, warmup_lr=0.2, warmup_peak="next")
    assert got[:8] == pytest.approx([0.2 + 0.8 * i / 8 for i in range(8)])
    assert got[8:] == [1.0] * 32


def test_one_epoch_of_it_changed_per_epoch_is_a_constant():
    # the TensorFlow reference: 0.01, then 0.1, then drops, at a sixteenth of its length
    got = rates(
        name="multistep",
        unit="epoch",
        peak=0.1,
        warmup_epochs=1.0,
        warmup_lr=0.01,
        warmup_peak="next",
        milestones=[5, 7],
    )
    assert got == pytest.approx([0.01] * 4 + [0.1] * 16 + [0.01] * 8 + [0.001] * 12)


def test_cosine_linear_is_a_product_with_a_floor():
    got = rates(name="cosine_linear", peak=0.8)
    assert got == pytest.approx(
        [0.8 * ((40 - i) / 40 * 0.5 * (1 + math.cos(math.pi * 2 * 0.47 * i / 40)) + 0.00001) for i in range(40)]
    )
    assert got[0] == pytest.approx(0.8 * 1.00001)  # the floor is added even at the start


def test_cosine_linear_takes_an_end_and_a_warm_up():
    got = rates(name="cosine_linear", end_lr=0.1, warmup_epochs=1.0)
    assert got[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    t = 18 / 36
    assert got[22] == pytest.approx(0.1 + 0.9 * (1 - t) * (1 + math.cos(0.94 * math.pi * t)) / 2 + 1e-5)
