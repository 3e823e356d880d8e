"""Rare classes: weights, focal loss, logit adjustment and samplers; what chooses the best epoch and ends the run."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

import excite
from excite.cli import app
from excite.console import Display
from excite.data import open_data
from excite.errors import ExciteError
from excite.runtime.device import make_accelerator
from excite.training import reporting, train
from excite.training.loop import Interrupted
from excite.training.loss import ALIKE, ByClass, training_loss
from excite.training.rare import by_class, notes
from excite.training.setup import set_up
from excite.weights.own import read_own
from tests.training import jobs
from tests.training.small import metrics, small
from tests.training.test_layouts import digests

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -2.0], [1.0, 1.0, 0.0], [0.2, -0.4, 3.0]])
HARD = torch.tensor([2, 1, 0, 0])
SOFT = torch.tensor([[0.7, 0.0, 0.3], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6]])
WEIGHTS = torch.tensor([0.5, 1.25, 4.0])
COUNTS = {"a": 30, "b": 12, "c": 4}
UNEVEN = ("data.source=folder", "limit_train=", "limit_val=", "augment.crop=none", "batch_size=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Grey images of three classes, of very different numbers in training; some noise, so that they can be learnt."""
    root, noise = tmp_path_factory.mktemp("uneven"), np.random.default_rng(0)
    for label, (name, count) in enumerate(COUNTS.items()):
        for part, n in (("train", count), ("val", 3 + count // 4)):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = noise.normal(115 + 10 * label, 60, (8, 8)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return f"data.root={root}"


def config(*words):
    return small("label_smoothing=0.0", *words).train


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [HARD, SOFT])
def test_class_weights_are_pytorchs(targets, smoothing):
    """The terms are those of ``weight=``; PyTorch divides their sum by that of the weights with hard targets only."""
    loss = training_loss(LOGITS, targets, config(f"train.label_smoothing={smoothing}"), ByClass(WEIGHTS))
    theirs = F.cross_entropy(LOGITS, targets, weight=WEIGHTS, label_smoothing=smoothing)
    scale = WEIGHTS[HARD].mean() if targets is HARD else 1.0
    torch.testing.assert_close(loss, theirs * scale)
    bce = training_loss(LOGITS, targets, config("loss=bce", f"train.label_smoothing={smoothing}"), ByClass(WEIGHTS))
    rows = F.one_hot(HARD, 3).float() if targets is HARD else SOFT
    of_images = (rows * WEIGHTS).sum(1, keepdim=True).expand(4, 3)
    wanted = rows * (1 - smoothing) + smoothing / 3
    torch.testing.assert_close(bce, F.binary_cross_entropy_with_logits(LOGITS, wanted, weight=of_images))


@pytest.mark.parametrize("words", [(), ("loss=bce",), ("loss=focal",)])
def test_the_weighted_mean_does_not_depend_on_the_parts_of_a_batch(words):
    """PyTorch's own mean would: its parts are divided by other sums of weights."""
    terms, whole = ByClass(WEIGHTS, torch.tensor([0.0, -1.0, -2.0])), config(*words)
    parts = [training_loss(LOGITS[i : i + 2], HARD[i : i + 2], whole, terms) for i in (0, 2)]
    torch.testing.assert_close(training_loss(LOGITS, HARD, whole, terms), sum(parts) / 2)


@pytest.mark.parametrize("targets", [HARD, SOFT])
def test_focal_loss(targets):
    zero = config("loss=focal", "focal_gamma=0")
    for terms in (ByClass(), ByClass(WEIGHTS)):
        torch.testing.assert_close(training_loss(LOGITS, targets, zero, terms),
                                   training_loss(LOGITS, targets, config(), terms))  # fmt: skip
    rows = F.one_hot(HARD, 3).tolist() if targets is HARD else SOFT.tolist()
    expected = 0.0
    for row, z in zip(rows, LOGITS.tolist(), strict=True):
        total = sum(math.exp(v) for v in z)
        for t, v, alpha in zip(row, z, WEIGHTS.tolist(), strict=True):
            p = math.exp(v) / total
            expected -= alpha * t * (1 - p) ** 1.5 * math.log(p) / 4
    found = training_loss(LOGITS, targets, config("loss=focal", "focal_gamma=1.5"), ByClass(WEIGHTS))
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_gradient_of_focal_loss_is_finite_where_the_network_is_sure(gamma):
    logits = torch.tensor([[200.0, 0.0, 0.0], [20.0, 0.0, 0.0], [-200.0, 0.0, 0.0]], requires_grad=True)
    training_loss(logits, torch.tensor([0, 0, 0]), config("loss=focal", f"focal_gamma={gamma}")).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[2, 0] < -0.3
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    words, several = config("loss=focal", f"focal_gamma={gamma}"), ByClass(several=True)
    training_loss(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), words, several).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[1, 0] < -0.2


