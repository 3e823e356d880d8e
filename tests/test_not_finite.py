"""Logits that are not finite are no answer: each place where logits become a class, a rank, a loss or a statistic."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import excite
from excite.data import ArrayImages, EvalLoader, Preprocessing
from excite.data.config import DataConfig
from excite.errors import ExciteError
from excite.explain.statistics import ScaleStatistics
from excite.export.verify import compare_logits as compare_artefact
from excite.files import from_json, read_json, to_json, write_json
from excite.grafting.fold import recording
from excite.logits import NO_CLASS, finite, losses, mean_loss, predicted, sentence
from excite.trained.accuracy import validate
from excite.trained.predictor import load
from excite.training import evaluate, loop, train
from excite.training.checkpoint import first_not_finite, read_step
from excite.training.run_folder import Metrics, draw_curves, read_metrics
from excite.weights.own import read_own, save_weights
from tests.training.small import metrics, small

NAN, INF = float("nan"), float("inf")
SOURCES = Path(excite.__file__).parent


def strict(text: str) -> object:
    """JSON as every other reader takes it: a bare NaN is an error."""

    def refuse(name: str) -> None:
        raise AssertionError(f"bare {name} in JSON")

    return json.loads(text, parse_constant=refuse)


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_the_rule_itself():
    logits = torch.tensor([[1.0, 3.0, 2.0], [NAN, 0.0, 1.0], [INF, 0.0, 1.0], [0.0, -INF, 1.0], [5.0, 5.0, 1.0]])
    labels = torch.tensor([1, 0, 0, 2, 0])
    assert finite(logits).tolist() == [True, False, False, False, True]
    assert predicted(logits).tolist() == [1, NO_CLASS, NO_CLASS, NO_CLASS, 0]
    found = losses(logits, labels)
    assert found.isnan().tolist() == [False, True, True, True, False]
    sound = [0, 4]
    assert torch.equal(found[sound], F.cross_entropy(logits[sound], labels[sound], reduction="none"))
    assert mean_loss(found) == pytest.approx(float(found[sound].mean()))
    assert mean_loss(found[1:4]) is None


def test_images_are_counted_and_named():
    assert sentence(0, 120, None) is None
    some = sentence(37, 1200, "ship/0003.jpg")
    assert some is not None
    assert some.startswith("37 of 1,200 images have no finite logits, the first: ship/0003.jpg (counted as wrong")
    assert str(sentence(1, 120, "a.jpg")).startswith("1 of 120 images has no finite logits: a.jpg (")
    assert "use other weights" in str(sentence(120, 120, "a.jpg"))


# --- evaluation and training ------------------------------------------------------------------------------------------


class Table(nn.Module):
    """The logits of an image are a row of a table, by its first pixel."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[(x[:, 0, 0, 0] * 255).round().long()]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("classes", [3, 8])
def test_such_images_are_wrong_in_top1_and_top5_and_not_in_the_loss(classes, batch_size):
    """Class 0 is right for images 2 and 3: what argmax makes of NaN."""
    table = torch.randn(6, classes, generator=torch.Generator().manual_seed(3))
    table[2], table[3, 1] = NAN, INF
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 2, 2).contiguous()
    labels = torch.tensor([int(table[0].argmax()), 1, 0, 0, 2, 1])
    loader = EvalLoader(
        ArrayImages(images, labels),
        batch_size=batch_size,
        device="cpu",
        data_config=DataConfig(source="digits", image_size=2, in_chans=1),
    )
    preprocessing = Preprocessing(2, 1.0, "bilinear", (0.0,), (1.0,), 1)
    model, device = Table(table), torch.device("cpu")
    found = evaluate(model, loader, preprocessing, classes, device, name_of=lambda i: f"image {i}")
    sound = [0, 1, 4, 5]
    rank = (table[sound] > table[sound].gather(1, labels[sound, None])).sum(1)
    assert (found.images, found.not_finite, found.usable) == (6, 2, True)
    assert found.top1 == pytest.approx(100 * int((rank == 0).sum()) / 6)
    assert found.top5 == pytest.approx(100 * int((rank < min(5, classes)).sum()) / 6)
    assert found.loss == pytest.approx(float(F.cross_entropy(table[sound], labels[sound])), rel=1e-6)
    assert np.sum(found.confusion) == 4
    assert found.no_class == [2] + [0] * (classes - 1)
    assert found.first_not_finite == "image 2"
    assert str(found.warning).startswith("2 of 6 images have no finite logits, the first: image 2")
    rows = found.per_class([str(k) for k in range(classes)])
    assert [row["images"] for row in rows] == torch.bincount(labels, minlength=classes).tolist()
    assert rows[0]["top1"] == pytest.approx(100 * found.confusion[0][0] / rows[0]["images"])
    model.table.data[:] = NAN
    none = evaluate(model, loader, preprocessing, classes, device)
    assert (none.usable, none.loss, none.top1, none.top5, none.first_not_finite) == (False, None, 0.0, 0.0, "#0")


