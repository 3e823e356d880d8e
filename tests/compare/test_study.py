"""The numbers of a comparison against NumPy and PyTorch by hand, and what may not be compared."""

import json
from dataclasses import replace
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from excite.compare.recipes import differences
from excite.compare.runs import _gate
from excite.compare.study import PICTURES, study
from excite.grafting import graft
from excite.models import create_model
from excite.pages.intervals import Pairs, holm, mcnemar, paired_interval, wilson
from excite.recipe import flatten, load_recipe
from excite.report.study import accuracy as report_accuracy
from tests.compare.conftest import made_up


def test_the_rows_hold_what_can_be_counted_by_hand(three, labels):
    found = study(three, 0, 0.9)
    json.dumps(found, allow_nan=False)
    assert found["paired"] == ["a", "b", "c"]
    right = [run.predictions.logits.argmax(1) == labels for run in three]
    ps = []
    for run, row, own in zip(three, found["rows"], right, strict=True):
        assert row["top1"] == pytest.approx(100 * own.mean())
        ends = wilson(int(own.sum()), 200, 0.9)
        assert (row["top1_low"], row["top1_high"]) == pytest.approx((100 * ends[0], 100 * ends[1]))
        logits = torch.from_numpy(run.predictions.logits).double()
        # In double precision: single precision is off by some 1e-8.
        assert row["loss"] == pytest.approx(float(F.cross_entropy(logits, torch.from_numpy(labels))), rel=1e-12)
        assert row["top5"] == 100  # of three classes
        if run is three[0]:
            assert row["difference"] is row["p"] is row["p_holm"] is None
            continue
        assert row["only_this"] == (own & ~right[0]).sum()
        assert row["only_baseline"] == (right[0] & ~own).sum()
        assert row["both_right"] == (own & right[0]).sum()
        assert row["both_wrong"] == (~own & ~right[0]).sum()
        pairs = Pairs(row["both_right"], row["only_this"], row["only_baseline"], row["both_wrong"])
        assert row["difference"] == pytest.approx(100 * (own.mean() - right[0].mean()))
        ends = paired_interval(pairs, 0.9)
        assert (row["difference_low"], row["difference_high"]) == pytest.approx((100 * ends[0], 100 * ends[1]))
        assert (row["p"], row["test"]) == mcnemar(pairs)
        assert row["loss_difference"] == pytest.approx(row["loss"] - found["rows"][0]["loss"])
        each = [F.cross_entropy(torch.from_numpy(r.predictions.logits).double(), torch.from_numpy(labels),
                                reduction="none") for r in (run, three[0])]  # fmt: skip
        half = NormalDist().inv_cdf(0.95) * float((each[0] - each[1]).std()) / 200**0.5
        ends = row["loss_difference"] - half, row["loss_difference"] + half
        assert (row["loss_difference_low"], row["loss_difference_high"]) == pytest.approx(ends)
        ps.append(row["p"])
    assert [row["p_holm"] for row in found["rows"][1:]] == holm(ps)
    assert found["rows"][2]["difference"] > 10  # the better one has the plus


def test_top5_counts_the_five_largest():
    rng = np.random.default_rng(3)
    classes = tuple(map(str, range(12)))
    labels = rng.integers(0, 12, 60)
    runs = [made_up(name, rng.normal(size=(60, 12)), labels, classes=classes) for name in "ab"]
    for run, row in zip(runs, study(runs)["rows"], strict=True):
        best = torch.from_numpy(run.predictions.logits).topk(5).indices.numpy()
        assert row["top5"] == pytest.approx(100 * (best == labels[:, None]).any(1).mean())


def test_another_baseline_turns_the_signs(three):
    forward, back = study(three[:2]), study(three[:2], baseline=1)
    assert back["baseline"] == "b"
    assert back["paired"] == ["b", "a"]
    assert back["rows"][0]["difference"] == pytest.approx(-forward["rows"][1]["difference"])
    assert back["rows"][0]["difference_low"] == pytest.approx(-forward["rows"][1]["difference_high"])
    assert back["rows"][0]["p"] == forward["rows"][1]["p"]
    # A run that cannot be paired is passed by, and those after it are not.
    blind = replace(three[0], label="blind", predictions=None, problem="gone")
    elsewhere = replace(three[0], label="elsewhere", predictions=replace(three[0].predictions, fingerprint="others"))
    found = study([three[0], blind, three[1], elsewhere, three[2]], baseline=2)
    assert found["paired"] == ["b", "a", "c"]
    assert [row["p"] is None for row in found["rows"]] == [False, True, True, True, False]
    assert [pair["label"] for pair in found["only_one"]] == found["agreement"]["labels"][1:] == ["a", "c"]
    assert {pair["baseline"] for pair in found["only_one"]} == {"b"}
    alone = study([blind, three[1]])
    assert (alone["paired"], alone["notes"][-1]) == (
        [], "blind, the baseline, has no predictions, so nothing is compared image by image."
    )  # fmt: skip
    assert study([three[0], blind])["paired"] == []


