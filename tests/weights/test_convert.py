"""`excite convert`, `load_weights`, `train.init_from`: what is written, compared, refused, and left untouched."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import excite as package
from excite.errors import ExciteError
from excite.models import create_model
from excite.recipe import load_recipe
from excite.training import train
from excite.weights.conversion import convert_file as run
from excite.weights.convert import convert, load_weights, start_from
from excite.weights.locate import is_foreign
from excite.weights.meta import describe
from excite.weights.own import read_own, save_weights
from excite.weights.verify import differences, first_apart, relative_error, trace
from excite.weights.write import export_state_dict

from .nets import images, logits, make

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(os.environ.get("EXCITE_FIXTURES", ROOT.parent / "shared" / "fixtures"))
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"no reference checkpoints at {FIXTURES} (set EXCITE_FIXTURES)"
)


@pytest.fixture
def foreign(tiny, tmp_path):
    """A checkpoint in timm's names, and the network that it is of."""
    model = make("tiny_seresnet", num_classes=4)
    path = tmp_path / "foreign.pth"
    torch.save({name.replace(".gate.", ".se."): tensor for name, tensor in model.state_dict().items()}, path)
    return path, model


def quietly(*args, **kwargs):
    said = []
    return run(*args, say=said.append, **kwargs), said


# --- the file that is written -----------------------------------------------------------------------------------------


def test_a_converted_file_is_one_of_ours(foreign, tmp_path):
    source, model = foreign
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\n")
    destination = tmp_path / "ours.safetensors"
    result, said = quietly(str(source), destination, classes=names)
    assert result["model"] == "tiny_seresnet"
    assert "PyTorch checkpoint with the names of timm's ResNet with SE: tiny_seresnet, 4 classes" in said[0]
    checkpoint = read_own(destination)
    assert checkpoint.meta["classes"] == ["ant", "bee", "cat", "dog"]
    assert checkpoint.meta["converted_from"] == {"source": str(source), "format": result["format"], "layout": "timm"}
    assert checkpoint.meta["preprocessing"]["interpolation"] == "bicubic"
    predictor = package.load(destination, "cpu")
    picture = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    expected = logits(model, predictor.preprocessing.normalize(picture))
    assert relative_error(predictor.logits(picture), expected) < 1e-5
    assert is_foreign(source)
    assert not is_foreign(destination)


def class_folders(root, names):
    """Two photographs' worth of noise a class, the same for training and validation."""
    for part in ("train", "val"):
        for number, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for k in range(2):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(10 * number + k))
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(root / part / name / f"{k}.png")
    return root


def test_validate_takes_a_file_that_names_no_classes_to_have_those_of_the_data(foreign, tmp_path):
    """Other systems number the sorted class folders and store no names: their validate.py in one command of ours."""
    source, _ = foreign
    named, numbered = tmp_path / "named.safetensors", tmp_path / "numbered.safetensors"
    names = tmp_path / "classes.txt"
    names.write_text("ant\nbee\ncat\ndog\n")
    quietly(str(source), numbered)
    quietly(str(source), named, classes=names)
    four = class_folders(tmp_path / "four", ["ant", "bee", "cat", "dog"])
    found = [package.validate(file, [f"data.root={four}"])[1] for file in (named, numbered, source)]
    assert found[0].images == 8
    assert found[0] == found[1] == found[2]
    three = class_folders(tmp_path / "three", ["ant", "bee", "cat"])
    with pytest.raises(ExciteError, match=r"the data has 3 classes, but .*numbered.safetensors was trained with 4$"):
        package.validate(numbered, [f"data.root={three}"])
    others = class_folders(tmp_path / "others", ["ant", "bee", "cat", "eel"])
    with pytest.raises(ExciteError, match=r"the data has classes that .*named.safetensors does not know: eel"):
        package.validate(named, [f"data.root={others}"])


def test_predict_takes_foreign_files_as_they_are(foreign):
    source, model = foreign
    predictor = package.load(source, "cpu")
    assert predictor.classes == ["0", "1", "2", "3"]
    picture = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    expected = logits(model, predictor.preprocessing.normalize(picture))
    assert relative_error(predictor.logits(picture), expected) < 1e-5


