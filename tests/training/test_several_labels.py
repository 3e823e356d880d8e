"""Images with several labels each: losses, measures, training, resuming, predicting."""

import html
import json
import math
import re
import shutil
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import excite
from excite.data import DataConfig, open_data
from excite.data.labels import counts, members, rarest, renumbered, text
from excite.errors import ExciteError
from excite.explain.image_figure import draw_image
from excite.explain.run import explain
from excite.explain.statistics import ScaleStatistics
from excite.export.origin import describe
from excite.export.verify import compare_logits
from excite.files import sha256_of, to_json
from excite.measures import (
    auroc,
    average_precisions,
    best_threshold,
    label_counts_at,
    mean_average_precision,
)
from excite.pages.resampling import interval, resampled
from excite.recipe import load_recipe
from excite.trained.opened import open_trained
from excite.trained.predictions import Predictions, predict_all
from excite.training import train
from excite.training.loss import ByClass, training_loss
from excite.training.probe import fit_probe
from excite.training.stop import Interrupted
from excite.twins.report import last_of, measure_in, outward
from excite.weights.locate import locate, step_folder
from tests.training.small import metrics

SHADES = {"dark": 40, "light": 220}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Pictures of two halves, each dark, light or neither: 96 for training, 48 for validation, 24 for testing."""
    place, rng = tmp_path_factory.mktemp("several"), np.random.default_rng(0)
    rows = ["path,tags,split"]
    for i in range(168):
        tags, pixels = set(), rng.integers(110, 150, (8, 16), dtype=np.uint8)
        for half in range(2):
            name = (None, "dark", "light")[rng.integers(3)]
            if name is not None:
                tags.add(name)
                pixels[:, 8 * half : 8 * half + 8] = SHADES[name] + rng.integers(-20, 20, (8, 8))
        Image.fromarray(pixels).save(place / f"{i:03}.png")
        rows.append(f"{i:03}.png,{'|'.join(sorted(tags))},{'train' if i < 96 else 'val' if i < 144 else 'test'}")
    (place / "labels.csv").write_text("\n".join(rows) + "\n")
    return place / "labels.csv"


def words(table: Path, *more: str) -> list[str]:
    return [
        *("data.source=table", f"data.root={table}", "data.columns.label=tags", "task=multilabel", "in_chans=1"),
        *("data.image_size=[8,16]", "train.epochs=3", "train.batch_size=24", "schedule.warmup_epochs=0"),
        *("train.device=cpu", "train.precision=fp32", "checkpoint.keep_last=9", "report.write=false"),
        *("augment.crop=none", "augment.hflip=0.5", *more),
    ]


def recipe(table: Path, *more: str):
    return load_recipe("digits-seresnet20", words(table, *more))


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_of_one_class_and_of_several():
    one, several = [2, 0, 2], np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0], [1, 0, 0]], np.uint8)
    assert counts(one, 4).tolist() == [1, 0, 2, 0]
    assert counts(several, 3).tolist() == [3, 1, 1]
    assert rarest(one).tolist() == [2, 0, 2]
    assert rarest(several).tolist() == [2, 3, 1, 0]  # 3: none
    assert members(one).tolist() == [[0, 2, 2], [1, 0, 2]]
    assert members(several).tolist() == [[0, 0, 0, 1, 2], [0, 2, 3, 2, 0]]
    assert renumbered(one, [1, 0, 3], 4) == [3, 1, 3]
    assert renumbered(several, [3, 0, 1], 4)[0].tolist() == [0, 1, 0, 1]
    assert [text(label) for label in several] == ["0+2", "", "0+1", "0"]


FORMS = {
    "separated": ("path,label\n0.png,a|b\n1.png,b\n2.png,\n3.png,c|a\n", {}),
    "with another mark": ("path;label\n0.png;a b\n1.png;b\n2.png;\n3.png;c a\n", {}),
    "named mark": ("path,label\n0.png,a+b\n1.png,b\n2.png,\n3.png,c+a\n", {"separator": "+"}),
    "columns of 0 and 1": ("path,a,b,c\n0.png,1,1,0\n1.png,0,1,0\n2.png,0,0,0\n3.png,1,0,1\n", {}),
    "named columns": (
        "path,x,a,b,c\n0.png,9,1,1,0\n1.png,9,,1,\n2.png,9,0,0,0\n3.png,9,1,0,1\n",
        {"label": list("abc")},
    ),
    "a row for each": ("path,label\n0.png,a\n0.png,b\n1.png,b\n3.png,c\n3.png,a\n2.png,\n", {}),
    "lists": (
        "".join(
            json.dumps({"path": f"{i}.png", "label": v}) + "\n"
            for i, v in enumerate((["a", "b"], ["b"], [], ["c", "a"]))
        ),
        {},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_tables_give_several_labels_in_many_forms(form, tmp_path):
    for i in range(4):
        Image.new("L", (8, 8), 60 * i).save(tmp_path / f"{i}.png")
    content, columns = FORMS[form]
    path = tmp_path / ("a.jsonl" if form == "lists" else "a.csv")
    path.write_text(content)
    config = DataConfig(
        source="table", root=str(path), image_size=8, in_chans=1, task="multilabel", columns=columns, val_fraction=0.5
    )
    for mode in ("stream", "memory"):
        data = open_data(config.model_copy(update={"mode": mode}))
        assert data.classes == ["a", "b", "c"]
        both = np.concatenate([np.asarray(data.train.labels), np.asarray(data.val.labels)])
        assert sorted(map(tuple, both.tolist())) == [(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 0)]
        assert "1 of 4 images have none of the classes" in data.describe()


def test_mistakes_about_several_labels_are_one_sentence(tmp_path):
    for i in range(2):
        Image.new("L", (8, 8), 60 * i).save(tmp_path / f"{i}.png")
    path = tmp_path / "a.csv"

    def fails(message: str, content: str, **options) -> None:
        path.write_text(content)
        with pytest.raises(ExciteError, match=message):
            open_data(DataConfig(source="table", root=str(path), image_size=8, **options))

    fails(
        r"row 3: it has 2 classes \(a, b\) in the columns of 0 and 1: .* say task=multilabel",
        "path,a,b\n0.png,1,0\n1.png,1,1\n",
        columns={"label": ["a", "b"]},
    )
    fails(
        "column 'b' has '7', not 0 or 1",
        "path,a,b\n0.png,1,7\n1.png,0,1\n",
        columns={"label": ["a", "b"]},
        task="multilabel",
    )
    fails("has two labels, 'a' and 'b'; keep one, or say task=multilabel", "path,label\n0.png,a\n0.png,b\n1.png,b\n")
    fails("no training image has any class", "path,label\n0.png,\n1.png,\n", task="multilabel")
    (tmp_path / "a.jsonl").write_text('{"path": "0.png", "label": ["a", "b"]}\n')
    with pytest.raises(ExciteError, match=r"has lists \(row 1\): with several classes an image, say task=multilabel"):
        open_data(DataConfig(source="table", root=str(tmp_path / "a.jsonl"), image_size=8))
    with pytest.raises(ValueError, match="images have one class each"):
        DataConfig(source="cifar10", image_size=8, task="multilabel")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.sampler=balanced", "sampler draws classes"),
        ("train.logit_adjustment=1", "is for images with one class each"),
        ("eval.metric=balanced", "say macro_f1"),
    ],
)
def test_keys_for_one_class_each_are_refused(table, word, message):
    with pytest.raises(ExciteError, match=message):
        recipe(table, word)


def test_asymmetric_loss_is_for_several_labels():
    with pytest.raises(ExciteError, match="task=multilabel"):
        load_recipe("digits-seresnet20", ["train.loss=asymmetric"])


# --- losses and measures ----------------------------------------------------------------------------------------------


def test_losses_against_pytorch_and_the_formulas():
    torch.manual_seed(0)
    logits, wanted = torch.randn(7, 5) * 3, (torch.rand(7, 5) < 0.4).float()
    several, config = ByClass(several=True), load_recipe("digits-seresnet20").train

    def loss(by_class: ByClass = several, **changes) -> float:
        return float(training_loss(logits, wanted, config.model_copy(update=changes), by_class))

    bce = float(F.binary_cross_entropy_with_logits(logits, wanted))
    assert math.isclose(loss(label_smoothing=0.0), bce, rel_tol=1e-6)
    assert loss(loss="bce", label_smoothing=0.0) == loss(label_smoothing=0.0)
    weights = torch.rand(5) + 0.5
    weighed = float(F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weights))
    assert math.isclose(loss(ByClass(weights, None, True), label_smoothing=0.0), weighed, rel_tol=1e-6)
    smooth = float(F.binary_cross_entropy_with_logits(logits, wanted * 0.9 + 0.05))
    assert math.isclose(loss(label_smoothing=0.1), smooth, rel_tol=1e-6)
    p = torch.sigmoid(logits.double())
    focal = -(wanted * (1 - p) ** 2 * p.log() + (1 - wanted) * p**2 * (1 - p).log()).mean()
    assert math.isclose(loss(loss="focal", focal_gamma=2.0, label_smoothing=0.0), float(focal), rel_tol=1e-5)
    shifted = (p - 0.05).clamp_min(0)
    asymmetric = -(wanted * p.log() + (1 - wanted) * shifted**4 * (1 - shifted).log()).mean()
    assert math.isclose(loss(loss="asymmetric", label_smoothing=0.0), float(asymmetric), rel_tol=1e-5)
    extreme = torch.tensor([[200.0, -200.0]], requires_grad=True)
    for name in ("bce", "focal", "asymmetric"):
        value = training_loss(extreme, torch.tensor([[0.0, 1.0]]), config.model_copy(update={"loss": name}), several)
        gradient = torch.autograd.grad(value, extreme)[0]
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


def brute_force_ap(score: np.ndarray, own: np.ndarray) -> float:
    """The area under the step curve of precision over recall."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        said = score >= threshold
        recall, precision = (said & own).sum() / own.sum(), (said & own).sum() / said.sum()
        total, before = total + (recall - before) * precision, recall
    return 100 * total


