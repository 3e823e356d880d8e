"""Listening to gates, fixing them, taking them away."""

import re

import pytest
import torch
from torch import nn

import excite
from excite.errors import ExciteError
from excite.explain import fixed_gates, foreign_gates, listening, outer_gates, without_gates
from excite.gates import Gate, create_gate, list_gates


def network(gate, **options) -> nn.Module:
    torch.manual_seed(0)
    model = excite.create_model("cifar_resnet20", gate=gate, num_classes=3, image_size=16, **options)
    for module in model.modules():  # a fresh norm would leave the residual branch as plain as can be
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.1)
    return model.eval().to(memory_format=torch.channels_last)


def images(count: int = 4) -> torch.Tensor:
    x = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return x.contiguous(memory_format=torch.channels_last)


SPECS = [*list_gates(), {"name": "ge", "variant": "theta", "extent": 4}, {"name": "ge", "identity": True}]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@torch.inference_mode()
def test_listening_changes_no_bit_and_hears_each_gate_once(spec):
    model, x = network(spec), images()
    expected = model(x)
    heard = []
    with listening(model, lambda name, scale: heard.append((name, scale.shape[0]))) as names:
        logits = model(x)
    assert torch.equal(logits, expected)
    assert heard == [(name, len(x)) for name in names]
    assert len(names) == 9
    assert torch.equal(model(x), expected)
    assert len(heard) == 9  # nobody listens any more


@pytest.mark.parametrize("fused", ["on", "off"])
@pytest.mark.parametrize("position", ["standard", "pre", "post", "identity"])
@torch.inference_mode()
def test_gates_are_heard_wherever_they_stand(fused, position):
    model, x = network("se", gate_position=position), images()
    model.set_fused(fused)
    expected, heard = model(x), {}
    with listening(model, heard.__setitem__):
        assert torch.equal(model(x), expected)
    for name, gate in outer_gates(model).items():
        assert heard[name].shape == (len(x), gate.fc2.out_features)


@torch.inference_mode()
def test_what_is_heard_is_what_the_gate_says():
    gate = create_gate("scse", 8).eval()
    x, heard = torch.randn(2, 8, 5, 5), {}
    with listening(gate_in(gate), heard.__setitem__):
        gate(x)
    assert torch.equal(heard["0"], gate.scale(x))


def gate_in(gate: Gate) -> nn.Module:
    return nn.Sequential(gate)


def test_gates_inside_of_gates_are_left_out():
    model = network("scse")
    inner = [name for name, module in model.named_modules() if isinstance(module, Gate)]
    assert len(inner) == 3 * len(outer_gates(model))
    assert all(name.endswith(".gate") for name in outer_gates(model))


@pytest.mark.parametrize("spec", ["se", {"name": "ge", "variant": "theta_plus", "extent": 2}, "sse"], ids=str)
@torch.inference_mode()
def test_a_fixed_gate_says_its_mean(spec):
    model, x = network(spec), images()
    before, heard = model(x), {}
    with listening(model, heard.__setitem__):
        model(x)
    scale = heard["layer3.2.gate"]
    mean = scale.mean(0) if scale.ndim == 2 else scale.mean((0, 2, 3))
    with fixed_gates(model, {"layer3.2.gate": mean}):
        z = torch.randn(2, 64, 4, 4)
        answer = model.layer3[2].gate.scale(z)
        assert torch.equal(answer, mean.expand(2, 64))
        fixed = model(x)
    assert not torch.equal(fixed, before)
    assert torch.equal(model(x), before)


@torch.inference_mode()
def test_listening_to_a_fixed_gate_and_unwinding():
    model, x, heard = network("se"), images(), {}
    before, value = model(x), torch.full((16,), 0.25)
    with fixed_gates(model, {"layer1.0.gate": value}):
        with listening(model, heard.__setitem__):
            model(x)
        assert torch.equal(heard["layer1.0.gate"], value.expand(len(x), 16))
        assert not torch.equal(model(x), before)
    assert torch.equal(model(x), before)


@torch.inference_mode()
def test_a_gate_that_is_away_is_one_that_says_1_and_comes_back_after_an_error():
    model, x = network("se"), images()
    model.set_fused("off")
    before = model(x)
    with fixed_gates(model, {"layer2.1.gate": torch.ones(32)}):
        expected = model(x)
    with without_gates(model, ["layer2.1.gate"]):
        assert torch.allclose(model(x), expected, atol=1e-5)
        assert not torch.allclose(model(x), before, atol=1e-5)
        assert model.layer2[1].gate is None
    with pytest.raises(ValueError, match="stop"), without_gates(model, ["layer2.1.gate"]):
        raise ValueError("stop")
    assert torch.equal(model(x), before)


@torch.inference_mode()
def test_gates_of_a_grafted_network_of_others():
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), create_gate("se", 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    x, heard = images(), {}
    with listening(body, heard.__setitem__):
        body(x)
    assert heard["2"].shape == (4, 8)
    with without_gates(body, ["2"]):
        assert torch.equal(body(x), body[4](body[3](body[1](body[0](x)))))
    assert not torch.equal(body(x), body[4](body[3](body[1](body[0](x)))))


def test_a_network_without_gates_and_a_gate_that_is_not_there():
    with pytest.raises(ExciteError, match=r"cifar_resnet20 has no gates to explain"):
        outer_gates(excite.create_model("cifar_resnet20"))
    with (
        pytest.raises(ExciteError, match=r"no gate 'layer3.2.gat'; did you mean 'layer3.2.gate'\?"),
        fixed_gates(network("se"), {"layer3.2.gat": torch.ones(64)}),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("seresnet18", ["timm's SEModule"]),
        ("mobilenetv3_small_050", ["timm's SqueezeExcite"]),
        ("deit_tiny_patch16_224", ["unknown"]),
        ("resnet18", []),
    ],
)
def test_what_timm_built_in_is_neither_taken_for_none_nor_explained(timm, name, found):
    model = excite.create_model(f"timm:{name}", num_classes=2)
    assert foreign_gates(model) == found
    with pytest.raises(ExciteError, match=re.escape(found[0]) if found else "excite graft"):
        outer_gates(model)


def test_gates_of_our_own_are_not_foreign():
    assert foreign_gates(excite.create_model("cifar_seresnet20")) == []
