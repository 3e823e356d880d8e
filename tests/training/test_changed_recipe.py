"""A recipe that has changed when a run is resumed is carried out, or refused before anything is written."""

import shutil
from pathlib import Path

import pytest
import torch

from excite.errors import ExciteError
from excite.files import sha256_of
from excite.recipe import load_recipe
from excite.training import train
from excite.training.checkpoint import load_optimizer
from excite.weights.locate import STATE, step_folder
from tests.training.small import small


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """A run stopped after its first epoch of two: 6 steps of 12."""
    run = Path(train(small("epochs=1"), out=tmp_path_factory.mktemp("half"), quiet=True)["run"])
    for name in ("results.json", "curves.png"):
        (run / name).unlink()
    return run


@pytest.fixture
def run(half, tmp_path) -> Path:
    shutil.copytree(half, tmp_path / "run")
    return tmp_path / "run"


def contents(run: Path) -> dict[str, str]:
    files = [p for p in run.rglob("*") if p.is_file() and not p.name.startswith(".owner")]
    return {str(path.relative_to(run)): sha256_of(path) for path in files}


REFUSED = {
    "model.name=cifar_resnet20": r"resumed with model\.name=cifar_resnet20: it was started with cifar_seresnet20, and",
    "model.options={reduction: 4}": r"its weights are those of another network; set it back, or start a new run",
    "optimizer.name=adamw": r"its optimiser state is that of another optimiser",
    "optimizer.options={maximize: true}": r"optimiser state is that of another optimiser",
    "batch_size=64": r"steps per epoch.*then 6, now 3; train\.batch_size: 32 -> 64",
    "limit_train=150": r"the training images have changed since it was started \(data\.limit_train: 200 -> 150\)",
    "limit_val=50": r"the validation images have changed since it was started \(data\.limit_val: 100 -> 50\)",
    "data.in_chans=3": r"resumed|does not fit|changed",
    "data.image_size=12": r"images have changed since it was started",
}


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("word", REFUSED)
def test_refused_before_anything_is_written(run, word, edited):
    """The same whether it is on the command line or in the edited recipe.yaml."""
    words = ["epochs=2", word]
    before = contents(run)
    if edited:
        changed = load_recipe(str(run), words).to_yaml()
        (run / "recipe.yaml").write_text(changed)
        before["recipe.yaml"] = sha256_of(run / "recipe.yaml")
    with pytest.raises(ExciteError, match=REFUSED[word]):
        train(None, [] if edited else words, resume=run, quiet=True)
    assert contents(run) == before


def test_fewer_epochs_than_done_are_refused(run):
    train(None, ["epochs=3"], resume=run, quiet=True)
    before = contents(run)
    with pytest.raises(
        ExciteError, match=r"train\.epochs=1: it is already in epoch 3 \(step 18\); give train\.epochs=3 or more, or"
    ):
        train(None, ["epochs=1"], resume=run, quiet=True)
    assert contents(run) == before


CARRIED_OUT = {
    "freeze=[conv1,layer1]": "",
    "train.freeze_epochs=1 train.freeze=[layer1]": "",
    "optimizer.weight_decay=0.3": "optimizer.weight_decay: ",
    "optimizer.momentum=0.5": "optimizer.momentum: 0.9 -> 0.5",
    "optimizer.momentum=0 optimizer.nesterov=false": "",
    "optimizer.gate_lr_factor=3": "",
    "optimizer.layer_decay=0.7": "",
    "optimizer.lr=0.001": "",
    "train.precision=bf16": "train.precision: fp32 -> bf16",
    "train.precision=fp16": "the loss scale of fp16 starts anew",
    "train.ema_decay=0": "without a moving average from this step on",
    "seed=5": "train.seed: 0 -> 5",
    "mixup=0.5": "augment.mixup: 0.2 -> 0.5",
    "model.drop_rate=0.3": "",
    "data.crop_pct=0.9": "",
    "eval.every_epochs=2": "",
    "init_from=/nowhere": "train.init_from only acts at the start of a run",
}


