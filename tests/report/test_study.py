"""Every number of a report against another formulation."""

import dataclasses

import numpy as np
import pytest

from excite.report import study
from excite.report.build import thinned


def test_accuracy_and_its_interval(made_up):
    p = made_up()
    found = study.accuracy(p)
    assert found["top1"] == pytest.approx(100 * np.mean(p.logits.argmax(1) == p.labels))
    assert found["top5"] == pytest.approx(100 * np.mean(np.argsort(-p.logits)[:, :5] == p.labels[:, None]) * 5)
    for z, interval in ((1.959963984540054, found), (1.2815515655446004, study.accuracy(p, 0.8))):
        for bound in (interval["top1_low"], interval["top1_high"]):  # Wilson's solve (p - x)^2 = z^2 x (1 - x) / n
            x, share = bound / 100, found["right"] / found["images"]
            assert (share - x) ** 2 == pytest.approx(z**2 * x * (1 - x) / found["images"])
    few = study.accuracy(made_up(50, 3))
    assert (few["top5"], few["top5_of"]) == (100, 3)


@pytest.mark.parametrize("images", [200, 8])  # of eight, some classes have one, or none
def test_confusion_and_classes_against_scikit_learn(made_up, images, sklearn):
    p = made_up(images)
    assert np.array_equal(study.confusion(p), sklearn.metrics.confusion_matrix(p.labels, p.predicted, labels=range(7)))
    found = study.per_class(p)
    measured = sklearn.metrics.precision_recall_fscore_support
    arrays = measured(p.labels, p.predicted, labels=range(7), zero_division=0)
    for k, row in enumerate(found["rows"]):
        for key, values in zip(("precision", "recall", "f1"), arrays, strict=False):
            parts = {"precision": row["predicted"], "recall": row["support"], "f1": row["support"] + row["predicted"]}
            assert row[key] == (pytest.approx(100 * values[k], rel=1e-5, abs=1e-9) if parts[key] else None)
        assert (row["class"], row["support"]) == (f"c{k}", arrays[3][k])
        assert row["predicted"] == np.sum(p.logits.argmax(1) == k)
    for key, values in zip(("precision", "recall", "f1"), arrays, strict=False):  # over the classes that have images
        assert found["macro"][key] == pytest.approx(100 * values[arrays[3] > 0].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("classes", "block", "last_label"),
    [(7, 1, "c6"), (30, 1, "c29"), (31, 2, "31-31"), (60, 2, "59-60"), (64, 3, "64-64")],
)
def test_a_large_confusion_matrix_is_pooled_and_its_pairs_are_listed(made_up, classes, block, last_label):
    p = made_up(500, classes)
    counts = study.confusion(p)
    found = study.confusion_summary(counts, p.classes)
    assert found["block"] == block
    assert (found["labels"][0], found["labels"][-1]) == ("c0" if block == 1 else f"1-{block}", last_label)
    pooled = np.zeros((len(found["labels"]),) * 2, dtype=int)
    for true, other in zip(p.labels // block, p.predicted // block, strict=True):
        pooled[true, other] += 1
    assert found["matrix"] == pooled.tolist()
    # Pairs of equally many images are in the order of the classes.
    wrong = [(-counts[i, j], i, j) for i in range(classes) for j in range(classes) if i != j and counts[i, j]]
    assert [(row["true"], row["predicted"], row["images"], row["share"]) for row in found["pairs"]] == [
        (f"c{i}", f"c{j}", -count, pytest.approx(-100 * count / np.sum(p.labels == i)))
        for count, i, j in sorted(wrong)[: study.PAIRS]
    ]
    nothing = study.confusion_summary(np.diag(counts.diagonal()), p.classes)
    assert nothing["pairs"] == []


def test_images_without_finite_logits_are_wrong_and_not_among_the_answers(made_up):
    whole = made_up(201)
    whole.logits[:, 6] = -9  # the class without images is never predicted, so that there is nothing to divide by
    right = whole.logits.argmax(1) == whole.labels
    lost = [int(np.flatnonzero(right)[3]), int(np.flatnonzero(~right)[5])]
    whole.logits[lost, [0, 1]] = [np.nan, -np.inf]
    rest = np.delete(np.arange(201), lost)
    some = dataclasses.replace(
        whole,
        logits=whole.logits[rest],
        labels=whole.labels[rest],
        positions=rest,
        names=tuple(whole.names[i] for i in rest),
    )
    found, answers = study.study_predictions(whole, 5), study.study_predictions(some, 5)
    assert len(found["mistakes"]) == 5
    assert {key: found[key] for key in ("confusion", "calibration", "mistakes")} == {
        key: answers[key] for key in ("confusion", "calibration", "mistakes")
    }
    best = np.argsort(-some.logits, axis=1)[:, :5]
    assert found["accuracy"]["top1"] == pytest.approx(100 * (right.sum() - 1) / 201)
    assert found["accuracy"]["top5"] == pytest.approx(100 * (best == some.labels[:, None]).any(1).sum() / 201)
    assert [found["accuracy"][key] for key in ("top5_of", "not_finite", "confidence")] == [5, 2, 0.95]
    assert found["classes"]["rows"][6] == {
        "class": "c6", "support": 0, "predicted": 0, "precision": None, "recall": None, "f1": None
    }  # fmt: skip
    for k, (row, one) in enumerate(zip(found["classes"]["rows"], answers["classes"]["rows"], strict=True)):
        support = np.sum(whole.labels == k)
        assert (row["support"], row["predicted"]) == (support, one["predicted"])
        if support:
            hits = np.sum(some.labels[some.predicted == k] == k)
            assert row["recall"] == pytest.approx(100 * hits / support)
            assert row["precision"] == pytest.approx(100 * hits / row["predicted"])
            assert row["f1"] == pytest.approx(200 * hits / (support + row["predicted"]))
    whole.logits[:, 2] = np.inf
    found = study.study_predictions(whole)
    assert found["calibration"].keys() == answers["calibration"].keys()
    assert [row["images"] for row in found["calibration"].pop("reliability")] == [0] * study.BINS
    assert {key for key, value in found["calibration"].items() if value is not None} == {"bins", "norm"}
    assert (found["accuracy"]["top1"], found["mistakes"], found["confusion"]["pairs"]) == (0, [], [])


def test_top5_and_probabilities_against_scikit_learn(made_up, sklearn):
    p = made_up(400)
    probabilities, found = p.probabilities(), study.calibration(p)
    top5 = sklearn.metrics.top_k_accuracy_score(p.labels, p.logits, k=5, labels=range(7))
    assert study.accuracy(p)["top5"] == pytest.approx(100 * top5)
    assert found["nll"] == pytest.approx(sklearn.metrics.log_loss(p.labels, probabilities, labels=range(7)))
    brier = sklearn.metrics.brier_score_loss(p.labels, probabilities, labels=range(7), scale_by_half=False)
    assert found["brier"] == pytest.approx(brier)


def test_calibration_by_hand(made_up):
    p = made_up(400)
    probabilities = p.probabilities()
    found = study.calibration(p)
    assert (found["bins"], found["norm"]) == (15, "l1")
    assert found["mean_confidence"] == pytest.approx(100 * probabilities.max(1).mean())
    assert found["nll"] == pytest.approx(-np.log(probabilities[np.arange(400), p.labels]).mean())
    assert found["brier"] == pytest.approx(((probabilities - np.eye(7)[p.labels]) ** 2).sum(1).mean())
    confidence, right = probabilities.max(1), p.predicted == p.labels
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
            assert found["reliability"][b]["accuracy"] == pytest.approx(100 * right[inside].mean())
            assert found["reliability"][b]["confidence"] == pytest.approx(100 * confidence[inside].mean())
        assert found["reliability"][b]["images"] == inside.sum()
        ends = found["reliability"][b]["low"], found["reliability"][b]["high"]
        assert ends == pytest.approx((b / 15, (b + 1) / 15))
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
    assert (held["seed"], study.calibration(hot, seed=3)["held_out"]["seed"]) == (0, 3)
    assert study.calibration(hot, seed=3)["temperature"] != found["temperature"]
    assert sorted([*order, *rest]) == list(range(600))
    assert held["images_fitted"] + held["images"] == 600
    after = hot.probabilities(found["temperature"])[rest]
    assert held["ece_before"] == pytest.approx(study.ece(hot.probabilities()[rest], p.labels[rest]))
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


@pytest.mark.parametrize("wanted", [0.0099, 0.0101, 0.05, 50, 99, 101])
def test_a_temperature_is_a_place_where_the_loss_is_flat_or_not_given(made_up, wanted):
    """The slope of the NLL in log T is the mean of (sum of p z - z of the true class) / T."""
    p = made_up()
    scaled = p.logits * np.float32(wanted / study.fit_temperature(p.logits, p.labels))
    found = study.fit_temperature(scaled, p.labels)
    if not 0.01 < wanted < 100:
        assert found is None
        return
    assert found == pytest.approx(wanted, rel=1e-5)
    shares = dataclasses.replace(p, logits=scaled).probabilities(found)
    slope = (shares * scaled).sum(1) - scaled[np.arange(len(scaled)), p.labels]
    assert abs(slope.mean() / found) < 1e-5
    assert study.fit_temperature(-scaled, p.labels) is None  # worse than chance


def test_a_probability_that_rounds_to_0_has_a_finite_loss():
    shares = np.array([[1.0, 0.0], [0.25, 0.75]])
    least = 2.0**-1022
    assert study.nll(shares, np.array([1, 1])) == pytest.approx(-(np.log(least) + np.log(0.75)) / 2)


def test_curves_are_the_records_of_their_kind():
    kept = {
        "train": ("step", "epoch", "loss", "accuracy", "lr", "ms_per_step", "images_per_second"),
        "eval": ("step", "epoch", "loss", "top1", "top5"),
    }
    records = [
        {"kind": kind, "seconds": 9.0, **{key: number + place for place, key in enumerate(keys)}}
        for number in (10, 30)
        for kind, keys in kept.items()
    ]
    del records[0]["lr"]  # of another version
    points = {
        kind: [{key: r.get(key) for key in keys} for r in records if r["kind"] == kind] for kind, keys in kept.items()
    }
    for metric in ("top1", "loss", "auroc"):  # older runs have no AUROC
        for point in points["eval"]:
            point["metric"] = point.get(metric)
        assert study.curves([*records, {"kind": "note"}], metric) == points


def test_mistakes_are_the_surest_wrong_answers(made_up):
    p = made_up()
    p.logits[40:80], p.labels[40:80] = p.logits[:40], p.labels[:40]  # of equals the first comes first
    p.positions[:] += 1000
    found = study.confident_mistakes(p, 5)
    probabilities = p.probabilities()
    wrong = [i for i in range(200) if p.logits[i].argmax() != p.labels[i]]
    sure = sorted(wrong, key=lambda i: -probabilities[i].max())[:5]
    assert [row["name"] for row in found] == [f"#{i}" for i in sure]
    assert [row["position"] for row in found] == [1000 + i for i in sure]
    for row, i in zip(found, sure, strict=True):
        assert (row["true"], row["predicted"]) == (f"c{p.labels[i]}", f"c{p.logits[i].argmax()}")
        assert row["probability"] == pytest.approx(probabilities[i].max())
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
    lowest = study.reliability(np.array([[0.0], [0.03], [1 / study.BINS], [0.07]]), np.array([True] * 3 + [False]))
    assert [(row["images"], row["accuracy"]) for row in lowest[:2]] == [(3, 100), (1, 0)]
    gaps = sum(row["images"] * abs(row["accuracy"] - row["confidence"]) for row in rows if row["images"]) / 5
    assert gaps == pytest.approx(study.ece(probabilities, labels))