@pytest.fixture
def broken_at(monkeypatch):
    """A function: the evaluations of these numbers, from 0, find logits of NaN only."""

    def make(*numbers: int) -> None:
        from excite.training import reporting

        count = 0

        def spoilt(model: nn.Module, *args: object, **kwargs: object) -> object:
            nonlocal count
            hook = model.register_forward_hook(lambda m, i, out: out * NAN) if count in numbers else None
            count += 1
            try:
                return evaluate(model, *args, **kwargs)
            finally:
                if hook is not None:
                    hook.remove()

        monkeypatch.setattr(reporting, "evaluate", spoilt)

    return make


def test_training_keeps_no_weights_without_an_answer(tmp_path, broken_at, capsys):
    broken_at(0, 2)
    results = train(small("train.epochs=3"), out=tmp_path)
    told = capsys.readouterr().out
    assert told.count("best so far") == 1
    assert told.count("100 of 100 images have no finite logits, the first: #") == 2
    assert (results["best_epoch"], results["not_finite"], results["last_not_finite"]) == (2, 0, 100)
    evals = metrics(results["run"], "eval")
    assert [(r["loss"] is None, r["not_finite"]) for r in evals] == [(True, 100), (False, 0), (True, 100)]
    strict((Path(results["run"]) / "results.json").read_text())
    assert validate(results["run"])[1].top1 == results["top1"]


def test_training_without_any_answer_fails_and_ships_nothing(tmp_path, broken_at):
    broken_at(0, 1)
    with pytest.raises(ExciteError, match=r"no validation image had finite logits in any evaluation.*step-"):
        train(small("train.epochs=2"), out=tmp_path, quiet=True)
    (run,) = tmp_path.iterdir()
    assert not (run / "model.safetensors").exists()
    assert not (run / "results.json").exists()
    assert "best so far" not in (run / "log.txt").read_text()
    with pytest.raises(
        ExciteError, match="no validation image had finite logits in any evaluation"
    ):  # and again, where it is taken up again
        train(resume=run, quiet=True)


# --- commands on a network that has no answer for some images, or for all ---------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    words = ("report.robustness_images=20", "report.gate_images=20")
    recipe = small("train.epochs=1", "mixup=0.0", *words)
    return Path(train(recipe, out=tmp_path_factory.mktemp("not-finite"), quiet=True)["run"])


def scaled(run: Path, target: Path, share: float) -> Path:
    """The run with its last layer so large that the logits of about ``share`` of the images overflow."""
    shutil.copytree(run, target)
    predictor = load(run, "cpu")
    data = excite.data.open_data(excite.recipe.Recipe.from_dict(predictor.meta["recipe"]).data)
    model = predictor.model
    with torch.no_grad():
        model.layer3[-1].bn2.weight *= 1e5  # large features, so that the last layer need not overflow itself
        model.fc.weight.abs_()  # no partial sum exceeds its logit: whatever the order, the same images overflow
        largest = predictor.logits(data.val.images).abs().amax(1)
        model.fc.weight *= 3.4e38 / float(largest.quantile(1 - share) if share < 1 else largest.min() / 2)
    assert all(v.isfinite().all() for v in model.state_dict().values())
    save_weights(target / "model.safetensors", predictor.model, predictor.meta)
    return target


@pytest.fixture(scope="module")
def some(trained, tmp_path_factory) -> Path:
    return scaled(trained, tmp_path_factory.mktemp("some") / "run", 0.4)


@pytest.fixture(scope="module")
def none(trained, tmp_path_factory) -> Path:
    return scaled(trained, tmp_path_factory.mktemp("none") / "run", 1.0)


