"""Gates taken out: constant ones for nothing, the others by what they are worth."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import excite as package
from excite.data import open_data
from excite.errors import ExciteError
from excite.files import written_aside
from excite.gates import Gate, SqueezeExcite
from excite.grafting import graft
from excite.grafting.fold import fold_gates, gate_holders, recording
from excite.grafting.prune import prune
from excite.recipe import Recipe
from excite.training import train
from excite.weights.own import read_own, save_weights
from tests.grafting import networks
from tests.grafting.networks import randomised
from tests.training.small import small

OURS = {
    "cifar_resnet20": {},
    "cifar_preresnet110": {"image_size": 16},
    "resnext26_32x4d": {"image_size": 32},
    "cifar_seresnet110_tf": {"gate": "none", "depth": 11},
}
FOREIGN = [networks.TorchvisionStyle, networks.Functional, networks.ChannelsLastBlocks, networks.Plain]


def answers(model, seed=1, size=16):
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        return model(x)


def constant(model: nn.Module) -> nn.Module:
    """Every gate says always the same, another number for each channel."""
    for gate in model.modules():
        if isinstance(gate, SqueezeExcite):
            nn.init.normal_(gate.fc2.bias)
    return model


@pytest.mark.parametrize("name", OURS)
def test_constant_gates_of_ours_fold_at_no_loss(name):
    torch.manual_seed(0)
    model = randomised(package.create_model(name, num_classes=5, **OURS[name])).double()
    gated = constant(graft(model, at=list(model.gate_slots())[:3]))
    size = model.image_size[0]
    before = answers(gated, size=size)
    assert (before - answers(model, size=size)).abs().max() > 1e-3
    check_folding(gated, before, size)
    assert gated.model_args == model.model_args
    assert list(gated.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("kind", FOREIGN)
def test_constant_gates_of_others_fold_at_no_loss(kind):
    torch.manual_seed(0)
    model = randomised(kind()).double()
    gated = constant(graft(model, example=torch.zeros(1, 3, 16, 16, dtype=torch.float64)))
    before = answers(gated)
    assert (before - answers(model)).abs().max() > 1e-6
    check_folding(gated, before, 16)
    assert [type(m) for m in gated.modules()] == [type(m) for m in model.modules()]


def check_folding(gated, before, size):
    with recording(gated) as recorders:
        torch.testing.assert_close(answers(gated, size=size), before, rtol=0, atol=0)
        scales = {name: recorder.scales() for name, recorder in recorders.items()}
    assert all(found.constant(1e-6) for found in scales.values())
    fold_gates(gated, {name: found.mean for name, found in scales.items()})
    assert not any(isinstance(m, Gate) for m in gated.modules())
    torch.testing.assert_close(answers(gated, size=size), before, rtol=1e-6, atol=1e-6)  # scales are float32


def test_scales_are_measured_over_images_and_positions():
    torch.manual_seed(0)
    model = randomised(networks.TorchvisionStyle())
    gated = graft(model, "coordinate", init="paper")
    x = torch.randn(6, 3, 16, 16)
    seen = []
    gated.layer2[1].bn3.inner.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with recording(gated) as recorders, torch.no_grad():
        gated(x[:2])
        gated(x[2:])
    found = recorders["layer2.1.bn3"].scales()
    with torch.no_grad():
        maps = torch.cat([gated.layer2[1].bn3.gate.scale(z).expand_as(z) for z in seen])
    torch.testing.assert_close(found.mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(found.spread, (maps - maps.mean((0, 2, 3), keepdim=True)).abs().amax((0, 2, 3)))
    assert not found.constant(1e-4)
    assert isinstance(gated.layer2[1].bn3.gate, Gate)
    assert "layer2.1.bn3.gate.gate" not in dict(gated.named_modules())  # the gates are back


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: package.create_model("cifar_seresnet20", gate_position="post"), "does not follow its last layer"),
        (lambda: graft(networks.Plain(), at="2"), r"cannot be folded: .*\(ReLU\)"),
    ],
)
def test_gates_that_cannot_be_folded(net, message):
    model = net()
    before = list(model.state_dict())
    with pytest.raises(ExciteError, match=message):
        fold_gates(model, {name: torch.ones(1) for name in gate_holders(model)})
    assert list(model.state_dict()) == before


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """A checkpoint of a gated network with a gate that says always the same."""
    folder = tmp_path_factory.mktemp("gated")
    recipe = small(
        "epochs=2",
        "ema_decay=0",
        "checkpoint.every_steps=null",
        "optimizer.lr=0.2",
        "drop_path_rate=0",
        "model.options={reduction: 4}",
    )
    run = train(recipe, out=folder, quiet=True)["run"]
    checkpoint = read_own(run)
    model = package.create_model(checkpoint.meta["model"]["name"], **checkpoint.meta["model"]["args"])
    model.load_state_dict(checkpoint.tensors)
    nn.init.zeros_(model.layer2[1].gate.fc2.weight)
    path = folder / "gated.safetensors"
    with written_aside(path) as aside:
        save_weights(aside, model, checkpoint.meta)
    return path


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def pruned(gated, said):
    return prune(gated, max_drop=1.5, calibration=150, rounds=1, batch=2, say=said.append)


def test_the_curve(gated, pruned, said):
    assert "1 of 9 gates have a constant scale on 150 images (within 0.0001)" in said
    points = pruned.points
    assert pruned.constant == ["layer2.1"]
    assert [p.gates for p in points] == list(range(9, -1, -1))
    assert points[1].place == "constant gates"
    assert (points[1].top1, points[1].loss) == (points[0].top1, pytest.approx(points[0].loss, rel=1e-5))
    effects = [p.effect for p in points[2:]]
    assert effects == sorted(effects)
    assert all(p.ms > 0 for p in points)
    assert points[0].parameters - points[-1].parameters == sum(2 * c * (c // 4) + c // 4 + c for c in 3 * (16, 32, 64))
    within = [p for p in points if p.top1 >= points[0].top1 - 1.5]
    assert points[pruned.chosen].gates == min(p.gates for p in within)


def test_what_a_gate_is_worth_is_what_accuracy_it_loses(gated, pruned):
    """By hand: the gate's scales on the training images, averaged; a network whose gate says that; counted."""
    predictor = package.load(gated)
    recipe = Recipe.from_dict(predictor.meta["recipe"])
    config = recipe.data.model_copy(update={"limit_train": 150})
    train_images = open_data(config, recipe.augment).train.images
    data = open_data(recipe.data, recipe.augment)
    x = predictor.preprocessing.normalize(data.val.images)
    labels = data.val.labels

    def top1():
        with torch.no_grad():
            return 100 * float((predictor.model.eval()(x).argmax(1) == labels).float().mean())

    name = pruned.points[-1].place  # the dearest
    block = predictor.model.get_submodule(name)
    before, seen = top1(), []
    gate = block.gate
    squeeze = gate.excitation
    gate.excitation = lambda q: seen.append(squeeze(q)) or seen[-1]
    with torch.no_grad():
        predictor.model(predictor.preprocessing.normalize(train_images))
    mean = torch.cat(seen).mean(0)
    gate.excitation = lambda q: mean.expand_as(q)
    assert before == pytest.approx(pruned.points[0].top1)
    assert before - top1() == pytest.approx(pruned.points[-1].effect, abs=1e-4)