def test_a_converted_file_can_be_converted_again(foreign, tmp_path):
    source, _ = foreign
    quietly(str(source), tmp_path / "a.safetensors")
    quietly(str(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", against=str(source))
    first, second = read_own(tmp_path / "a.safetensors"), read_own(tmp_path / "b.safetensors")
    assert first.meta == second.meta
    assert all(torch.equal(first.tensors[name], tensor) for name, tensor in second.tensors.items())


def test_the_recipe_in_a_converted_file_builds_the_same_network(foreign):
    source, _ = foreign
    model, loaded = convert(source)
    recipe = describe(model, loaded)["recipe"]
    again = create_model(recipe["model"]["name"], num_classes=4, **recipe["model"]["options"])
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}


def test_nothing_is_written_over_without_force(foreign, tmp_path):
    source, _ = foreign
    destination = tmp_path / "there.safetensors"
    destination.write_bytes(b"mine")
    with pytest.raises(ExciteError, match="already exists; use --force to overwrite it"):
        quietly(str(source), destination)
    assert destination.read_bytes() == b"mine"
    quietly(str(source), destination, force=True)
    assert read_own(destination).meta["model"]["name"] == "tiny_seresnet"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.pth", {}, "must end in .safetensors"),
        ("x.onnx", {"to": "timm"}, "must end in one of .safetensors, .pth"),
        ("x.safetensors", {"to": "tim"}, "--to is 'tim'; did you mean 'timm'"),
        (".", {}, "is a folder"),
        ("x.safetensors", {"arch": "seresnet51"}, "unknown model 'seresnet51'; did you mean 'seresnet"),
        ("x.safetensors", {"arch": "tiny_seresnext"}, "does not fit tiny_seresnext"),
        ("x.safetensors", {"verify": "no.npz"}, "there is no file no.npz"),
        ("x.safetensors", {"verify": "no.jpg"}, "neither an .npz nor a readable image"),
        ("x.safetensors", {"against": "no.pth"}, "there are no weights at 'no.pth'"),
        ("x.safetensors", {"classes": Path("no.txt")}, "not a readable list of class names"),
    ],
)
def test_wrong_arguments(foreign, tmp_path, name, options, message):
    source, _ = foreign
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExciteError, match=message):
        quietly(str(source), tmp_path / name, **options)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["a\nb\n", "a\nb\nc\nc\n", "a\nb\nc\nd\ne\n"])
def test_class_names_must_be_as_many_and_different(foreign, tmp_path, text):
    source, _ = foreign
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ExciteError, match="different class names were given, but the network has 4 classes"):
        quietly(str(source), tmp_path / "x.safetensors", classes=tmp_path / "names.txt")


# --- partly fitting checkpoints ---------------------------------------------------------------------------------------


def test_a_checkpoint_without_classifier(foreign, tmp_path):
    source, model = foreign
    tensors = torch.load(source, weights_only=True)
    torch.save({n: t for n, t in tensors.items() if not n.startswith("fc.")}, source)
    converted, loaded = convert(source, allow_partial=True)
    assert loaded.fresh == ["fc.weight", "fc.bias"]
    assert converted.num_classes == 1000
    x = images()
    with torch.no_grad():
        assert torch.equal(converted.eval().forward_features(x), model.forward_features(x))


def test_allow_partial_lists_what_is_missing_and_what_is_left_over(foreign, tmp_path):
    source, _ = foreign
    tensors = torch.load(source, weights_only=True)
    del tensors["layer2.1.bn2.bias"]
    torch.save({**tensors, "aux.weight": torch.zeros(2)}, source)
    result, said = quietly(str(source), tmp_path / "x.safetensors", allow_partial=True)
    assert (result["fresh"], result["left_over"]) == (["layer2.1.bn2.bias"], ["aux.weight"])
    assert "not in the checkpoint, left unchanged: 1: layer2.1.bn2.bias" in said[1]
    assert "in the checkpoint, not used: 1: aux.weight" in said[1]


