"""Every shipped recipe: complete, its source's numbers and learning rates, a model that builds, two steps that train.

The golden values are computed here, in the sources' own terms (their loop variables, their counting from 0 or 1), and
never by the function under test.
"""

import json
import math
import re
import shlex
from itertools import chain, islice

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from excite.console import Display
from excite.data import ArrayImages, DataSets, Preprocessing
from excite.models import create_model
from excite.ops.same_padding import SameConv2d
from excite.recipe import (
    Recipe,
    _shipped,
    _shipped_text,
    json_schema,
    list_recipes,
    load_recipe,
    parse_yaml,
    recipe_text,
)
from excite.runtime.device import make_accelerator
from excite.training.schedule import learning_rate
from excite.training.setup import set_up
from excite.training.step import train_step

MINDCV = ["resnet18", "resnet34", "resnet50", "resnext26_32x4d", "resnext50_32x4d"]
TWINS = {f"imagenet-{name}": f"imagenet-se{name}" for name in MINDCV}
TWINS |= {"cifar10-resnet20": "cifar10-seresnet20", "cifar10-resnet110": "cifar10-seresnet110"}
RECIPES = list_recipes()


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_is_read_as_its_file_would_be(name):
    assert _shipped(name) == Recipe.from_yaml(_shipped_text(name), name)


IMAGENET, CIFAR = 1281167, 50000  # training images


def test_all_recipes_are_here():
    assert len(RECIPES) == 29