def test_measures_against_brute_force():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 4)).round(1).astype(np.float32)  # with ties
    labels = (rng.random((60, 4)) < [0.5, 0.2, 0.1, 0.0]).astype(np.uint8)
    found = average_precisions(logits, labels)
    assert found[3] is None
    for k in range(3):
        assert math.isclose(found[k], brute_force_ap(logits[:, k], labels[:, k] > 0), rel_tol=1e-12)
    assert math.isclose(mean_average_precision(logits, labels), sum(found[:3]) / 3, rel_tol=1e-12)
    pairs = [
        np.mean([(a > b) + 0.5 * (a == b) for a in logits[labels[:, k] > 0, k] for b in logits[labels[:, k] == 0, k]])
        for k in range(3)
    ]
    assert math.isclose(auroc(logits, labels), 100 * np.mean(pairs), rel_tol=1e-12)
    threshold = best_threshold(logits, labels)

    def micro(at: float) -> float:
        right, said, there = (each.sum() for each in label_counts_at(logits, labels, at))
        return 2 * right / (said + there)

    chances = 1 / (1 + np.exp(-np.unique(logits).astype(np.float64)))
    assert micro(threshold) == max(micro(c) for c in chances)
    logits[3] = np.nan
    worse = average_precisions(logits, labels)
    assert all(w <= f for w, f in zip(worse[:3], found[:3], strict=True))
    assert best_threshold(logits, labels * 0) == 0.5


