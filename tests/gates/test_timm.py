"""The gates beside timm's modules of the same papers, with the same weights. Slow: importing timm takes seconds."""

import importlib

import pytest
import torch

from excite.gates import create_gate
from excite.models import create_model
from tests.gates.test_formulas import with_random_weights

pytestmark = pytest.mark.slow
SHAPE = (3, 64, 9, 7)


def layer(path, arguments):
    file, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"timm.layers.{file}"), name)(**arguments)


def wearing(module, gate, names):
    """timm's module with the weights of a gate; ``names``: timm's name of a layer -> ours. None may be left over."""
    ours = gate.state_dict()
    theirs = {name: value for name, value in module.state_dict().items() if "num_batches" not in name}
    mapped = {}
    for name, value in theirs.items():
        layer, _, kind = name.rpartition(".")
        mapped[name] = ours.pop(f"{names[layer]}.{kind}").reshape(value.shape)
    assert not [name for name in ours if "num_batches" not in name]
    module.double().load_state_dict(mapped, strict=False)
    return module.eval()


CASES = [
    ({"name": "ese"}, "squeeze_excite.EffectiveSEModule", {}, {"fc": "fc"}),
    ({"name": "eca"}, "eca.EcaModule", {}, {"conv": "conv"}),
    ({"name": "eca", "kernel_size": 7}, "eca.EcaModule", {"channels": None, "kernel_size": 7}, {"conv": "conv"}),
    ({"name": "se", "rd_divisor": 8}, "squeeze_excite.SEModule", {}, {"fc1": "fc1", "fc2": "fc2"}),
    (
        {"name": "cbam", "bias": False},
        "cbam.CbamModule",
        {},
        {
            "channel.fc1": "fc1",
            "channel.fc2": "fc2",
            "spatial.conv.conv": "conv",
            "spatial.conv.bn": "bn",
        },
    ),
    (
        {"name": "coordinate", "bias": False, "reduction": 8},
        "coord_attn.CoordAttn",
        {"rd_channels": 8},
        {"conv1": "conv1", "bn1": "bn", "conv_h": "conv_h", "conv_w": "conv_w"},
    ),
]


@pytest.mark.parametrize(("spec", "module", "arguments", "names"), CASES, ids=lambda v: str(v)[:40])
def test_the_same_output_and_gradient(timm, spec, module, arguments, names):
    gate, x = with_random_weights(spec, SHAPE)
    theirs = wearing(layer(module, {"channels": SHAPE[1], **arguments}), gate, names)
    x.requires_grad_()
    grad = torch.randn(SHAPE, dtype=torch.float64)
    expected, out = theirs(x), gate(x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out, x, grad), torch.autograd.grad(expected, x, grad))


def test_the_kernels_of_eca_are_as_wide_as_timms_from_eight_channels_on(timm):
    for channels in range(8, 2049, 8):
        theirs = timm.layers.EcaModule(channels).conv.weight.shape
        assert create_gate("eca", channels).conv.weight.shape == theirs


SK = [
    ("skresnext50_32x4d", "sknet50", {}),
    ("skresnet18", "resnet18", {"name": "sk", "reduction": 8, "min_width": 16, "split_input": True}),
    ("skresnet50", "resnet50", {"name": "sk", "min_width": 8, "split_input": True}),
]


def our_name(name, conv):
    """timm's name of a tensor in a residual net with selective kernels -> ours; ``conv`` is where those are."""
    for theirs, ours in (
        (f".{conv}.attn.fc_reduce.", f".{conv}.fc1."),
        (f".{conv}.attn.fc_select.", f".{conv}.fc2."),
        (f".{conv}.attn.bn.", f".{conv}.bn."),
        *((f".conv{i}.conv.", f".conv{i}.") for i in (1, 2, 3)),
    ):
        if theirs in name:
            return name.replace(theirs, ours)
    if ".paths." not in name:
        for i in (1, 2, 3):
            name = name.replace(f".conv{i}.bn.", f".bn{i}.")
    return name


@pytest.mark.parametrize(("theirs", "ours", "block_conv"), SK, ids=lambda v: str(v)[:40])
def test_nets_with_selective_kernels(timm, theirs, ours, block_conv):
    torch.manual_seed(0)
    reference = timm.create_model(theirs).double().eval()
    for name, buffer in reference.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    model = create_model(ours, image_size=64, **({"block_conv": block_conv} if block_conv else {})).double().eval()
    conv = "conv1" if theirs == "skresnet18" else "conv2"
    mapped = {our_name(name, conv): value for name, value in reference.state_dict().items()}
    for name, value in mapped.items():  # dense layers here, 1x1 convolutions there
        mapped[name] = value.reshape(model.state_dict()[name].shape)
    model.load_state_dict(mapped)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(x), reference.forward_features(x))
        torch.testing.assert_close(model(x), reference(x))
