"""`train.init_from`: what a run takes over of a network beside its weights, and what it says where it cannot."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from excite.data import Preprocessing, open_data
from excite.errors import ExciteError
from excite.models import create_model
from excite.recipe import load_recipe
from excite.training import train
from excite.training.setup import make_model
from excite.training.start import Taken, fit_freeze, fit_images, take_weights
from excite.weights.layouts.base import CIFAR10_MEAN, CIFAR10_STD
from excite.weights.own import read_own, save_weights
from tests.weights.nets import images, logits, make

from .small import same, small, tensors

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(os.environ.get("EXCITE_FIXTURES", ROOT.parent / "shared" / "fixtures"))
LITE = FIXTURES / "pretrained" / "tf_efficientnet_lite0.safetensors"
needs_pretrained = pytest.mark.skipif(not LITE.is_file(), reason=f"no trained network at {LITE} (set EXCITE_FIXTURES)")
SHORT = ("data.limit_train=40", "data.limit_val=20", "train.batch_size=20", "checkpoint.every_steps=null")


@pytest.fixture
def foreign(tmp_path):
    """A checkpoint for colour images in timm's names, four classes, made for CIFAR's images."""
    source = make("cifar_seresnet20", num_classes=4)
    torch.save({n.replace(".gate.", ".se."): t for n, t in source.state_dict().items()}, tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


def log_of(results):
    return (Path(results["run"]) / "log.txt").read_text()


# --- images -----------------------------------------------------------------------------------------------------------


def test_a_recipe_without_mean_takes_the_networks_and_goes_on_without_the_source(foreign, tmp_path):
    """Mean, deviation and settings stand in the run's recipe: resumed, it sees and computes what it did."""
    settings = ("epochs=2", "data.in_chans=3", "model.options={bn_eps: 0.1}", f"init_from={foreign}")
    recipe = small(*SHORT, *settings)
    results = train(recipe, run_dir=tmp_path / "whole", quiet=True)
    log = log_of(results)
    assert (
        "data.mean=[0.4914, 0.4822, 0.4465] and data.std=[0.247, 0.2435, 0.2616], as in the network's training" in log
    )
    assert "the model was set to bn_eps=1e-05" in log
    assert "the head is new, for 10 classes" in log
    written = load_recipe(results["run"])
    assert (written.data.mean, written.data.std) == ([*CIFAR10_MEAN], [*CIFAR10_STD])
    assert written.model.options["bn_eps"] == 1e-5
    assert read_own(results["run"]).meta["preprocessing"]["mean"] == [*CIFAR10_MEAN]
    foreign.unlink()
    for again in (None, recipe):  # its own recipe, or the one that it was begun with
        part = tmp_path / f"part-{again is None}"
        shutil.copytree(results["run"], part)
        shutil.rmtree(max((part / "checkpoints").iterdir()))
        (part / "results.json").unlink()
        resumed = train(again, resume=part, quiet=True)
        assert "the recipe has changed" not in log_of(resumed)
        assert same(tensors(part), tensors(results["run"]))


def test_a_recipe_that_names_others_is_told_what_differs_and_what_to_type(foreign, tmp_path):
    named = ("data.mean=[0.4, 0.4, 0.4]", "data.std=[0.2, 0.2, 0.2]")
    recipe = small(*SHORT, *named, "epochs=1", "data.in_chans=3", "interpolation=bilinear", f"init_from={foreign}")
    results = train(recipe, out=tmp_path / "runs", quiet=True)
    log = log_of(results)
    lines = (
        'to adopt them: "data.interpolation=bicubic" "data.mean=[0.4914, 0.4822, 0.4465]" '
        '"data.std=[0.247, 0.2435, 0.2616]" "data.image_size=32"'
    )
    assert lines in log
    assert load_recipe(results["run"]).data.mean == [0.4, 0.4, 0.4]
    assert "crop_pct" not in log  # that is the same


def test_what_is_told_can_be_typed(foreign):
    recipe = small(*SHORT, "data.in_chans=3")
    model = create_model("cifar_seresnet20", num_classes=10)
    taken = take_weights(model, str(foreign))
    data = open_data(recipe.data, recipe.augment).preprocessing
    use, notes = fit_images(recipe.model_copy(update={"data": recipe.data.model_copy(update=MINE)}), data, taken)
    assert use == {}
    typed = [part.strip('"') for part in notes[0].partition("to adopt them: ")[2].split('" "')]
    again = small(*SHORT, "data.in_chans=3", *typed)
    assert fit_images(again, Preprocessing(32, 1.0, "bicubic", CIFAR10_MEAN, CIFAR10_STD, 3), taken) == ({}, [])


