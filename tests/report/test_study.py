"""Every number of a report against another formulation."""

import numpy as np
import pytest
from sklearn.metrics import (
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from excite.report import study
from excite.report.build import thinned


def test_accuracy_and_its_interval(made_up):
    p = made_up()
    found = study.accuracy(p)
    assert found["top1"] == pytest.approx(100 * np.mean(p.logits.argmax(1) == p.labels))
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(p.labels, p.logits, k=5, labels=range(7)))
    for bound in (found["top1_low"], found["top1_high"]):  # Wilson's bounds solve (p - x)^2 = z^2 x (1 - x) / n
        x, share = bound / 100, found["right"] / found["images"]
        assert (share - x) ** 2 == pytest.approx(1.959963984540054**2 * x * (1 - x) / found["images"])
    assert study.accuracy(made_up(50, 3))["top5"] == 100


def test_confusion_and_classes_against_scikit_learn(made_up):
    p = made_up()
    assert np.array_equal(study.confusion(p), confusion_matrix(p.labels, p.predicted, labels=range(7)))
    found = study.per_class(p)
    arrays = precision_recall_fscore_support(p.labels, p.predicted, labels=range(7), zero_division=0)
    for k, row in enumerate(found["rows"]):
        for key, values in zip(("precision", "recall", "f1"), arrays, strict=False):
            undefined = (key == "recall" and row["support"] == 0) or (key == "precision" and row["predicted"] == 0)
            assert row[key] == (None if undefined else pytest.approx(100 * values[k], rel=1e-5, abs=1e-9))
        assert row["support"] == arrays[3][k]
    for key, values in zip(("precision", "recall", "f1"), arrays, strict=False):  # class 6 has no images
        assert found["macro"][key] == pytest.approx(100 * values[:6].mean(), rel=1e-5)


@pytest.mark.parametrize("classes", [7, 31, 64])
def test_a_large_confusion_matrix_is_pooled_and_its_pairs_are_listed(made_up, classes):
    p = made_up(500, classes)
    counts = study.confusion(p)
    found = study.confusion_summary(counts, p.classes)
    assert len(found["matrix"]) == len(found["labels"]) <= study.WHOLE
    assert np.sum(found["matrix"]) == 500
    block, last = found["block"], len(found["labels"]) - 1
    assert found["matrix"][0][last] == counts[:block, block * last :].sum()
    best = max((counts[i, j], i, j) for i in range(classes) for j in range(classes) if i != j)
    assert found["pairs"][0]["images"] == best[0]
    assert found["pairs"] == sorted(found["pairs"], key=lambda r: -r["images"])
    assert all(r["true"] != r["predicted"] and r["images"] > 0 for r in found["pairs"])
    first = found["pairs"][0]
    support = np.sum(p.labels == p.classes.index(first["true"]))
    assert first["share"] == pytest.approx(100 * first["images"] / support)


def test_calibration_by_hand_and_by_scikit_learn(made_up):
    p = made_up(400)
    probabilities = p.probabilities()
    found = study.calibration(p)
    assert found["nll"] == pytest.approx(log_loss(p.labels, probabilities, labels=range(7)))
    brier = brier_score_loss(p.labels, probabilities, labels=range(7), scale_by_half=False)
    assert found["brier"] == pytest.approx(brier)
    confidence, right = probabilities.max(1), p.predicted == p.labels
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
            assert found["reliability"][b]["accuracy"] == pytest.approx(100 * right[inside].mean())
            assert found["reliability"][b]["confidence"] == pytest.approx(100 * confidence[inside].mean())
        assert found["reliability"][b]["images"] == inside.sum()
    assert found["ece"] == pytest.approx(100 * error, rel=1e-5)
    from_rows = sum(r["images"] * abs(r["accuracy"] - r["confidence"]) for r in found["reliability"] if r["images"])
    assert found["ece"] == pytest.approx(from_rows / 400, rel=1e-5)