def test_classes_are_sorted_by_their_difference(three, labels):
    rows = study(three)["per_class"]
    changes = [row["difference"][1] for row in rows]
    assert changes == sorted(changes)
    for row in rows:
        mine = labels == ("cat", "dog", "owl").index(row["class"])
        assert row["images"] == mine.sum()
        for run, top1 in zip(three, row["top1"], strict=True):
            assert top1 == pytest.approx(100 * (run.predictions.logits.argmax(1) == labels)[mine].mean())
        assert row["difference"] == pytest.approx([value - row["top1"][0] for value in row["top1"]])


def test_classes_without_images_come_last_and_equal_ones_by_their_names():
    classes = ("emu", "dog", "owl", "cat", "ant")
    labels = np.repeat([0, 1, 2], [200, 2, 2])
    said = labels.copy()
    said[[5, 202]] = 4
    runs = [
        made_up(name, np.eye(5)[answers], labels, classes=classes) for name, answers in (("a", said), ("b", labels))
    ]
    rows = study(runs)["per_class"]
    assert [(row["class"], row["images"]) for row in rows] == [
        ("dog", 2), ("emu", 200), ("owl", 2), ("ant", 0), ("cat", 0)
    ]  # fmt: skip
    assert [row["difference"] for row in rows[:3]] == [[0, 0], [0, pytest.approx(0.5)], [0, 50]]
    assert rows[3] == {"class": "ant", "images": 0, "top1": [None, None], "difference": [None, None]}


def test_agreement_is_the_share_of_equal_answers(three, labels):
    found = study(three)["agreement"]
    said = [run.predictions.logits.argmax(1) for run in three]
    for i in range(3):
        for j in range(3):
            assert found["same"][i][j] == pytest.approx(100 * (said[i] == said[j]).mean())
            wrong = (said[i] != labels) & (said[j] != labels)
            assert found["both_wrong"][i][j] == pytest.approx(100 * wrong.mean())
    independent = (said[0] != labels).mean() * (said[1] != labels).mean()
    assert found["chance"][0][1] == pytest.approx(100 * independent)
    assert found["chance"][2][2] == pytest.approx(100 * (said[2] != labels).mean())
    assert found["labels"] == ["a", "b", "c"]


def test_the_images_that_only_one_gets_right_come_most_confident_first(three, labels):
    pair = study(three[:2])["only_one"][0]
    probabilities = [torch.from_numpy(r.predictions.logits).double().softmax(1).numpy() for r in three[:2]]
    right = [p.argmax(1) == labels for p in probabilities]
    sure = probabilities[0].max(1) * probabilities[1].max(1)
    for winner, own, other in (("b", 1, 0), ("a", 0, 1)):
        images = [image for image in pair["images"] if image["right"] == winner]
        only = np.flatnonzero(right[own] & ~right[other])
        assert [i["position"] for i in images] == sorted(only, key=lambda i: -sure[i])[:PICTURES]
        for image in images:
            at = image["position"]
            says = "this" if winner == "b" else "baseline"
            assert image[f"{says}_says"] == image["class"] == three[0].predictions.classes[labels[at]]
            for name, p in zip(("baseline", "this"), probabilities, strict=True):
                assert image[f"{name}_probability"] == pytest.approx(p[at].max())
                assert image[f"{name}_says"] == three[0].predictions.classes[p[at].argmax()]
            assert image["name"] == f"#{at}"


