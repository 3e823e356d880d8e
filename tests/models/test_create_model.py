"""What create_model takes, refuses and remembers; the interface every model has."""

import copy
import json

import pytest
import torch
from torch import nn

from excite.errors import ExciteError
from excite.gates import Gate, GatherExcite, SqueezeExcite
from excite.models import PUBLISHED, VARIANTS, create_model, list_models, model_options, resize_gates
from excite.models.sizes import list_sizes
from excite.models.summary import _measure

TINY = ["cifar_seresnet20", "cifar_geresnet20_theta_plus", "seresnet18", "geresnet18_theta"]


def images(model, n=2):
    torch.manual_seed(0)
    return torch.randn(n, *model.input_size)


def logits(model, x):
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_name_builds_and_can_be_built_again(name):
    with torch.device("meta"):
        model = create_model(name)
        again = create_model(model.model_name, **json.loads(json.dumps(model.model_args)))
    out = []
    model.register_forward_hook(lambda module, inputs, output: out.append(output.shape))
    told = list_sizes([name])[0]  # as `excite models` lists it
    assert told == {"name": name, **_measure(model, "meta"), "published": PUBLISHED.get(name, [])}
    assert model.model_name == name
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in again.state_dict().items()}
    assert again.model_args == model.model_args
    assert out[0] == (1, 10 if name.startswith("cifar") else 1000)
    gates = [m for m in model.modules() if isinstance(m, SqueezeExcite | GatherExcite)]
    assert bool(gates) == (VARIANTS[name]["gate"] is not None)


@pytest.mark.parametrize(
    "args",
    [
        {"num_classes": 7, "in_chans": 1, "drop_rate": 0.3, "drop_path_rate": 0.2, "image_size": (64, 48)},
        {"reduction": 8, "rd_divisor": 8, "gate_bias": False, "gate_position": "pre", "bn_eps": 1e-3},
        {"gate": {"name": "ge", "variant": "theta", "extent": 4}, "stem": "conv3x3x3", "max_pool": "ceil"},
        {"gate": "ge", "variant": "theta_plus", "reduction": 4, "image_size": 64, "zero_init_last_gamma": True},
        {"features_only": True, "out_indices": (1, 4)},
        {"num_classes": 0, "down_kernel": 3, "stem": "cifar", "bn_momentum": 0.05},
    ],
    ids=str,
)
def test_arguments_survive_json(args):
    with torch.device("meta"):
        model = create_model("seresnet18", **args)
        again = create_model("seresnet18", **json.loads(json.dumps(model.model_args)))
    assert repr(model) == repr(again)
    assert model.feature_info == again.feature_info
    assert model.input_size == again.input_size


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("seresnet18", {"reducton": 8}, r"no option 'reducton'; did you mean 'reduction'\? \(allowed: .*reduction"),
        ("resnet18", {"reduction": 8}, "resnet18 has no option 'reduction'"),
        ("resnet18", {"gate_position": "pre"}, "no option 'gate_position'"),
        ("resnet18", {"num_class": 8}, "did you mean 'num_classes'"),
        ("resnet18", {"stride_on": "conv1"}, "no option 'stride_on'"),
        ("resnet50", {"stride_on": "conv3"}, "stride_on must be one of conv2, conv1"),
        ("resnet50", {"stem": "conv77"}, "stem must be one of .*did you mean 'conv7'"),
        ("resnet50", {"pretrained": True}, "pretrained weights cannot be downloaded here"),
        ("resnet50", {"gate": "cban"}, "unknown gate 'cban'; did you mean 'cbam'"),
        ("seresnet50", {"gate_position": "middle"}, "gate_position must be one of"),
        ("cifar_preresnet110", {"zero_init_last_gamma": True}, "no option 'zero_init_last_gamma'"),
        ("cifar_seresnet110_tf", {"drop_path_rate": 0.1}, "no stochastic depth"),
        ("resnet18", {"drop_rate": 1.0}, "drop_rate must be"),
        ("resnet18", {"image_size": "224"}, "image_size is"),
        ("resnet18", {"num_classes": -1}, "num_classes must be"),
        ("resnet18", {"out_indices": (0,)}, "needs features_only"),
        ("resnet18", {"features_only": True, "out_indices": (5,)}, "from 0 to 4"),
        ("geresnet18_theta", {"reduction": 8}, "has no bottleneck"),
    ],
)
def test_mistakes(name, args, message):
    with pytest.raises(ExciteError, match=message), torch.device("meta"):
        create_model(name, **args)