def test_average_precision_of_one_class_each_is_that_of_probabilities():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 3, 50)
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = [brute_force_ap(chance[:, k], labels == k) for k in range(3)]
    assert np.allclose(average_precisions(logits, labels), expected)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(table, tmp_path_factory) -> Path:
    return Path(train(recipe(table), out=tmp_path_factory.mktemp("runs"), quiet=True)["run"])


def test_views_are_averaged_as_probabilities_of_each_class(run):
    plain = excite.validate(run, device="cpu").evaluation
    for tta in ("flip", "five"):
        predictor, found = excite.validate(run, device="cpu", tta=tta)
        assert found.threshold == plain.threshold == predictor.threshold  # chosen without
        assert found.title == f"validation images, tta={tta}"
        assert found.notes[0].startswith(f"test-time augmentation (tta={tta}): the mean sigmoid probabilities of")
        assert found.mean_precision > 85
    opened = open_trained(run, device="cpu", precision="fp32")
    shares = [opened.predictor.logits(x).sigmoid() + opened.predictor.logits(x.flip(3)).sigmoid()
              for x, _, _ in opened.batches()]  # fmt: skip
    labels = torch.cat([labels for _, labels, _ in opened.batches()]).float()
    wanted = F.binary_cross_entropy(torch.cat(shares) / 2, labels).item()
    flipped = excite.validate(run, device="cpu", precision="fp32", tta="flip").evaluation
    assert flipped.loss == pytest.approx(wanted, rel=1e-4)