def test_files_and_the_written_network(gated, pruned, command_line, tmp_path, monkeypatch):
    monkeypatch.setattr("excite.grafting.prune.take_out", lambda *_, **__: pruned)  # it has been done above
    words = ["prune", gated, "--out", "pruned"]
    text = command_line(*words)
    chosen = pruned.points[pruned.chosen]
    assert "as it was" in text
    assert f"-> {chosen.place}" in text
    folder = tmp_path / "pruned"
    assert json.loads((folder / "prune.json").read_text()) == pruned.to_dict()
    with Image.open(folder / "prune.png") as image:
        image.load()
        assert min(image.size) > 300
    predictor, result = package.validate(folder, fold=False)
    assert len(gate_holders(predictor.model)) == chosen.gates
    assert (result.top1, result.loss) == (chosen.top1, pytest.approx(chosen.loss, rel=1e-4))
    assert command_line(*words) == "error: pruned already exists; name a new folder"
    options = predictor.meta["recipe"]["model"]["options"]
    recipe = small(f"init_from={folder}", f"model.options={json.dumps(options)}", "epochs=1")
    log = Path(train(recipe, out=tmp_path, quiet=True)["run"]) / "log.txt"
    assert f"weights from {folder}: all tensors" in log.read_text()


@pytest.mark.slow
def test_the_command_to_the_last_gate(gated, excite):
    done = excite("prune", gated, "--max-drop", 100, "--calibration", 60, "--batch", 1, "--out", "pruned", "--json")
    report = json.loads(done.stdout)
    assert report == json.loads((excite.cwd / "pruned" / "prune.json").read_text())
    assert report["points"][report["chosen"]]["gates"] == 0
    predictor, result = package.validate(excite.cwd / "pruned", fold=False)
    assert predictor.meta["recipe"]["model"]["options"] == {"gate": "none"}
    assert result.top1 == report["points"][-1]["top1"]


def test_a_part_of_the_gates(gated, tmp_path):
    """The file of a network with some gates left builds just those again."""
    predictor = package.load(gated)
    model = predictor.model
    fold_gates(model, {"layer1.0": torch.ones(16), "layer3.2": torch.ones(64)})
    assert model.model_args["gate_at"] == [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)][1:-1]
    again = package.create_model(model.model_name, **model.model_args)
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), model(x))


def test_the_images_that_there_are_are_told(gated):
    said = []
    prune(gated, ["data.limit_train=40", "data.limit_val=20"], calibration=150, rounds=1, batch=2, say=said.append)
    assert "1 of 9 gates have a constant scale on 40 images (within 0.0001)" in said


def test_nothing_to_prune(ungated_run):
    with pytest.raises(ExciteError, match="has no gates to prune"):
        prune(ungated_run)
    with pytest.raises(ExciteError, match="max_drop must be at least 0"):
        prune(ungated_run, max_drop=-1)