def test_validate_counts_and_names_them(some, none, command):
    predictor, result = validate(some)
    assert 10 < result.not_finite < 90
    images = excite.data.open_data(excite.recipe.Recipe.from_dict(predictor.meta["recipe"]).data).val.images
    assert result.not_finite == int((~predictor.logits(images).isfinite().all(1)).sum())
    code, out, err = command("validate", some, "--json")
    row = strict(out)
    assert code == 0
    assert row["not_finite"] == result.not_finite
    assert f"{result.not_finite} of 100 images have no finite logits, the first: {result.first_not_finite}" in err
    for fold in ("--fold", "--no-fold"):
        code, out, err = command("validate", none, "--json", fold)
        assert code == 1
        assert (strict(out)["loss"], strict(out)["top1"]) == (None, 0.0)
        assert "error: 100 of 100 images have no finite logits" in err


def test_predict_says_so_and_exits_1(some, none, command, tmp_path):
    from PIL import Image

    for i in range(2):
        Image.new("L", (8, 8), 250 * i).save(tmp_path / f"{i}.png")
    code, out, err = command("predict", none, tmp_path, "--json", "--grid", tmp_path / "grid.png")
    assert code == 1
    assert [row["top"] for row in strict(out)] == [[], []]
    assert f"2 of 2 images have no finite logits, the first: {tmp_path}/0.png (not classified)" in err
    assert (tmp_path / "grid.png").is_file()
    code, out, _ = command("predict", none, tmp_path / "0.png")
    assert code == 1
    assert "no finite logits" in out
    assert "%" not in out


def test_a_report_says_so(some, command, tmp_path, monkeypatch):
    monkeypatch.setattr("excite.report.build._TIMING_SECONDS", 0.0)
    _, result = validate(some)
    without = result.not_finite
    code, out, err = command("report", some, "--quick", "--json", "--out", tmp_path / "some.html")
    numbers = strict(out)
    assert code == 0
    assert f"{without} of 100 images have no finite logits" in err
    assert f"{without} of 100 images have no finite logits" in (tmp_path / "some.html").read_text()
    assert numbers["accuracy"]["not_finite"] == without
    assert numbers["accuracy"]["top1"] == pytest.approx(result.top1)
    assert numbers["accuracy"]["top5"] == pytest.approx(result.top5)
    assert np.sum(numbers["confusion"]["matrix"]) == 100 - without
    assert sum(row["images"] for row in numbers["calibration"]["reliability"]) == 100 - without
    assert sum(row["support"] for row in numbers["classes"]["rows"]) == 100
    assert [r["recall"] for r in numbers["classes"]["rows"]] == pytest.approx(
        [r["top1"] for r in result.per_class([str(k) for k in range(10)])], rel=1e-5
    )
    strict((some / "results.json").read_text())


def test_a_report_on_no_answers_is_written_and_fails(none, command, tmp_path, monkeypatch):
    monkeypatch.setattr("excite.report.build._TIMING_SECONDS", 0.0)
    words = ("report.robustness_images=0", "report.gate_images=0")
    code, out, err = command("report", none, *words, "--json", "--out", tmp_path / "none.html")
    assert code == 1
    assert strict(out)["calibration"]["ece"] is None
    assert strict(out)["accuracy"]["top1"] == 0.0
    assert "100 of 100 images have no finite logits" in err
    assert "100 of 100 images have no finite logits" in (tmp_path / "none.html").read_text()


def test_a_comparison_says_so(trained, some, none, command, tmp_path):
    without = validate(some)[1].not_finite
    code, out, err = command("compare", trained, some, "--json", "--labels", "a,b", "--out", tmp_path / "c.html")
    found = strict(out)
    assert code == 0
    assert any(f"b: {without} of 100 images have no finite logits" in note for note in found["notes"])
    assert found["rows"][1]["not_finite"] == without
    assert found["agreement"]["same"][1][1] == pytest.approx(100 - without)
    assert found["rows"][1]["loss_difference"] is not None
    code, out, err = command("compare", trained, none, "--json", "--labels", "a,b", "--out", tmp_path / "d.html")
    assert code == 1
    assert strict(out)["rows"][1]["loss"] is None
    assert "b: no image has finite logits, so there is nothing to compare" in err


