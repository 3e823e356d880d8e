"""What tensors do not show: every layout says each setting, and none is inherited from our catalog in silence."""

import argparse
import inspect
import json

import pytest
import torch

from excite.errors import ExciteError
from excite.models import create_model, model_options
from excite.models.catalog import VARIANTS
from excite.models.factory import builder
from excite.weights import recognise
from excite.weights.conversion import convert_file
from excite.weights.convert import convert, load_weights
from excite.weights.layouts import LAYOUTS, TIMM, Anatomy, Source
from excite.weights.layouts.efficientnet_lite import OWN_EFFICIENTNET_LITE
from excite.weights.layouts.own import OWN
from excite.weights.read import read_weights
from excite.weights.recognise import SETTINGS, settings_of, unsaid
from excite.weights.said import said_by
from excite.weights.stored import Metadata, Stored
from excite.weights.verify import relative_error
from excite.weights.write import export_state_dict

from .nets import images, logits, make, randomise

#: Options of create_model that show in names and shapes of tensors.
SHOWN = {"stem", "down_kernel", "shortcut", "depth", "reduction", "rd_divisor", "gate_bias", "halve_from", "width"}
#: Options of which a trained network's function is independent.
TRAINING = {"init", "zero_init_last_gamma", "bn_momentum"}
#: Options that are compared when weights are loaded: what a gate, a selective kernel or an activation computes.
COMPARED = {"variant", "extent", "block_conv", "act_layer"}
#: The same weights serve at each of its values on purpose (dilated convolutions for dense prediction); none by default.
DILATED = {"output_stride"}
OTHER = {"max_pool": ("pad1", "ceil"), "conv_padding": ("symmetric", "same"), "stride_on": ("conv1", "conv2")}
OTHER |= {"gate_position": ("standard", "pre"), "bn_eps": (1e-5, 1e-3)}


LITE = ("timm-efficientnet", "excite-efficientnet")
UNSAID = (OWN, OWN_EFFICIENTNET_LITE)