def test_logit_adjustment_by_hand():
    """Menon et al., equation 10, with priors 1/2, 1/4, 1/4 and tau 2."""
    adjustment = 2 * torch.tensor([0.5, 0.25, 0.25]).log()
    found = training_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([1]), config(), ByClass(None, adjustment))
    own, others = math.exp(0) / 16, math.exp(1) / 4 + math.exp(-1) / 16
    assert found.item() == pytest.approx(-math.log(own / (own + others)), rel=1e-6)


# --- from the recipe --------------------------------------------------------------------------------------------------


def opened(folder: str, *words: str):
    recipe = small(*UNEVEN, folder, *words)
    return recipe, open_data(recipe.data, recipe.augment)


def test_weights_have_a_mean_of_one_over_what_is_drawn(folder):
    counts = np.array([30, 12, 4])
    balanced = by_class(*opened(folder, "class_weights=balanced")).weights.double().numpy()
    assert balanced == pytest.approx(46 / (3 * counts))
    own = by_class(*opened(folder, "class_weights=[1, 2, 4]")).weights.double().numpy()
    assert own / own[0] == pytest.approx([1, 2, 4])
    assert (own * counts).sum() == pytest.approx(46)
    drawn = by_class(*opened(folder, "class_weights=[1, 2, 4]", "data.sampler=balanced")).weights
    assert drawn.mean().item() == pytest.approx(1)
    adjustment = by_class(*opened(folder, "logit_adjustment=0.5")).adjustment
    assert adjustment.double().numpy() == pytest.approx(0.5 * np.log(counts / 46))
    assert by_class(*opened(folder)) == ALIKE


def test_images_that_are_drawn_by_weights_count_so_in_that_mean(folder):
    recipe, data = opened(folder, "class_weights=[1, 2, 4]")
    data.train.weights = np.linspace(0, 2, 46)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"sampler": "weights"})})
    terms = by_class(recipe, data)
    assert np.average(terms.weights[data.train.labels].numpy(), weights=data.train.weights) == pytest.approx(1)
    assert "data.sampler=weights: an epoch draws an image 0 to 2 times" in notes(recipe, data, terms)[1]


def test_a_wrong_number_of_weights_names_the_classes(folder):
    sentence = (
        r"train\.class_weights has 2 numbers, but there are 3 classes; give one for each of a, b, c, in this order"
    )
    with pytest.raises(ExciteError, match=sentence):
        by_class(*opened(folder, "class_weights=[1, 2]"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["focal_gamma=1"], r"train\.focal_gamma=1 needs train\.loss=focal \(now cross_entropy\)"),
        (["logit_adjustment=1", "loss=bce"], r"logit_adjustment=1 is for train\.loss=cross_entropy, not bce"),
        (["logit_adjustment=1", "loss=focal"], r"logit_adjustment=1 is for train\.loss=cross_entropy, not focal"),
        (["class_weights=balanced", "data.sampler=sqrt"], "correct for rare classes 2 times; choose one"),
        (["logit_adjustment=1", "data.sampler=balanced", "class_weights=balanced"], "correct for rare classes 3 times"),
        (["class_weights=[1, 0]"], r"^recipe: every number of train\.class_weights must be above 0, got 0$"),
        (["class_weights=[1, .inf]"], r"every number of train\.class_weights must be above 0, got inf"),
        (["class_weights=heavy"], r"^recipe: train\.class_weights is 'heavy', but must be balanced, null or a list"),
        (
            ["patience=2", "data.val_from=test"],
            "would let the test part choose when to stop; data.val_from=train holds",
        ),
        (["eval.metric=top2"], r"eval\.metric is 'top2'; did you mean 'top5'"),
    ],
)
def test_what_makes_no_sense_is_refused(words, sentence):
    with pytest.raises(ExciteError, match=sentence):
        small(*words)


