"""Every source's names, order and settings: the converted network computes what the source's does."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from excite.data.preprocessing import Preprocessing
from excite.errors import ExciteError
from excite.models import create_model, fold
from excite.models.catalog import VARIANTS, list_models
from excite.ops.same_padding import SameConv2d
from excite.weights.convert import convert, load_weights
from excite.weights.layouts import CADENE, CADENE_SENET154, LAYOUTS, TIMM, TIMM_EFFICIENTNET_LITE, TORCHVISION, Source
from excite.weights.layouts.caffe import CAFFE
from excite.weights.layouts.genet import EPS, GENET, STEM_EPS
from excite.weights.layouts.huggingface import HUGGING_FACE
from excite.weights.layouts.mindspore import MINDCV, MINDCV_SENET154
from excite.weights.layouts.mmpretrain import MMPRETRAIN
from excite.weights.layouts.senet_pytorch import SENET_PYTORCH
from excite.weights.meta import describe
from excite.weights.read import read_weights
from excite.weights.recognise import dissect, find_layout, model_name, model_options, unwrapped
from excite.weights.verify import relative_error
from excite.weights.write import ARCHITECTURES, export_state_dict

from . import caffe_net, genet, writers
from .nets import images, logits, make, randomise

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(os.environ.get("EXCITE_FIXTURES", ROOT.parent / "shared" / "fixtures"))
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"no reference checkpoints at {FIXTURES} (set EXCITE_FIXTURES)"
)
TOLERANCE = 1e-4

# --- names ------------------------------------------------------------------------------------------------------------

SE = [name for name, v in VARIANTS.items() if v["family"] == "resnet" and v["gate"] == {"name": "se"}]
UNGATED = [name for name, v in VARIANTS.items() if v["family"] == "resnet" and v["gate"] is None and "sk" not in name]


def stored(layout, name, **options):
    """A checkpoint of one of our networks under a layout's names, without memory for its numbers."""
    with torch.device("meta"):
        tensors = create_model(name, **options).state_dict()
    counted = any(leaf.ours == "num_batches_tracked" for leaf in layout.leaves["norm"])
    return layout.write({n: t for n, t in tensors.items() if counted or not n.endswith("num_batches_tracked")})


def recognised(tensors):
    source = Source(tensors, {})
    layout = find_layout(source, "it")
    ours, _, unknown = layout.read(source)
    anatomy = dissect(ours, "it")
    name = model_name(anatomy, "it")
    return layout, name, model_options(name, anatomy, layout.options(anatomy, source)), ours, unknown


def check_recognised(layout, name, **options):
    found, called, given, ours, unknown = recognised(stored(layout, name, **options))
    assert (found, called, unknown) == (layout, name, [])
    with torch.device("meta"):
        again = create_model(called, **given)
    shapes = {n: t.shape for n, t in again.state_dict().items() if n in ours or not n.endswith("tracked")}
    assert shapes == {n: t.shape for n, t in ours.items()}
    return given


@pytest.mark.parametrize("name", SE)
def test_every_network_with_se_is_recognised_under_every_name(name):
    if name == "senet154":
        assert check_recognised(CADENE_SENET154, name) == {"num_classes": 1000}
        assert check_recognised(MINDCV_SENET154, name, rd_divisor=8, num_classes=7)["num_classes"] == 7
        return
    rounded = {"rd_divisor": 8} if "18" in name or "34" in name else {}
    assert check_recognised(TIMM, name, rd_divisor=8) == {"num_classes": 1000, **rounded}
    if "101" in name or "152" in name:  # no more to learn, and slow to build
        return
    assert check_recognised(SENET_PYTORCH, name, gate_bias=False) == {"num_classes": 1000, "gate_bias": False}
    assert check_recognised(MMPRETRAIN, name, rd_divisor=8, in_chans=1)["in_chans"] == 1
    if not rounded:
        conv1 = {} if "seresnext" in name else {"stride_on": "conv1"}
        assert check_recognised(CADENE, name) == {"num_classes": 1000, "max_pool": "ceil", **conv1}


@pytest.mark.parametrize("name", UNGATED)
def test_every_network_without_gates_is_recognised(name):
    assert check_recognised(TORCHVISION, name) == {"num_classes": 1000}
    if "101" in name or "152" in name:
        return
    assert check_recognised(HUGGING_FACE, name, num_classes=3) == {"num_classes": 3}