def test_a_teacher_of_several_labels(run, table, tmp_path):
    taught = train(recipe(table, f"train.teacher={run}", "distill_weight=0.8"), out=tmp_path, quiet=True)
    assert taught["map"] > 85
    assert "0.2 x that of the labels + 0.8 x" in (Path(taught["run"]) / "log.txt").read_text()
    with pytest.raises(ExciteError, match=r"was trained with data.task=multilabel, not classes: give a teacher with"):
        train("digits-seresnet20", ["train.device=cpu", f"train.teacher={run}", "in_chans=1"], out=tmp_path, quiet=True)


def test_a_run_learns_keeps_its_threshold_and_says_what_it_measures(run, table):
    results = json.loads((run / "results.json").read_text())
    assert results["metric"] == "map"
    assert results["map"] > 90
    assert 0 < results["threshold"] < 1
    evals = metrics(run, "eval")
    assert max(e["map"] for e in evals) == results["map"]
    assert results["test_metric"] > 85
    log = (run / "log.txt").read_text()
    assert "mAP" in log
    assert "the best epoch is that of the highest mAP" in log
    assert "hit@1" in log
    assert "top-1" not in log
    model = excite.load(run)
    assert (model.several, model.threshold) == (True, results["threshold"])
    found = excite.validate(run).evaluation
    assert (found.mean_precision, found.macro_f1) == (results["map"], results["macro_f1"])
    rows = found.per_class(["dark", "light"])
    assert [row["images"] for row in rows] == found.support
    assert all(row["ap"] > 85 and row["f1"] > 60 for row in rows)
    test = excite.validate(run, ["data.part=test"]).evaluation
    assert test.threshold == results["threshold"]  # chosen on the validation images


def test_predictions_are_all_classes_from_the_threshold_on(run, table):
    lines = table.read_text().splitlines()[-24:]
    wanted = [set(filter(None, line.split(",")[1].split("|"))) for line in lines]
    found = excite.predict(run, [str(table.parent / line.split(",")[0]) for line in lines])
    got = [{name for name, _ in each.top} for each in found]
    assert sum(a == b for a, b in zip(got, wanted, strict=True)) >= 16
    assert any(not each.top for each in found)
    assert next(each for each in found if not each.top).text() == "none of the classes"
    assert all(share >= excite.load(run).threshold for each in found for _, share in each.top)


def test_a_run_that_is_resumed_in_the_middle_is_the_same(run, table, tmp_path):
    with pytest.raises(Interrupted):
        train(recipe(table), out=tmp_path, quiet=True, until=7)
    first = next(tmp_path.iterdir())
    train(resume=first, quiet=True)
    ends = [step_folder(folder, 12) for folder in (run, first)]
    assert sha256_of(ends[0] / "model.safetensors") == sha256_of(ends[1] / "model.safetensors")
    assert sha256_of(run / "model.safetensors") == sha256_of(first / "model.safetensors")


