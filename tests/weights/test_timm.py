"""Our models in timm, and timm's in our trainer. timm itself comes from .peers; these tests skip where it is absent."""

import copy
import inspect
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import excite
from excite.data import open_data
from excite.errors import ExciteError, install_line
from excite.models import create_model, describe
from excite.models.catalog import VARIANTS
from excite.models.timm_models import check_plain_norms, create_timm_model
from excite.training.optimizer import layer_depths
from excite.training.setup import make_model
from excite.weights.read import read_weights
from tests.training.small import metrics, same, small, tensors

SIZE = 32
#: One of each body, and of the gates that are bound to one size.
BODIES = ("seresnet18", "geresnet18_theta", "cifar_geresnet20_theta_plus", "cifar_preresnet110", "cifar_seresnet110_tf")


@pytest.fixture(scope="module")
def registered(timm):
    import excite.timm  # noqa: F401 - registers

    return timm


# --- our models in timm -----------------------------------------------------------------------------------------------


def test_every_model_is_registered(registered):
    listed = registered.list_models("*.excite", include_tags=True)
    assert sorted(listed) == sorted(f"{name}.excite" for name in VARIANTS)
    assert "geresnet50_theta_plus" in registered.list_models("*geresnet50*")


def test_timm_keeps_its_own(registered):
    """A name that timm has stays timm's, with its tags, weights and place; ours is one tag more."""
    shared = [name for name in VARIANTS if registered.get_pretrained_cfg(name).tag != "excite"]
    assert {"resnet50", "seresnet18", "seresnet50"} <= set(shared)
    assert len(shared) < len(VARIANTS) / 3
    for name in ("seresnet18", "resnet18"):
        theirs = registered.create_model(name)
        assert type(theirs).__module__ == "timm.models.resnet"
        assert name in registered.list_models(module="resnet")
        assert type(registered.create_model(f"{name}.excite")).__module__ == "excite.timm"
    assert registered.get_pretrained_cfg("seresnet50").has_weights
    assert f"seresnet50.{registered.get_pretrained_cfg('seresnet50').tag}" in registered.list_models(pretrained=True)
    assert "seresnet50.excite" not in registered.list_models(pretrained=True)


def test_registering_twice_changes_nothing(registered):
    before = registered.list_models(include_tags=True)
    ours = sys.modules["excite.timm"]
    for name in ("seresnet18", "cifar_resnet20"):
        ours._register(name)
    assert registered.list_models(include_tags=True) == before
    assert type(registered.create_model("seresnet18")).__module__ == "timm.models.resnet"


@pytest.mark.parametrize("name", BODIES)
def test_same_network(name, registered):
    """The same parameters under the same names, and so the same logits, through timm's interface, too."""
    ours = create_model(name, num_classes=7, image_size=SIZE).eval()
    theirs = registered.create_model(f"{name}.excite", num_classes=7, img_size=SIZE).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = ours(x)
        assert torch.equal(theirs(x), expected)
        features = theirs.forward_features(x)
        assert torch.equal(theirs.forward_head(features), expected)
        pooled = theirs.forward_head(features, pre_logits=True)
        assert torch.equal(theirs.get_classifier()(pooled), expected)
        torch.testing.assert_close(theirs.global_pool(features), pooled)
        last, maps = theirs.forward_intermediates(x)
        assert torch.equal(last, features)
        assert all(torch.equal(a, b) for a, b in zip(maps, ours.forward_intermediates(x), strict=True))
    assert pooled.shape == (2, theirs.num_features) == (2, theirs.head_hidden_size)
    assert theirs.num_classes == 7
    assert dict(theirs.named_modules())[theirs.get_classifier(name_only=True)] is theirs.get_classifier()
    again = copy.deepcopy(theirs)
    with torch.no_grad():
        assert torch.equal(again(x), expected)


@pytest.mark.parametrize("name", BODIES)
def test_configuration(name, registered):
    about = registered.get_pretrained_cfg(f"{name}.excite").to_dict()
    model = create_model(name)
    assert about["input_size"] == model.input_size
    assert about["num_classes"] == model.num_classes
    bound = any(getattr(module, "feature_size", None) is not None for module in model.modules())
    assert about["fixed_input_size"] is bound
    modules = dict(model.named_modules())
    assert modules[about["classifier"]] is model.fc
    assert modules[about["first_conv"]].in_channels == 3
    data = registered.data.resolve_model_data_config(registered.create_model(f"{name}.excite"))
    assert data["input_size"] == model.input_size
    assert (data["mean"] == (0.485, 0.456, 0.406)) is (model.image_size[0] == 224)