@pytest.mark.heavy
def test_explain_leaves_them_out_and_says_so(some, none, command, tmp_path):
    _, result = validate(some, ["data.limit_val=40"])
    words = ("--images", 40, "--json", "--no-timing", "--out")
    code, out, err = command("explain", some, *words, tmp_path / "some")
    found = strict(out)
    assert code == 0
    assert found["not_finite"] == result.not_finite > 0
    assert found["top1"] == pytest.approx(result.top1)
    assert any(f"{result.not_finite} of 40 images have no finite logits, the first: " in n for n in found["notes"])
    assert all(row["loss_added"] is not None for row in found["gates"])
    code, out, _ = command("explain", some, "--ablation", "estimate", *words, tmp_path / "e")
    assert code == 0
    assert any(row["loss_added"] for row in strict(out)["gates"])
    code, out, err = command("explain", none, "--ablation", "off", *words, tmp_path / "none")
    assert code == 1
    assert strict(out)["not_finite"] == 40
    assert "none of the 40 images has finite logits" in err
    from PIL import Image

    Image.new("L", (8, 8), 250).save(tmp_path / "a.png")
    code, out, err = command("explain", none, tmp_path / "a.png", "--images", "0", "--json", "--out", tmp_path / "one")
    assert code == 1
    assert strict(out)["bad_images"][0]["reason"] == "the network has no finite logits for it"


def test_prune_ships_no_network_with_fewer_answers(some, none, command):
    code, out, err = command("prune", some, "--json", "--calibration", "50", "--batch", "1")
    points = strict(out)["points"]
    assert code == 0
    assert "images have no finite logits" in err
    assert points[strict(out)["chosen"]]["not_finite"] <= points[0]["not_finite"]
    code, out, err = command("prune", none, "--json", "--calibration", "50")
    assert (code, out) == (1, "")
    assert "there is nothing to prune by" in err


# --- statistics and proofs --------------------------------------------------------------------------------------------


def test_statistics_of_a_gate_leave_out_what_is_not_finite():
    scales = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    whole, spoilt = ScaleStatistics(2), ScaleStatistics(2)
    whole.update(scales[[0, 2, 3, 5]], labels[[0, 2, 3, 5]])
    scales[1, 2], scales[4, 0] = NAN, INF
    spoilt.update(scales, labels)
    assert spoilt.not_finite == 2
    assert {**spoilt.to_dict(), "not_finite": 0} == whole.to_dict()
    spoilt.update(scales[[1]], labels[[1]])
    assert spoilt.not_finite == 3
    nothing = ScaleStatistics(2)
    nothing.update(scales[[1, 4]], labels[[1, 4]])
    with pytest.raises(ExciteError, match="no finite scale for any of the 2 images"):
        nothing.to_dict()


def test_a_gate_that_was_not_finite_once_is_not_constant(trained):
    predictor = load(trained, "cpu")
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with recording(predictor.model) as recorders:
        predictor.logits(images)
        recorder = next(iter(recorders.values()))
        assert recorder.scales().constant(10.0)
        mean = recorder.scales().mean
        recorder.note(torch.full((1, len(mean)), NAN))
        assert torch.equal(recorder.scales().mean, mean)
        assert not recorder.scales().constant(10.0)


def test_an_artefact_without_an_answer_agrees_with_nothing():
    logits = np.array([[1.0, 2.0], [NAN, 0.0], [0.0, INF]], np.float32)
    found = compare_artefact(logits, logits)
    assert found.agreement == pytest.approx(100 / 3)
    assert found.not_finite == (2, 2)
    assert not found.relative <= 1e9
    sane = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]], np.float32)
    assert compare_artefact(sane, logits).not_finite == (2, 0)
    assert not compare_artefact(sane, logits).relative <= 1e9


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_holds_null_instead_of_nan(tmp_path):
    value = {"a": NAN, "b": [1.5, INF, {"c": (-INF, None, True)}], "d": np.float64("nan"), "é": 1}
    expected = {"a": None, "b": [1.5, None, {"c": [None, None, True]}], "d": None, "é": 1}
    write_json(tmp_path / "a.json", value)
    assert strict((tmp_path / "a.json").read_text(encoding="utf-8")) == expected
    assert strict(to_json(value)) == expected
    assert to_json(value).isascii()
    (tmp_path / "metrics.jsonl").touch()
    written = Metrics(tmp_path)
    written.write({"kind": "eval", "step": 1, "epoch": 1.0, "loss": NAN, "top1": 10.0})
    written.rewind(1, 1)
    assert strict(written.path.read_text()) == {
        "kind": "eval",
        "step": 1,
        "epoch": 1.0,
        "loss": None,
        "top1": 10.0,
    }