@pytest.mark.parametrize(
    "more",
    [
        ("augment.mixup=0.5", "train.loss=asymmetric"),
        ("train.loss=focal", "train.class_weights=balanced", "augment.cutmix=1.0"),
    ],
)
def test_other_losses_and_mixed_images_train(table, tmp_path, more):
    results = train(recipe(table, "train.epochs=1", *more), out=tmp_path, quiet=True)
    assert math.isfinite(results["loss"])
    assert results["map"] is not None


def test_a_probe_fits_each_class_on_its_own(run, table, tmp_path):
    """A new head for other classes begins with a logistic regression of each."""
    rows = table.read_text().replace("tags", "label").replace("dark", "night").splitlines()
    here = table.parent / "renamed.csv"
    here.write_text("\n".join(rows) + "\n")
    words = (
        "data.columns.label=label",
        f"train.init_from={run}",
        "train.probe=true",
        "train.epochs=1",
        "optimizer.lr=1e-6",
    )
    results = train(recipe(here, *words), out=tmp_path, quiet=True)
    log = (Path(results["run"]) / "log.txt").read_text()
    assert "have their likeliest class right in cross-validation" in log
    first = metrics(Path(results["run"]), "eval")[0]
    assert first["epoch"] == 0
    assert first["map"] > 90
    labels = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]] * 20)
    probe = fit_probe(labels.double() + 0.1 * torch.randn(80, 2, generator=torch.Generator().manual_seed(0)), labels, 2)
    logits = labels.double() @ probe.weight.T + probe.bias
    assert ((logits > 0) == (labels > 0)).all()


# --- studies ----------------------------------------------------------------------------------------------------------


def test_resampled_measures_are_those_of_the_images_drawn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 3)).round(1).astype(np.float32)  # with ties
    labels = (rng.random((40, 3)) < [0.5, 0.1, 0.0]).astype(np.uint8)
    logits[5] = np.nan
    found = resampled(logits, labels, 0.4, resamples=15, seed=3)
    drawn = np.random.default_rng(3).integers(40, size=(15, 40))
    for i, some in enumerate(drawn):
        assert math.isclose(found.map[i], mean_average_precision(logits[some], labels[some]), rel_tol=1e-12)
        right, said, there = label_counts_at(logits[some], labels[some], 0.4)
        assert math.isclose(found.micro_f1[i], 200 * right.sum() / (said + there).sum(), rel_tol=1e-12)
        seen = said + there > 0
        assert math.isclose(found.macro_f1[i], (200 * right[seen] / (said + there)[seen]).mean(), rel_tol=1e-12)
    assert np.isnan(resampled(logits, labels * 0, 0.4, resamples=2).map).all()


def test_the_interval_has_the_wider_ends_of_efrons_and_the_normal_one():
    values = 20 + np.random.default_rng(0).normal(size=1000)
    normal = NormalDist()
    low, high = interval(20.3, values)
    shift = 2 * normal.inv_cdf(float((values < 20.3).mean()))
    efron = np.quantile(values, [normal.cdf(shift - 1.959964), normal.cdf(shift + 1.959964)])
    ends = 40.6 - values.mean() + np.array([-1.959964, 1.959964]) * values.std()
    assert np.allclose([low, high], [min(efron[0], ends[0]), max(efron[1], ends[1])], atol=1e-6)
    assert interval(0.1, values - 20) != interval(0.1, values - 20, least=-100)  # a difference may be below 0
    assert interval(0.1, values - 20)[0] == 0
    assert interval(99.9, 99.9 + np.minimum(0.1, values - 20))[1] == 100
    assert interval(0.0, np.zeros(9)) == (0, 0)
    assert interval(None, np.full(3, np.nan)) == (None, None)