def test_senet154_first_convolution(registered):
    about = registered.get_pretrained_cfg("senet154.excite").to_dict()
    with torch.device("meta"):
        modules = dict(create_model("senet154").named_modules())
    assert modules[about["first_conv"]].in_channels == 3


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_pooling(pool, registered):
    model = registered.create_model("cifar_resnet20.excite", global_pool=pool, num_classes=3, in_chans=1).eval()
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        features = model.forward_features(x)
        average, largest = features.mean((2, 3)), features.amax((2, 3))
        expected = {
            "avg": average,
            "max": largest,
            "avgmax": (average + largest) / 2,
            "catavgmax": torch.cat([average, largest], 1),
        }[pool]
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected)
        torch.testing.assert_close(model(x), model.fc(expected))
    assert model.head_hidden_size == expected.shape[1]


def test_reset_classifier(registered):
    model = registered.create_model("cifar_seresnet20.excite")
    x = torch.randn(2, 3, 16, 16)
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)
    model.reset_classifier(5, "catavgmax")
    assert model(x).shape == (2, 5)
    model.reset_classifier(0)
    assert model(x).shape == (2, 2 * model.num_features)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.num_features, 4, 4)
    with pytest.raises(ExciteError, match="without pooling"):
        model.reset_classifier(5)
    with pytest.raises(ExciteError, match="did you mean 'avgmax'"):
        model.reset_classifier(5, "avgmx")
    assert registered.create_model("cifar_resnet20.excite", num_classes=0, global_pool="")(x).ndim == 4


def test_arguments_arrive(registered):
    model = registered.create_model(
        "cifar_seresnet20.excite", drop_rate=0.3, drop_path_rate=0.2, in_chans=2, rd_divisor=8, bn_eps=1e-3
    )
    assert model.drop_rate == 0.3
    assert model.model_args["drop_path_rate"] == 0.2
    assert model.conv1.in_channels == 2
    assert model.bn1.eps == 1e-3
    assert model.layer1[0].gate.fc1.weight.shape[0] == 8
    with pytest.raises(ExciteError, match="has no option 'reductio'; did you mean 'reduction'"):
        registered.create_model("cifar_seresnet20.excite", reductio=8)
    with pytest.raises(RuntimeError):
        registered.create_model("cifar_seresnet20.excite", pretrained=True)