def test_options_are_listed():
    assert model_options("resnet18") == [
        "act_layer",
        "block_conv",
        "bn_eps",
        "bn_momentum",
        "conv_padding",
        "down_kernel",
        "init",
        "max_pool",
        "output_stride",
        "stem",
        "zero_init_last_gamma",
    ]
    assert "stride_on" in model_options("seresnet50")
    assert {"reduction", "rd_divisor", "gate_bias", "gate_position"} <= set(model_options("seresnet50"))
    assert {"variant", "extent"} <= set(model_options("resnet50", gate="ge"))


def test_state_dict_names_are_torchvisions():
    with torch.device("meta"):
        names = set(create_model("seresnet50").state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer4.2.bn3.bias", "fc.weight"} <= names
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.weight", "layer1.0.gate.fc1.weight"} <= names
    plain = {name for name in names if ".gate." not in name}
    with torch.device("meta"):
        assert plain == set(create_model("resnet50").state_dict())


@pytest.mark.parametrize("name", TINY)
def test_head_and_features(name):
    model = create_model(name, num_classes=5, image_size=32, drop_rate=0.5)
    x = images(model)
    last = model.eval().forward_features(x)
    assert last.shape[1] == model.num_features
    torch.testing.assert_close(model.forward_head(last), model(x))
    assert model.forward_head(last, pre_logits=True).shape == (2, model.num_features)
    torch.testing.assert_close(model.get_classifier()(model.forward_head(last, pre_logits=True)), model(x))

    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.num_classes == model.model_args["num_classes"] == 3
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), model.forward_head(last, pre_logits=True))
    assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize(
    ("name", "strides"),
    [("seresnet18", [2, 4, 8, 16, 32]), ("cifar_sepreresnet110", [1, 1, 2, 4]), ("cifar_seresnet110_tf", [1, 1, 2, 4])],
)
def test_feature_pyramid(name, strides):
    size = 16 * strides[0]
    model = create_model(name, features_only=True, image_size=size)
    x = images(model, 1)
    maps = model.eval()(x)
    assert [info["reduction"] for info in model.feature_info] == strides
    for info, map_ in zip(model.feature_info, maps, strict=True):
        assert map_.shape == (1, info["num_chs"], size // info["reduction"], size // info["reduction"])
        model.get_submodule(info["module"])
    two = create_model(name, features_only=True, image_size=size, out_indices=(3, 1))
    two.load_state_dict(model.state_dict())
    for picked, i in zip(two.eval()(x), (3, 1), strict=True):
        torch.testing.assert_close(picked, maps[i])
    whole = create_model(name, image_size=size)
    whole.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(whole.eval().forward_features(x), maps[-1])


def test_feature_maps_are_not_overwritten_by_later_layers():
    model = create_model("seresnet18", features_only=True, image_size=32).eval()
    seen = {}
    for name in ("layer1", "layer2", "layer3"):
        model.get_submodule(name).register_forward_hook(lambda *args, name=name: seen.update({name: args[2].clone()}))
    maps = model(images(model))
    for name, map_ in zip(seen, maps[1:], strict=False):
        torch.testing.assert_close(map_, seen[name], atol=0, rtol=0)


@pytest.mark.parametrize("name", TINY)
def test_channels_last_and_deepcopy_give_the_same(name):
    model = create_model(name, image_size=32).eval()
    x = images(model)
    expected = logits(model, x)
    torch.testing.assert_close(logits(copy.deepcopy(model), x), expected)
    last = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        logits(last, x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("size", [32, 40, 65, (33, 70)])
@pytest.mark.parametrize("options", [{}, {"max_pool": "ceil", "stride_on": "conv1"}, {"stem": "conv3x3x3"}], ids=str)
def test_gates_are_built_for_the_maps_they_meet(size, options):
    with torch.device("meta"):
        model = create_model("geresnext26_32x4d_theta", image_size=size, **options).eval()
        model(torch.empty(1, *model.input_size))  # a wrong size would raise


@pytest.mark.parametrize("position", ["pre", "post", "identity"])
@pytest.mark.parametrize("name", ["geresnet50_theta", "cifar_gepreresnet110_theta", "cifar_geresnet20_theta"])
def test_gates_at_other_positions_meet_the_right_maps(position, name):
    with torch.device("meta"):
        model = create_model(name, image_size=40, gate_position=position).eval()
        model(torch.empty(1, *model.input_size))


def test_resize_gates():
    model = create_model("geresnet18_theta_plus", num_classes=4, image_size=64, in_chans=1).train()
    model.bn1.eval()
    statistics = model.layer1[0].bn1.running_mean.clone()
    small, large = torch.randn(2, 1, 64, 64), torch.randn(2, 1, 96, 80)
    with pytest.raises(ExciteError, match="resize_gates"):
        model(large)
    assert resize_gates(model, (96, 80)) is model
    assert model(large).shape == (2, 4)
    assert model.input_size == (1, 96, 80)
    assert model.training
    assert not model.bn1.training
    assert "scale" not in vars(model.layer1[0].gate)
    model.layer1[0].bn1.running_mean.copy_(statistics)
    again = create_model(model.model_name, **model.model_args)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(again, large), logits(model, large))
    with pytest.raises(ExciteError, match="resize_gates"):
        model(small)


def test_resize_gates_leaves_other_gates_alone():
    model = create_model("cifar_seresnet20")
    before = copy.deepcopy(model.state_dict())
    resize_gates(model, 64)
    assert model.model_args["image_size"] == 64
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_options_reach_the_layers():
    with torch.device("meta"):
        model = create_model(
            "seresnet50", bn_eps=1e-3, bn_momentum=0.05, stride_on="conv1", max_pool="ceil", in_chans=4
        )
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.05)}
    assert model.layer2[0].conv1.stride == (2, 2)
    assert model.layer2[0].conv2.stride == (1, 1)
    assert model.maxpool.ceil_mode
    assert model.maxpool.padding == 0
    assert model.conv1.in_channels == 4
    assert create_model("geresnet18_theta", image_size=32, bn_eps=1e-4).layer1[0].gate.gather[1].eps == 1e-4