def test_what_is_done_for_rare_classes_is_said(folder):
    def told(*words):
        recipe, data = opened(folder, *words)
        return notes(recipe, data, by_class(recipe, data))

    (line,) = told()
    assert line.startswith("a has 7.5 times as many training images as c (30 and 4); for the rare classes there are")
    assert told("class_weights=balanced") == [
        "train.class_weights=balanced: the loss of an image counts 0.511 times (a) to 3.83 times (c), once on average"
    ]
    assert told("data.sampler=balanced") == [
        "data.sampler=balanced: an epoch draws each image of a 0.511 times and each of c 3.83 times; the number of "
        "steps stays the same"
    ]
    (line,) = told("logit_adjustment=1")
    assert line.startswith("train.logit_adjustment=1: in training, -0.427 (a) to -2.44 (c) is added to the logits")
    assert told("loss=focal") == []
    assert told("data.limit_train=12") == []  # four of each


def test_patience_and_metric_on_the_test_part(tmp_path):
    """Data whose test part validates, as the recipe alone does not know."""
    words = ("data.source=digits", "train.device=cpu")
    recipe = small(*words, "patience=3")
    data = open_data(recipe.data, recipe.augment)
    data.val_is_test = True
    with pytest.raises(ExciteError, match=r"train\.patience=3 would let the test part choose"):
        set_up(recipe, Display(quiet=True), make_accelerator("cpu"), data=data)
    run = set_up(small(*words, "eval.metric=auroc"), Display(quiet=True), make_accelerator("cpu"), data=data)
    assert "eval.metric=auroc: AUROC is shown, but nothing is chosen by it" in run.notes


# --- whole runs -------------------------------------------------------------------------------------------------------


def trained(recipe, out: Path, until: int | None = None, **how):
    try:
        return train(recipe, run_dir=out, quiet=True, until=until, **how)
    except Interrupted:
        assert until is not None


@pytest.mark.parametrize(
    "words",
    [
        ("data.sampler=balanced", "class_weights=[1, 1, 2]"),
        ("data.sampler=sqrt", "loss=focal"),
        ("logit_adjustment=1",),
    ],
)
def test_a_run_that_is_stopped_within_an_epoch_goes_on_with_the_same_bits(words, folder, tmp_path):
    recipe = small(*UNEVEN, folder, *words, "epochs=2", "eval.metric=balanced")
    results = trained(recipe, tmp_path / "whole")
    assert results["metric"] == "balanced"
    trained(recipe, tmp_path / "parts", until=8)
    trained(recipe, tmp_path / "parts")
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")


@pytest.fixture(scope="module")
def by_auroc(folder, tmp_path_factory) -> Path:
    """A run on uneven classes that AUROC chooses from."""
    out = tmp_path_factory.mktemp("by-auroc")
    trained(small(*UNEVEN, folder, "data.sampler=balanced", "epochs=2", "eval.metric=auroc"), out)
    return out


def test_what_chose_the_weights_is_in_log_results_and_header(by_auroc):
    results = json.loads((by_auroc / "results.json").read_text())
    text = (by_auroc / "log.txt").read_text()
    assert "the best epoch is that of the highest AUROC (eval.metric=auroc)" in text
    assert "data.sampler=balanced: an epoch draws each image of a 0.511 times and each of c 3.83 times" in text
    evals = metrics(by_auroc, "eval")
    assert results["best_epoch"] == max(evals, key=lambda r: (r["auroc"], -r["loss"]))["epoch"]
    assert results["auroc"] == max(r["auroc"] for r in evals)
    assert results["last_metric"] == evals[-1]["auroc"]
    assert (results["stopped_early"], results["last_epoch"], results["uneven"]) == (False, 2, True)
    assert read_own(by_auroc / "model.safetensors").meta["metrics"]["auroc"] == results["auroc"]
    assert re.search(rf"top-1 [\d.]+ %  balanced [\d.]+ %  AUROC {results['auroc']:.2f} %  top-5", text)