def test_another_number_of_classes_keeps_the_whole_fresh_head(foreign):
    source, model = foreign
    fresh = make("tiny_seresnet", seed=5, num_classes=9)
    head = {n: t.clone() for n, t in fresh.state_dict().items() if n.startswith("fc.")}
    with pytest.raises(ExciteError, match=r"of the wrong shape 2: fc.weight \(4, 256\) instead of \(9, 256\)"):
        load_weights(fresh, source)
    assert not torch.equal(fresh.conv1.weight, model.conv1.weight)  # a refusal changes nothing
    loaded = load_weights(fresh, source, allow_partial=True)
    assert loaded.fresh == ["fc.weight", "fc.bias"]
    assert torch.equal(fresh.conv1.weight, model.conv1.weight)
    assert all(torch.equal(fresh.state_dict()[n], t) for n, t in head.items())


def test_an_ungated_checkpoint_fills_the_body_of_a_gated_network(tiny, tmp_path):
    source = make("tiny_resnet", num_classes=4)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    for model, loaded in (
        convert(tmp_path / "x.pth", arch="tiny_seresnet", allow_partial=True),
        (made := make("tiny_seresnet", num_classes=4), load_weights(made, tmp_path / "x.pth", allow_partial=True)),
    ):
        assert set(loaded.fresh) == {name for name in model.state_dict() if ".gate." in name}
        assert torch.equal(model.fc.weight, source.fc.weight)


@pytest.mark.parametrize("position", ["post", "identity"])
def test_gates_elsewhere_in_the_block_are_another_network(foreign, position):
    source, _ = foreign
    with pytest.raises(ExciteError, match=f"at the position 'standard', but this network at '{position}'"):
        load_weights(make("tiny_seresnet", num_classes=4, gate_position=position), source)


def test_one_fitting_tensor_of_a_module_is_not_taken_alone(foreign):
    """A head of as many classes but other features: its bias alone would be noise."""
    source, _ = foreign
    tensors = torch.load(source, weights_only=True)
    torch.save({**tensors, "fc.weight": torch.zeros(4, 7)}, source)
    model = make("tiny_seresnet", seed=5, num_classes=4)
    bias = model.fc.bias.clone()
    assert load_weights(model, source, allow_partial=True).fresh == ["fc.weight", "fc.bias"]
    assert torch.equal(model.fc.bias, bias)


def test_only_networks_of_ours_are_filled(foreign):
    with pytest.raises(ExciteError, match="not a Linear"):
        load_weights(torch.nn.Linear(2, 2), foreign[0])


# --- the same tensors, another function -------------------------------------------------------------------------------


SMALL = {"num_classes": 3, "image_size": 32}


@pytest.mark.parametrize(
    ("stored", "built", "said"),
    [
        (
            {"name": "se", "identity": True},
            "se",
            "the gate se identity=True at layer1.0, but this network has se identity=False",
        ),
        (
            "ese",
            {"name": "ese", "activation": "sigmoid"},
            "ese activation=hard_sigmoid at layer1.0, but this network has ese activation=",
        ),
        ("scse", {"name": "scse", "merge": "max"}, "scse merge=add at layer1.0, but this network has scse merge=max"),
        ("gct", {"name": "gct", "mode": "l1"}, "gct mode=l2 at layer1.0, but this network has gct mode=l1"),
        ("ge", "none", "ge .*variant=theta_minus.*, but this network has none"),
        ("none", "ge", "none at layer1.0, but this network has ge"),
        ({"name": "ge", "extent": 4}, "ge", "extent=4 at layer1.0, but this network has ge extent=0"),
        (
            "gaussian_gct",
            {"name": "gaussian_gct", "std": 1.0},
            "std=None at layer1.0, but this network has gaussian_gct std=1.0",
        ),
    ],
)
def test_gates_of_the_same_tensors_and_another_function_are_refused(tmp_path, stored, built, said):
    source = make("cifar_resnet20", gate=stored, **SMALL)
    save_weights(tmp_path / "x.safetensors", source, _meta(source))
    model = make("cifar_resnet20", seed=5, gate=built, **SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ExciteError, match=said):
        load_weights(model, tmp_path / "x.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    gates = {name for name in before if ".gate." in name}
    loaded = load_weights(model, tmp_path / "x.safetensors", allow_partial=True)
    assert set(loaded.fresh) == {name for name in gates if not name.endswith("num_batches_tracked")}
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in gates)