@pytest.mark.parametrize("words", CARRIED_OUT)
def test_carried_out_and_said(run, words):
    results = train(None, ["epochs=2", *words.split()], resume=run, quiet=True)
    assert results["epochs"] == 2
    said = (run / "log.txt").read_text()
    assert CARRIED_OUT[words] in said
    assert "the recipe has changed" in said
    assert "train.epochs: 1 -> 2" in said
    assert load_recipe(str(run / "recipe-until-step-6.yaml")).train.epochs == 1


def test_images_that_have_moved_are_the_same_run(cifar, tmp_path):
    shutil.copytree(cifar["folder"], tmp_path / "here")
    words = ["data.source=folder", "in_chans=3", "limit_train=64", "limit_val=20", "data.image_size=8", "crop_pct=1.0"]
    run = train(small(*words, "epochs=1", f"data.root={tmp_path / 'here'}"), out=tmp_path, quiet=True)["run"]
    (tmp_path / "here").rename(tmp_path / "there")
    train(None, [f"data.root={tmp_path / 'there'}", "log.every_steps=2"], resume=run, quiet=True)
    (Path(run) / "results.json").unlink()
    train(None, [f"data.root={tmp_path / 'there'}"], resume=run, quiet=True)
    assert "a different run" not in (Path(run) / "log.txt").read_text()


def test_the_optimiser_s_settings_are_those_of_the_recipe_now(run):
    """PyTorch's load_state_dict would bring the old ones back without a word."""
    train(None, ["epochs=2", "optimizer.weight_decay=0.25", "optimizer.momentum=0.5"], resume=run, quiet=True)
    state = torch.load(step_folder(run, 12) / STATE, weights_only=True)
    groups = state["optimizer"]["param_groups"]
    assert {group["momentum"] for group in groups} == {0.5}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.25}


def test_what_does_not_affect_the_weights_is_no_different_run(run):
    train(None, ["log.every_steps=3"], resume=run, quiet=True)
    said = (run / "log.txt").read_text()
    assert "the recipe has changed where it has no effect on the weights (log.every_steps: 1 -> 3)" in said
    assert "a different run" not in said


def test_the_state_goes_by_the_parameters_names():
    """Their places in the optimiser change with what is frozen."""

    def made(names: str) -> torch.optim.SGD:
        parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in names]
        return torch.optim.SGD([{"params": [p]} for p in parameters], lr=1.0, momentum=0.9)

    before, after = made("abc"), made("dcb")
    for value, group in enumerate(before.param_groups, 1):
        before.state[group["params"][0]]["momentum_buffer"] = torch.full((2,), float(value))
    fresh = load_optimizer(after, before.state_dict(), Path("there"), list("dcb"), list("abc"))
    assert fresh == ["d"]
    kept = [after.state[group["params"][0]].get("momentum_buffer") for group in after.param_groups]
    assert kept[0] is None
    assert [buffer.tolist() for buffer in kept[1:]] == [[3.0, 3.0], [2.0, 2.0]]


def test_frozen_and_thawed_again(run):
    train(None, ["epochs=2", "freeze=[conv1,bn1]"], resume=run, quiet=True)
    train(None, ["epochs=3", "freeze=[]"], resume=run, quiet=True)
    said = (run / "log.txt").read_text()
    assert "a new optimiser state for 3 parameters frozen so far, such as conv1.weight" in said


def test_a_finished_run_says_what_has_no_effect(run, capsys):
    train(None, [], resume=run, quiet=True)
    capsys.readouterr()
    train(None, ["lr=0.125", "log.every_steps=2"], resume=run)
    said = " ".join(capsys.readouterr().out.split())
    assert "is finished: nothing to resume; changes of the recipe have no effect (" in said
    assert "-> 0.125" in said
    train(None, ["log.every_steps=2"], resume=run)
    assert "have no effect" not in capsys.readouterr().out