def test_scales_by_label_are_a_regression_and_one_label_each_is_its_special_case():
    generator = torch.Generator().manual_seed(0)
    scales = [torch.rand(n, 6, generator=generator) for n in (9, 14, 8)]
    single = [torch.randint(4, (len(s),), generator=generator) for s in scales]
    one, hot, many = (ScaleStatistics(5) for _ in range(3))  # the fifth class has no image
    several = [(torch.rand(len(s), 5, generator=generator) < 0.4).to(torch.uint8) for s in scales]
    for scale, label, labels in zip(scales, single, several, strict=True):
        labels[:, 4] = 0
        one.update(scale, label)
        hot.update(scale, F.one_hot(label, 5).to(torch.uint8))
        many.update(scale, labels)
    assert torch.equal(one.mean, hot.mean)
    assert torch.equal(one.squares, hot.squares)
    assert torch.allclose(one.overall_mean(), hot.overall_mean())
    assert torch.allclose(one.overall_sd(), hot.overall_sd())
    assert math.isclose(one.class_share(), hot.class_share(), rel_tol=1e-9)
    assert one.chance_share() == hot.chance_share()
    y, x = torch.cat(scales).double().numpy(), torch.cat(several).double().numpy()
    design = np.hstack([np.ones((len(x), 1)), x])
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    total = ((y - y.mean(0)) ** 2).sum()
    assert math.isclose(many.class_share(), 1 - ((y - fitted) ** 2).sum() / total, rel_tol=1e-9)
    assert many.chance_share() == 4 / 30
    assert many.images == 31
    assert np.allclose(many.overall_mean(), y.mean(0))
    assert np.allclose(many.overall_sd(), y.std(0, ddof=1))
    assert np.allclose(many.mean[1], y[x[:, 1] > 0].mean(0))


def text_of(page: Path) -> str:
    """What a reader of a page sees, without pictures."""
    seen = re.sub(r"<(style|script)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", "|", seen))