@pytest.mark.parametrize(
    ("stored", "built"),
    [
        ("se", {"name": "cse", "reduction": 16}),
        ({"name": "ge", "variant": "theta", "extent": "global"}, {"name": "ge", "variant": "theta", "extent": 0}),
        ({"name": "se", "rd_divisor": 1}, "se"),
        ({"name": "eca", "kernel_size": 3}, {"name": "eca", "gamma": 2.0}),
    ],
)
def test_the_same_gate_in_other_words_is_taken(tmp_path, stored, built):
    source = make("cifar_resnet20", gate=stored, **SMALL)
    save_weights(tmp_path / "x.safetensors", source, _meta(source))
    model = make("cifar_resnet20", seed=5, gate=built, **SMALL)
    load_weights(model, tmp_path / "x.safetensors")
    assert torch.equal(logits(model, images()), logits(source, images()))


def test_foreign_gates_do_not_go_into_gates_of_another_function(foreign):
    source, _ = foreign
    for gate, said in (
        ({"name": "se", "identity": True}, "se identity=True"),
        ({"name": "cse", "reduction": 16}, None),
    ):
        model = make("tiny_seresnet", num_classes=4, gate=gate)
        if said is None:
            assert not load_weights(model, source).fresh
        else:
            with pytest.raises(
                ExciteError, match=f"the gate se identity=False at layer1.0, but this network has {said}"
            ):
                load_weights(model, source)


def test_selective_kernels_of_the_same_shapes_that_see_something_else(tmp_path):
    source = make("cifar_resnet20", block_conv="sk", **SMALL)
    save_weights(tmp_path / "x.safetensors", source, _meta(source))
    same = make("cifar_resnet20", seed=5, block_conv={"name": "sk", "kernel_sizes": [3, 5]}, **SMALL)
    load_weights(same, tmp_path / "x.safetensors")
    assert torch.equal(logits(same, images()), logits(source, images()))
    other = make("cifar_resnet20", block_conv={"name": "sk", "kernel_sizes": [3, 7]}, **SMALL)
    with pytest.raises(ExciteError, match=r"kernel_sizes=\[3, 5\].*but this network has kernel_sizes=\[3, 7\]"):
        load_weights(other, tmp_path / "x.safetensors")


def test_a_name_that_says_another_network(tiny, tmp_path):
    """timm's networks with pooling against aliasing have a ResNet's tensors, and no others."""
    tensors = make("tiny_resnet", num_classes=4).state_dict()
    torch.save({"arch": "resnetblur50", "state_dict": tensors}, tmp_path / "x.pth")
    torch.save(tensors, tmp_path / "resnetaa50_a1h-4cf422b3.pth")
    torch.save({"arch": "resnet50", "state_dict": tensors}, tmp_path / "plain.pth")
    with pytest.raises(ExciteError, match="is named resnetblur50, which has a ResNet's tensors but smooths"):
        convert(tmp_path / "x.pth")
    with pytest.raises(ExciteError, match="is named resnetaa50"):
        convert(tmp_path / "resnetaa50_a1h-4cf422b3.pth")
    assert convert(tmp_path / "x.pth", arch="tiny_resnet")[0].model_name == "tiny_resnet"
    assert convert(tmp_path / "plain.pth")[0].model_name == "tiny_resnet"


def test_variances_below_zero_are_no_weights(foreign):
    source, _ = foreign
    tensors = torch.load(source, weights_only=True)
    tensors["layer2.0.bn1.running_var"][3] = -1e-3
    torch.save(tensors, source)
    with pytest.raises(ExciteError, match=r"the variances 'layer2\.0\.bn1\.running_var' have values below 0"):
        convert(source)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_seresnet20", {"reduction": 4}),
        ("cifar_geresnet20_theta", {}),
        ("cifar_geresnet20_theta_plus", {"extent": 4}),
        ("cifar_geresnet20_theta_plus", {"gate_bias": False}),
    ],
)
def test_a_plain_state_dict_of_ours_says_which_network_it_is(tmp_path, name, options):
    model = make(name, **SMALL, **options)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    again, loaded = convert(tmp_path / "x.pth")
    assert (again.model_name, loaded.fresh, loaded.left_over) == (name, [], [])
    assert torch.equal(logits(again, images()), logits(model, images()))