def anatomy_of(name):
    """A variant of the catalog as shapes would show it."""
    variant = VARIANTS[name]
    arch, gate = variant["arch"], variant["gate"]
    if variant["family"] == "tf_seresnet":
        layers = (arch["depth"] // 9,) * 3
        return Anatomy("tf_seresnet", "", layers, (), "cifar", 16, 1, 64, 1.0, 1, "conv", 3, 10, gate)
    if variant["family"] == "efficientnet_lite":
        lite, layers, widths = "efficientnet_lite", arch["layers"], arch["widths"]
        return Anatomy(lite, "", layers, widths, "conv3", 32, 1, 64, 1.0, 1, "pad", 3, 1000, gate)
    return Anatomy(
        "resnet", arch["block"], arch["layers"], arch.get("widths", (64, 128, 256, 512)), arch.get("stem", "conv7"),
        arch.get("stem_width", 64), arch.get("groups", 1), arch.get("base_width", 64), arch.get("first_ratio", 1.0),
        arch.get("down_kernel", 1), arch.get("shortcut", "conv"), 3, 1000, gate,
    )  # fmt: skip


#: Nobody else's networks, so that their tensors are only known by what a file of ours says.
UNKNOWN = ("preresnet", "fastnet")
RECOGNISABLE = [n for n, v in VARIANTS.items() if v["family"] not in UNKNOWN and "block_conv" not in v["arch"]]


def said_of(layout, name):
    """What a layout says of a network, or None where it has no such one."""
    if (VARIANTS[name]["family"] == "tf_seresnet") != (layout.key == "tensorflow"):
        return None
    if (VARIANTS[name]["family"] == "efficientnet_lite") != (layout.key in LITE):
        return None
    if layout.key == "timm-efficientnet" and VARIANTS[name]["gate"] is not None:
        return None
    try:
        # The names of these tensors do not tell which of two networks it is; a hub's configuration does.
        config = {"architecture": "tf_efficientnet_lite0"} if layout.key == "timm-efficientnet" else {}
        return layout.options(anatomy_of(name), Source({}, {"config": config}))
    except ExciteError:  # Cadene's basic blocks are other networks
        return None


def test_every_option_is_known_to_change_the_function_or_not():
    """A new option of a model fails here until somebody says which it is; if it does, every layout must name it."""
    options = {option for name in VARIANTS for option in model_options(name)}
    assert options == SHOWN | TRAINING | COMPARED | DILATED | set(SETTINGS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.key)
def test_every_layout_says_every_setting_of_every_variant(layout, monkeypatch):
    """Whatever the catalog has by default, the network gets what the source says."""
    walked = 0
    for name in RECOGNISABLE:
        said, anatomy = said_of(layout, name), anatomy_of(name)
        if said is None:
            continue
        if layout in UNSAID:  # those that cannot know: what is assumed is said, see below
            assert set(unsaid(name, anatomy, said)) == set(settings_of(name)) - recognise._idle(anatomy)
            continue
        assert unsaid(name, anatomy, said) == {}, name
        assert "identity" in said or VARIANTS[name]["gate"] is None or layout.key in LITE
        for key in settings_of(name).keys() - recognise._idle(anatomy):
            for value in OTHER[key]:
                arch = {**VARIANTS[name]["arch"], key: value}
                monkeypatch.setitem(VARIANTS, name, {**VARIANTS[name], "arch": arch})
                options = recognise.model_options(name, anatomy, said)
                assert options.get(key, value) == said[key], (name, key, value)
                monkeypatch.undo()
                walked += 1
    assert walked > 1 or layout in UNSAID


@pytest.mark.parametrize("pool", ["pad1", "ceil"])
def test_a_senet154_pools_as_its_source_does(tiny, tmp_path, pool):
    """timm has SENet-154 twice: with padded pooling in its ResNet, in ceil mode as a legacy network."""
    model = make("tiny_senet154", num_classes=4, max_pool=pool, rd_divisor=8)
    assert model.maxpool.padding == (1 if pool == "pad1" else 0)
    named = TIMM.write(model.state_dict())
    torch.save(named, tmp_path / "x.pth")
    again, loaded = convert(tmp_path / "x.pth")
    assert loaded.foreign.options["max_pool"] == "pad1"
    error = relative_error(logits(again, images(67)), logits(model, images(67)))
    assert (error == 0.0) == (pool == "pad1")
    other = make("tiny_senet154", seed=3, num_classes=4, rd_divisor=8)  # ceil, by its variant
    assert load_weights(other, tmp_path / "x.pth").settings == {"max_pool": "pad1"}
    assert torch.equal(logits(other, images(67)), logits(again, images(67)))


def test_a_small_senet154_of_timm_itself(timm, tiny, tmp_path):
    from timm.models import resnet

    theirs = resnet.ResNet(
        resnet.Bottleneck, (1, 2, 1, 1), num_classes=4, channels=(8, 16, 32, 64), cardinality=2, base_width=64,
        stem_width=4, stem_type="deep", down_kernel_size=3, block_reduce_first=2, block_args={"attn_layer": "se"},
    )  # fmt: skip
    torch.save(randomise(theirs).state_dict(), tmp_path / "x.pth")
    model, loaded = convert(tmp_path / "x.pth")
    assert (model.model_name, loaded.fresh, loaded.left_over) == ("tiny_senet154", [], [])
    assert relative_error(logits(model, images(67)), logits(theirs, images(67))) < 1e-5


@pytest.mark.slow
def test_timms_senet154(timm, tmp_path):
    theirs = randomise(timm.create_model("senet154", num_classes=6))
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    model, _ = convert(tmp_path / "x.pth")
    assert relative_error(logits(model, images(96, 1)), logits(theirs, images(96, 1))) < 1e-4
    exported = export_state_dict(model, "timm")
    assert exported.architecture == "senet154"
    theirs.load_state_dict(exported.tensors, strict=True)


def test_a_bare_state_dict_of_ours_says_what_is_assumed(tmp_path):
    model = make("cifar_seresnet20", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    _, loaded = convert(tmp_path / "x.pth")
    assert "so the defaults of cifar_seresnet20 are used: gate_position=standard, bn_eps=1e-05" in loaded.sentence()


def test_gates_without_tensors_may_be_there_and_that_is_said(tmp_path):
    torch.save(make("cifar_geresnet20_theta_minus", num_classes=3).state_dict(), tmp_path / "x.pth")
    assert "gates without tensors (ge theta_minus) cannot be detected" in convert(tmp_path / "x.pth")[1].sentence()
    model = make("cifar_geresnet20_theta_minus", num_classes=3)
    assert "would not show" not in load_weights(model, tmp_path / "x.pth").sentence()


def test_gates_that_started_as_the_identity_are_not_timms():
    """Twice a sigmoid of the same tensors: nothing in a state dict would show it."""
    with torch.device("meta"):
        model = create_model("seresnet18", gate={"name": "se", "identity": True, "rd_divisor": 8})
    with pytest.raises(ExciteError, match="started as the identity and so double their sigmoid"):
        export_state_dict(model, "timm")


def test_gates_without_tensors_elsewhere_in_the_block_are_another_network(tmp_path):
    source = make("cifar_geresnet20_theta_minus", num_classes=3, gate_position="post")
    write(tmp_path / "x.pth", source, "cifar_geresnet20_theta_minus.excite", model_kwargs={"gate_position": "post"})
    with pytest.raises(ExciteError, match="at the position 'post', but this network at 'standard'"):
        load_weights(make("cifar_geresnet20_theta_minus", num_classes=3), tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "resnet", "downsample_in_bottleneck": true}', None),
        (
            '{"model_type": "resnet", "hidden_act": "gelu"}',
            "hidden_act='gelu', but excite's ResNets only support 'relu'",
        ),
    ],
)
def test_the_configuration_beside_a_hubs_weights(tiny, tmp_path, config, message):
    from safetensors.torch import save_file

    from .test_layouts import transformers

    source = make("tiny_resnet", num_classes=4, stride_on="conv1")
    save_file(dict(transformers(n, t) for n, t in source.state_dict().items()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    if message:
        with pytest.raises(ExciteError, match=message):
            convert(tmp_path)
        return
    assert torch.equal(logits(convert(tmp_path)[0], images(67)), logits(source, images(67)))


def test_mmpretrains_style_is_read_off_its_configuration(tiny, tmp_path):
    from .test_layouts import mmpretrain

    source = make("tiny_seresnet", num_classes=4, stride_on="conv1")
    state = dict(mmpretrain(n, t) for n, t in source.state_dict().items())
    cfg = "model = dict(backbone=dict(type='SEResNet', depth=50, style='caffe'))"
    torch.save({"meta": {"cfg": cfg, "epoch": 100}, "state_dict": state}, tmp_path / "x.pth")
    assert torch.equal(logits(convert(tmp_path / "x.pth")[0], images(67)), logits(source, images(67)))


# --- what a checkpoint says of itself ---------------------------------------------------------------------------------

#: The part of timm's command line that is kept with the weights, as train.py has it where nothing is given.
COMMAND = {
    "gp": None, "img_size": None, "input_size": None, "in_chans": None, "mean": None, "std": None, "interpolation": "",
    "crop_pct": None, "bn_eps": None, "bn_momentum": None, "drop": 0.0, "model_kwargs": {}, "batch_size": 128,
}  # fmt: skip


def write(path, model, arch, **args):
    """A checkpoint as timm's CheckpointSaver writes it."""
    command = argparse.Namespace(**{**COMMAND, "model": arch, **args})
    state = {"epoch": 3, "arch": arch, "state_dict": model.state_dict(), "args": command, "version": 2}
    torch.save(state, path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_geresnet20_theta_minus", {}),
        ("cifar_geresnet20_theta_minus", {"extent": 4}),
        ("cifar_resnet20", {"gate": {"name": "se", "identity": True}}),
        ("cifar_resnet20", {"gate": "cbam"}),
        ("cifar_seresnet20", {"gate_position": "identity", "bn_eps": 1e-3}),
        ("cifar_preresnet110", {}),
    ],
)
def test_what_timms_trainer_wrote_of_ours_is_that_network(tmp_path, name, options):
    model = make(name, num_classes=3, **options)
    write(tmp_path / "x.pth.tar", model, f"{name}.excite", model_kwargs=options)
    again, loaded = convert(tmp_path / "x.pth.tar")
    assert (again.model_name, loaded.fresh, loaded.left_over) == (name, [], [])
    assert relative_error(logits(again, images()), logits(model, images())) == 0.0


def test_the_arch_alone_is_believed_too(tmp_path):
    model = make("cifar_geresnet20_theta_minus", num_classes=3)
    for arch in ("cifar_geresnet20_theta_minus.excite", "cifar_geresnet20_theta_minus"):
        torch.save({"arch": arch, "state_dict": model.state_dict()}, tmp_path / "x.pth")
        assert torch.equal(logits(convert(tmp_path / "x.pth")[0], images()), logits(model, images()))
    with pytest.raises(ExciteError, match=r"has the gate ge .* at layer1\.0, but this network has none"):
        load_weights(make("cifar_resnet20", num_classes=3), tmp_path / "x.pth")
    assert convert(tmp_path / "x.pth", arch="cifar_resnet20")[0].model_name == "cifar_resnet20"


def test_images_are_those_that_the_command_line_says(tmp_path):
    from excite.weights.meta import describe

    model = make("cifar_seresnet20", num_classes=3)
    said = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear", "crop_pct": 0.9}
    write(tmp_path / "x.pth", model, "cifar_seresnet20.excite", img_size=48, **said)
    preprocessing = describe(*convert(tmp_path / "x.pth"))["preprocessing"]
    assert preprocessing == {**said, "image_size": 48, "in_chans": 3}
    write(tmp_path / "y.pth", model, "cifar_seresnet20.excite", input_size=[3, 40, 40])
    assert describe(*convert(tmp_path / "y.pth"))["preprocessing"]["image_size"] == 40


def test_images_of_somebody_elses_network(tiny, tmp_path):
    """torchvision's reference script: validated at 64 pixels of 80."""
    from excite.weights.meta import describe

    model = make("tiny_resnet", num_classes=4)
    args = argparse.Namespace(model="tiny_resnet_of_theirs", val_crop_size=64, val_resize_size=80)
    torch.save({"model": model.state_dict(), "args": args, "epoch": 1}, tmp_path / "x.pth")
    preprocessing = describe(*convert(tmp_path / "x.pth"))["preprocessing"]
    assert (preprocessing["image_size"], preprocessing["crop_pct"]) == (64, 0.8)


@pytest.mark.parametrize(
    ("arch", "args", "message"),
    [
        ("cifar_seresnet20.excite", {"gp": "max"}, "global_pool='max' .*take the mean"),
        ("cifar_seresnet20.excite", {"model_kwargs": {"global_pool": "catavgmax"}}, "global_pool='catavgmax'"),
        ("cifar_seresnet32.excite", {}, "says .arch. that it is cifar_seresnet32.excite, but its tensors are not"),
        (
            "cifar_seresnet20.excite",
            {"model_kwargs": {"reductoin": 4}},
            "cannot be created with its options: .*did you mean 'reduction'",
        ),
    ],
)
def test_what_it_says_and_cannot_be(tmp_path, arch, args, message):
    write(tmp_path / "x.pth", make("cifar_seresnet20", num_classes=3), arch, **args)
    with pytest.raises(ExciteError, match=message) as caught:
        convert(tmp_path / "x.pth")
    assert "--arch" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [({"gp": "max"}, "global_pool='max'"), ({"model_kwargs": {"act_layer": "silu"}}, "act_layer='silu'")],
)
def test_options_of_timms_own_networks_that_ours_lack(tiny, tmp_path, args, message):
    model = make("tiny_resnet", num_classes=4)
    write(tmp_path / "x.pth", model, "resnet_of_theirs", **args)
    with pytest.raises(ExciteError, match=message):
        convert(tmp_path / "x.pth")
    write(tmp_path / "y.pth", make("tiny_resnet", num_classes=4, bn_eps=1e-3), "x", bn_eps=1e-3, gp="avg")
    assert convert(tmp_path / "y.pth")[0].bn1.eps == 1e-3


