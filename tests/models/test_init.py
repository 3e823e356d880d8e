"""How weights start."""

import math

import pytest
import torch
from torch import nn

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


def test_the_default_is_he_normal_over_fan_out():
    torch.manual_seed(0)
    conv = create_model("resnet18").get_submodule("layer2.0.conv1")
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert conv.weight.abs().max().item() > math.sqrt(6 / (128 * 9))  # not uniform


def test_a_stored_model_remembers_its_initialisation():
    model = create_model("cifar_resnet20", init="he_uniform")
    assert create_model(model.model_name, **model.model_args).model_args["init"] == "he_uniform"