@pytest.mark.parametrize(
    "given",
    [
        {"output_stride": 8},
        {"output_stride": 16, "act_layer": "gelu"},
        {"act_layer": torch.nn.SiLU},
        {"act_layer": "swish"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_arguments_of_timms_resnet(name, given, registered):
    """The same weights give the same maps and logits as timm's ResNet with the same arguments."""
    torch.manual_seed(0)
    theirs = registered.create_model(name, num_classes=5, **given).eval()
    ours = registered.create_model(f"{name}.excite", num_classes=5, **given).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (last, maps), (expected, their_maps) = ours.forward_intermediates(x), theirs.forward_intermediates(x)
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert [m.shape for m in maps] == [m.shape for m in their_maps]
    assert [i["reduction"] for i in ours.feature_info] == [i["reduction"] for i in theirs.feature_info]
    assert [i["module"] for i in ours.feature_info] == [i["module"] for i in theirs.feature_info]
    again = create_model(name, **json.loads(json.dumps(ours.model_args))).eval()
    again.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), ours(x))


def test_device_type_and_start(registered):
    model = registered.create_model("resnet18.excite", device="meta", dtype=torch.bfloat16, global_pool="catavgmax")
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    model = registered.create_model("cifar_seresnet20.excite", dtype=torch.float64, zero_init_last=True)
    assert model(torch.randn(2, 3, 16, 16).double()).dtype is torch.float64
    assert model.layer1[0].bn2.weight.abs().max() == 0
    assert registered.create_model("cifar_resnet20.excite", zero_init_last=False).layer1[0].bn2.weight.min() == 1
    model = registered.create_model("senet154.excite", device="meta", down_kernel_size=3, output_stride=8)
    assert model.layer4[0].downsample[0].weight.shape[2:] == (3, 3)
    assert model.feature_info[-1]["reduction"] == 8


def test_every_argument_of_timms_resnet_is_known(registered):
    """None is swallowed: each is taken or refused in a sentence that names it."""
    from timm.models.resnet import ResNet

    ours = sys.modules["excite.timm"]
    taken = {"num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate", "device", "dtype"}
    theirs = set(inspect.signature(ResNet.__init__).parameters) - {"self"}
    assert theirs == taken | set(ours._RENAMED) | set(ours._WITHOUT) | set(ours._SETTLED)
    odd = {"aa_layer": torch.nn.AvgPool2d, "norm_layer": "groupnorm", "block_args": {"attn_layer": "se"}}
    for name in ("resnet18", "cifar_preresnet110", "cifar_seresnet110_tf"):
        for argument in theirs - taken:
            can = name == "resnet18" and argument in ("act_layer", "output_stride", *ours._RENAMED)
            if not (can or (name == "cifar_preresnet110" and argument == "act_layer")):
                with pytest.raises(ExciteError, match=rf"^{name} (takes no|does not support) {argument}\b") as caught:
                    registered.create_model(f"{name}.excite", **{argument: odd.get(argument, 64)})
                assert "\n" not in str(caught.value)
    fine = {"aa_layer": "", "avg_down": False, "drop_block_rate": 0.0, "norm_layer": "batchnorm", "act_layer": "relu"}
    assert registered.create_model("cifar_resnet20.excite", replace_stem_pool=False, block_args={}, **fine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 4}, "output_stride must be 32, 16 or 8, not 4"),
        ({"output_stride": 8, "block_conv": "sk"}, "selective kernels have their own dilations; leave it out"),
        ({"act_layer": "sillu"}, "act_layer must be one of relu, .*did you mean 'silu'"),
        ({"act_layer": torch.nn.Linear}, "act_layer=Linear is not supported: give one of relu"),
        ({"dtype": "float32"}, "dtype must be a floating-point type of torch"),
        ({"dtype": torch.int8}, "dtype must be a floating-point type of torch"),
    ],
)
def test_wrong_arguments(options, message, registered):
    with pytest.raises(ExciteError, match=message) as caught:
        registered.create_model("resnet18.excite", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_lite0", "cifar_sefastnet7", "cifar_resnet20", "cifar_wrn16_8"]
)
def test_networks_of_every_family_are_what_they_are_here(name, registered):
    size = VARIANTS[name]["defaults"].get("image_size", 64)
    torch.manual_seed(0)
    theirs = registered.create_model(f"{name}.excite").eval()
    torch.manual_seed(0)
    ours, x = create_model(name).eval(), torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.allclose(theirs(x), ours(x), atol=1e-5)
        assert theirs.forward_head(theirs.forward_features(x), pre_logits=True).shape == (2, theirs.num_features)


def test_pool_size(registered):
    for name in (
        *BODIES,
        "efficientnet_lite0",
        "cifar_fastnet7",
        "cifar_fastnet10",
        "resnext26_32x4d",
        "senet154",
        "cifar_wrn16_8",
    ):
        about = registered.get_pretrained_cfg(f"{name}.excite").to_dict()
        model = registered.create_model(f"{name}.excite", device="meta").eval()
        size = model.forward_features(torch.zeros(1, *about["input_size"], device="meta")).shape[2:]
        assert tuple(size) == about["pool_size"], name


@pytest.mark.parametrize(
    "name",
    [
        *("seresnet18", "cifar_geresnet20_theta_plus", "cifar_wrn16_8", "cifar_seresnet110_tf"),
        *("efficientnet_lite0", "cifar_fastnet7"),
    ],
)
def test_feature_classes(name, registered):
    """All of timm's ways to take features out of a network give the same maps."""
    arguments = {"features_only": True, "img_size": SIZE, **({"depth": 11} if name.endswith("_tf") else {})}
    getter = registered.create_model(f"{name}.excite", **arguments, feature_cls="getter").eval()
    state = {k.removeprefix("model."): v for k, v in getter.state_dict().items()}
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = getter(x)
    for kind in ("hook", "list", "dict", "fx"):
        other = registered.create_model(f"{name}.excite", **arguments, feature_cls=kind).eval()
        body = {"hook": lambda net: net.body, "fx": lambda net: net.graph_module}.get(kind, lambda net: net)(other)
        assert not body.load_state_dict({k: v for k, v in state.items() if k in body.state_dict()}, strict=True)[0]
        with torch.no_grad():
            maps = other(x)
        maps = list(maps.values()) if isinstance(maps, dict) else maps
        assert len(maps) == len(expected)
        for mine, true in zip(maps, expected, strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-4)


