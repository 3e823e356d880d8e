"""What the fast recipes are made of: Muon, rates by name, late freezing, slow weights, alternating flips, a start from
images; each exact on resume, and all together."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from excite import create_model
from excite.console import Display
from excite.data import ArrayImages, FileImages, TrainLoader, open_data
from excite.data.augment import BatchAugment
from excite.data.config import AugmentConfig, DataConfig
from excite.errors import ExciteError
from excite.recipe import LookaheadConfig, OptimizerConfig, Recipe, load_recipe
from excite.runtime.device import make_accelerator
from excite.training import setup
from excite.training.budget import fit_epochs
from excite.training.lookahead import Lookahead
from excite.training.loop import train
from excite.training.muon import Muon, orthogonalized
from excite.training.optimizer import freeze_from, make_optimizer, parameter_groups
from excite.training.probe import start_from_probe
from excite.training.reporting import check_finite
from excite.training.resume import restore
from excite.training.setup import set_up
from excite.training.step import train_step
from excite.training.stop import Interrupted
from tests.training.small import metrics, same, small, tensors
from tests.training.test_layouts import digests, results_of_layouts

#: Everything at once, on digits enlarged to 18 x 18 pixels.
FAST = (
    *("model.name=cifar_fastnet7", "model.drop_path_rate=0", "data.image_size=18", "data.in_chans=1", "epochs=3"),
    *("train.device=cpu", "limit_train=96", "optimizer.name=muon", "optimizer.lr=0.1", "optimizer.nesterov=false"),
    *("optimizer.options={muon_momentum: 0.6, normalize: true}", "train.freeze_from={conv1.bias: 1}"),
    *("train.freeze=[conv1.weight]", "train.lookahead={every: 2, decay: 0.7, power: 2}", "hflip_mode=alternate"),
    *("optimizer.lr_factors={'layer?.?.bn?.bias': 8, fc: 0.1}", "optimizer.clip_grad_norm=5"),
)


# --- Muon -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 128), (1, 30)])
def test_orthogonalized_matrices_have_equal_singular_values_and_the_same_directions(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    done = orthogonalized(matrix, 5)
    values = torch.linalg.svdvals(done)
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ done @ right.T
    assert torch.allclose(inner, torch.diag(inner.diag()), atol=1e-3)


def test_what_muon_leaves_to_sgd_is_pytorchs():
    torch.manual_seed(0)
    parameters = [[nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))] for _ in range(2)]
    for mine, theirs in zip(*parameters, strict=True):
        theirs.data.copy_(mine.data)
    own = Muon([{"params": parameters[0], "weight_decay": 0.01}], lr=0.1, momentum=0.85)
    reference = torch.optim.SGD(parameters[1], lr=0.1, momentum=0.85, weight_decay=0.01, nesterov=True)
    for step in range(6):
        for mine, theirs in zip(*parameters, strict=True):
            mine.grad = theirs.grad = torch.randn_like(mine)
        for optimizer in (own, reference):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.step()
    for mine, theirs in zip(*parameters, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_step_of_muon_in_single_steps(normalize):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 2, 3, 3))
    options = {"muon_momentum": 0.6, "ns_steps": 3, "normalize": normalize, "weight_decay": 0.1}
    optimizer = Muon([{"params": [weight], "muon": True}], lr=0.2, **options)
    value, buffer = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        buffer = 0.6 * buffer + weight.grad
        change = orthogonalized((weight.grad + 0.6 * buffer).view(8, 18), 3).view_as(weight)
        value = value * 8**0.5 / value.norm() - 0.2 * change if normalize else value * (1 - 0.2 * 0.1) - 0.2 * change
        optimizer.step()
        assert torch.allclose(weight, value, atol=1e-5)
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(weight, before), "frozen"


def test_muon_trains_convolutions_but_gates_depthwise_ones_and_the_classifier():
    for model in (create_model("cifar_seresnet20"), create_model("se_efficientnet_lite0", num_classes=3)):
        names = {p: n for n, p in model.named_parameters()}
        groups = parameter_groups(model, OptimizerConfig(name="muon"))
        mine = {names[p] for group in groups if group["muon"] for p in group["params"]}
        others = {names[p] for group in groups if not group["muon"] for p in group["params"]}
        assert mine | others == set(names.values())
        assert {n for n in mine if ".gate." in n or n.startswith("fc") or "bn" in n} == set()
        assert {"conv1.weight", "layer2.0.conv1.weight"} <= mine
    assert "layer1.0.conv1.weight" in others, "depth-wise"
    optimizer = make_optimizer(model, OptimizerConfig(name="muon", options={"ns_steps": 3}))
    assert isinstance(optimizer, Muon)
    assert optimizer.ns_steps == 3
    for options in ({"ns_steps": 0}, {"muon_momentum": 1.0}, {"unknown": 1}):
        with pytest.raises(ExciteError, match="optimizer muon: "):
            make_optimizer(model, OptimizerConfig(name="muon", options=options))


# --- rates by name, and late freezing ---------------------------------------------------------------------------------


def test_rates_by_name_keep_the_decay_of_a_step():
    model = create_model("cifar_seresnet20")
    names = {p: n for n, p in model.named_parameters()}
    factors = {"*.bn?.bias": 64.0, "layer2.*": 2.0, "fc": 0.5}
    config = OptimizerConfig(weight_decay=0.1, lr_factors=factors, gate_lr_factor=3.0)
    groups = parameter_groups(model, config)
    found = {names[p]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found["layer1.0.bn1.bias"] == (64.0, 0.1 / 64)
    assert found["layer2.0.bn1.bias"] == (2.0, 0.1 / 2), "the last that matches"
    assert found["fc.weight"] == found["fc.bias"] == (0.5, 0.2)
    assert found["layer1.0.gate.fc1.weight"] == (3.0, 0.1)
    assert found["conv1.weight"] == (1.0, 0.1)
    with pytest.raises(ExciteError, match=r"optimizer.lr_factors: no parameter matches 'layer9'.*layer"):
        parameter_groups(model, OptimizerConfig(lr_factors={"layer9": 2.0}))
    with pytest.raises(ExciteError, match=r"train.freeze_from: no parameter matches 'nothing'"):
        freeze_from(model, {"nothing": 1})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_parameters_are_frozen_late(tmp_path, optimizer):
    recipe = small("limit_train=64", "train.device=cpu", f"optimizer.name={optimizer}", "optimizer.nesterov=false",
        "train.freeze_from={conv1: 1, 'layer3.*.bn1': 2}", "checkpoint.keep_last=10", "ema_decay=0")  # fmt: skip
    train(recipe, run_dir=tmp_path / "run", quiet=True)
    from safetensors.torch import load_file

    after = [load_file(tmp_path / "run" / "checkpoints" / f"step-{s:08d}" / "model.safetensors") for s in (2, 4, 6)]
    assert torch.equal(after[0]["conv1.weight"], after[2]["conv1.weight"])
    assert not torch.equal(after[0]["layer3.0.bn1.bias"], after[1]["layer3.0.bn1.bias"])
    assert torch.equal(after[1]["layer3.0.bn1.bias"], after[2]["layer3.0.bn1.bias"])
    assert not torch.equal(after[1]["fc.weight"], after[2]["fc.weight"])


@pytest.mark.parametrize(
    "words",
    [
        ("train.freeze_from={conv1.bias: 1, layer3: 2}",),
        ("train.freeze_from={}",),
        ("optimizer.lr_factors={fc: 0.5}",),
        ("optimizer.lr_factors={}", "train.freeze_from={fc: 2}"),
    ],
)
def test_a_resumed_run_takes_other_rates_and_other_frozen_parameters(tmp_path, words):
    """Whoever trains a parameter stays who the recipe says, in whichever group it is now."""
    recipe = small(*FAST)
    with pytest.raises(Interrupted):
        train(recipe, run_dir=tmp_path / "run", quiet=True, until=2)
    changed = recipe.changed(words)
    run = set_up(changed, Display(quiet=True), make_accelerator("cpu"), resuming=True)
    run.folder = tmp_path / "run"
    fresh = [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups]
    restore(run)
    now = [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups]
    for before, after in zip(fresh, now, strict=True):
        assert {k: v for k, v in after.items() if k != "lr"} == {k: v for k, v in before.items() if k != "lr"}
    train(changed, resume=tmp_path / "run", quiet=True)
    assert len(metrics(tmp_path / "run")) == 9


def test_what_is_frozen_after_the_end_is_said():
    run = set_up(small("train.freeze_from={fc: 1, conv1: 3}"), Display(quiet=True), make_accelerator("cpu"))
    assert [n for n in run.notes if "freeze_from" in n] == [
        "train.freeze_from of conv1 comes after the end (train.epochs=3): nothing is frozen there"
    ]


def test_only_frozen_weights_that_are_random_are_pointed_out():
    def said(*words):
        run = set_up(small(*words), Display(quiet=True), make_accelerator("cpu"))
        return any("randomly initialised" in note for note in run.notes)

    assert not said(*FAST)
    assert not said("train.freeze=[norms]")
    assert said(*FAST, "train.freeze=[conv1.weight, layer2]")
    assert said("train.freeze=[layer1]", "train.freeze_epochs=1")


# --- slow weights -----------------------------------------------------------------------------------------------------


def test_slow_weights_in_single_steps():
    model, config = nn.BatchNorm1d(2), LookaheadConfig(every=2, decay=0.8, power=3.0)
    slow, lookahead = torch.ones(2), Lookahead(model, config)
    for step in range(1, 8):
        with torch.no_grad():
            model.weight.add_(step)
            model.running_mean.fill_(step)
        model.num_batches_tracked.add_(1)
        fast = model.weight.detach().clone()
        lookahead.after(model, step, 7)
        if step % 2 == 0:
            slow = torch.lerp(slow, fast, 1 - 0.8 * (step / 7) ** 3)
        assert torch.equal(model.weight, slow if step % 2 == 0 or step == 7 else fast)
    assert model.num_batches_tracked == 7
    other = Lookahead(copy.deepcopy(model), config)
    other.load(lookahead.slow)
    assert same(other.slow, lookahead.slow)


@pytest.mark.heavy
def test_slow_weights_begin_with_the_head_of_a_probe_and_know_the_epochs_that_time_allows(tmp_path):
    train(small("limit_train=64", "train.device=cpu"), run_dir=tmp_path / "from", quiet=True)
    words = ("limit_train=64", "train.device=cpu", "train.lookahead={every: 50, decay: 0.9}", "ema_decay=0")
    head = ("train.probe=true", "data.class_names=[a,b,c,d,e,f,g,h,i,j]", f"train.init_from={tmp_path / 'from'}")
    run = set_up(small(*words, *head), Display(quiet=True), make_accelerator("cpu"))
    start_from_probe(run)
    assert torch.equal(run.lookahead.slow["fc.weight"], run.model.fc.weight)
    run = set_up(small(*words), Display(quiet=True), make_accelerator("cpu"))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.recipe = run.recipe.changed(["train.lookahead={every: 1, decay: 0.9}"])
    run.lookahead.config = run.recipe.train.lookahead
    fit_epochs(run, 60.0, train_step)
    assert all(torch.equal(value, before[name]) for name, value in run.lookahead.slow.items())
    train(small(*words), run_dir=tmp_path / "timed", quiet=True, time_limit=3.0)
    last = tensors(tmp_path / "timed")
    state = torch.load(sorted((tmp_path / "timed" / "checkpoints").iterdir())[-1] / "state.pt", weights_only=True)
    assert all(torch.equal(value, last[name]) for name, value in state["lookahead"].items()), "the slow ones at the end"


def test_slow_weights_that_are_not_finite_are_not_saved(tmp_path):
    run = set_up(small("train.lookahead={every: 2}"), Display(quiet=True), make_accelerator("cpu"))
    run.folder = tmp_path
    run.lookahead.slow["fc.weight"][0, 0] = float("nan")
    with pytest.raises(ExciteError, match=r"the slow weights \(fc.weight\)"):
        check_finite(run)


def test_without_saved_slow_weights_a_resumed_run_says_so(tmp_path):
    recipe = small("limit_train=64", "train.device=cpu")
    with pytest.raises(Interrupted):
        train(recipe, run_dir=tmp_path / "run", quiet=True, until=3)
    train(recipe.changed(["train.lookahead={every: 2}"]), resume=tmp_path / "run", quiet=True)
    assert "the slow weights (train.lookahead) start at this step" in (tmp_path / "run" / "log.txt").read_text()


# --- alternating flips ------------------------------------------------------------------------------------------------


def flipped(loader: TrainLoader, pixels: torch.Tensor, epoch: int) -> dict[int, bool]:
    """Image number, which is its label -> whether it is shown mirrored."""
    shown = {}
    for images, labels in loader.epoch(epoch):
        for image, label in zip(images, labels.tolist(), strict=True):
            shown[label] = torch.equal(image, pixels[label].flip(2))
            assert shown[label] or torch.equal(image, pixels[label])
    return shown


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_every_image_is_mirrored_in_every_other_epoch(kind, tmp_path):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (40, 3, 9, 9), dtype=np.uint8))
    data = DataConfig(source="folder", image_size=9, crop_pct=1.0, workers=0)
    images = ArrayImages(pixels, torch.arange(40))
    if kind == "files":
        paths = [str(tmp_path / f"{i}.png") for i in range(40)]
        for path, image in zip(paths, pixels, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        images = FileImages(paths, list(range(40)))
    augment = AugmentConfig(hflip_mode="alternate")
    make = {"batch_size": 8, "device": "cpu", "augment": augment, "data_config": data}
    loader = TrainLoader(images, seed=3, **make)
    epochs = [flipped(loader, pixels, epoch) for epoch in range(4)]
    assert epochs[0] == epochs[2] == {label: not mirrored for label, mirrored in epochs[1].items()}
    assert epochs[1] == epochs[3]
    assert 10 < sum(epochs[0].values()) < 30
    assert flipped(TrainLoader(images, seed=4, **make), pixels, 0) != epochs[0]
    again = dict(list(flipped(TrainLoader(images, seed=3, **make), pixels, 1).items()))
    assert again == epochs[1], "a function of seed and epoch"
    out, _ = BatchAugment(augment, (0.5,) * 3, (0.5,) * 3, 10)(pixels, torch.arange(40))
    assert torch.allclose(out, pixels / 127.5 - 1, atol=1e-6), "not flipped once more"


def test_alternating_flips_of_another_share_are_refused():
    with pytest.raises(ExciteError, match="hflip_mode=alternate flips every image in half of the epochs"):
        small("hflip_mode=alternate", "hflip=0.2")


# --- the start from images, and all together --------------------------------------------------------------------------


def test_a_new_network_starts_from_the_training_images_and_no_other_does(tmp_path):
    def first(*words):
        run = set_up(small(*FAST, *words), Display(quiet=True), make_accelerator("cpu"))
        return run.model.conv1.weight.detach().clone(), run

    whitened, run = first()
    pixels = run.data.train.images[:, :1]
    seen = run.preprocessing.normalize(pixels)
    out = nn.functional.conv2d(seen, whitened).transpose(0, 1).flatten(1)
    second = (out @ out.T / out.shape[1])[:4, :4]
    assert torch.allclose(second, torch.eye(4), atol=0.05)
    assert not torch.equal(whitened, create_model("cifar_fastnet7", in_chans=1, image_size=18).conv1.weight)
    train(small(*FAST, "epochs=2"), run_dir=tmp_path / "run", quiet=True)
    assert torch.equal(tensors(tmp_path / "run")["conv1.weight"], whitened), "train.freeze"
    other, _ = first(f"train.init_from={tmp_path / 'run'}", "limit_train=50", "data.split_seed=5")
    assert torch.equal(other, whitened)


def test_the_images_of_the_start_are_of_all_classes(tmp_path):
    """Folders are sorted by class, and the first 5,000 images may be of one."""
    for label, level in (("a", 0), ("b", 255)):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(40):
            Image.new("RGB", (18, 18), (level, number, 0)).save(tmp_path / "train" / label / f"{number:02d}.png")
    folder = ("data.source=folder", f"data.root={tmp_path / 'train'}", "data.mode=stream", "data.workers=0")
    plain = ("data.in_chans=3", "limit_train=", "limit_val=", "data.mean=[0,0,0]", "data.std=[1,1,1]")
    recipe = small(*FAST, *folder, *plain)
    data = open_data(recipe.data, recipe.augment)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(setup, "SOME_IMAGES", 8)
        seen = torch.cat(list(setup._some_images(recipe, data)))
    assert len(seen) == 8
    assert sorted(seen[:, 0, 0, 0].tolist()) == [0.0] * 4 + [1.0] * 4


@pytest.mark.heavy
def test_fast_training_is_resumed_bit_for_bit(tmp_path):
    recipe = small(*FAST)
    train(recipe, run_dir=tmp_path / "whole", quiet=True)
    for stop in (2, 5):
        with pytest.raises(Interrupted):
            train(recipe, run_dir=tmp_path / f"{stop}", quiet=True, until=stop)
        train(resume=tmp_path / f"{stop}", quiet=True)
        assert same(tensors(tmp_path / f"{stop}"), tensors(tmp_path / "whole"))
        assert [r["loss"] for r in metrics(tmp_path / f"{stop}")] == [r["loss"] for r in metrics(tmp_path / "whole")]


@pytest.mark.heavy
def test_fast_training_is_the_same_on_any_layout(tmp_path):
    first, *others = results_of_layouts((*FAST, "train.deterministic=true"), tmp_path)
    assert others == [first, first]
    assert digests(tmp_path / "1-processes-1-threads") == first


def test_the_shipped_recipe_names_what_it_means():
    """Patterns match the norms of the network, not those inside gates, and frozen norms keep learning their biases."""
    recipe = load_recipe("cifar10-fast")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    for gate in (None, "se", {"name": "ge", "variant": "theta_plus"}):
        model = create_model(recipe.model.name, gate=gate)
        groups = parameter_groups(model, recipe.optimizer)
        names = {p: n for n, p in model.named_parameters()}
        high = {names[p] for g in groups if g["lr_scale"] > 100 for p in g["params"]}
        assert high == {"conv1.bias", *(f"layer{i}.0.bn{k}.bias" for i in (1, 2, 3) for k in (1, 2))}
        mine = {names[p] for g in groups if g["muon"] for p in g["params"]}
        assert mine == {"conv1.weight", *(f"layer{i}.0.conv{k}.weight" for i in (1, 2, 3) for k in (1, 2))}