def test_a_plain_state_dict_of_ours_with_any_gate_fills_the_same_network(tmp_path):
    model = make("cifar_resnet20", gate={"name": "cbam", "identity": True}, **SMALL)
    torch.save({f"module.{n}": t for n, t in model.state_dict().items()}, tmp_path / "x.pth")
    again = make("cifar_resnet20", seed=5, gate={"name": "cbam", "identity": True}, **SMALL)
    assert not load_weights(again, tmp_path / "x.pth").misfits()
    assert torch.equal(logits(again, images()), logits(model, images()))


def test_images_of_cifar_are_seen_whole(tmp_path):
    model = make("cifar_seresnet20", num_classes=3, shortcut="conv", gate_bias=False)
    renamed = {
        n.replace(".gate.fc1", ".se.fc.0").replace(".gate.fc2", ".se.fc.2"): t for n, t in model.state_dict().items()
    }
    torch.save(renamed, tmp_path / "x.pth")
    again, loaded = convert(tmp_path / "x.pth")
    assert torch.equal(logits(again, images()), logits(model, images()))
    assert describe(again, loaded)["preprocessing"]["crop_pct"] == 1.0


# --- verification -----------------------------------------------------------------------------------------------------


def outputs(model, x, **changed):
    places = {f"out_{place}": tensor.numpy() for place, tensor in trace(model, x).items()}
    logits = places.pop("out_logits")
    return {"input": x.numpy(), "logits": logits, **places, **changed}


def test_verify_compares_every_place(foreign, tmp_path):
    source, model = foreign
    np.savez(tmp_path / "out.npz", **outputs(model, images(33)))
    result, _ = quietly(str(source), tmp_path / "x.safetensors", verify=str(tmp_path / "out.npz"))
    places = [row["place"] for row in result["verified"]["places"]]
    blocks = ["layer1.0", "layer1", "layer2.0", "layer2.1", "layer2", "layer3.0", "layer3", "layer4.0", "layer4"]
    assert places == ["stem", "pool0", *blocks, "features", "pooled", "logits"]
    assert all(row["relative"] < 1e-6 for row in result["verified"]["places"])


def test_a_difference_names_the_first_place_and_writes_nothing(foreign, tmp_path):
    source, model = foreign
    with torch.no_grad():
        model.layer2[1].conv2.weight.mul_(1.01)
    np.savez(tmp_path / "out.npz", **outputs(model, images()))
    shown = []
    destination = tmp_path / "x.safetensors"
    with pytest.raises(ExciteError, match=r"the first place that differs is layer2\.1, by .* nothing was written"):
        quietly(str(source), destination, verify=str(tmp_path / "out.npz"), show=shown.extend)
    assert not destination.exists()
    assert not list(tmp_path.glob(".x.safetensors*"))
    apart = {row["place"] for row in shown if row["relative"] > 1e-4}
    assert {"stem", "layer1", "layer2.0"}.isdisjoint(apart)
    assert {"layer2.1", "layer2", "layer3.0"} <= apart


def test_against_compares_two_checkpoints(foreign, tmp_path):
    source, model = foreign
    with torch.no_grad():
        model.layer3[0].gate.fc2.bias.add_(0.5)
    other = tmp_path / "other.pth"
    torch.save({n.replace(".gate.", ".se."): t for n, t in model.state_dict().items()}, other)
    with pytest.raises(ExciteError, match=rf"not the same as {other}: the first place that differs is layer3\.0"):
        quietly(str(source), tmp_path / "x.safetensors", against=str(other))


