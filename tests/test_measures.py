"""The measures that choose an epoch, against torchmetrics, pairs counted one by one, and values by hand."""

from typing import get_args

import numpy as np
import pytest
import torch

from excite.measures import MEASURES, MeasureName, auroc, balanced_accuracy, macro_f1, measure_of, rank, uneven


def test_every_name_is_one_measure_computed_in_one_way():
    assert tuple(MEASURES) == get_args(MeasureName)
    assert all((m.of_counts is None) != (m.of_logits is None) for m in MEASURES.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_balanced_accuracy_and_macro_f1_are_those_of_torchmetrics(seed):
    from excite.training.metrics import multiclass_confusion_matrix, multiclass_f1_score, multiclass_recall

    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (200,), generator=generator)
    guess = torch.where(torch.rand(200, generator=generator) < 0.5, labels, (labels + labels % 3 + 1) % 6)
    table = multiclass_confusion_matrix(guess, labels, 7)  # one class is only predicted, one neither
    confusion, support = table.tolist(), table.sum(1).tolist()
    recall = multiclass_recall(guess, labels, 7, average="none")[:5].mean()
    assert balanced_accuracy(confusion, support) == pytest.approx(100 * recall.item(), rel=1e-5)
    macro = multiclass_f1_score(guess, labels, 7, average="macro")
    assert macro_f1(confusion, support) == pytest.approx(100 * macro.item(), rel=1e-5)


def pairs(logits: np.ndarray, labels: np.ndarray) -> float:
    """AUROC as the share of pairs in the right order, one by one, from probabilities in float64."""
    z = logits.astype(np.float64)
    chance = np.exp(z - z.max(1, keepdims=True))
    chance /= chance.sum(1, keepdims=True)
    found = []
    for k in range(logits.shape[1]):
        own, others = chance[labels == k, k], chance[labels != k, k]
        if len(own) and len(others):
            found.append(np.mean((own[:, None] > others) + (own[:, None] == others) / 2))
    return 100 * float(np.mean(found))


def test_auroc_counts_pairs_and_is_torchmetrics_own():
    from torchmetrics.functional.classification import multiclass_auroc

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 150)
    logits = rng.normal(size=(150, 4)).astype(np.float32)
    logits[np.arange(150), labels] += 1
    logits = np.concatenate([logits, np.repeat(logits[:20], 3, axis=0)])  # ties
    labels = np.concatenate([labels, rng.integers(0, 4, 60)])
    assert auroc(logits, labels) == pytest.approx(pairs(logits, labels), rel=1e-12)
    theirs = multiclass_auroc(torch.from_numpy(logits), torch.from_numpy(labels), 4)
    assert auroc(logits, labels) == pytest.approx(100 * theirs.item(), rel=1e-5)
    wider = np.concatenate([logits, np.full((210, 1), -3, np.float32)], 1)  # a class without images is left out
    assert auroc(wider, labels) == pytest.approx(pairs(wider, labels), rel=1e-12)


def test_auroc_by_hand():
    """One class: a single wrong pair of 2 x 2; sure probabilities do not tie; what is not finite is always wrong."""
    logits = np.array([[2, 0], [0, 0], [1, 0], [-1, 0]], np.float32)
    assert auroc(logits, np.array([0, 0, 1, 1])) == 75.0
    sure = np.array([[60, 0], [50, 0], [55, 0], [-50, 0]], np.float32)  # all but the last have probability 1 in float32
    assert auroc(sure, np.array([0, 0, 1, 1])) == 75.0
    broken = np.array([[np.nan, 0], [5, 0], [-1, 0], [-2, 0]], np.float32)
    assert auroc(broken, np.array([0, 0, 1, 1])) == 50.0
    assert auroc(logits, np.array([1, 1, 1, 1])) is None
    assert auroc(np.empty((0, 2), np.float32), np.empty(0, np.int64)) is None


def test_the_rank_is_by_the_measure_then_by_the_loss():
    better = {"top1": 50.0, "balanced": 40.0, "loss": 1.0, "auroc": None}
    other = {"top1": 60.0, "balanced": 40.0, "loss": 2.0}
    assert rank(other, "top1") > rank(better, "top1")
    assert rank(better, "loss") > rank(other, "loss")
    assert rank(better, "balanced") > rank(other, "balanced")  # equal, with the smaller loss
    assert rank(better, "auroc") > rank(other, "auroc")  # neither has one
    assert rank({"top1": 0.0, "loss": None}, "top1") < rank({"top1": 0.0, "loss": 9.0}, "top1")
    assert rank({"top1": float("nan"), "loss": 1.0}, "top1") < rank({"top1": 0.0, "loss": None}, "top1")


def test_what_is_uneven_and_what_a_stored_recipe_is_about():
    assert uneven([10, 0, 5]) and not uneven([9, 5]) and not uneven([]) and not uneven([0, 7])  # noqa: PT018
    assert [measure_of(r) for r in ({}, {"eval": {"metric": "auroc"}}, {"eval": {"metric": "new"}})] == [
        "top1",
        "auroc",
        "top1",
    ]
    assert [MEASURES[name].text(value) for name, value in (("top1", 87.5), ("loss", 0.25), ("auroc", None))] == [
        "87.50 %",
        "0.2500",
        "none",
    ]