def test_nan_of_former_versions_is_read_as_none(tmp_path):
    (tmp_path / "old.json").write_text('{"loss": NaN, "top1": -Infinity}')
    assert read_json(tmp_path / "old.json") == {"loss": None, "top1": None}
    assert from_json("[NaN, 1]") == [None, 1]
    train_record = '{"kind": "train", "step": 1, "epoch": 1, "loss": 1.0, "accuracy": 5.0, "lr": 0.1}\n'
    evaluation = '{"kind": "eval", "step": 1, "epoch": 1, "loss": NaN, "top1": 1.0, "images": 10}\n'
    (tmp_path / "metrics.jsonl").write_text(train_record + evaluation)
    assert read_metrics(tmp_path / "metrics.jsonl")[1]["loss"] is None
    assert draw_curves(tmp_path, "old") is not None


def test_json_is_written_in_one_place():
    """Who calls json.dumps elsewhere must say why here."""
    allowed = {
        "text.py",  # the one place
        "recipe.py",  # the schema, which pydantic made
        "models/sizes.py",  # a script for developers
        "gates/summary.py",  # likewise
        "storage/listing.py",  # nothing but a hash is made of it
        "bench/mindspore_worker.py",  # imports nothing of excite; refuses NaN
    }
    found = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if re.search(r"json\.dumps?\(", path.read_text())
    }
    assert found == allowed
    assert "allow_nan=False" in (SOURCES / "bench/mindspore_worker.py").read_text()


# --- nothing that is not finite replaces anything good ----------------------------------------------------------------


def poisoned(monkeypatch, at: int, poison) -> None:
    """Poison the run after step ``at``."""
    real = loop.train_step

    def step(run, images, labels):
        result = real(run, images, labels)
        if run.step + 1 == at:
            with torch.no_grad():
                poison(run)
        return result

    monkeypatch.setattr(loop, "train_step", step)


def _in_the_average(run) -> None:
    next(p for name, p in run.ema.module.named_parameters() if name == "layer1.0.conv1.weight")[0, 0, 0, 0] = NAN


def _in_a_buffer_of_the_average(run) -> None:
    run.ema.module.get_buffer("bn1.running_var")[0] = INF


def _in_the_optimizer(run) -> None:
    parameter = run.model.get_parameter("fc.weight")
    run.optimizer.state[parameter]["momentum_buffer"][0, 0] = NAN


def _in_the_weights(run) -> None:
    run.model.get_parameter("layer3.2.gate.fc1.weight")[0] = INF


POISONS = {
    _in_the_average: r"the moving average of the weights \(layer1\.0\.conv1\.weight\)",
    _in_a_buffer_of_the_average: r"the moving average of the weights \(bn1\.running_var\)",
    _in_the_optimizer: r"the optimiser's state \(momentum_buffer of fc\.weight\)",
    _in_the_weights: r"the weights \(layer3\.2\.gate\.fc1\.weight\)",
}


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("at", [4, 12])
def test_a_poisoned_run_ends_and_keeps_what_was_good(tmp_path, monkeypatch, poison, at):
    """In the middle of an epoch (a checkpoint follows) and at its end (an evaluation does)."""
    poisoned(monkeypatch, at, poison)
    words = ("checkpoint.every_steps=2", "log.every_steps=100", "epochs=2")
    said = rf"after step {at}, not all values in {POISONS[poison]} are finite; the last good checkpoint is"
    with pytest.raises(ExciteError, match=said):
        train(small(*words), out=tmp_path, quiet=True)
    run = next(tmp_path.iterdir())
    assert not (run / "results.json").exists()
    for folder in (run / "checkpoints").iterdir():
        assert not first_not_finite(read_step(folder).weights.tensors)
    if at == 12:
        assert read_own(run / "model.safetensors").meta["step"] == 6
    monkeypatch.undo()
    assert train(resume=run, quiet=True)["epochs"] == 2