def test_a_name_that_the_tensors_contradict_is_said(tiny, tmp_path):
    torch.save({"arch": "resnet50", "state_dict": make("tiny_resnet", num_classes=4).state_dict()}, tmp_path / "x.pth")
    _, loaded = convert(tmp_path / "x.pth")
    assert "its arch says resnet50, but its tensors are those of tiny_resnet" in loaded.sentence()


def test_a_command_line_is_data_and_nothing_else(tmp_path):
    """Its values are kept as plain ones, whatever else is in it."""
    command = argparse.Namespace(model="m.excite", odd=torch.nn.ReLU, path=tmp_path, lr=0.1, deep={"a": [1, "b"]})
    command.odd = None
    torch.save({"state_dict": {"w": torch.zeros(2)}, "args": command}, tmp_path / "x.pth")
    stored = read_weights(tmp_path / "x.pth")
    assert stored.metadata["values"]["args"] == {"model": "m.excite", "lr": 0.1, "deep": {"a": [1, "b"]}}
    assert said_by(stored).name == "m.excite"
    assert said_by(Stored("x", tmp_path / "x", {}, {})).name == ""


@pytest.mark.parametrize("key", [*Metadata.__annotations__, "meta", "format", "arch", "model_args", "pretrained_cfg"])
@pytest.mark.parametrize("text", ["x", "{}", "[1]", ""])
def test_what_a_safetensors_file_says_is_its_own_texts(tiny, tmp_path, key, text):
    """They are under the file's own keys, and stand for nothing that a reader of ours found."""
    from safetensors.torch import save_file

    source = make("tiny_seresnet", num_classes=4)
    save_file(source.state_dict(), tmp_path / "x.safetensors", metadata={key: text})
    _, loaded = convert(tmp_path / "x.safetensors")
    assert loaded.foreign.format == "safetensors"
    assert "its 'x'" not in loaded.sentence()