def test_the_surest_is_the_largest_product_of_probabilities():
    """Two that are rather sure come before one that is certain and one that guesses, whose sum is larger."""
    pairs = [(0.99, 0.40), (0.68, 0.68), (0.51, 0.90), (0.65, 0.72)]  # of the wrong one, and of the right one
    wrong, right = (np.log([[1 - p, p - 1e-3, 1e-3] for p in column]) for column in zip(*pairs, strict=True))
    right = right[:, [1, 0, 2]]
    right[0] = np.log([0.4, 0.3, 0.3])
    found = study([made_up("a", wrong, np.zeros(4, int)), made_up("b", right, np.zeros(4, int))])["only_one"][0]
    assert [image["position"] for image in found["images"]] == [3, 1, 2, 0]
    assert sorted(range(4), key=lambda i: -sum(pairs[i])) != [3, 1, 2, 0]


def test_images_without_finite_logits_are_wrong_but_have_no_loss_and_no_picture(three, labels):
    """One that the first has no logits for and the other gets right, one the other way round, and one of both."""
    a, b = (run.predictions.logits.copy() for run in three[:2])
    right = [logits.argmax(1) == labels for logits in (a, b)]
    lost = [int(np.flatnonzero(right[0] & right[1])[i]) for i in (0, 1, 2)]
    a[lost[:2]], b[lost[1:]] = np.nan, np.inf
    found = study([made_up("a", a, labels), made_up("b", b, labels)])
    rest = np.delete(np.arange(200), lost)
    row = found["rows"][1]
    both = (right[0] & right[1])[rest].sum()
    assert (row["both_right"], row["not_finite"]) == (both, 2)
    assert row["only_this"] == (right[1] & ~right[0])[rest].sum() + 1
    assert row["only_baseline"] == (right[0] & ~right[1])[rest].sum() + 1
    loss = [F.cross_entropy(torch.from_numpy(x[rest]).double(), torch.from_numpy(labels[rest])) for x in (a, b)]
    assert row["loss_difference"] == pytest.approx(float(loss[1] - loss[0]))
    assert not {image["position"] for image in found["only_one"][0]["images"]} & set(lost)
    same = (a.argmax(1) == b.argmax(1))[rest].sum()
    assert found["agreement"]["same"][0][1] == pytest.approx(100 * same / 200)  # no answer agrees with nothing
    assert [note.partition(" images")[0] for note in found["notes"]] == ["a: 2 of 200", "b: 2 of 200"]
    one, other = np.array([[np.nan, 0, 0], [3, 0, 0]]), np.array([[3, 0, 0], [np.inf, 0, 0]])
    few = [made_up(name, logits, np.zeros(2, int)) for name, logits in (("one", one), ("other", other))]
    assert study(few)["only_one"][0]["images"] == []
    row = study([three[0], made_up("none", np.full((200, 3), np.nan), labels)])["rows"][1]
    assert {row[f"loss{end}"] for end in ("", "_difference", "_difference_low", "_difference_high")} == {None}