def test_pooling_module_is_heard(registered):
    model = registered.create_model("cifar_seresnet20.excite").eval()
    x = torch.randn(2, 3, 16, 16)
    expected, heard = model(x), []
    for module in model.global_pool.modules():
        module.register_forward_hook(lambda *_: heard.append(1))
    torch.testing.assert_close(model(x), expected)
    assert len(heard) == 3


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1, 3), (-2,), (2, 0)])
@pytest.mark.parametrize("name", ["cifar_seresnet20", "cifar_preresnet110"])
def test_features(name, indices, registered):
    model = registered.create_model(f"{name}.excite", features_only=True, out_indices=indices).eval()
    whole = registered.create_model(f"{name}.excite").eval()
    missing = whole.load_state_dict({k.removeprefix("model."): v for k, v in model.state_dict().items()}, strict=False)
    assert not missing.unexpected_keys
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        maps, expected = model(x), whole.forward_intermediates(x, indices, intermediates_only=True)
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [16 // m.shape[2] for m in maps] == model.feature_info.reduction()
    assert len(maps) == len(indices)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    maps = model.train()(x)
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters()), "parameters that no map needs"


def test_feature_indices_out_of_range(registered):
    model = registered.create_model("cifar_resnet20.excite")
    with pytest.raises(ExciteError, match="there are 4 maps"):
        model.forward_intermediates(torch.randn(1, 3, 8, 8), [4])
    last, maps = model.forward_intermediates(torch.randn(1, 3, 8, 8), 2, stop_early=True)
    assert len(maps) == 2
    assert maps[-1] is last