def test_an_image_shows_its_classes_and_compares_with_float64(foreign, tmp_path):
    from PIL import Image

    source, _ = foreign
    Image.effect_noise((50, 40), 60).convert("RGB").save(tmp_path / "x.png")
    result, said = quietly(str(source), tmp_path / "x.safetensors", verify=str(tmp_path / "x.png"))
    assert any(line.startswith("most likely: ") for line in said)
    assert result["verified"]["with"] == "the same in float64"
    written = read_own(tmp_path / "x.safetensors").tensors
    assert {tensor.dtype for tensor in written.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {k: v for k, v in a.items() if k != "input"}, "has no input"),
        (lambda a: {**a, "input": a["input"][0]}, "must be a batch of images"),
        (lambda a: {**a, "input": a["input"][:, :1]}, "1 channels, but tiny_seresnet takes 3"),
        (
            lambda a: {**a, "logits": a["logits"][:, :2]},
            r"logits the network has the shape \(2, 4\), the reference \(2, 2\)",
        ),
        (lambda a: {**a, "out_layer9": a["logits"]}, "tiny_seresnet has no place 'layer9'; did you mean 'layer"),
        (lambda a: {**a, "logits": np.full_like(a["logits"], np.nan)}, "differs is logits, by inf"),
        (lambda a: {**a, "input": np.array(["a"])}, "holds <U1, not numbers"),
        (lambda a: {**a, "input": np.array([object()])}, "not a readable .npz"),
    ],
)
def test_references_that_cannot_be_used(foreign, tmp_path, change, message):
    source, model = foreign
    np.savez(tmp_path / "out.npz", **change(outputs(model, images())))
    with pytest.raises(ExciteError, match=message):
        quietly(str(source), tmp_path / "x.safetensors", verify=str(tmp_path / "out.npz"))
    assert not (tmp_path / "x.safetensors").exists()


def test_a_reference_may_be_shorter_than_the_batch_but_not_of_other_shape(foreign):
    _, model = foreign
    places = trace(model, images(count=3))
    found = differences(places, {"logits": places["logits"][:1], "layer1": places["layer1"] + 1})
    assert [d.place for d in found] == ["layer1", "logits"]
    assert first_apart(found) == found[0]
    assert found[1].relative == 0.0
    with pytest.raises(ExciteError, match="at logits"):
        differences(places, {"logits": torch.zeros(4, 4)})
    with pytest.raises(ExciteError, match="nothing to compare"):
        differences(places, {"elsewhere": torch.zeros(1)})


def test_relative_error():
    assert relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 0.5
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
    assert relative_error(torch.tensor([float("nan")]), torch.zeros(1)) == float("inf")


@needs_fixtures
def test_the_command_on_tensorflows_own_outputs(tmp_path, monkeypatch, capsys):
    from excite.cli import main

    folder = FIXTURES / "tensorflow" / "small"
    arguments = [
        folder / "seresnet20.ckpt",
        tmp_path / "x.safetensors",
        "--verify",
        folder / "seresnet20.npz",
        "--json",
    ]
    monkeypatch.setattr("sys.argv", ["excite", "convert", *map(str, arguments)])
    with suppress(SystemExit):
        main()
    result = json.loads(capsys.readouterr().out)
    assert (result["layout"], result["args"]["depth"]) == ("tensorflow", 20)
    assert result["verified"]["places"][0]["relative"] < 1e-5
    assert read_own(tmp_path / "x.safetensors").meta["classes"][3] == "cat"


def test_the_commands_exit_status(foreign, tmp_path, monkeypatch, capsys):
    from excite.cli import main

    source, _ = foreign
    (tmp_path / "x.safetensors").touch()
    monkeypatch.setattr("sys.argv", ["excite", "convert", str(source), str(tmp_path / "x.safetensors")])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert "use --force to overwrite it" in capsys.readouterr().err