def test_a_row_tells_what_the_run_folder_knows(three, labels):
    results = {
        "gmacs": 0.02, "last_top1": 61.5, "images_per_second": 900.0, "ms_per_step": 3.5, "batch_size": 32,
        "memory_gb": 1.5, "train_seconds": 12.0, "device": "CPU", "devices": 2, "data_fingerprint": "of training",
    }  # fmt: skip
    metrics = {"images": 400, "top1": 75.0, "top5": 99.0, "loss": 0.7, "not_finite": 3}
    meta = {"model": {"name": "cifar_seresnet20"}, "epoch": 2.0, "metrics": metrics, "precision": "bf16"}
    records = [{"kind": "eval", "step": 9 * i, "epoch": 1.0 * i, "top1": 50.0 + i, "loss": 1.0} for i in (1, 2, 3)]
    own = {"meta": meta, "gate": "se", "results": results, "records": records, "started": True}
    run = made_up("run", three[1].predictions.logits, labels, overrides=["train.epochs=7", "train.seed=5"], **own)
    known = {
        "label": "run", "source": "runs/run", "model": "cifar_seresnet20", "gate": "se", "params": 1000, "epochs": 7,
        "epochs_done": 3.0, "best_epoch": 2.0, "finished": True, "seed": 5, "recipe": "digits-seresnet20",
        "training_top1": 75.0, "trained_in": "bf16", "precision": "fp32", "weights": "run", **results,
        "data_fingerprint": "the same", "measured": "predictions", "images": 200, "not_finite": 0,
    }  # fmt: skip
    from_training = {
        **known, "precision": None, "data_fingerprint": "of training", "measured": "training", "images": 400,
        "right": 300, "top1": 75.0, "top5": 99.0, "loss": 0.7, "not_finite": 3,
    }  # fmt: skip
    absent = replace(run, label="absent", predictions=None, problem="gone")
    begun = replace(run, label="begun", results=None)
    unfinished = {**known, **dict.fromkeys(results), "gmacs": 0.01, "last_top1": 53.0, "data_fingerprint": "the same"}
    theirs = replace(run, label="theirs", results=None, records=[], started=False, recipe=None)
    unknown = dict.fromkeys(("epochs", "epochs_done", "best_epoch", "finished", "seed", "recipe", "last_top1"))
    found = study([run, absent, replace(absent, meta={**meta, "metrics": None}), begun, theirs], confidence=0.8)
    wanted = [
        known,
        from_training,
        {**from_training, **dict.fromkeys(("measured", "images", "top1", "top1_low", "top1_high", "loss"))},
        {**unfinished, "finished": False},
        {**unfinished, **unknown},
    ]
    wanted[2].update(dict.fromkeys(("right", "top5", "not_finite", "training_top1")))
    for row, values, label in zip(found["rows"], wanted, ("run", "absent", "absent", "begun", "theirs"), strict=True):
        assert {key: row[key] for key in values} == {**values, "label": label}
    assert (found["rows"][1]["top1_low"], found["rows"][1]["top1_high"]) == pytest.approx(
        [100 * end for end in wilson(300, 400, 0.8)]
    )
    assert (found["baseline"], found["confidence"]) == ("run", 0.8)
    assert found["recipes_known"] == ["run", "absent", "absent", "begun"]
    assert [curve["label"] for curve in found["curves"]] == ["run", "absent", "absent", "begun"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "another"}, "fingerprints differ"),
        ({"positions": np.arange(200) + 1}, "the images or their labels are not the same"),
        ({"classes": ("cat", "owl", "dog")}, "its classes are in another order"),
        ({"classes": ("cat", "dog", "emu")}, "it has other classes."),
        ({"classes": ("cat", "dog")}, "it has other classes (2 instead of 3)."),
    ],
)
def test_other_images_are_never_paired(three, labels, changes, reason):
    other = made_up("other", three[1].predictions.logits, labels, **changes)
    found = study([three[0], other, three[2]])
    assert found["paired"] == ["a", "c"]
    assert found["rows"][1]["difference"] is found["rows"][1]["p"] is None
    assert found["rows"][1]["top1"] is not None
    assert any(reason in note and note.startswith("other is not compared with a") for note in found["notes"])
    alone = study([three[0], other])
    assert alone["paired"] == []
    assert alone["per_class"] is alone["agreement"] is alone["only_one"] is None


def test_other_labels_or_fewer_images_are_never_paired(three, labels):
    turned = made_up("turned", three[1].predictions.logits, (labels + 1) % 3)
    fewer = made_up("fewer", three[1].predictions.logits[:50], labels[:50])
    found = study([three[0], turned, fewer])
    assert found["paired"] == []
    assert sum("are not the same" in note for note in found["notes"]) == 2


def test_a_run_without_predictions_goes_without_pairs(three, labels):
    meta = {**three[0].meta, "metrics": {"images": 400, "top1": 75.0, "top5": 99.0, "loss": 0.7}}
    absent = made_up(
        "absent", three[1].predictions.logits, labels, meta=meta, predictions=None, problem="no such folder"
    )
    found = study([three[0], three[1], absent])
    row = found["rows"][2]
    assert row["not_finite"] == 0  # which trainings did not always count
    assert (row["measured"], row["images"], row["right"], row["top1"], row["loss"]) == ("training", 400, 300, 75.0, 0.7)
    assert (row["top1_low"], row["top1_high"]) == pytest.approx([100 * end for end in wilson(300, 400)])
    assert found["paired"] == ["a", "b"]
    assert (
        "absent could not be evaluated here (no such folder), so its accuracy is that measured in training."
        in (found["notes"])
    )
    assert study([absent, three[0]])["paired"] == []
    nothing = made_up("nothing", three[1].predictions.logits, labels, predictions=None, problem="gone")
    assert study([three[0], nothing])["rows"][1]["top1"] is None