def test_the_temperature_is_found_on_one_half_and_judged_on_the_other(made_up):
    p = made_up(600)
    hot = type(p)(p.logits * 3, *(getattr(p, f) for f in list(p.__dataclass_fields__)[1:]))
    found, plain = study.calibration(hot), study.calibration(p)
    assert found["temperature"] == pytest.approx(3 * plain["temperature"], rel=1e-4)
    grid = np.linspace(0.5, 2, 301) * found["temperature"]
    rest, order = study.stratified_split(p.labels, 0.5, 0)
    losses = [study.nll(hot.probabilities(t)[order], p.labels[order]) for t in grid]
    assert grid[int(np.argmin(losses))] == pytest.approx(found["temperature"], rel=0.01)
    held = found["held_out"]
    assert sorted([*order, *rest]) == list(range(600))
    assert held["images_fitted"] + held["images"] == 600
    after = hot.probabilities(found["temperature"])[rest]
    assert held["ece_after"] == pytest.approx(study.ece(after, p.labels[rest]))
    assert held["nll_after"] == pytest.approx(study.nll(after, p.labels[rest]))
    assert held["nll_after"] < held["nll_before"] == pytest.approx(study.nll(hot.probabilities()[rest], p.labels[rest]))
    assert abs(np.bincount(p.labels[order], minlength=6) - np.bincount(p.labels[rest], minlength=6)).max() <= 1


def test_no_temperature_where_all_are_right_or_there_is_one_image(made_up):
    p = made_up(60)
    p.logits[np.arange(60), p.labels] += 100
    found = study.calibration(p)
    assert found["temperature"] is None
    assert found["held_out"] is None
    assert study.calibration(made_up(1))["temperature"] is None


def test_mistakes_are_the_surest_wrong_answers(made_up):
    p = made_up()
    found = study.confident_mistakes(p, 5)
    probabilities = p.probabilities()
    wrong = [i for i in range(200) if p.logits[i].argmax() != p.labels[i]]
    sure = sorted(wrong, key=lambda i: -probabilities[i].max())[:5]
    assert [row["name"] for row in found] == [f"#{i}" for i in sure]
    assert [row["position"] for row in found] == sure
    for row, i in zip(found, sure, strict=True):
        assert (row["true"], row["predicted"]) == (f"c{p.labels[i]}", f"c{p.logits[i].argmax()}")
        assert row["probability_of_true"] == pytest.approx(probabilities[i, p.labels[i]])


def test_long_curves_become_means_of_stretches():
    points = [{"step": i, "epoch": i / 10, "loss": float(i % 4), "accuracy": None} for i in range(1000)]
    found = thinned(points, 250)
    assert len(found) == 250
    assert all(row["loss"] == 1.5 and row["accuracy"] is None for row in found)
    assert found[-1]["step"] == 999
    assert thinned(points[:7], 250) == points[:7]


def test_the_calibration_error_is_that_of_the_rows_beside_it(made_up):
    """Of confidences of 1 and just below, the reliability diagram makes one bin, and so must the error."""
    p = made_up(20, 2)
    p.labels[:] = [0] * 10 + [0] * 9 + [1]
    p.logits[:] = [[40.0, 0.0]] * 10 + [[3.0, 0.0]] * 10
    found = study.calibration(p)
    rows = [row for row in found["reliability"] if row["images"]]
    assert [row["images"] for row in rows] == [20]
    sure = (10 + 10 / (1 + np.exp(-3.0))) / 20
    assert found["ece"] == pytest.approx(100 * abs(19 / 20 - sure), rel=1e-12)
    assert found["ece"] == pytest.approx(abs(rows[0]["accuracy"] - rows[0]["confidence"]), rel=1e-12)
    p.logits[0], p.labels[0] = [np.nan, 0.0], 1  # in no bin, and of no error
    assert sum(row["images"] for row in study.calibration(p)["reliability"]) == 19


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    """The diagram's bars and the ECE are of the same bins: their weighted gaps are the error."""
    edge = 12 / study.BINS
    confidence = np.array([edge, edge, edge + 0.01, edge - 0.01, 1.0])
    probabilities = np.stack([confidence, 1 - confidence], 1)
    labels = np.array([0, 0, 1, 1, 0])
    rows = study.reliability(probabilities, labels == 0)
    assert [row["images"] for row in rows if row["images"]] == [3, 1, 1]
    gaps = sum(row["images"] * abs(row["accuracy"] - row["confidence"]) for row in rows if row["images"]) / 5
    assert gaps == pytest.approx(study.ece(probabilities, labels))