MINE = {"mean": [0.1, 0.1, 0.1], "std": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(
    ("theirs", "in_chans", "mean"),
    [
        ({"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2)}, 1, [0.5]),
        ({"mean": (0.4,), "std": (0.2,), "in_chans": 1}, 3, [0.4, 0.4, 0.4]),
        ({"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2), "in_chans": 1}, 1, None),  # a guess, and a wrong one
        ({"mean": (0.4,) * 4, "std": (0.2,) * 4}, 3, None),
        ({}, 3, None),
    ],
)
def test_means_for_other_channels(theirs, in_chans, mean):
    recipe = small(f"data.in_chans={in_chans}")
    mine = Preprocessing(8, 1.0, "bicubic", (0.3,) * in_chans, (0.3,) * in_chans, in_chans)
    use, notes = fit_images(recipe, mine, Taken([], theirs))
    assert use.get("mean") == mean
    assert bool(notes) is (mean is not None)


def test_a_run_of_ours_brings_its_mean_too(tmp_path):
    first = train(small(*SHORT, "epochs=1", "data.mean=[0.2]", "data.std=[0.4]"), out=tmp_path, quiet=True)["run"]
    second = train(small(*SHORT, "epochs=1", f"init_from={first}"), out=tmp_path, quiet=True)["run"]
    assert read_own(second).meta["preprocessing"]["mean"] == [0.2]


def test_images_that_are_the_same_are_no_news(foreign):
    recipe = small("data.in_chans=3", "data.image_size=32", "data.crop_pct=1.0")
    mine = Preprocessing(32, 1.0, "bicubic", (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), 3)
    named = recipe.model_copy(update={"data": recipe.data.model_copy(update={"mean": [*mine.mean]})})
    taken = take_weights(create_model("cifar_seresnet20", num_classes=4), str(foreign))
    assert fit_images(named, mine, taken) == ({}, [])


def test_a_size_that_was_given_for_this_run_is_no_news(foreign):
    """Networks take images of any size: whoever names one, or chooses it for the images, means it."""
    taken = Taken([], {"image_size": 224, "crop_pct": 0.5})
    mine = Preprocessing(128, 0.875, "bicubic", (0.5,) * 3, (0.5,) * 3, 3)
    for words, told in (["data.image_size=128"], "data.crop_pct=0.5"), ([], "data.crop_pct=0.5, data.image_size=224"):
        _, notes = fit_images(load_recipe("folder-small", ["data.root=photos", *words]), mine, taken)
        there = notes[0].removeprefix("the network was trained with ").partition(";")[0]
        assert sorted(there.split(", ")) == told.split(", ")


# --- weights ----------------------------------------------------------------------------------------------------------


def test_colour_weights_for_grey_images(foreign, tmp_path):
    log = log_of(train(small(*SHORT, "epochs=1", f"init_from={foreign}"), out=tmp_path, quiet=True))
    assert "conv1.weight is summed over its 3 channels for images of 1" in log
    assert "data.mean=[0.4734]" in log


def test_weights_of_ours_for_other_channels(tmp_path):
    model = make("cifar_seresnet20", num_classes=3, in_chans=1)
    save_weights(tmp_path / "x.safetensors", model, meta(model))
    colour = create_model("cifar_seresnet20", num_classes=3)
    taken = take_weights(colour, str(tmp_path / "x.safetensors"))
    assert "conv1.weight is repeated for images of 3 channels, divided by 3" in taken.notes[0]
    x = images()[:, :1]
    torch.testing.assert_close(logits(colour, x.repeat(1, 3, 1, 1)), logits(model, x), rtol=1e-4, atol=1e-5)


def meta(model):
    args = model.model_args
    channels = args["in_chans"]
    preprocessing = Preprocessing(args["image_size"], 0.875, "bicubic", (0.5,) * channels, (0.5,) * channels, channels)
    values = load_recipe("cifar10-resnet20").model_dump(mode="json")
    return {
        "model": {"name": model.model_name, "args": args},
        "classes": [str(k) for k in range(args["num_classes"])],
        "preprocessing": preprocessing.to_dict(),
        "recipe": values,
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [("cifar_seresnet20", {"bn_eps": 1e-2}), ("resnet18", {"max_pool": "ceil", "conv_padding": "same"})],
)
def test_settings_of_a_file_of_ours_are_taken_over(tmp_path, name, options):
    """What `excite convert` made of Caffe's or MindSpore's: tensors alone would be another function."""
    source = make(name, num_classes=3, image_size=32, **options)
    save_weights(tmp_path / "x.safetensors", source, meta(source))
    model = create_model(name, num_classes=3, image_size=32)
    taken = take_weights(model, str(tmp_path / "x.safetensors"))
    assert taken.settings == options
    assert "the model was set to " in taken.notes[0]
    assert torch.equal(logits(model, images(48)), logits(source, images(48)))


def test_gates_elsewhere_in_the_block_are_refused(tmp_path):
    source = make("cifar_seresnet20", num_classes=3, gate_position="post")
    save_weights(tmp_path / "x.safetensors", source, meta(source))
    with pytest.raises(ExciteError, match="gates at the position 'post', but this network at 'standard'"):
        take_weights(create_model("cifar_seresnet20", num_classes=3), str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("own", [True, False])
def test_another_network_is_one_sentence_with_its_name(tmp_path, own, foreign):
    source = make("cifar_seresnet20", num_classes=4)
    save_weights(tmp_path / "x.safetensors", source, meta(source))
    path = str(tmp_path / "x.safetensors") if own else str(foreign)
    with pytest.raises(
        ExciteError, match=r"cifar_seresnet32: it is cifar_seresnet20 \(set model\.name=cifar_seresnet20\)"
    ):
        take_weights(create_model("cifar_seresnet32", num_classes=4), path)


# --- a trained network of timm ----------------------------------------------------------------------------------------


@needs_pretrained
@pytest.mark.parametrize("wrap", ["plain", "module.", "lightning"])
def test_a_trained_network_of_timm(timm, tmp_path, wrap):
    from safetensors.torch import load_file, save_file

    state, path = load_file(LITE), LITE
    if wrap != "plain":
        path = tmp_path / "x.safetensors"
        if wrap == "lightning":
            body = {f"net.{n}": t for n, t in state.items() if not n.startswith("classifier.")}
            head = {f"head.{n.removeprefix('classifier.')}": t for n, t in state.items() if n.startswith("classifier.")}
            save_file({**body, **head, "criterion.weight": torch.ones(3)}, path)
        else:
            save_file({f"{wrap}{n}": t for n, t in state.items()}, path)
    name = "timm:tf_efficientnet_lite0"
    model = create_model(name, num_classes=1000)
    taken = take_weights(model, str(path))
    theirs = timm.create_model("tf_efficientnet_lite0")
    theirs.load_state_dict(state)
    assert torch.equal(logits(model, images(64)), logits(theirs.eval(), images(64)))
    assert (taken.images["mean"], taken.images["crop_pct"]) == ((0.5, 0.5, 0.5), 0.875)
    few = create_model(name, num_classes=7, in_chans=1)
    notes = take_weights(few, str(path)).notes[0]
    assert "the head is new, for 7 classes" in notes
    assert "conv_stem.weight is summed over its 3 channels" in notes
    assert ("not used: 1: criterion.* (1)" in notes) is (wrap == "lightning")


@needs_pretrained
def test_a_trained_network_for_another_architecture(timm):
    for name, known in (("timm:resnet18", "timm:tf_efficientnet_lite0"), ("resnet18", "efficientnet_lite0")):
        model = create_model(name, num_classes=5)
        with pytest.raises(ExciteError, match=rf"it is {known} \(set model\.name={known}\)") as e:
            take_weights(model, str(LITE))
        assert "\n" not in str(e.value)


@needs_pretrained
def test_a_recipe_of_ours_for_a_trained_network_of_timm(timm):
    """folder-finetune names conv1 and bn1, which this network does not have as they are meant; the mean is adopted."""
    recipe = load_recipe("folder-finetune-seresnet50", ["model.name=timm:tf_efficientnet_lite0", f"init_from={LITE}"])
    model = create_model(recipe.model.name, num_classes=3)
    taken = take_weights(model, str(LITE))
    mine = Preprocessing(224, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3)
    assert fit_images(recipe, mine, taken)[0] == {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    named = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"mean": [*mine.mean], "std": [*mine.std]})}
    )
    use, notes = fit_images(named, mine, taken)
    assert use == {}
    assert notes[0].endswith('to adopt them: "data.mean=[0.5, 0.5, 0.5]" "data.std=[0.5, 0.5, 0.5]"')
    patterns, said = fit_freeze(model, recipe.train.freeze)
    assert patterns[:2] == ["conv_stem", "bn1"]
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert set(patterns[1:]) == norms
    assert said == "train.freeze in timm:tf_efficientnet_lite0: conv1 is conv_stem, bn1"


def test_a_body_alone_of_timm(timm, tmp_path):
    body = timm.create_model("test_efficientnet", in_chans=1).state_dict()
    torch.save({n: t for n, t in body.items() if not n.startswith("classifier.")}, tmp_path / "x.pth")
    recipe = small(
        *SHORT, "model.name=timm:test_efficientnet", f"init_from={tmp_path / 'x.pth'}", "model.drop_path_rate=0"
    )
    _, notes = make_model(recipe, open_data(recipe.data, recipe.augment))
    assert "it has no classifier that fits" in notes[0]


# --- what stays as it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "patterns", "fitted"),
    [
        ("cifar_seresnet20", ["conv1", "bn1", "layer1*"], ["conv1", "bn1", "layer1*"]),
        ("cifar_preresnet110", ["conv1", "bn1"], ["conv1"]),
        ("cifar_seresnet110_tf", ["conv1", "bn1"], ["stem.bn", "stem.conv", "stem.gate.fc1", "stem.gate.fc2"]),
        ("timm:test_efficientnet", ["conv1", "bn1"], ["conv_stem", "bn1"]),
        ("timm:test_efficientnet", ["conv1", "bn1", "layer*"], ["conv_stem", "bn1", "blocks", "conv_head", "bn2"]),
        ("timm:test_efficientnet", ["*", "!fc"], ["*", "!classifier"]),
        ("timm:test_vit", ["*", "!fc"], ["*", "!head"]),
    ],
)
def test_freezing_patterns_for_another_network(request, name, patterns, fitted):
    if name.startswith("timm:"):
        request.getfixturevalue("timm")
    found, said = fit_freeze(create_model(name), patterns)
    assert found == fitted
    assert bool(said) is (patterns != fitted)


def test_patterns_that_mean_nothing_there_are_explained(timm):
    model = create_model("timm:test_efficientnet")
    with pytest.raises(ExciteError, match="no parameter of timm:test_efficientnet matches 'layer1\\*'") as caught:
        fit_freeze(model, ["layer1*"])
    assert "\"freeze=['*', '!classifier']\" keeps all but the head" in str(caught.value)
    assert '"freeze=[conv_stem, bn1]" the stem' in str(caught.value)
    with pytest.raises(ExciteError, match="no parameter of cifar_resnet20 matches 'lyer1'"):
        fit_freeze(create_model("cifar_resnet20"), ["lyer1"])


# --- the head of other classes --------------------------------------------------------------------------------------


def test_the_head_of_the_same_classes_in_another_order_is_reordered(tiny):
    model = create_model("cifar_seresnet20", num_classes=10, in_chans=1)
    checkpoint = read_own(tiny.gated)
    theirs = checkpoint.meta["classes"]
    mine = [*theirs[3:], *theirs[:3]]
    taken = take_weights(model, str(tiny.gated), mine)
    assert taken.same_classes
    assert "in another order, so the rows of its head were reordered" in taken.notes[0]
    for name in ("fc.weight", "fc.bias"):
        assert torch.equal(model.state_dict()[name], checkpoint.tensors[name].roll(-3, 0))
    assert torch.equal(model.state_dict()["conv1.weight"], checkpoint.tensors["conv1.weight"])
    taken = take_weights(model, str(tiny.gated), theirs)
    assert taken.same_classes
    assert "order" not in taken.notes[0]
    assert torch.equal(model.fc.weight, checkpoint.tensors["fc.weight"])


@pytest.mark.parametrize(
    ("probe", "what"),
    [(False, r"its head is kept \(for a new one: train\.probe=true\)"), (True, "the linear probe replaces its head")],
)
def test_classes_of_other_names_are_told(tiny, probe, what):
    model = create_model("cifar_seresnet20", num_classes=10, in_chans=1)
    taken = take_weights(model, str(tiny.gated), list("abcdefghij"), probe)
    assert not taken.same_classes
    names = r"its classes have other names \(.*2, 3, 4, 5 and 5 more\) than these \(a, b, c, d, e and 5 more\)"
    assert re.search(f"{names}: {what}", taken.notes[0])
    assert torch.equal(model.fc.weight, read_own(tiny.gated).tensors["fc.weight"])


def test_another_number_of_classes_has_nothing_to_reorder(tiny):
    model = create_model("cifar_seresnet20", num_classes=3, in_chans=1)
    taken = take_weights(model, str(tiny.gated), ["a", "b", "c"])
    assert not taken.same_classes
    assert "other names" not in taken.notes[0]