@pytest.mark.parametrize(
    "cfg",
    [
        '{"mean": [NaN, 0.5, 0.5], "std": [1, 1, 1]}',
        '{"mean": [0.5, 0.5, 0.5], "std": [0, 1, 1]}',
        '{"mean": [0.5, 0.5], "std": [1, 1, 1]}',
        f'{{"mean": [1{"0" * 400}, 0, 0], "std": [1, 1, 1]}}',
        f'{{"val_crop_size": 1{"0" * 400}, "val_resize_size": 256}}',
        '{"input_size": [3, 1000000000, 1000000000]}',
        '{"crop_pct": NaN}',
        '{"crop_pct": -1}',
    ],
)
def test_numbers_of_a_configuration_that_are_none_are_not_taken(tmp_path, cfg):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(f'{{"architecture": "resnet50", "pretrained_cfg": {cfg}}}')
    said = said_by(Stored("safetensors", tmp_path / "model.safetensors", {}, {}))
    assert (said.name, said.image_size, said.preprocessing) == ("resnet50", None, {})


def test_a_header_of_ours_that_is_not_whole_is_refused_by_the_name_of_its_file(tiny, tmp_path):
    from safetensors.torch import save_file

    source = make("tiny_seresnet", num_classes=4)
    header = {"format_version": 1, "model": {"name": source.model_name, "args": source.model_args}}
    path = tmp_path / "part.safetensors"
    save_file(source.state_dict(), path, metadata={"format": "pt", "excite": json.dumps(header)})
    with pytest.raises(ExciteError, match=r"part\.safetensors .*its header is damaged: classes is missing"):
        convert_file(path, tmp_path / "whole.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["part.safetensors"]


def test_defaults_are_those_of_the_classes_that_build():
    """What settings_of takes for the network's own values is what create_model makes."""
    for name in ("seresnet18", "senet154", "cifar_seresnet110_tf"):
        defaults = inspect.signature(builder(VARIANTS[name]).__init__).parameters
        for key, value in settings_of(name).items():
            assert value == VARIANTS[name]["arch"].get(key, defaults[key].default)
    with torch.device("meta"):
        assert create_model("senet154").maxpool.ceil_mode is (settings_of("senet154")["max_pool"] == "ceil")
