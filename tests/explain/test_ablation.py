"""What gates are worth: fixed at their means, and the time without them."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.explain import ablate_gates, collect_scales, fixed_gates, outer_gates, time_without_gates
from excite.explain.ablation import Outcome, compare_outcomes, estimate_ablations
from excite.pages.intervals import Pairs, paired_interval


@pytest.fixture
def means(predictor, batches):
    return {name: found.overall_mean() for name, found in collect_scales(predictor, batches).items()}


def outcome(*right: int) -> Outcome:
    return Outcome(torch.tensor(right).bool(), torch.zeros(len(right), dtype=torch.float64))


def test_an_interval_of_paired_images():
    before, after = outcome(1, 1, 1, 1, 0, 0), outcome(0, 0, 1, 1, 1, 0)
    found = compare_outcomes(["a"], before, after)
    assert (found.images, found.gates) == (6, ("a",))
    assert found.top1 == pytest.approx(50)
    assert found.top1_lost == pytest.approx(100 / 6)
    # Tango's score interval, which `excite compare` gives for the same pairs: two lost, one won.
    low, high = paired_interval(Pairs(both=2, only_first=2, only_second=1, neither=1), 0.95)
    assert (found.low, found.high) == (100 * low, 100 * high)
    for share, sign in (
        (low, 1),
        (high, -1),
    ):  # by the score equation, with the likeliest share of "only after" by hand
        grid = np.linspace(max(0.0, -share), (1 - share) / 2, 400_001)[1:-1]
        likelihood = 2 * np.log(grid + share) + np.log(grid) + 3 * np.log(1 - share - 2 * grid)
        variance = (2 * grid[likelihood.argmax()] + share - share**2) / 6
        assert (1 / 6 - share) / math.sqrt(variance) == pytest.approx(sign * 1.959963984540054, rel=1e-4)


def test_images_without_finite_logits_are_wrong_and_not_in_the_loss():
    nan = float("nan")
    before = Outcome(torch.tensor([True, True, True, False]), torch.tensor([0.1, 0.2, 0.3, nan]).double())
    after = Outcome(torch.tensor([True, False, False, False]), torch.tensor([0.4, nan, 0.8, nan]).double())
    found = compare_outcomes(["a"], before, after)
    assert (found.not_finite, found.top1, found.top1_lost) == (2, 25.0, 50.0)
    assert found.loss_added == pytest.approx(0.4)
    nothing = compare_outcomes(["a"], before, Outcome(after.right, torch.full((4,), nan).double()))
    assert nothing.loss_added is None


def test_each_gate_is_fixed_alone_and_compared_with_none_fixed(predictor, batches, means):
    told = []
    found = ablate_gates(predictor, lambda: batches, means, progress=lambda *n: told.append(n), total=24)
    assert [each.gates for each in found] == [(name,) for name in means]
    assert told[-1] == (240, 240)
    labels = torch.cat([labels for _, labels, _ in batches])
    before = torch.cat([predictor.logits(images) for images, _, _ in batches])
    for each in found:
        (name,) = each.gates
        with fixed_gates(predictor.model, {name: means[name].float()}):
            after = torch.cat([predictor.logits(images) for images, _, _ in batches])
        right = [100 * float((logits.argmax(1) == labels).double().mean()) for logits in (before, after)]
        assert each.top1 == pytest.approx(right[1])
        assert each.top1_lost == pytest.approx(right[0] - right[1])
        loss = F.cross_entropy(after.double(), labels) - F.cross_entropy(before.double(), labels)
        assert each.loss_added == pytest.approx(float(loss), abs=1e-12)
        assert each.low < each.high
    assert any(each.loss_added != 0 for each in found)
    assert torch.equal(before, torch.cat([predictor.logits(images) for images, _, _ in batches]))


def test_an_estimate_is_the_slope_towards_the_mean(predictor, batches, means):
    """A hundredth of the way to the mean, the loss moves by a hundredth of the estimate."""
    from excite.models.listening import changed_scales

    found = {each.gates[0]: each for each in estimate_ablations(predictor, batches, means)}
    assert list(found) == list(means)
    assert all(each.estimated and each.top1_lost is None for each in found.values())
    images, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    network = predictor.model.double()
    x = predictor.preprocessing.normalize(images).double()

    def loss(name: str, step: float) -> float:
        def change(each: str, scale: torch.Tensor) -> torch.Tensor:
            return scale + step * (means[name] - scale) if each == name else scale

        with torch.no_grad(), changed_scales(network, change):
            return float(F.cross_entropy(network(x), labels))

    for name in ("layer1.0.gate", "layer2.1.gate", "layer3.2.gate"):
        slope = (loss(name, 1e-4) - loss(name, -1e-4)) / 2e-4
        assert found[name].loss_added == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_times_are_of_each_group_and_leave_the_network_whole(predictor, batches):
    before, names = predictor.logits(batches[0][0]), list(outer_gates(predictor.model))
    told = []
    rows = time_without_gates(predictor, [names[:1], names], batch=2, rounds=2, progress=lambda *n: told.append(n))
    assert [row["gates"] for row in rows] == [[], names[:1], names]
    assert told == [(1, 2), (2, 2)]
    assert rows[0]["saved_ms"] == 0
    assert all(row["ms"] > 0 and row["saved_low"] <= row["saved_ms"] <= row["saved_high"] for row in rows)
    assert list(outer_gates(predictor.model)) == names
    assert torch.equal(predictor.logits(batches[0][0]), before)


def test_no_images_and_no_such_gate(predictor, means):
    with pytest.raises(ExciteError, match="no images"):
        ablate_gates(predictor, list, means)
    with pytest.raises(ExciteError, match="no images"):
        estimate_ablations(predictor, [], means)
    with pytest.raises(ExciteError, match="there is no gate 'layer9'"):
        time_without_gates(predictor, [["layer9"]])