# --- the files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_and_says_what_it_is(name):
    text, _ = recipe_text(name)
    values = parse_yaml(text, name)
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.model_dump(mode="json") == values  # every key is written out
    jsonschema.validate(values, json.loads(json_schema()))
    header = text[: text.index("\n\n")].split("\n")
    assert header[0].startswith(f"# {name}: ")
    assert all(line.startswith("#") for line in header)
    fields = [line.split(":")[0].removeprefix("# ") for line in header if re.match(r"# [A-Z][a-z]+: ", line)]
    assert fields == ["Command", "Cost", "Accuracy", "Source"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_of_a_header_runs_this_recipe(name):
    """And gives what a recipe cannot know: where the data is, what to start from."""
    commands = re.findall(r"^# (?:Command:)? +(excite train .*)$", recipe_text(name)[0], re.MULTILINE)
    assert commands
    for command in commands:
        _, _, recipe, *overrides = shlex.split(command)
        assert recipe == name
        resolved = load_recipe(recipe, overrides)
        assert resolved.data.source == "digits" or resolved.data.root
        own = load_recipe(name).train.init_from
        own = own if own is not None and own.startswith("timm:") else None  # what the recipe fetches by itself
        assert resolved.train.init_from == ("runs/earlier" if "init_from=" in command else own)


def test_what_is_written_anew_is_what_there_is():
    """The files hold what differs from the defaults; what is shown of them is whole, with the same header."""
    from tests.recipes.rewrite import FOLDER, rewritten

    files = {name: (FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in RECIPES}
    assert [name for name, text in files.items() if rewritten(text, name) != text] == []
    assert [name for name, text in files.items() if rewritten(recipe_text(name)[0], name) != text] == []


# --- the sources' numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plain", "gated"), TWINS.items())
def test_twins_differ_in_nothing_but_the_gate(plain, gated):
    a, b = (load_recipe(n).model_dump() for n in (plain, gated))
    assert b["model"]["name"].replace("seres", "res") == a["model"]["name"]
    of_the_gate = {"rd_divisor"}
    assert {k: v for k, v in b["model"]["options"].items() if k not in of_the_gate} == a["model"]["options"]
    for part in (a, b):
        del part["name"], part["model"]["name"], part["model"]["options"]
    assert a == b


# epochs, batch, peak rate, momentum, nesterov, weight decay, on norms too, smoothing, loss scale, checkpoints kept
FACTS = {
    **{f"imagenet-se{n}": (150, 8 * 64, 0.075, 0.9, False, 1e-4, False, 0.1, 1024, 30) for n in MINDCV},
    "imagenet-seresnet50-100ep": (100, 8 * 128, 0.6, 0.9, False, 1e-4, True, 0.0, 1024, 2),
    "cifar10-seresnet110-tf": (160, 128, 0.1, 0.9, True, 1e-4, True, 0.0, "dynamic", 2),
    "imagenet-geresnet50-theta-minus": (220, 8 * 256, 0.8, 0.9, False, 1e-4, False, 0.1, 1024, 5),
    "imagenet-geresnet50-theta": (150, 8 * 256, 0.8, 0.9, False, 1e-4, False, 0.1, 1024, 5),
    "imagenet-geresnet50-theta-plus": (150, 8 * 256, 0.8, 0.9, False, 1e-4, False, 0.1, 1024, 5),
    "imagenet-seresnet50-600ep": (600, 8 * 128, 0.5, 0.9, False, 2e-5, False, 0.1, "dynamic", 2),
    "imagenet-geresnet50-600ep": (600, 8 * 128, 0.5, 0.9, False, 2e-5, False, 0.1, "dynamic", 2),
}


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_has_its_sources_numbers(name):
    recipe = load_recipe(name)
    o, t = recipe.optimizer, recipe.train
    found = (t.epochs, t.batch_size, o.lr, o.momentum, o.nesterov, o.weight_decay, o.decay_norm_and_bias)
    assert (*found, t.label_smoothing, t.loss_scale, recipe.checkpoint.keep_last) == FACTS[name]
    if name.startswith("imagenet"):
        assert (recipe.augment.crop, recipe.augment.scale, recipe.augment.hflip) == ("random_resized", [0.08, 1.0], 0.5)
        resized = math.floor(recipe.data.evaluation_size[0] / recipe.data.crop_pct)
        assert (resized, recipe.data.evaluation_size) == (232 if "600ep" in name else 256, (224, 224))


@pytest.mark.parametrize("form", ["theta-minus", "theta", "theta-plus"])
def test_the_genet_recipes_build_the_sources_network(form):
    """GEBlock.py: nn.Conv2dBnAct's defaults, pad_mode "same"; theta-minus, which gathers alike, computes the same."""
    conv2d_bn_act = {"momentum": 0.997, "eps": 1e-5}
    recipe = load_recipe(f"imagenet-geresnet50-{form}")
    with torch.device("meta"):
        model = create_model(recipe.model.name, image_size=224, **recipe.model.options)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {conv2d_bn_act["eps"]}
    assert [m.momentum for m in norms] == pytest.approx([1 - conv2d_bn_act["momentum"]] * len(norms))
    assert model.maxpool.ceil_mode
    strided = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and max(m.stride) > 1]
    assert strided
    assert all(isinstance(m, SameConv2d) for m in strided)


@pytest.mark.parametrize("name", MINDCV)
def test_the_mindcv_recipes_start_as_the_source(name):
    """senet.py: HeUniform(mode="fan_in", nonlinearity="sigmoid") and bias 0 for every nn.Dense, SE's included."""
    recipe = load_recipe(f"imagenet-se{name}")
    torch.manual_seed(0)
    model = create_model(recipe.model.name, image_size=224, **recipe.model.options)
    dense = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert len(dense) > 10
    for layer in dense:
        assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(layer.in_features), rel=0.15)
        assert layer.weight.abs().max().item() <= math.sqrt(3 / layer.in_features) * (1 + 1e-6)
        assert not layer.bias.any()


def test_the_tensorflow_recipe_scales_its_loss_as_the_source():
    train = load_recipe("cifar10-seresnet110-tf").train
    assert train.precision == "fp16"
    assert (train.loss_scale_init, train.loss_scale_growth_interval, train.loss_scale_hysteresis) == (2**32, 1000, 2)


def test_torchvisions_moving_average_per_step():
    """Its train.py: decay 0.99998 for 32 steps, made independent of batch and epochs."""
    adjust = 8 * 128 * 32 / 600  # world size x batch x steps between updates / epochs
    alpha = min(1.0, (1 - 0.99998) * adjust)
    decay = load_recipe("imagenet-seresnet50-600ep").train.ema_decay
    assert decay**32 == pytest.approx(1 - alpha, abs=1e-5)


# --- the learning rate ----------------------------------------------------------------------------------------------


def mindcv(step, steps_per_epoch):
    """scheduler/dynamic_lr.py, cosine_decay_refined_lr with eta_min 0."""
    t_cur = step / steps_per_epoch
    return 0.0 + 0.5 * (0.075 - 0.0) * (1.0 + math.cos(math.pi * t_cur / 150))