def test_balanced_accuracy_and_the_measure_stand_beside_top_1(by_auroc, tmp_path):
    results = json.loads((by_auroc / "results.json").read_text())
    balanced, area = f"{results['balanced']:.2f}", f"{results['auroc']:.2f}"
    _, found = excite.validate(by_auroc)
    assert found.value("auroc") == results["auroc"]
    assert f">{area}</td></tr>" in found._repr_html_()
    said = CliRunner().invoke(app, ["validate", str(by_auroc)]).stdout
    assert all(word in said.split() for word in ("balanced", balanced, "AUROC", area))
    _, other = excite.validate(by_auroc, "eval.metric=macro_f1")
    assert other.of_logits == {}
    numbers, page = excite.report(by_auroc, "report.robustness_images=0", quick=True)
    text = page.read_text()
    assert "balanced accuracy" in text
    assert f"{balanced} %" in text
    assert "chosen by the highest AUROC using these same images" in text
    assert [r["metric"] for r in numbers["curves"]["eval"]] == [r["auroc"] for r in metrics(by_auroc, "eval")]
    other = shutil.copytree(by_auroc, tmp_path / "other")  # a run needs another to be compared with
    both = excite.compare([by_auroc, other], out=tmp_path / "page.html")
    assert both.found["uneven"]
    assert [row["balanced"] for row in both.found["rows"]] == [pytest.approx(results["balanced"])] * 2
    assert "balanced" in both.to_html()


TOP1 = {1: 10.0, 2: 30.0, 3: 20.0, 4: 20.0, 5: 25.0, 6: 40.0}


def by_the_table(monkeypatch):
    monkeypatch.setattr(reporting, "evaluate_run", jobs.evaluating_to(TOP1))


FEW = ("limit_train=64", "epochs=6")


def test_patience_ends_the_run_and_is_not_forgotten_when_it_is_resumed(monkeypatch, tmp_path):
    by_the_table(monkeypatch)
    recipe = small(*FEW, "patience=2")
    results = trained(recipe, tmp_path / "one")
    found = {key: results[key] for key in ("best_epoch", "last_epoch", "stopped_early", "epochs", "top1", "last_top1")}
    expected = {"best_epoch": 2, "last_epoch": 4, "stopped_early": True, "epochs": 6, "top1": 30.0, "last_top1": 20.0}
    assert found == expected
    text = (tmp_path / "one" / "log.txt").read_text()
    assert "the run ends after 2 evaluations in a row without a new best (train.patience=2)" in text
    assert (
        "stopping early: 2 evaluations in a row without a new best (train.patience=2); the best is that of epoch 2 "
        "(top-1 30.00 %); 2 of 6 epochs are left"
    ) in text
    assert trained(recipe, tmp_path / "one") == results  # finished: nothing to resume
    for until in (7, 6):  # within the fourth epoch; at the end of the third
        trained(recipe, tmp_path / str(until), until=until)
        again = trained(recipe, tmp_path / str(until))
        assert (again["last_epoch"], again["stopped_early"]) == (4, True)
        assert digests(tmp_path / str(until)) == digests(tmp_path / "one")
    (tmp_path / "one" / "results.json").unlink()  # ended between its last checkpoint and its results
    assert trained(recipe, tmp_path / "one")["last_epoch"] == 4


def test_more_patience_lets_a_run_go_on_as_if_it_had_always_had_it(monkeypatch, tmp_path):
    by_the_table(monkeypatch)
    trained(small(*FEW, "patience=2"), tmp_path / "one")
    results = trained(small(*FEW, "patience=3"), tmp_path / "one")
    assert (results["last_epoch"], results["best_epoch"], results["stopped_early"]) == (5, 2, True)
    results = trained(small(*FEW), tmp_path / "one")
    assert (results["last_epoch"], results["best_epoch"], results["stopped_early"]) == (6, 6, False)
    trained(small(*FEW), tmp_path / "other")
    assert digests(tmp_path / "one")["last model.safetensors"] == digests(tmp_path / "other")["last model.safetensors"]


def test_patience_counts_evaluations_not_epochs(monkeypatch, tmp_path):
    by_the_table(monkeypatch)
    results = trained(small(*FEW, "patience=1", "eval.every_epochs=2"), tmp_path)
    assert (results["last_epoch"], results["best_epoch"]) == (4, 2)


@pytest.mark.heavy
def test_all_processes_stop_together(tmp_path):
    words = (*FEW, "patience=2", "train.device=cpu")
    first, second = jobs.run_job(jobs.train_small_evaluating_to, 2, tmp_path, TOP1, *words)
    assert second == {}
    assert (first["last_epoch"], first["best_epoch"], first["devices"]) == (4, 2, 2)


def test_auroc_is_the_same_for_any_number_of_processes():
    one, *_ = jobs.run_job(jobs.evaluate_counts, 1, [101, 3], 7, 8, "auroc")
    for found in jobs.run_job(jobs.evaluate_counts, 3, [101, 3], 7, 8, "auroc"):
        assert [result.of_logits for result, _ in found] == [result.of_logits for result, _ in one]
    assert 0 < one[0][0].of_logits["auroc"] < 100
