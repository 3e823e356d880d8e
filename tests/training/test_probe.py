"""The linear probe: against scikit-learn, its cross-validation, and as the beginning of a run."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from excite.data.watched import LoaderFailed
from excite.errors import ExciteError
from excite.recipe import load_recipe
from excite.training import probe, reporting, train
from excite.training.probe import STRENGTHS, fit_probe
from excite.weights.locate import saved_steps

from .small import metrics, same, small, tensors

WORDS = ("train.probe=true", "train.epochs=1", "mixup=0.0", "model.drop_rate=0.0", "checkpoint.every_steps=3")


def blobs(count, features, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(size=(classes, features))
    x = centres[labels] + rng.normal(scale=1.5, size=(count, features))
    return torch.from_numpy(3 + 2 * x), torch.from_numpy(labels)


@pytest.mark.peers
@pytest.mark.parametrize(("count", "features"), [(40, 200), (300, 12)])
def test_it_is_scikit_learns_logistic_regression(sklearn, count, features):
    """The same weights on the features as they are, whether there are more images than features or fewer."""
    from sklearn.linear_model import LogisticRegression

    x, labels = blobs(count, features)
    made = fit_probe(x, labels, 3)
    mean = x.mean(0)
    scale = float((x - mean).square().mean().sqrt())
    # scikit-learn's objective is C times the sum of losses + |weight|^2 / 2.
    theirs = LogisticRegression(C=1 / (made.strength * count), max_iter=10_000, tol=1e-10)
    theirs.fit(((x - mean) / scale).numpy(), labels.numpy())
    weight = torch.from_numpy(theirs.coef_) / scale
    ours, others = x @ made.weight.T + made.bias, (x - mean) @ weight.T + torch.from_numpy(theirs.intercept_)
    assert torch.allclose(ours.softmax(1), others.softmax(1), atol=1e-4)


def test_cross_validation_takes_a_strong_penalty_for_noise_and_a_weak_one_for_what_is_told_apart():
    noise, labels = torch.randn(60, 100, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    assert fit_probe(noise, labels, 3).strength == STRENGTHS[0]
    clear = torch.eye(3)[labels] * 5 + 0.1 * noise[:, :3]
    told = fit_probe(clear, labels, 3)
    assert told.strength == STRENGTHS[-1]
    assert told.accuracy == 100.0


def test_the_accuracy_is_of_images_that_were_left_out():
    """Random labels, as many features as images: what was fitted would be right for all."""
    x, labels = torch.randn(100, 300, generator=torch.Generator().manual_seed(1)), torch.arange(100) % 2
    made = fit_probe(x, labels, 2)
    assert made.accuracy < 70
    fitted = probe._fit(x.double(), labels, STRENGTHS[-1], torch.zeros(2, 301, dtype=torch.float64))
    assert ((x.double() @ fitted[:, :-1].T + fitted[:, -1]).argmax(1) == labels).all()


def test_classes_of_one_image_each_have_a_probe_and_no_cross_validation():
    made = fit_probe(torch.eye(4), torch.arange(4), 5)
    assert made.accuracy is None
    assert made.weight.shape == (5, 4)
    assert (torch.eye(4, dtype=torch.float64) @ made.weight.T + made.bias).argmax(1).tolist() == [0, 1, 2, 3]


def test_every_class_is_in_every_fold_as_far_as_can_be():
    labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 2)
    fold = probe._folds(labels, 0)
    assert sorted(set(fold[labels == 0].tolist())) == [0, 1, 2, 3, 4]
    assert len(set(fold[labels == 1].tolist())) == 5
    assert len(set(fold[labels == 2].tolist())) == 2


# --- in a run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def test_a_run_begins_with_the_probe_and_keeps_it_unless_it_is_beaten(tmp_path, cache, capsys):
    results = train(small(*WORDS, "optimizer.lr=1.0e-12", "train.loss=focal"), out=tmp_path / "runs")
    first, second = metrics(results["run"], "eval")
    assert (first["epoch"], second["epoch"]) == (0, 1)
    assert first["top1"] > 25  # of ten classes, on the features of a network that was not trained
    assert results["best_epoch"] in (0.0, 1.0)
    told = capsys.readouterr().out
    assert "linear probe: fitted to 200 images" in told
    assert "in cross-validation; by plain cross-entropy: what the recipe does for rare classes begins after it" in told
    if results["best_epoch"] == 0:
        assert "fine-tuning did not beat the linear probe" in told
    log = (Path(results["run"]) / "log.txt").read_text()
    assert log.index("linear probe") < log.index("epoch 1/1")


@pytest.mark.heavy
def test_a_run_that_was_killed_after_the_probe_goes_on_as_if_it_had_not_been(tmp_path, cache):
    recipe = small(*WORDS)
    whole = train(recipe, run_dir=tmp_path / "whole", quiet=True)
    cut = tmp_path / "cut"
    train(recipe, run_dir=cut, quiet=True)
    for folder in sorted(cut.glob("checkpoints/step-*"))[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    (cut / "results.json").unlink()
    assert [p.name for p in cut.glob("checkpoints/step-*")] == ["step-00000000"]
    resumed = train(resume=cut, quiet=True)
    assert same(tensors(whole["run"]), tensors(cut))
    assert metrics(cut, "eval") == metrics(whole["run"], "eval")
    assert resumed["top1"] == whole["top1"]


@pytest.mark.heavy
def test_a_start_whose_evaluation_fails_is_kept_and_an_unfinished_probe_is_not(tmp_path, cache, monkeypatch):
    """A step 0 without the head of the probe would go on from other weights."""
    expected = train(small(*WORDS), out=tmp_path / "expected", quiet=True)["run"]

    def failing(*_: object) -> None:
        raise LoaderFailed("a worker is gone")

    with monkeypatch.context() as patched:
        patched.setattr(probe, "_features", failing)
        with pytest.raises(LoaderFailed, match=r"^a worker is gone$"):
            train(small(*WORDS), run_dir=tmp_path / "run", quiet=True)
    assert saved_steps(tmp_path / "run") == []
    with monkeypatch.context() as patched:
        patched.setattr(reporting, "evaluate_run", failing)
        with pytest.raises(LoaderFailed, match="a worker is gone; step 0 is saved; go on with"):
            train(small(*WORDS), run_dir=tmp_path / "run", quiet=True)
    run = train(resume=tmp_path / "run", quiet=True)["run"]
    assert same(tensors(run), tensors(expected))
    assert metrics(run, "eval") == metrics(expected, "eval")
    assert metrics(run, "eval")[0]["step"] == 0


def test_a_head_of_the_same_classes_is_kept(tmp_path, cache, capsys):
    """What was trained for these very classes is better than a probe on features that know the training images."""
    first = train(small("epochs=2", "mixup=0.0", "train.ema_decay=0.0"), out=tmp_path, quiet=True)
    words = (*WORDS, "train.ema_decay=0.0", "optimizer.lr=1.0e-12", f"init_from={first['run']}")
    recipe = small(*words)
    second = train(recipe, run_dir=tmp_path / "second")
    told = capsys.readouterr().out
    assert f"no linear probe: {first['run']} has the same classes, so its head is kept" in told
    assert "linear probe: fitted" not in told
    assert "the network it started from (top-1" in told
    evaluated = metrics(second["run"], "eval")
    assert [line["epoch"] for line in evaluated] == [0, 1]
    assert evaluated[0]["top1"] == first["top1"]
    assert load_recipe(second["run"]).train.probe is False
    for folder in sorted((tmp_path / "second").glob("checkpoints/step-*"))[1:]:
        shutil.rmtree(folder)
    (tmp_path / "second" / "results.json").unlink()
    train(recipe, run_dir=tmp_path / "second")  # the job is started again with its first command
    told = capsys.readouterr().out
    assert "recipe has changed" not in told
    assert "linear probe" not in told.partition("resum")[2]
    assert metrics(tmp_path / "second", "eval") == evaluated


@pytest.mark.heavy
def test_features_are_computed_once_and_a_damaged_cache_is_made_anew(tmp_path, cache, capsys):
    recipe = small(*WORDS)
    first = train(recipe, out=tmp_path / "runs")
    assert "in the cache" not in capsys.readouterr().out
    [kept] = cache.glob("*.safetensors")
    again = train(recipe, out=tmp_path / "runs")
    assert "the features were cached" in capsys.readouterr().out
    assert metrics(first["run"], "eval") == metrics(again["run"], "eval")
    kept.write_bytes(kept.read_bytes()[:100])
    train(recipe, out=tmp_path / "runs")
    assert "in the cache" not in capsys.readouterr().out
    train(small(*WORDS, "train.seed=1"), out=tmp_path / "runs")  # another network
    assert "in the cache" not in capsys.readouterr().out
    assert len([*cache.glob("*.safetensors")]) == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file in its place")
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    results = train(small(*WORDS), out=tmp_path / "runs", quiet=True)
    assert len(metrics(results["run"], "eval")) == 2


def test_a_network_without_a_linear_layer_at_its_end_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "classifier_name", lambda model: "layer1")
    with pytest.raises(ExciteError, match=r"does not end in a linear layer, .* type train\.probe=false"):
        train(small(*WORDS), out=tmp_path, quiet=True)


def test_the_head_is_also_that_of_the_moving_average(tmp_path, cache):
    run = Path(train(small(*WORDS, "checkpoint.keep_last=9"), out=tmp_path, quiet=True)["run"])
    from safetensors.torch import load_file

    folder = run / "checkpoints" / "step-00000000"
    weights, average = (load_file(folder / name) for name in ("model.safetensors", "ema.safetensors"))
    assert torch.equal(weights["fc.weight"], average["fc.weight"])