def modelzoo_pytorch(step, steps_per_epoch):
    """main.py, adjust_learning_rate: epochs from 0."""
    epoch = step // steps_per_epoch
    if epoch < 5:
        return 0.6 * ((epoch + 1) / (5 + 1))
    return 0.6 * 0.5 * (1 + math.cos(math.pi * (epoch - 5) / (100 - 5)))


def modelzoo_tensorflow(step, steps_per_epoch):
    """Epochs from 1."""
    rate = 0.01
    for epoch in range(1, step // steps_per_epoch + 2):
        rate = {2: 0.1, 80: 0.01, 120: 0.001}.get(epoch, rate)
    return rate


def genet_cosine(step, steps_per_epoch):
    """src/lr_generator.py, _generate_cosine_lr."""
    decay_steps = total_steps = 220 * steps_per_epoch
    linear_decay = (total_steps - step) / decay_steps
    cosine_decay = 0.5 * (1 + math.cos(math.pi * 2 * 0.47 * step / decay_steps))
    return 0.8 * (linear_decay * cosine_decay + 0.00001)


def genet_linear(step, steps_per_epoch):
    """src/lr_generator.py, _generate_linear_lr."""
    return 0.8 - (0.8 - 0.0) * step / (150 * steps_per_epoch)


def torchvision(step, steps_per_epoch):
    """references/classification/train.py: PyTorch's own schedulers, stepped once an epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=5)
    main = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=600 - 5, eta_min=0.0)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, main], milestones=[5])
    for _ in range(step // steps_per_epoch):
        optimizer.step()
        scheduler.step()
    return optimizer.param_groups[0]["lr"]


def ours(peak, warmup_epochs, epochs):
    """A line that reaches the peak in the warm-up's last step, then a cosine that would be 0 after the last step."""

    def rate(step, steps_per_epoch):
        warmup = warmup_epochs * steps_per_epoch
        if step < warmup:
            return peak * min(1.0, (step + 1) / warmup)
        return peak * (1 + math.cos(math.pi * (step - warmup) / (epochs * steps_per_epoch - warmup))) / 2

    return rate


RATES = {
    **{f"imagenet-{gate}{n}": mindcv for n in MINDCV for gate in ("", "se")},
    "imagenet-seresnet50-100ep": modelzoo_pytorch,
    "cifar10-seresnet110-tf": modelzoo_tensorflow,
    "imagenet-geresnet50-theta-minus": genet_cosine,
    "imagenet-geresnet50-theta": genet_linear,
    "imagenet-geresnet50-theta-plus": genet_linear,
    "imagenet-seresnet50-600ep": torchvision,
    "imagenet-geresnet50-600ep": torchvision,
    "digits-seresnet20": ours(peak=0.2, warmup_epochs=2, epochs=40),
    "cifar10-seresnet20": ours(peak=0.1, warmup_epochs=1, epochs=13),
    "cifar10-fast": lambda step, per_epoch: 0.24 * (1 - step / (8 * per_epoch)),
    "cifar10-resnet20": ours(peak=0.1, warmup_epochs=1, epochs=13),
    "cifar10-geresnet20": ours(peak=0.1, warmup_epochs=1, epochs=11),
    "cifar10-seresnet110": ours(peak=0.1, warmup_epochs=5, epochs=200),
    "cifar10-resnet110": ours(peak=0.1, warmup_epochs=5, epochs=200),
    "folder-seresnet50": ours(peak=0.02, warmup_epochs=3, epochs=60),
    "folder-finetune-seresnet50": ours(peak=0.01, warmup_epochs=1, epochs=20),
    "folder-small": ours(peak=0.05, warmup_epochs=2, epochs=20),
    "folder-finetune-small": ours(peak=0.0003, warmup_epochs=1, epochs=8),
    "finetune-graft": ours(peak=0.01, warmup_epochs=0.5, epochs=10),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_learning_rate_is_the_sources(name):
    recipe = load_recipe(name)
    images = {"imagenet": IMAGENET, "cifar10": CIFAR, "digits": 1437}.get(name.split("-")[0], 4000)
    per_epoch, epochs = images // recipe.train.batch_size, recipe.train.epochs
    last = epochs * per_epoch - 1
    borders = [e * per_epoch for e in (1, 2, 4, 5, 6, 78, 79, 80, 118, 119, 120) if e < epochs]
    steps = sorted({0, 1, per_epoch // 2, *borders, *(b - 1 for b in borders), last // 3, last // 2, last})
    got = [learning_rate(recipe.schedule, recipe.optimizer.lr, s, per_epoch, epochs) for s in steps]
    assert got == pytest.approx([RATES[name](s, per_epoch) for s in steps], rel=1e-9, abs=1e-15)


# --- the models -----------------------------------------------------------------------------------------------------

# Trainable parameters with 1000 (CIFAR: 10) classes, as the sources' own code has them.
PARAMETERS = {
    "imagenet-seresnet18": 11_779_624,
    "imagenet-seresnet34": 21_960_416,
    "imagenet-seresnet50": 28_088_024,
    "imagenet-seresnext26_32x4d": 16_790_280,
    "imagenet-seresnext50_32x4d": 27_559_896,
    "cifar10-seresnet110-tf": 3_504_422,
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_model_builds(name):
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = create_model(
            recipe.model.name,
            in_chans=recipe.data.in_chans,
            image_size=recipe.data.image_size,
            drop_rate=recipe.model.drop_rate,
            drop_path_rate=recipe.model.drop_path_rate,
            **recipe.model.options,
        )
    if name in PARAMETERS:
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    size = recipe.data.image_size
    if "ge" not in recipe.model.name:  # their gates may look at values
        assert model(torch.empty(2, recipe.data.in_chans, size, size, device="meta")).shape == (2, model.num_classes)


# --- two steps ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Photographs' worth of noise: two classes, 250 pixels high, in train/ and val/."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 1)):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (250, 300, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.jpg")
    return root


def small_images(recipe: Recipe) -> DataSets:
    """Eight random images of the recipe's size in memory, as the CIFAR and digits readers give them."""
    size, channels = recipe.data.image_size, recipe.data.in_chans
    images = torch.randint(0, 256, (8, channels, size, size), dtype=torch.uint8)
    part = ArrayImages(images, torch.arange(8) % 4)
    preprocessing = Preprocessing(size, 1.0, "bicubic", (0.5,) * channels, (0.25,) * channels, channels)
    return DataSets(list("abcd"), part, part, preprocessing, "none")


# Of most sources the cheapest; the others take a second or more each.
QUICK = {
    "imagenet-seresnet18",
    "imagenet-geresnet50-theta-minus",
    "cifar10-seresnet110-tf",
    "folder-finetune-seresnet50",
    *(n for n in RECIPES if n.endswith("resnet20")),
}


def has_gradient_history(optimizer, parameter):
    """Whether a gradient other than 0 has reached the optimiser's state (its momentum) for this parameter."""
    state = optimizer.state.get(parameter, {})
    return any(torch.is_tensor(value) and value.shape == parameter.shape and value.any() for value in state.values())


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES])
def test_two_steps_train(name, image_folder):
    """On a small batch in float32; all else is the recipe's, from the files to the optimiser."""
    batch = load_recipe(name).augment.repeats * 2
    overrides = [f"train.batch_size={batch}", "precision=fp32", "device=cpu", "workers=0", "init_from="]
    recipe = load_recipe(name, [*overrides, f"data.root={image_folder}"])
    data = None if recipe.data.source == "folder" else small_images(recipe)
    run = set_up(recipe, Display(quiet=True), make_accelerator("cpu"), data=data)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.net.train()
    losses, size = [], recipe.data.image_size
    for images, labels in islice(chain(*(run.train_loader.epoch(e) for e in range(2))), 2):
        assert images.shape == (batch, recipe.data.in_chans, size, size)
        loss, _ = train_step(run, images, labels)
        losses.append(loss.item())
        rate = learning_rate(recipe.schedule, recipe.optimizer.lr, run.step, run.steps_per_epoch, recipe.train.epochs)
        assert run.optimizer.param_groups[-1]["lr"] == rate * run.optimizer.param_groups[-1]["lr_scale"]
        run.step += 1
    assert len(losses) == 2
    assert 0 < losses[0] < 3 * math.log(len(run.data.classes)) + 3  # no better and not much worse than guessing
    assert math.isfinite(losses[1])  # but may be large: the rates are those for hundreds of images
    for parameter_name, parameter in run.model.named_parameters():
        assert parameter.isfinite().all(), parameter_name
        # Reached counts as moved: what an identity gate's first layer gets in its second step may be smaller than the
        # last digit of a float32, because it is in proportion to what the zeroed layer behind it got in the first.
        moved = not torch.equal(parameter, before[parameter_name])
        assert (moved or has_gradient_history(run.optimizer, parameter)) == parameter.requires_grad, parameter_name