@pytest.fixture(scope="module")
def weak(table, tmp_path_factory) -> Path:
    """A run that has learnt next to nothing, with its report: its measures are far from 0 and 100 %."""
    more = ("report.write=true", "report.robustness_images=12", "report.gate_images=12", "report.mistakes=7")
    more += ("train.epochs=1", "optimizer.lr=1e-5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("excite.report.build._TIMING_SECONDS", 0.0)
        return Path(excite.train(recipe(table, *more), out=tmp_path_factory.mktemp("weak"), quiet=True)["run"])


def test_training_ends_with_a_report_that_says_map(weak):
    results = json.loads((weak / "results.json").read_text())
    numbers = results["report"]
    found, evaluation = numbers["labels"], excite.validate(weak).evaluation
    assert found["accuracy"]["map"] == results["map"]
    assert found["accuracy"]["threshold"] == results["threshold"]
    assert math.isclose(found["accuracy"]["micro_f1"], results["micro_f1"])
    assert found["accuracy"]["map_low"] < results["map"] < found["accuracy"]["map_high"]
    rows = evaluation.per_class(["dark", "light"])
    assert [(r["ap"], r["f1"]) for r in found["classes"]] == [(r["ap"], r["f1"]) for r in rows]
    assert np.trace(found["together"]["matrix"]) == sum(evaluation.support)
    assert math.isclose(found["calibration"]["nll"], evaluation.loss, rel_tol=1e-5)
    seen = text_of(weak / "report.html")
    for said in ("mAP", "micro F1", "Labels together", "Threshold", f"kept: {results['threshold']:.3f}"):
        assert said in seen, said
    assert not re.search(r"top-?1|accuracy", seen.partition("The whole recipe")[0], re.IGNORECASE)
    assert {"map", "lost"} <= set(numbers["robustness"]["rows"][0])
    assert "map_lost" in numbers["gates"]["rows"][0]
    kept = Predictions.read(weak / "predictions.npz")
    assert kept is not None
    assert (kept.labels.dtype, kept.labels.shape) == (np.uint8, (48, 2))
    assert len(numbers["mistakes"]) <= 7
    for mistake in numbers["mistakes"]:
        assert (mistake["class"] in mistake["predicted"]) == (mistake["kind"] == "invented")
        assert (mistake["class"] in mistake["true"]) == (mistake["kind"] == "missed")


def test_comparing_is_paired_and_says_map(run, weak, tmp_path, tiny):
    weights = [weak, run]
    found = excite.compare(*weights, out=tmp_path / "page.html")
    first, second = found.found["rows"]
    measured = [excite.validate(folder).evaluation for folder in weights]
    assert [first["top1"], second["top1"]] == [each.mean_precision for each in measured]
    assert math.isclose(second["difference"], measured[1].mean_precision - measured[0].mean_precision)
    assert math.isclose(second["f1_difference"], measured[1].micro_f1 - measured[0].micro_f1)
    assert second["difference_low"] < second["difference"] < second["difference_high"]
    assert second["both_right"] + second["only_this"] + second["only_baseline"] + second["both_wrong"] == 48 * 2
    rows = found.to_dict()["rows"]
    assert "map" in rows[0]
    assert "top1" not in found.to_csv()
    assert not re.search(r"top-?1|McNemar|accuracy", text_of(tmp_path / "page.html").split("Recipes")[0], re.IGNORECASE)
    with pytest.raises(
        ExciteError, match=r"several labels each \(task=multilabel\) and .* one class each; compare runs"
    ):
        excite.compare(run, tiny.gated, out=tmp_path / "mixed.html")


def test_without_images_the_measures_of_the_training_are_compared(run, weak, tmp_path, monkeypatch):
    copies = []
    for source in (weak, run):
        copies.append(Path(shutil.copytree(source, tmp_path / source.name)))
        (copies[-1] / "predictions.npz").unlink(missing_ok=True)

    def gone(*_: object, **__: object) -> None:
        raise ExciteError("data.root=/gone does not exist")

    monkeypatch.setattr("excite.trained.images.open_measured", gone)
    found = excite.compare(*copies, out=tmp_path / "page.html")
    told = [json.loads((copy / "results.json").read_text()) for copy in copies]
    rows = found.to_dict()["rows"]
    assert [row["measured"] for row in rows] == ["training", "training"]
    assert [(row["map"], row["micro_f1"], row["map_low"]) for row in rows] == [
        (each["map"], each["micro_f1"], None) for each in told
    ]
    assert "None" not in text_of(tmp_path / "page.html") + found._repr_html_()


def test_explaining_says_what_gates_cost_in_map(weak, table, tmp_path):
    picture = next(str(table.parent / line.split(",")[0]) for line in table.read_text().splitlines() if "|" in line)
    found = explain(weak, [picture], limit=24, timing=False, precision="fp32")
    values = json.loads(to_json(found.to_dict()))
    row = values["gates"][0]
    assert {"map_lost", "map_lost_low", "map_lost_high"} <= set(row)
    assert row["map_lost_low"] <= row["map_lost"] <= row["map_lost_high"]
    assert "top1" not in found.to_csv()
    some = predict_all(open_trained(weak, limits={"limit_val": 24}))
    assert values["images"] == 24
    assert values["map"] == mean_average_precision(some.logits, some.labels)
    [image] = found.explained
    assert [image.target, *image.others] == [name for name, _ in image.top]
    assert all(cam.shape == (8, 16) for cam in image.others.values())
    assert draw_image(image, tmp_path / "a.png").stat().st_size


def test_pruned_weights_keep_the_threshold(weak, tmp_path):
    found = excite.prune(weak, max_drop=100.0, calibration=24, batch=2, rounds=1, out=tmp_path / "pruned")
    values = json.loads((tmp_path / "pruned" / "prune.json").read_text())
    assert "map" in values["points"][0]
    assert "top1" not in values["points"][0]
    assert found.points[0].top1 == excite.validate(weak).evaluation.mean_precision
    pruned = excite.load(tmp_path / "pruned")
    assert (pruned.several, pruned.threshold) == (True, excite.load(weak).threshold)


def test_metadata_of_artefacts_say_the_task_and_the_threshold(run, tiny):
    about, other = (describe(excite.load(source), locate(source), "uint8") for source in (run, tiny.gated))
    assert (about["task"], about["threshold"]) == ("multilabel", excite.load(run).threshold)
    assert (other["task"], other["threshold"]) == ("classes", None)


@pytest.mark.slow
def test_an_artefact_says_the_task_and_the_threshold(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    found = excite.export(run, "onnx", out=tmp_path / "a.onnx", images=24)
    stored = {each.key: each.value for each in onnx.load(tmp_path / "a.onnx").metadata_props}
    about = json.loads(stored["excite"])
    assert (about["task"], about["threshold"]) == ("multilabel", excite.load(run).threshold)
    assert all("top1" not in row for row in found["rows"])
    assert found["rows"][0]["map"] == found["rows"][1]["map"]
    assert found["rows"][1]["agreement"] == 100
    # As docs/export.md says.
    session, pixels = onnxruntime.InferenceSession(tmp_path / "a.onnx"), np.full((1, 8, 16, 1), 128, np.uint8)
    pixels[:, :, :8] = SHADES["light"]
    chance = 1 / (1 + np.exp(-session.run(None, {"image": pixels})[0][0]))
    names = [name for name, p in zip(about["classes"], chance, strict=True) if p >= about["threshold"]]
    assert names
    assert names == sorted(name for name, _ in excite.predict(run, [pixels[0]])[0].top)


def test_artefacts_agree_if_all_labels_do():
    ours = np.array([[2.0, -2.0], [2.0, 2.0], [-2.0, -2.0], [np.nan, 0.0]], np.float32)
    theirs = np.array([[2.1, -2.0], [2.0, -1.0], [-2.0, -2.1], [1.0, 0.0]], np.float32)
    assert compare_logits(ours, theirs, 0.5).agreement == 50  # the second image loses a label
    assert compare_logits(ours, theirs).agreement == 75


def test_twins_compare_the_measure_that_chose():
    results = {"metric": "map", "threshold": 0.3, "last_metric": 41.0, "last_top1": 50.0, "map": 42.0}
    assert (measure_in(results), last_of(results)) == ("map", 41.0)
    assert (measure_in({"last_top1": 9.0}), last_of({"last_top1": 9.0})) == ("top1", 9.0)
    told = outward({"runs": [results], "rows": [{"gate": "se", "top1_mean": 41.0}]})
    assert told["rows"] == [{"gate": "se", "map_mean": 41.0}]


def test_data_check_finds_copies_and_broken_files(table, tmp_path):
    for path in table.parent.glob("[0-9]*.png"):
        shutil.copy(path, tmp_path)
    rows = table.read_text().splitlines()
    last = rows[-1].split(",")  # a copy of a test picture in training, with another label
    shutil.copy(tmp_path / last[0], tmp_path / "copy.png")
    rows.append(f"copy.png,{'dark' if last[1] != 'dark' else 'light'},train")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows.append("broken.png,dark|light,train")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    words = ["data.source=table", "data.columns.label=tags", "task=multilabel", "in_chans=1"]
    numbers, _ = excite.check_data(tmp_path / "labels.csv", words, out=tmp_path / "page.html")
    kinds = {found["kind"]: found for found in numbers["findings"]}
    assert {"broken", "leaks", "conflicts"} <= set(kinds)
    assert any(each["label"] == "dark|light" for each in kinds["broken"]["examples"])
    assert {row["label"]: row["test"] for row in numbers["balance"]["classes"]}.keys() == {"dark", "light"}
    assert numbers["about"]["several"]


def test_the_interval_covers_the_map_of_a_weak_network():
    """Average precision is much too high in 100 images with 9 % of each label: percentiles alone cover 60 %."""
    rng, covered = np.random.default_rng(0), 0

    def draw(images: int) -> tuple[np.ndarray, np.ndarray]:
        labels = (rng.random((images, 10)) < 0.09).astype(np.uint8)
        return (rng.normal(size=labels.shape) + 0.6 * labels).astype(np.float32), labels

    truth = mean_average_precision(*draw(50_000))
    assert truth is not None
    for seed in range(40):
        some = draw(100)
        low, high = interval(mean_average_precision(*some), resampled(*some, 0.5, 200, seed).map)
        assert low is not None
        assert high is not None
        covered += low <= truth <= high
    assert covered >= 33, covered