def test_what_else_differs_is_said(three, labels):
    logits = three[1].predictions.logits
    longer = made_up("longer", logits, labels, overrides=["train.epochs=50", "log.every_steps=7", "train.seed=3"])
    notes = study([three[0], longer])["notes"]
    assert "The recipes differ in keys that affect training (train.epochs, train.seed)." in notes
    notes = study([three[0], replace(longer, gate="se")])["notes"]
    assert "The recipes differ in more than their gates (train.epochs, train.seed)." in notes
    wider = made_up("wider", logits, labels, body=frozenset({("conv1", (3, 3))}))
    assert "wider and a differ in layers other than gates." in study([three[0], wider])["notes"]
    notes = study([three[0], replace(wider, gate="se")])["notes"]
    assert "wider and a differ not only in their gates but also in other layers." in notes
    assert study(three)["notes"] == []
    same = made_up("same", logits, labels, weights="a")
    assert "a and same have the same weights." in study([three[0], same])["notes"]
    results = [{"devices": n, "device": "CPU", "precision": "fp32", "batch_size": 64} for n in (8, 1, 4, 2)]
    machines = [made_up(f"m{i}", logits, labels, results=r, started=True) for i, r in enumerate(results)]
    notes = study(machines)["notes"]
    assert len(notes) == 1
    assert "so their speed and memory are not comparable" in notes[0]
    assert notes[0].endswith(f": {'; '.join(f'{n} x CPU, fp32, batch 64' for n in (1, 2, 4, 8))}.")
    for run, data in zip(machines, "xyxx", strict=True):
        run.results.update(devices=1, data_fingerprint=data)
    trained_on = "The runs were not trained on the same data (their fingerprints differ)."
    assert study(machines)["notes"] == [trained_on]


def test_notes_name_the_runs_that_they_are_about(three, labels):
    logits = three[1].predictions.logits
    found = 100 * int(three[1].predictions.right.sum()) / 200
    metrics = {"images": 200, "top1": found, "top5": 100.0, "loss": 0.7}
    meta = {**three[1].meta, "metrics": metrics}
    run = made_up("run", logits, labels, meta=meta, started=True, results={})
    fewer = replace(run, label="fewer", weights="w", meta={**meta, "metrics": {**metrics, "images": 1500}})
    other = replace(run, label="other", weights="v", meta={**meta, "metrics": {**metrics, "top1": found - 0.5}})
    cold = replace(run, label="cold", weights="u", results=None)
    theirs = made_up("theirs", logits, labels, recipe=None, meta=fewer.meta)  # there is no training to compare with
    lost = replace(cold, label="lost", weights="s", recipe=None)
    for each, notes in ((run, ["all"]), (fewer, ["all", "two"]), (other, ["all", "two"])):
        each.data = SimpleNamespace(notes=notes)
    *notes, moved = study([run, fewer, other, cold, theirs, lost])["notes"]
    assert notes == [
        "cold is unfinished: 0 of 40 epochs are done; its latest weights are compared.",
        "lost is unfinished: 0 of ? epochs are done; its latest weights are compared.",
        "theirs was not trained by excite: its training is unknown.",
        "lost was not trained by excite: its training is unknown.",
        "run, fewer, other: all.",
        "fewer, other: two.",
    ]
    assert f": fewer {found:.2f} % on 1,500 images; other {found - 0.5:.2f} % on 200 images (" in moved
    assert "All." in study([run, fewer, other])["notes"]  # of all runs
    opened = replace(run, problem="no folder")
    assert study([opened, replace(theirs, predictions=None, problem="gone", meta=three[0].meta)])["notes"][:2] == [
        "run: the images cannot be opened (no folder), so its stored predictions are used.",
        "theirs could not be evaluated here (gone), so its accuracy is unknown.",
    ]


def test_top5_among_equal_logits_is_that_of_the_report(labels):
    classes = tuple("abcdefgh")
    even = made_up("even", np.zeros((200, 8)), labels, classes=classes)
    row = study([even, made_up("b", np.eye(8)[labels], labels, classes=classes)])["rows"][0]
    assert row["top5"] == report_accuracy(even.predictions)["top5"]
    assert row["top1"] == report_accuracy(even.predictions)["top1"]