def test_zero_last_gamma_makes_blocks_their_shortcuts():
    model = create_model("seresnet18", image_size=32, zero_init_last_gamma=True).eval()
    x = torch.rand(2, 64, 8, 8)
    torch.testing.assert_close(model.layer1(x), x)


def test_initialisation():
    torch.manual_seed(0)
    model = create_model("cifar_seresnet20")
    weight = model.layer3[2].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", ["senet154", "cifar_seresnet110_tf", "cifar_seresnet20"])
def test_any_model_goes_without_its_gate(name):
    with torch.device("meta"):
        gated, plain = create_model(name), create_model(name, gate="none")
        again = create_model(plain.model_name, **json.loads(json.dumps(plain.model_args)))
        out = plain.eval()(torch.empty(2, *plain.input_size))
    assert not any(isinstance(m, Gate) for m in plain.modules())
    assert list(plain.state_dict()) == [key for key in gated.state_dict() if "gate." not in key]
    assert list(again.state_dict()) == list(plain.state_dict())
    assert out.shape == (2, plain.num_classes)
    assert "gate_position" not in model_options(name, "none")
    with pytest.raises(ExciteError, match="no option 'reduction'"):
        create_model(name, gate="none", reduction=8)


def test_efficientnet_lite_has_its_gates_where_they_are_said_to_be():
    wide = create_model("se_efficientnet_lite0", num_classes=3)
    narrow = create_model("se_efficientnet_lite0", num_classes=3, gate_position="standard")
    assert wide.layer2[0].gate.fc1.in_features == 6 * 16
    assert narrow.layer2[0].gate.fc1.in_features == 24
    with pytest.raises(ExciteError, match="gate_position must be one of expanded, standard"):
        create_model("se_efficientnet_lite0", gate_position="pre")


def test_an_inverted_residual_without_a_shortcut_is_never_dropped():
    """Stochastic depth of a branch that nothing goes around would leave an image without any map."""
    model = create_model("efficientnet_lite0", drop_path_rate=0.9)
    rates = [block.drop_path for stage in model.stages() for block in stage if block.has_shortcut]
    assert max(rates) > 0
    assert all(block.drop_path == 0 for stage in model.stages() for block in stage if not block.has_shortcut)
