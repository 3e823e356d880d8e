"""How weights start."""

import math

import pytest
import torch
from torch import nn

from excite.gates import create_gate
from excite.gates.cbam import CBAM
from excite.gates.squeeze_excite import SqueezeExcite
from excite.grafting import graft
from excite.models import create_model


@pytest.mark.parametrize("name", ["geresnet50_theta_plus", "seresnet18", "cifar_geresnet20_theta"])
def test_he_uniform_is_mindspores(name):
    """HeUniform: bound sqrt(6 / fan-in), a depth-wise kernel's fan-in being its area. TruncatedNormal: sigma 0.01."""
    torch.manual_seed(0)
    model = create_model(name, init="he_uniform")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions
    for conv in convolutions:
        bound = math.sqrt(6 / conv.weight[0].numel())
        largest = conv.weight.abs().max().item()
        assert 0.9 * bound < largest <= bound * (1 + 1e-6)  # float32
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)  # the smallest has 432 weights
        assert conv.bias is None or not conv.bias.any()
    for dense in (m for m in model.modules() if isinstance(m, nn.Linear)):
        assert dense.weight.abs().max().item() <= 0.02
        assert dense.weight.std().item() == pytest.approx(0.01 * 0.8796, rel=0.1)  # sd of a normal cut off at 2 sd
        assert not dense.bias.any()


@pytest.mark.parametrize("name", ["seresnet18", "resnet18", "cifar_seresnet20"])
def test_mindcvs_dense_layers_are_he_uniform_over_fan_in_with_gain_1(name):
    """senet.py: HeUniform(mode="fan_in", nonlinearity="sigmoid"), biases 0; convolutions HeNormal over fan-out."""
    torch.manual_seed(0)
    model = create_model(name, init="mindcv", **({"rd_divisor": 8} if "se" in name else {}))
    dense = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(dense) == (1 + 2 * len(model.gate_slots()) if "se" in name else 1)
    for layer in dense:
        bound = math.sqrt(3 / layer.in_features)
        largest = layer.weight.abs().max().item()
        assert 0.9 * bound < largest <= bound * (1 + 1e-6)
        assert not layer.bias.any()
    torch.manual_seed(0)
    plain = create_model(name, **({"rd_divisor": 8} if "se" in name else {}))
    body = {n: p for n, p in plain.named_parameters() if p.ndim == 4}
    assert all(p.equal(model.get_parameter(n)) for n, p in body.items())


def test_a_gate_that_starts_as_the_identity_still_does():
    model = create_model("cifar_resnet20", gate={"name": "se", "identity": True}, init="mindcv")
    assert not any(m.fc2.weight.any() for m in model.modules() if isinstance(m, SqueezeExcite))


@pytest.mark.parametrize(
    "build",
    [
        lambda: create_gate("cbam", 64),
        lambda: create_model("resnet18", gate="cbam").get_submodule("layer1.0.gate"),
        lambda: create_model("cifar_seresnet110_tf", gate="cbam", depth=11).get_submodule("stem.gate"),
        lambda: graft(create_model("resnet18"), "cbam", init="paper").get_submodule("layer1.0.gate"),
    ],
    ids=["gate", "model", "the TensorFlow one", "graft"],
)
def test_cbam_starts_as_its_authors_code(build):
    """MODELS/cbam.py and the loop that ends MODELS/model_resnet.py of Jongchan/attention-module, read on 2026-11-29."""
    torch.manual_seed(0)
    gate = build()
    gate = next(m for m in gate.modules() if isinstance(m, CBAM))
    assert gate.bn.momentum == 0.01
    assert not any(t.any() for t in (gate.bn.weight, gate.bn.bias, gate.fc1.bias, gate.fc2.bias))
    x = torch.randn(2, gate.fc1.in_features, 5, 5)
    squeezed = torch.stack([x.mean((2, 3)), x.amax((2, 3))])
    channel = gate.fc2(gate.fc1(squeezed).relu()).sum(0).sigmoid()
    torch.testing.assert_close(gate.scale(x), channel[..., None, None].expand_as(x) / 2)


def test_cbams_convolution_is_he_normal_over_fan_out():
    torch.manual_seed(0)
    weights = torch.cat([create_gate("cbam", 16).conv.weight.flatten() for _ in range(50)])
    assert weights.std().item() == pytest.approx(math.sqrt(2 / 49), rel=0.03)


def test_a_given_momentum_is_the_gates_too():
    model = create_model("resnet18", gate="cbam", bn_momentum=0.003)
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.003}
    plain = create_model("resnet18", gate="cbam")
    assert {m.momentum for m in plain.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1, 0.01}


def test_the_default_is_he_normal_over_fan_out():
    torch.manual_seed(0)
    conv = create_model("resnet18").get_submodule("layer2.0.conv1")
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert conv.weight.abs().max().item() > math.sqrt(6 / (128 * 9))  # not uniform


def test_a_stored_model_remembers_its_initialisation():
    model = create_model("cifar_resnet20", init="he_uniform")
    assert create_model(model.model_name, **model.model_args).model_args["init"] == "he_uniform"
