"""The training losses against their formulas, written out per image and class."""

import math

import pytest
import torch

from excite.training.loss import training_loss
from excite.training.meter import Meter
from tests.training.small import small

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -2.0]])


def config(*overrides):
    return small("label_smoothing=0.0", *overrides).train


def targets(soft: bool):
    return torch.tensor([[0.7, 0.0, 0.3], [0.0, 1.0, 0.0]]) if soft else torch.tensor([2, 1])


def as_rows(wanted, smoothing):
    rows = wanted.tolist() if wanted.ndim == 2 else [[float(k == t) for k in range(3)] for t in wanted.tolist()]
    return [[p * (1 - smoothing) + smoothing / 3 for p in row] for row in rows]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_is_the_mean_over_images(soft, smoothing):
    expected = 0.0
    for row, z in zip(as_rows(targets(soft), smoothing), LOGITS.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(v) for v in z))
        expected += sum(p * (log_sum - v) for p, v in zip(row, z, strict=True)) / 2
    loss = training_loss(LOGITS, targets(soft), config(f"train.label_smoothing={smoothing}"))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_bce_is_the_mean_over_images_and_classes(soft, smoothing):
    expected = 0.0
    for row, z in zip(as_rows(targets(soft), smoothing), LOGITS.tolist(), strict=True):
        for p, v in zip(row, z, strict=True):
            expected -= (p * math.log(1 / (1 + math.exp(-v))) + (1 - p) * math.log(1 / (1 + math.exp(v)))) / 6
    loss = training_loss(LOGITS, targets(soft), config("train.loss=bce", f"train.label_smoothing={smoothing}"))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_network_learns_by_bce(tmp_path):
    """Through the whole loop, with mixed images and accumulation in parts."""
    from excite.training import train

    recipe = small("train.loss=bce", "lr=0.3", "epochs=5", "grad_accumulation=2", "rotation=0.0", "ema_decay=0.0")
    results = train(recipe, out=tmp_path, quiet=True)
    assert results["top1"] > 25  # of ten classes


def test_bce_of_a_batch_that_lacks_the_last_classes():
    wanted = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    bce = config("train.loss=bce")
    assert training_loss(LOGITS, torch.tensor([1, 0]), bce) == training_loss(LOGITS, wanted, bce)


def test_the_meter_gives_the_losses_and_counts_since_it_was_read_last():
    meter = Meter(3, torch.device("cpu"))
    for steps in ([(0.5, 7, 32), (0.25, 8, 32), (2.0, 1, 16)], [(1.5, 3, 8)], []):
        for loss, correct, images in steps:
            meter.add(torch.tensor(loss), torch.tensor(correct), images)
        assert (meter.count, meter.images) == (len(steps), sum(images for *_, images in steps))
        losses, counts = meter.read()
        assert losses.tolist() == [loss for loss, *_ in steps]
        assert counts.tolist() == [correct for _, correct, _ in steps]
    meter.add(torch.tensor(4.0), torch.tensor(2), 8)
    kept = meter.read()
    meter.add(torch.tensor(9.0), torch.tensor(9), 9)
    assert kept.tolist() == [[4.0], [2.0]]  # a copy, which later steps do not write into