@pytest.mark.parametrize(
    "name", [n for n, v in VARIANTS.items() if v["family"] == "cifar_resnet" and v["gate"] is None]
)
@pytest.mark.parametrize("shortcut", ["pad", "conv"])
def test_cifar_networks_with_both_kinds_of_shortcut(name, shortcut):
    wanted = {"num_classes": 10} | ({"shortcut": "conv"} if shortcut == "conv" else {})
    assert check_recognised(TORCHVISION, name, shortcut=shortcut) == wanted


@pytest.mark.parametrize(("reduction", "divisor"), [(16, None), (16, 8), (8, None), (32, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_rule_of_the_squeeze_is_read_off_the_widths(reduction, divisor, bias):
    options = {"reduction": reduction, "rd_divisor": divisor, "gate_bias": bias}
    given = check_recognised(TIMM, "seresnet18", **options)
    assert {"reduction": 16, "rd_divisor": None, "gate_bias": True, **given} == {**options, "num_classes": 1000}


@needs_fixtures
def test_the_names_of_a_mindcv_checkpoint():
    names = json.loads((FIXTURES / "mindspore" / "seresnet18.names.json").read_text())
    tensors = {name: torch.empty(shape, device="meta") for name, shape in _name_shapes(names)}
    layout, name, options, ours, unknown = recognised(tensors)
    assert (layout, name, unknown) == (MINDCV, "seresnet18", [])
    assert options == {"num_classes": 10, "rd_divisor": 8, "max_pool": "ceil"}
    with torch.device("meta"):
        own = create_model(name, **options).state_dict()
    assert {n for n in own if not n.endswith("num_batches_tracked")} == set(ours)


def _name_shapes(names):
    for entry in names.items() if isinstance(names, dict) else names:
        name, shape = entry if not isinstance(entry, dict) else (entry["name"], entry["shape"])
        yield name, shape


def test_no_two_layouts_have_one_key():
    keys = [layout.key for layout in LAYOUTS]
    assert len(set(keys)) == len(keys)
    assert all(layout.source and layout.title and layout.signature for layout in LAYOUTS)


def test_optimiser_state_and_prefixes_are_taken_off(tiny, tmp_path):
    model = make("tiny_seresnet", num_classes=4)
    state = {f"module._orig_mod.{n}": t for n, t in model.state_dict().items()}
    torch.save({"epoch": 3, "best_acc1": 1.0, "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "x.pth.tar")
    converted, loaded = convert(_timm_names(tmp_path / "x.pth.tar"))
    assert loaded.foreign.layout is TIMM
    assert torch.equal(logits(converted, images()), logits(model, images()))


def _timm_names(path):
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {n.replace(".gate.", ".se."): t for n, t in content["state_dict"].items()}
    torch.save(content, path)
    return path


# --- the same numbers: sources whose names are stated here once more, by hand -----------------------------------------


def moskomule(name, tensor):
    return re.sub(r"gate\.fc(\d)", lambda m: f"se.fc.{2 * int(m[1]) - 2}", name), tensor


def mmpretrain(name, tensor):
    if ".gate." in name and tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    name = re.sub(r"gate\.fc(\d)", r"se_layer.conv\1.conv", name)
    return f"head.{name}" if name.startswith("fc.") else f"backbone.{name}", tensor


def transformers(name, tensor):
    name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
    name = re.sub(r"^fc\.", "classifier.1.", name)
    parts = {"conv": "convolution", "bn": "normalization"}
    name = re.sub(r"\.(conv|bn)(\d)\.", lambda m: f".layer.{int(m[2]) - 1}.{parts[m[1]]}.", name)
    name = name.replace("downsample.0", "shortcut.convolution").replace("downsample.1", "shortcut.normalization")
    return re.sub(r"^layer(\d)\.", lambda m: f"resnet.encoder.stages.{int(m[1]) - 1}.layers.", name), tensor


def mindcv(name, tensor):
    norms = {"running_mean": "moving_mean", "running_var": "moving_variance", "weight": "gamma", "bias": "beta"}
    module, _, leaf = name.rpartition(".")
    if re.search(r"bn\d$|downsample\.1$", module):
        if leaf not in norms:
            return None, tensor
        name = f"{module}.{norms[leaf]}"
    for ours, theirs in (("conv1.", "layer0.0."), ("bn1.", "layer0.1."), ("fc.", "classifier.")):
        name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
    return name.replace("gate.fc1", "se_module.conv_reduce").replace("gate.fc2", "se_module.conv_expand"), tensor


def cadene(name, tensor):
    for ours, theirs in (("conv1.", "layer0.conv1."), ("bn1.", "layer0.bn1."), ("fc.", "last_linear.")):
        name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
    if ".gate." in name and tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    return name.replace(".gate.", ".se_module."), tensor


HAND_MADE = [
    (moskomule, "tiny_seresnet", {"gate_bias": False}, "senet.pytorch"),
    (mmpretrain, "tiny_sebasicnet", {"rd_divisor": 8}, "mmpretrain"),
    (mmpretrain, "tiny_resnet", {}, "mmpretrain-ungated"),
    (transformers, "tiny_resnet", {}, "transformers"),
    (transformers, "tiny_basicnet", {}, "transformers"),
    (mindcv, "tiny_seresnet", {"rd_divisor": 8, "max_pool": "ceil"}, "mindcv"),
    (cadene, "tiny_seresnet", {"max_pool": "ceil", "stride_on": "conv1"}, "cadene"),
    (cadene, "tiny_seresnext", {"max_pool": "ceil", "stride_on": "conv2"}, "cadene"),
]


@pytest.mark.parametrize(("rename", "name", "options", "key"), HAND_MADE)
def test_names_stated_by_hand(tiny, tmp_path, rename, name, options, key):
    model = make(name, num_classes=4, **options)
    named = dict(rename(n, t) for n, t in model.state_dict().items())
    named.pop(None, None)
    torch.save(named, tmp_path / "x.pth")
    converted, loaded = convert(tmp_path / "x.pth")
    assert loaded.foreign.layout.key == key
    assert (loaded.fresh, loaded.left_over) == ([], [])
    # An odd size: the two kinds of pooling and the two places of the stride differ there.
    assert torch.equal(logits(converted, images(67)), logits(model, images(67)))


# --- Caffe ------------------------------------------------------------------------------------------------------------

CAFFE_NETS = {
    "tiny_seresnet": {"width": 8},
    "tiny_seresnext": {"width": 8, "groups": 2},
    "tiny_senet154": {"width": 16, "groups": 2, "senet154": True},
}
CAFFE_FULL = {
    "seresnet50": {"width": 64},
    "seresnext50_32x4d": {"width": 128, "groups": 32},
    "senet154": {"width": 256, "groups": 64, "senet154": True, "stem": 128},
}


def check_caffe(path, name, layers):
    """Float32 within the tolerance; in float64 what is left is the rounding of the folded weights."""
    caffe_net.write(path, layers)
    model, loaded = convert(path)
    assert (loaded.foreign.layout, model.model_name) == (CAFFE, name)
    rgb = torch.randint(0, 256, (2, 3, 67, 67), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    expected = caffe_net.evaluate(layers, rgb)["classifier"]
    preprocessing = Preprocessing.from_dict(describe(model, loaded)["preprocessing"])
    assert relative_error(logits(model, preprocessing.normalize(rgb)), expected) < TOLERANCE
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    assert relative_error(logits(model.double(), (rgb.double() / 255 - mean) / std), expected) < TOLERANCE / 50


@pytest.mark.parametrize("name", CAFFE_NETS)
def test_caffe_logits(tiny, tmp_path, name):
    check_caffe(tmp_path / "x.caffemodel", name, caffe_net.build((1, 2, 1, 1), 8, stem=8, **CAFFE_NETS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", CAFFE_FULL)
def test_caffe_logits_of_the_published_nets(tmp_path, name):
    layers = (3, 8, 36, 3) if name == "senet154" else (3, 4, 6, 3)
    kwargs = {"stem": 64, **CAFFE_FULL[name]}
    check_caffe(tmp_path / "x.caffemodel", name, caffe_net.build(layers, 64, classes=1000, **kwargs))


def test_a_caffe_net_that_says_its_own_strides(tiny, tmp_path):
    """shicai's SE-ResNet has the stride on the 3x3 although it is not grouped; the file's own settings decide."""
    layers = caffe_net.build((1, 2, 1, 1), 8, width=8, stem=8)
    for layer in layers:
        if layer.name in ("conv3_1_1x1_reduce", "conv4_1_1x1_reduce", "conv5_1_1x1_reduce"):
            layer.settings["stride"] = 1
        if layer.name in ("conv3_1_3x3", "conv4_1_3x3", "conv5_1_3x3"):
            layer.settings["stride"] = 2
    check_caffe(tmp_path / "x.caffemodel", "tiny_seresnet", layers)


def test_a_batch_norm_without_its_divisor_is_refused(tiny, tmp_path):
    layers = caffe_net.build((1, 2, 1, 1), 8, width=8, stem=8)
    next(layer for layer in layers if layer.type == "BatchNorm").blobs.pop()
    caffe_net.write(tmp_path / "x.caffemodel", layers)
    with pytest.raises(ExciteError, match="'conv1/7x7_s2/bn' has 2 blobs"):
        convert(tmp_path / "x.caffemodel")


# --- timm and torchvision themselves ----------------------------------------------------------------------------------

SMALL = ("resnet18", "seresnet18", "legacy_seresnext26_32x4d")


def check_timm(timm, path, name):
    """Logits and every map of random weights, fp32."""
    torch.manual_seed(0)
    theirs = randomise(timm.create_model(name, num_classes=6))
    torch.save(theirs.state_dict(), path)
    model, loaded = convert(path)
    assert model.model_name == name.removeprefix("legacy_")
    assert (loaded.fresh, loaded.left_over) == ([], [])
    x = images(64, count=1)
    model.eval()
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, intermediates_only=True)
        for mine, their in zip(model.forward_intermediates(x), expected, strict=True):
            assert relative_error(mine, their) < TOLERANCE
        assert relative_error(model(x), theirs(x)) < TOLERANCE


@pytest.mark.parametrize("name", SMALL)
def test_timm(timm, tmp_path, name):
    check_timm(timm, tmp_path / "x.pth", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ARCHITECTURES["timm"] if n not in SMALL and "efficientnet" not in n])
def test_timm_large(timm, tmp_path, name):
    check_timm(timm, tmp_path / "x.pth", name)


def test_the_names_that_timm_and_we_have(timm):
    # Another test may have imported excite.timm, which registers our models beside timm's own.
    theirs = {name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")}
    assert set(ARCHITECTURES["timm"]) <= theirs
    own = {name for name in list_models() if VARIANTS[name]["family"] == "resnet"}
    plain = {name for name in own & theirs if name.removeprefix("se") in {*UNGATED}}
    legacy = {f"legacy_{n}" for n in own if f"legacy_{n}" in theirs} - NOT_THE_SAME
    assert plain | {"senet154"} | legacy | {"tf_efficientnet_lite0"} == set(ARCHITECTURES["timm"])


@pytest.mark.parametrize("theirs", ["tf_efficientnet_lite0", "efficientnet_lite0"])
def test_efficientnet_lite_pads_as_the_hubs_configuration_says(timm, tmp_path, theirs):
    """The two networks have the same tensors; only a name tells them apart. What is written goes back strictly."""
    torch.manual_seed(0)
    net = randomise(timm.create_model(theirs, num_classes=10))
    torch.save(net.state_dict(), tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": theirs}))
    model, loaded = convert(tmp_path / "model.pth")
    x = images(65, count=2)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(model.eval()(x), expected)
    assert not loaded.foreign.assumed
    exported = export_state_dict(model, "timm")
    assert exported.architecture == theirs
    again = timm.create_model(theirs, num_classes=10)
    again.load_state_dict(exported.tensors)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), expected)


def test_what_pads_as_nobody_knows_is_said(tmp_path):
    model = create_model("efficientnet_lite0", num_classes=10)
    names = stored(TIMM_EFFICIENTNET_LITE, "efficientnet_lite0", num_classes=10)
    torch.save({n: torch.zeros(t.shape, dtype=t.dtype) for n, t in names.items()}, tmp_path / "it.pth")
    told = load_weights(model, tmp_path / "it.pth").sentence()
    assert "so the defaults of efficientnet_lite0 are used: conv_padding=same, bn_eps=0.001" in told


#: With a ReLU between the last norm of a block and its gate; refused, see test_what_cannot_be_loaded_is_refused.
NOT_THE_SAME = {"legacy_seresnet18", "legacy_seresnet34"}


@pytest.mark.parametrize("name", sorted(NOT_THE_SAME))
def test_timms_legacy_basic_blocks_are_other_networks(timm, tmp_path, name):
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
    with pytest.raises(ExciteError, match="one more ReLU"):
        recognised(theirs)


@pytest.mark.parametrize("name", ARCHITECTURES["torchvision"])
def test_torchvision_names(timm, name):
    from torchvision import models

    with torch.device("meta"):
        theirs = getattr(models, name)().state_dict()
    layout, called, options, _, unknown = recognised(theirs)
    assert (layout, called, options, unknown) == (TORCHVISION, name, {"num_classes": 1000}, [])


def test_torchvision_logits(timm, tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    theirs = randomise(models.resnet18(num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    model, _ = convert(tmp_path / "x.pth")
    assert relative_error(logits(model, images(65)), logits(theirs, images(65))) < TOLERANCE


# --- what is refused --------------------------------------------------------------------------------------------------


def renamed(tensors, old, new):
    return {re.sub(old, new, name): tensor for name, tensor in tensors.items()}


REFUSED = [
    (lambda t: renamed(t, r"downsample\.1", "downsample.2"), "a ResNet-D"),
    (lambda t: renamed(t, r"^layer2\.1\.", "layer2.2."), "the numbering of its blocks has a gap"),
    (lambda t: renamed(t, "conv", "convolution"), "has no network with known tensor names"),
    (lambda t: {**t, "layer1.0.conv1.weight": torch.zeros(5, 8, 1, 1)}, "does not fit|has no such model"),
    (lambda t: {**t, "conv1.weight": torch.zeros(8, 3, 5, 5)}, "first convolution .* not 7x7 or 3x3"),
    (
        lambda t: {n: x for n, x in t.items() if n != "layer3.0.conv2.weight"},
        "a convolution in the first block of a stage is missing",
    ),
    (lambda t: {**t, "layer1.0.se.fc1.weight": torch.zeros(7, 32)}, "squeeze widths 32 -> 7"),
    (lambda t: {**t, "fc.weight": torch.full((4, 256), float("nan"))}, "'fc.weight' has non-finite values"),
    (lambda t: {**t, "fc.bias": torch.zeros(4, dtype=torch.int64)}, "'fc.bias' is stored as torch.int64"),
    (lambda t: {**t, "extra.weight": torch.zeros(1), "head.x": torch.zeros(1)}, r"unexpected 2: extra.weight, head.x"),
    (lambda t: {n: x for n, x in t.items() if "bn3.bias" not in n}, r"missing 5: layer1.0.bn3.bias"),
    (lambda t: {**t, "fc.weight": torch.zeros(4)}, r"its classifier has the shape \(4,\)"),
    (lambda t: {**t, "layer1.0.conv2.weight": torch.zeros(0, 8, 3, 3)}, "or is not 4-dimensional"),
    (lambda t: {**t, "fc.bias": torch.zeros(3)}, r"of the wrong shape 1: fc.bias \(3,\) instead of \(4,\)"),
    (lambda t: {n: x for n, x in t.items() if not n.startswith("fc.")}, "no classifier, only the body"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_cannot_be_loaded_is_refused(tiny, tmp_path, change, message):
    tensors = {n.replace(".gate.", ".se."): t for n, t in make("tiny_seresnet", num_classes=4).state_dict().items()}
    torch.save(change(tensors), tmp_path / "x.pth")
    with pytest.raises(ExciteError, match=message):
        convert(tmp_path / "x.pth")


def test_one_tensor_under_two_names_is_refused(tiny, tmp_path):
    tensors = {n.replace(".gate.", ".se."): t for n, t in make("tiny_seresnet").state_dict().items()}
    tensors = {n.replace(".se.fc1", ".se.fc.0").replace(".se.fc2", ".se.fc.2"): t for n, t in tensors.items()}
    tensors["layer1.0.se_layer.fc.0.weight"] = tensors["layer1.0.se.fc.0.weight"]
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(ExciteError, match=r"'layer1.0.se.fc.0.weight' and 'layer1.0.se_layer.fc.0.weight' both map to"):
        convert(tmp_path / "x.pth")


@pytest.mark.parametrize("name", genet.GATES)
def test_mindspores_genet_computes_what_mindspore_does(name):
    """The outputs are MindSpore's own; each of the settings matters."""
    assert genet.error(name) < TOLERANCE
    assert genet.error(name, conv_padding="symmetric") > 10 * TOLERANCE
    assert genet.error(name, max_pool="pad1") > 10 * TOLERANCE
    folded = fold(_as_created(genet.network(name)), portable=True)
    with torch.no_grad():
        assert relative_error(folded(genet.images()), genet.network(name)(genet.images())) < 1e-5


def _as_created(net):
    net.model_name = "small"
    return net


@pytest.mark.parametrize("name", genet.GATES)
def test_mindspores_genet_is_recognised(name):
    """What names and shapes say of the small one, and the names of a whole one."""
    stored_names = unwrapped(read_weights(genet.FOLDER / f"{name}.ckpt"))
    assert find_layout(stored_names, "it") is GENET
    anatomy = dissect(genet.translated(name), "it")
    assert anatomy.gate == (genet.GATES[name] if name == "plus" else None)  # theta-minus has nothing to show
    assert anatomy.image_size == ((224, 224) if name == "plus" else None)
    assert GENET.silent_gate == genet.GATES["minus"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["geresnet50_theta_minus", "geresnet50_theta", "geresnet50_theta_plus", "seresnet50"])
def test_a_whole_genet_is_converted(tmp_path, name):
    """Under its names, in MindSpore's file format: the network comes back, settings and all."""
    of_gate = {} if name == "geresnet50_theta_minus" else {"halve_from": 56}
    of_gate |= {"gate_bias": False} if name == "geresnet50_theta_plus" else {}
    of_gate = {"gate_bias": False} if name == "seresnet50" else of_gate
    wanted = create_model(name, num_classes=3, max_pool="ceil", conv_padding="same", **of_gate)
    tensors = {n: t for n, t in wanted.state_dict().items() if not n.endswith("num_batches_tracked")}
    theirs = GENET.write({n: t[:, :, None, None] if ".gate.fc" in n and t.ndim == 2 else t for n, t in tensors.items()})
    theirs["bn1.moving_variance"] = theirs["bn1.moving_variance"] - (STEM_EPS - EPS)
    (tmp_path / "net.ckpt").write_bytes(writers.mindspore({**theirs, "moments.conv1.weight": theirs["conv1.weight"]}))
    model, loaded = convert(tmp_path / "net.ckpt")
    assert (model.model_name, loaded.left_over, loaded.fresh) == (name, [], [])
    assert {k: v for k, v in model.model_args.items() if k in ("max_pool", "conv_padding", *of_gate)} == {
        "max_pool": "ceil",
        "conv_padding": "same",
        **of_gate,
    }
    for key, tensor in tensors.items():
        assert torch.allclose(model.state_dict()[key], tensor, rtol=1e-6), key
    assert all(type(m) is SameConv2d for m in (model.conv1, model.layer2[0].conv2, model.layer4[0].conv2))


def test_a_tensorflow_checkpoint_of_another_net_is_refused():
    tensors = {
        "conv2d/kernel": torch.zeros(3, 3, 3, 16),
        "BatchNorm/gamma": torch.ones(3),
        "dense/kernel": torch.ones(2),
    }
    with pytest.raises(ExciteError, match="1 convolutions is not an SE-ResNet of depth"):
        recognised(tensors)


def test_load_weights_sets_what_shapes_do_not_say(tiny, tmp_path):
    source = make("tiny_seresnet", num_classes=4, max_pool="ceil", stride_on="conv1")
    torch.save(dict(cadene(n, t) for n, t in source.state_dict().items()), tmp_path / "x.pth")
    model = create_model("tiny_seresnet", num_classes=4, bn_eps=1e-3, bn_momentum=0.03)
    loaded = load_weights(model, tmp_path / "x.pth")
    assert loaded.settings == {"max_pool": "ceil", "stride_on": "conv1", "bn_eps": 1e-5}
    assert torch.equal(logits(model, images(67)), logits(source, images(67)))
    again = create_model(model.model_name, **model.model_args)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again, images(67)), logits(source, images(67)))
    assert again.bn1.momentum == 0.03