def test_training_as_timm_does(registered, tmp_path):
    """The calls of timm's train script: optimiser by layer, schedule, average, saver; and its checkpoint read back."""
    from timm import optim, scheduler, utils

    torch.manual_seed(0)
    model = registered.create_model("cifar_geresnet20_theta_minus.excite", num_classes=2, drop_path_rate=0.1)
    model.set_grad_checkpointing(True)
    optimizer = optim.create_optimizer_v2(model, opt="sgd", lr=0.05, weight_decay=1e-4, layer_decay=0.9)
    names = {parameter: name for name, parameter in model.named_parameters()}
    scales = {names[p]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    # A gate without parameters: stem, nine blocks, head.
    assert len(set(scales.values())) == 11
    assert scales["conv1.weight"] < scales["layer1.0.conv1.weight"] < scales["layer3.2.conv2.weight"]
    assert scales["fc.weight"] == max(scales.values())
    plan, epochs = scheduler.create_scheduler_v2(optimizer, sched="cosine", num_epochs=4, warmup_epochs=1)
    average = utils.ModelEmaV3(model, decay=0.5)
    x, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 2
    x += labels.view(-1, 1, 1, 1)
    losses = []
    for epoch in range(epochs):
        plan.step(epoch)
        for _ in range(3):
            loss = torch.nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(model)
            losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    saver = utils.CheckpointSaver(model, optimizer, checkpoint_dir=str(tmp_path), model_ema=average)
    saver.save_checkpoint(0, metric=1.0)
    again = registered.create_model(
        "cifar_geresnet20_theta_minus.excite", num_classes=2, checkpoint_path=tmp_path / "last.pth.tar"
    )
    state = average.module.state_dict()  # timm prefers the average, and so do we
    assert same(dict(again.state_dict()), dict(state))
    stored = read_weights(tmp_path / "last.pth.tar")
    assert stored.metadata["part"] == "state_dict_ema"
    assert same(stored.tensors, dict(state))


# --- timm's models in our trainer -------------------------------------------------------------------------------------

NAME = "timm:test_resnet"
SHORT = ("data.image_size=32", "data.limit_train=64", "data.limit_val=50", "checkpoint.every_steps=null")


def test_a_run(timm, tmp_path):
    """Trained, evaluated, used and gone on with, like one of ours."""
    recipe = small(f"model.name={NAME}", *SHORT, "train.epochs=2", "model.options={act_layer: gelu}")
    results = excite.train(recipe, run_dir=tmp_path / "whole", quiet=True)
    run = Path(results["run"])
    assert results["model"] == NAME
    original = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    assert results["params_m"] == sum(p.numel() for p in original.parameters()) / 1e6
    assert results["gmacs"] > 0
    predictor, evaluation = excite.validate(run, fold=None)
    assert evaluation.top1 == pytest.approx(metrics(run, "eval")[-1 if results["best_epoch"] == 2 else 0]["top1"])
    assert type(predictor.model) is type(original)
    assert type(predictor.model.act1).__name__ == "GELU"
    assert predictor.logits(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).shape == (2, 10)
    part = tmp_path / "part"
    shutil.copytree(run, part)
    shutil.rmtree(max((part / "checkpoints").iterdir()))
    (part / "results.json").unlink()
    resumed = excite.train(resume=part, quiet=True)
    assert len(metrics(resumed["run"], "eval")) == 2
    assert same(tensors(run), tensors(part))


def test_starting_weights(timm, tmp_path):
    """From timm's own checkpoint, wrapped as scripts do, with another number of classes, into a run; and from that."""
    torch.manual_seed(1)
    pretrained = timm.create_model("test_resnet", in_chans=1)
    state = {f"module.{name}": tensor for name, tensor in pretrained.state_dict().items()}
    torch.save({"epoch": 7, "state_dict": state}, tmp_path / "timm.pth")
    start = [f"model.name={NAME}", *SHORT, "train.epochs=1", "train.freeze=[conv1, bn1, layer*]"]
    recipe = small(*start, f"train.init_from={tmp_path / 'timm.pth'}")
    results = excite.train(recipe, out=tmp_path, quiet=True)
    log = (Path(results["run"]) / "log.txt").read_text()
    assert "timm.pth: all but fc.weight, fc.bias (another number of classes)" in log
    trained = load_file(Path(results["run"]) / "model.safetensors")
    body = {name: tensor for name, tensor in pretrained.state_dict().items() if not name.startswith("fc.")}
    assert same({name: trained[name] for name in body}, body)
    set_up = make_model(small(*start, f"train.init_from={results['run']}"), open_small())
    assert "all tensors" in set_up[1][0]
    assert same(dict(set_up[0].state_dict()), trained)
    other = small(*start[1:], "model.name=timm:test_efficientnet", f"train.init_from={results['run']}")
    with pytest.raises(ExciteError, match="does not fit"):
        make_model(other, open_small())


def open_small():
    recipe = small(*SHORT)
    return open_data(recipe.data, recipe.augment)


def test_described_and_built_again(timm):
    model = create_model("timm:test_vit", num_classes=5, image_size=80, drop_path_rate=0.1)
    again = create_model(model.model_name, **json.loads(json.dumps(model.model_args)))
    assert again.load_state_dict(model.state_dict()).missing_keys == []
    assert model.input_size == (3, 80, 80)
    assert model(torch.randn(1, 3, 80, 80)).shape == (1, 5)
    about = describe(model.model_name, **model.model_args)
    assert about["params"] == sum(p.numel() for p in model.parameters())
    assert about["gate"] is None
    maps = create_model(NAME, features_only=True, out_indices=[1, 2])(torch.randn(1, 3, 64, 64))
    assert len(maps) == 2


def test_layer_depths(timm):
    depths = layer_depths(create_model("timm:test_vit"))
    assert depths["patch_embed.proj.weight"] == min(depths.values())
    assert depths["blocks.0.attn.qkv.weight"] < depths["blocks.3.attn.qkv.weight"] < depths["head.weight"]
    recipe = small(f"model.name={NAME}", "optimizer.layer_decay=0.5")
    assert recipe.optimizer.layer_decay == 0.5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("test_resnt", {}, "timm has no model 'test_resnt'; did you mean 'test_resnet'"),
        (
            "test_resnet",
            {"act_leyer": 1},
            "timm cannot create 'test_resnet' with these options: .*unexpected keyword argument 'act_leyer'",
        ),
        ("test_resnet", {"gate_at": ["layer1"]}, "gate_at is given for timm:test_resnet, but no gate"),
        (
            "test_resnet",
            {"gate": "se", "features_only": True},
            "with features_only takes no gate=: add gates with excite.graft",
        ),
        ("test_resnet", {"fused": "on"}, "fused='on' does not apply to; use fused='auto'"),
    ],
)
def test_wrong_requests(name, options, message, timm):
    with pytest.raises(ExciteError, match=message) as caught:
        create_model(f"timm:{name}", **options)
    assert "\n" not in str(caught.value)


def test_wrong_name_leaves_no_folder(timm, tmp_path):
    with pytest.raises(ExciteError, match="did you mean"):
        excite.train(small("model.name=timm:test_resnt"), out=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists()


def test_norms_with_activations_are_not_synchronised(timm):
    check_plain_norms(create_model(NAME))
    with pytest.raises(ExciteError, match="norms of type BatchNormAct2d"):
        check_plain_norms(create_timm_model("test_efficientnet"))


def test_without_timm(monkeypatch, tmp_path):
    monkeypatch.delenv("EXCITE_PEERS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExciteError, match=re.escape(f"timm is not installed: {install_line('timm')}")):
        excite.train(small("model.name=timm:resnet50"), out=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists()