# --- writing for other libraries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "library", "options", "suffix"),
    [
        ("resnet18", "torchvision", {"bn_eps": 1e-3}, ".pth"),
        ("seresnet18", "timm", {"rd_divisor": 8, "gate_bias": False}, ".pt"),
        ("seresnext26_32x4d", "timm", {"max_pool": "ceil"}, ".safetensors"),
    ],
)
def test_written_and_read_back(tmp_path, name, library, options, suffix):
    model = make(name, num_classes=3, image_size=64, **options)
    save_weights(tmp_path / "ours.safetensors", model, _meta(model))
    quietly(str(tmp_path / "ours.safetensors"), tmp_path / f"x{suffix}", to=library)
    again, loaded = convert(tmp_path / f"x{suffix}")
    assert again.model_name == name
    assert (loaded.fresh, loaded.left_over) == ([], [])
    x = images(65, count=1)
    assert relative_error(logits(again, x), logits(model, x)) < 1e-5


def _meta(model):
    return {
        "model": {"name": model.model_name, "args": model.model_args},
        "classes": [str(k) for k in range(model.num_classes)],
        "preprocessing": {},
    }


@pytest.mark.parametrize(
    ("name", "options", "library", "message"),
    [
        ("seresnet18", {}, "torchvision", "has gates, but torchvision's ResNets have none; --to timm"),
        (
            "seresnet18",
            {},
            "timm",
            "squeezes 64 channels to 4 in layer1.0.gate, but timm's network to 8; to have timm's",
        ),
        ("geresnet50_theta_minus", {}, "timm", "gates other than SE"),
        ("seresnet50", {"gate_position": "pre"}, "timm", "whose SE gates end the branch of every block"),
        ("seresnet50", {"max_pool": "ceil"}, "timm", "stride_on=conv2, but timm's network has stride_on=conv1"),
        (
            "resnet50",
            {"stride_on": "conv1"},
            "torchvision",
            "stride_on=conv1, but torchvision's network has stride_on=conv2",
        ),
        ("resnet50", {"max_pool": "ceil"}, "timm", "max_pool=ceil, but timm's network has max_pool=pad1"),
        ("resnet18", {"num_classes": 0}, "timm", "no classifier"),
        ("resnext26_32x4d", {}, "torchvision", "torchvision has no resnext26_32x4d; did you mean"),
        ("seresnext26_32x4d", {}, "timm", "timm has no seresnext26_32x4d; did you mean"),
        ("cifar_resnet20", {}, "timm", "has stem=cifar, but timm's network has stem=conv7"),
        ("cifar_seresnet110_tf", {}, "timm", "which has no such network"),
    ],
)
def test_what_other_libraries_do_not_have(name, options, library, message):
    with torch.device("meta"):
        model = create_model(name, **options)
    with pytest.raises(ExciteError, match=message):
        export_state_dict(model, library)


@pytest.mark.parametrize(("name", "options", "becomes"), [
    ("seresnet18", {}, "seresnet18"),
    ("seresnet34", {"reduction": 8}, "seresnet34"),
    ("seresnet50", {"max_pool": "ceil", "stride_on": "conv1", "rd_divisor": 8, "reduction": 64}, "legacy_seresnet50"),
])  # fmt: skip
def test_what_timm_lacks_for_its_widths_alone_is_trained_with_the_options_of_the_message(name, options, becomes):
    with torch.device("meta"):
        model = create_model(name, **options)
    with pytest.raises(ExciteError, match="train with") as error:
        export_state_dict(model, "timm")
    word = re.search(r'"(model.options=.*)"', str(error.value)).group(1)
    recipe = load_recipe("folder-small", ["data.root=photos", f"model.name={name}", word])
    assert export_state_dict(make(name, **options | recipe.model.options), "timm").architecture == becomes


def test_timm_takes_what_is_written_for_it(timm):
    model = make("seresnet18", num_classes=3, rd_divisor=8, gate_bias=False, bn_eps=1e-3)
    exported = export_state_dict(model, "timm")
    theirs = timm.create_model(exported.architecture, num_classes=3)
    theirs.load_state_dict(exported.tensors, strict=True)
    assert relative_error(logits(theirs, images(65)), logits(model, images(65))) < 1e-4


# --- training from foreign weights ------------------------------------------------------------------------------------