def test_grafted_gates_have_a_name_in_other_libraries_networks_too():
    grafted = graft(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), "eca", at=["0"], example=torch.zeros(1, 3, 8, 8))
    assert _gate(grafted) == "eca"
    assert _gate(nn.Conv2d(3, 8, 3)) is None
    assert _gate(create_model("cifar_seresnet20")) == "se"


def test_an_unfinished_run_is_said_to_be(three, labels):
    records = [{"kind": "eval", "step": 9, "epoch": 3.0, "images": 200, "loss": 1.0, "top1": 50.0, "top5": 100.0}]
    begun = made_up("begun", three[1].predictions.logits, labels, started=True, records=records)
    found = study([three[0], begun])
    assert "begun is unfinished: 3 of 40 epochs are done; its best weights so far are compared." in found["notes"]
    assert found["rows"][1]["finished"] is False
    assert found["curves"][0]["validation"] == {"epoch": [3.0], "minutes": [None], "top1": [50.0], "loss": [1.0]}


def test_the_training_loss_is_a_running_mean(three, labels):
    train = [{"kind": "train", "step": i, "epoch": i / 10, "loss": float(i), "seconds": 6.0 * i} for i in range(80)]
    train.append({"kind": "train", "step": 80, "epoch": 8.0, "loss": None, "seconds": 480.0})  # overflowed
    last = {"kind": "eval", "step": 80, "epoch": 8.0, "images": 200, "loss": 1.0, "top1": 50.0, "top5": 100.0}
    run = made_up("run", three[1].predictions.logits, labels, records=[*train, last], started=True)
    curve = study([three[0], run])["curves"][0]
    assert curve["training"]["window"] == 2
    assert curve["training"]["loss"] == [0.0, *(i - 0.5 for i in range(1, 80))]
    assert curve["validation"]["minutes"] == [8.0]
    assert (curve["label"], curve["training"]["epoch"]) == ("run", [i / 10 for i in range(80)])
    few = study([three[0], replace(run, records=train[:3])])["curves"][0]
    assert few["training"] == {"epoch": [0.0, 0.1, 0.2], "loss": [0.0, 1.0, 2.0], "window": 1}


# --- recipes --------------------------------------------------------------------------------------------------------


def test_only_keys_that_differ_are_listed_with_options_dotted():
    plain = load_recipe("digits-seresnet20").model_dump(mode="json")
    other = load_recipe("digits-seresnet20", ["model.options={reduction: 8}", "seed=2", "log.every_steps=9"])
    rows = differences([plain, None, other.model_dump(mode="json")])
    assert {row["key"]: (row["kind"], row["values"]) for row in rows} == {
        "model.options.reduction": ("network", [None, None, "8"]),
        "train.seed": ("training", ["0", None, "2"]),
        "log.every_steps": ("neutral", [str(plain["log"]["every_steps"]), None, "9"]),
    }
    assert differences([plain, plain, None]) == []


def test_null_is_not_the_same_as_absent_and_lists_are_one_value():
    rows = differences([{"a": {"b": None, "c": [1, 2]}}, {"a": {"c": [1, 3]}}])
    assert [(row["key"], row["values"]) for row in rows] == [("a.b", ["null", None]), ("a.c", ["[1, 2]", "[1, 3]"])]
    assert flatten({"x": {"y": {"z": 1}}, "w": {}}) == {"x.y.z": 1}


@pytest.mark.parametrize("metrics", [{"top1": 75.0, "loss": 0.7}, {"top1": None, "images": 400}, {"images": 400}, {}])
def test_an_accuracy_of_nobody_knows_how_many_images_is_not_known(three, metrics):
    """As ``excite prune`` writes it, and as a header may have it: without the images there is no interval."""
    run = replace(three[1], meta={**three[1].meta, "metrics": metrics}, predictions=None, problem="gone", started=True)
    found = study([three[0], run])
    row = found["rows"][1]
    assert (row["measured"], row["top1"], row["images"]) == (None, None, None)
    assert row["training_top1"] == metrics.get("top1")
    assert any("so its accuracy is unknown" in note for note in found["notes"])
    study([three[0], replace(run, predictions=three[1].predictions)])


def test_a_recipe_of_another_version_may_lack_keys(three):
    recipe = {**three[1].recipe, "train": {}}
    found = study([three[0], replace(three[1], recipe=recipe, started=True)])
    assert found["rows"][1]["epochs"] is None
    assert any("0 of ? epochs are done" in note for note in found["notes"])
