"""Fine-tuning after grafting: gates at a rate of their own, the rest frozen for a while, from an ungated checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from excite.errors import ExciteError
from excite.models import create_model
from excite.recipe import OptimizerConfig
from excite.training import train
from excite.training.optimizer import freeze, make_optimizer, parameter_groups
from tests.training.small import small

ALL_BUT_GATES = ["*", "!*.gate", "!fc"]
GATED = "model.options={gate: {name: se, identity: true}}"


def test_gates_have_a_rate_of_their_own():
    model = create_model("cifar_seresnet20")
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(gate_lr_factor=10, layer_decay=0.5))
    scales = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    assert scales["fc.weight"] == 1.0
    assert scales["layer3.2.conv1.weight"] == 0.5
    assert scales["layer3.2.gate.fc1.weight"] == scales["layer3.2.gate.fc2.bias"] == 5.0
    assert scales["layer3.1.gate.fc1.weight"] == 2.5
    one = OptimizerConfig(lr=0.1)
    assert {g["lr_scale"] for g in make_optimizer(model, one).param_groups} == {1.0}


def test_patterns_take_names_out_again():
    model = create_model("cifar_seresnet20")
    norms = freeze(model, ALL_BUT_GATES)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if ".gate." in n or n.startswith("fc.")}
    assert len(norms) == 19
    again = create_model("cifar_seresnet20")
    freeze(again, ["layer1", "!layer1.0", "layer1.0.bn1"])  # in their order
    frozen = {n for n, p in again.named_parameters() if not p.requires_grad}
    assert {n.rsplit(".", 1)[0] for n in frozen if n.startswith("layer1.0")} == {"layer1.0.bn1"}
    with pytest.raises(ExciteError, match=r"no parameter matches .layer1\.0\.gates.; did you mean"):
        freeze(again, ["*", "!layer1.0.gates"])


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_the_backbone_thaws_after_its_epochs(ungated_run, tmp_path, optimizer):
    """Epoch 1 leaves every tensor of the ungated network but its classifier as it was; epoch 2 does not."""
    recipe = small(
        "model.name=cifar_resnet20", "model.drop_path_rate=0", GATED, f"init_from={ungated_run}", "epochs=2",
        "ema_decay=0", "checkpoint.every_steps=null", "freeze=['*', '!*.gate', '!fc']", "freeze_epochs=1",
        f"optimizer.name={optimizer}",
        "optimizer.lr=0.01", "gate_lr_factor=10", "keep_last=2",
    )  # fmt: skip
    run = Path(train(recipe, out=tmp_path, quiet=True)["run"])
    start = load_file(Path(ungated_run) / "model.safetensors")
    first, second = (load_file(p / "model.safetensors") for p in sorted(run.glob("checkpoints/step-*")))
    body = [n for n in start if not n.startswith("fc.")]
    assert all(torch.equal(first[n], start[n]) for n in body)
    changed = [n for n in body if not torch.equal(second[n], start[n])]
    assert set(changed) == set(body)
    for weights in (first, second):
        assert not torch.equal(weights["fc.weight"], start["fc.weight"])
        assert weights["layer3.0.gate.fc2.bias"].abs().max() > 0
    log = (run / "log.txt").read_text()
    assert "all but 9 gates, which start as the identity" in log


def test_without_a_number_of_epochs_it_stays_frozen(ungated_run, tmp_path):
    freezing = "train.freeze=['*', '!*.gate', '!fc']"
    recipe = small(
        "model.name=cifar_resnet20",
        GATED,
        f"init_from={ungated_run}",
        "epochs=1",
        "ema_decay=0",
        "checkpoint.every_steps=null",
        freezing,
    )
    run = Path(train(recipe, out=tmp_path, quiet=True)["run"])
    start, end = (
        load_file(p / "model.safetensors") for p in (Path(ungated_run), sorted(run.glob("checkpoints/*"))[-1])
    )
    assert all(torch.equal(end[n], start[n]) for n in start if not n.startswith("fc."))