def test_init_from_takes_foreign_weights(tiny, tmp_path):
    """The digits, from a checkpoint of four classes: the body is taken over, the head of ten classes is fresh."""
    recipe = load_recipe(
        "digits-seresnet20", ["epochs=1", "warmup_epochs=0", "data.limit_train=40", "data.limit_val=20"]
    )
    source = make("cifar_seresnet20", num_classes=4, in_chans=1)
    torch.save({n.replace(".gate.", ".se."): t for n, t in source.state_dict().items()}, tmp_path / "x.pth")
    recipe = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(
                update={"init_from": str(tmp_path / "x.pth"), "batch_size": 20, "freeze": ["conv1"], "device": "cpu"}
            )
        }
    )
    results = train(recipe, out=tmp_path, quiet=True)
    trained = read_own(results["run"]).tensors
    assert torch.equal(trained["conv1.weight"], source.conv1.weight)
    log = (Path(results["run"]) / "log.txt").read_text()
    assert "names of timm's ResNet with SE: cifar_seresnet20, 4 classes" in log
    assert "left unchanged: 2: fc.weight, fc.bias" in log


def test_init_from_refuses_what_does_not_fit_but_for_the_head(tiny, tmp_path):
    source = make("tiny_seresnet", num_classes=4)
    tensors = {n.replace(".gate.", ".se."): t for n, t in source.state_dict().items()}
    del tensors["layer1.0.conv1.weight"]
    torch.save(tensors, tmp_path / "x.pth")
    model = make("tiny_seresnet", seed=3, num_classes=9)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ExciteError, match="a convolution in the first block of a stage is missing"):
        start_from(model, tmp_path / "x.pth")
    tensors["layer1.0.conv1.weight"] = source.layer1[0].conv1.weight.detach()
    torch.save({**tensors, "aux.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ExciteError, match=r"unexpected 1: aux\.weight"):
        start_from(model, tmp_path / "x.pth")
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_gates_that_start_as_the_identity_may_be_missing(tmp_path):
    """Somebody's checkpoint without gates, and a recipe that grafts them: the network computes what it did."""
    source = make("cifar_resnet20", **SMALL)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    model = create_model("cifar_resnet20", gate={"name": "se", "identity": True}, **SMALL)
    loaded = start_from(model, tmp_path / "x.pth")
    assert set(loaded.fresh) == {name for name in model.state_dict() if ".gate." in name}
    assert torch.equal(logits(model, images()), logits(source, images()))
    with pytest.raises(ExciteError, match="does not fit cifar_resnet20: missing"):
        start_from(make("cifar_resnet20", gate="se", **SMALL), tmp_path / "x.pth")


def test_what_counts_as_foreign(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    (tmp_path / "tf").mkdir()
    (tmp_path / "tf" / "checkpoint").write_text("")
    (tmp_path / "net.index").write_bytes(b"")
    foreign = ["hf:a/b", "timm:seresnet50", "https://x/y.pth", "s3://b/y.ckpt", tmp_path / "plain.safetensors"]
    assert [is_foreign(source) for source in [*foreign, tmp_path / "tf", tmp_path / "net"]] == [True] * 7
    assert [is_foreign(s) for s in ["nowhere", "s3://b/runs/one", tmp_path / "run", tmp_path]] == [False] * 3 + [True]


def test_our_own_files_say_what_they_are(tmp_path):
    model = make("cifar_seresnet20", num_classes=3, reduction=8)
    save_weights(tmp_path / "x.safetensors", model, _meta(model))
    converted, loaded = convert(tmp_path / "x.safetensors")
    assert converted.model_args == model.model_args
    assert "excite's own names: cifar_seresnet20" in loaded.sentence()
    for damaged in (
        "{",
        "[]",
        '{"model": {"name": 3, "args": {}}}',
        '{"model": {"name": "cifar_resnet20", "args": 1}}',
        '{"model": {"name": "cifar_resnet20", "args": {}}, "preprocessing": 1}',
    ):
        header = {"format": "pt", "excite": damaged}
        save_file(load_file(tmp_path / "x.safetensors"), tmp_path / "y.safetensors", metadata=header)
        with pytest.raises(ExciteError, match="its header is damaged"):
            convert(tmp_path / "y.safetensors")
