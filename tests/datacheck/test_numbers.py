"""Noise of labels, the restated accuracy, cross-fitting, giveaways: made-up numbers whose truth is known."""

import numpy as np
import pytest

from excite.datacheck.giveaways import _balanced_accuracy
from excite.datacheck.labels import SURE, fit_noise
from excite.datacheck.outliers import find_outliers
from excite.datacheck.probe import FOLDS, cross_fitted, folds
from excite.datacheck.restated import Share, measured, true_accuracy


def answers(rng, count, classes=10):
    """Logits (N, K), sharper than they should be, and the true classes, drawn from the probabilities."""
    logits = 3 * rng.normal(size=(count, classes))
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return 1.4 * logits, (np.exp(logits).cumsum(1) > rng.random((count, 1)) * (1 - 1e-9)).argmax(1)


def mislabelled(rng, true, rate, classes=10):
    wrong = rng.random(len(true)) < rate
    return np.where(wrong, (true + rng.integers(1, classes, len(true))) % classes, true), wrong


def test_the_noise_is_found_with_the_temperature_and_the_surest_labels_are_wrong():
    rng = np.random.default_rng(0)
    logits, true = answers(rng, 8000)
    given, wrong = mislabelled(rng, true, 0.04)
    noise = fit_noise(logits, given)
    assert noise.low < 0.04 < noise.high
    assert abs(noise.rate - 0.04) < 0.01
    assert noise.temperature == pytest.approx(1.4, abs=0.1)
    chosen = noise.order(SURE)
    assert len(chosen) > 40
    assert wrong[chosen].mean() > 0.6
    # The probabilities mean what they say: so many of those around 30 % are wrong.
    some = (noise.wrong > 0.2) & (noise.wrong < 0.4)
    assert wrong[some].mean() == pytest.approx(noise.wrong[some].mean(), abs=0.12)
    assert (noise.instead != given).all()


def test_right_labels_are_not_suspected():
    rng = np.random.default_rng(1)
    logits, true = answers(rng, 4000)
    noise = fit_noise(logits, true)
    assert noise.low == 0.0
    assert noise.rate < 0.004
    assert len(noise.order(SURE)) <= 4


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
    rng = np.random.default_rng(2)
    logits, true = answers(rng, 4000, classes)
    given, _ = mislabelled(rng, true, 0.1, classes)
    noise = fit_noise(logits, given)
    assert noise.low < 0.1 < noise.high
    assert noise.high - noise.low < 0.15


def test_logits_up_to_a_constant_are_the_same_and_perfect_ones_do_no_harm():
    rng = np.random.default_rng(3)
    logits, true = answers(rng, 500)
    given, _ = mislabelled(rng, true, 0.05)
    one, other = fit_noise(logits, given), fit_noise(logits + 7.5, given)
    assert other.rate == pytest.approx(one.rate, abs=1e-4)
    perfect = fit_noise(100.0 * np.eye(10)[true], true)
    assert (perfect.rate, perfect.low) == (0.0, 0.0)
    assert perfect.high < 0.05


def test_the_restated_accuracy_undoes_the_noise_by_hand():
    # a = 0.8, q = 0.1, K = 5: a' = 0.9 * 0.8 + 0.1 * 0.2 / 4 = 0.725
    by_labels = Share(1000, 0.725, 0.70, 0.75)
    restated = true_accuracy(by_labels, 0.1, 0.05, 0.15, 5)
    assert restated.share == pytest.approx(0.8)
    # Ends: solved(0.70, 0.1) = 0.675 / 0.875; solved(0.725, 0.05) = 0.7125 / 0.9375
    one, other = 0.8 - 0.675 / 0.875, 0.8 - 0.7125 / 0.9375
    below = (one**2 + other**2 + 0.4 * one * other) ** 0.5
    assert restated.low == pytest.approx(0.8 - below)
    assert restated.high > 0.8 + (0.8 - restated.low) * 0.8
    plain = measured(725, 1000)
    same = true_accuracy(plain, 0.0, 0.0, 0.0, 5)
    assert (same.share, same.low, same.high) == pytest.approx((plain.share, plain.low, plain.high))


@pytest.mark.heavy
def test_the_interval_covers_the_truth():
    """Of 100 simulations with each noise; 200 each, and other populations, in benchmarks/data_check_coverage.py.

    With a coverage of 95 %, 270 or fewer of 300 would happen once in 3,000 times.
    """
    rng = np.random.default_rng(4)
    logits, true = answers(rng, 1_000_000)
    population = (logits.argmax(1) == true).mean()
    inside = 0
    for rate in (0.0, 0.03, 0.08):
        for _ in range(100):
            logits, true = answers(rng, 600)
            given, _ = mislabelled(rng, true, rate)
            noise = fit_noise(logits, given)
            right = int((logits.argmax(1) == given).sum())
            found = true_accuracy(measured(right, 600), noise.rate, noise.low, noise.high, 10)
            inside += found.low <= population <= found.high
    assert inside > 270


def test_copies_share_a_fold_and_no_image_is_judged_by_itself():
    rng = np.random.default_rng(5)
    groups = rng.integers(0, 300, 1000)
    fold = folds(groups)
    assert all(len(set(fold[groups == group])) == 1 for group in np.unique(groups))
    assert set(fold) == set(range(FOLDS))
    # Features that are unique to each image tell its label to whoever has seen it, and nothing to others.
    labels = rng.integers(0, 2, 200)
    chances = cross_fitted(np.eye(200, dtype=np.float32), labels, 2, np.arange(200))
    assert abs((chances.argmax(1) == labels).mean() - 0.5) < 0.15
    alike = cross_fitted(np.eye(200, dtype=np.float32)[labels], labels, 2, np.arange(200))
    assert (alike.argmax(1) == labels).all()


def test_the_balanced_accuracy_of_cells():
    numbers, fold = np.repeat([0, 1], [90, 10]), np.arange(100) % 5
    assert _balanced_accuracy(numbers.copy(), numbers, fold) == 1.0  # the cell is the class
    assert _balanced_accuracy(np.zeros(100, np.int64), numbers, fold) == pytest.approx(0.5, abs=0.01)  # nothing known


def test_outliers_lie_beyond_the_fence_and_normal_noise_does_not():
    rng = np.random.default_rng(6)
    values = rng.normal(size=(400, 20)).astype(np.float32)
    values[:200, 0] += 8
    values[200:, 1] += 8
    labels = np.repeat([0, 1], 200)
    assert (find_outliers(values, labels, np.arange(400)) > 0).sum() == 0
    values[7] = 0
    values[7, 5] = 40
    beyond = find_outliers(values, labels, np.arange(400))
    assert np.flatnonzero(beyond > 0).tolist() == [7]
    # A copy of it does not hide it.
    twice = np.concatenate([values, values[7:8]])
    beyond = find_outliers(twice, np.append(labels, 0), np.append(np.arange(400), 7))
    assert np.flatnonzero(beyond > 0).tolist() == [7, 400]
