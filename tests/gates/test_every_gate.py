"""What holds for every gate in the registry, in every form: types, layouts, copies, compilers, models, mistakes."""

import copy
import io
import json

import pytest
import torch
from safetensors.torch import load, save
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.gates import Gate, create_gate, gate_defaults, gate_facts, gate_options, list_gates
from excite.models import TFSEResNet, create_model, resize_gates
from excite.models.blocks import POSITIONS, BasicBlock, BlockOptions
from tests.gates.test_gates import build, layouts

FORMS = [
    *({"name": name, **form.options} for name in list_gates() for form in gate_facts(name).forms),
    {"name": "scse", "merge": "max"},
    {"name": "cbam", "spatial": False},
    {"name": "cbam", "channel": False},
    {"name": "gct", "mode": "l1"},
]
SHAPE = (3, 32, 7, 6)
every_form = pytest.mark.parametrize("spec", FORMS, ids=str)


def awake(spec, shape=SHAPE, dtype=torch.float32):
    """A gate in evaluation whose scale is nowhere near a constant."""
    gate, x = build(spec, shape, dtype)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return gate, x


@every_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_the_maps_type(spec, dtype):
    gate, x = awake(spec)
    x = x.to(dtype).float()  # what both see
    expected = gate.scale(x)
    for given in layouts(x.to(dtype)):
        with torch.autocast("cpu", dtype=dtype):
            scale = gate.scale(given)
        assert scale.dtype == dtype
        torch.testing.assert_close(scale.float(), expected, atol=0.03, rtol=0.03)


@every_form
def test_a_gate_of_bfloat16_throughout(spec):
    gate, x = awake(spec)
    x = x.bfloat16()
    expected = gate.scale(x.float())
    scale = gate.bfloat16().scale(x)
    assert scale.dtype == torch.bfloat16
    torch.testing.assert_close(scale.float(), expected, atol=0.05, rtol=0.05)


# "sse" and the spatial half of "scse" convolve the map itself, as every layer of the network does.
@pytest.mark.parametrize("spec", [s for s in FORMS if s["name"] not in ("sse", "scse", "ge")], ids=str)
def test_fp16_autocast_survives_a_squeeze_beyond_float16(spec):
    """Weights of either sign times 300 times 300: in float16, infinities of both signs, whose sum is no number."""
    torch.manual_seed(0)
    gate = create_gate(spec, 256, feature_size=(4, 4)).eval()
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(torch.randn_like(parameter).sign() * 300)
        for x in layouts(torch.full((1, 256, 4, 4), 300.0)):
            with torch.autocast("cpu", dtype=torch.float16):
                scale = gate.scale(x.half())
            torch.testing.assert_close(scale.float(), gate.scale(x), atol=1e-3, rtol=1e-3)


@every_form
def test_training_reaches_every_parameter_and_the_map(spec):
    gate, x = awake(spec)
    x = F.relu(x) + 0.1
    for given in layouts(x):
        gate.train().zero_grad()
        given = given.detach().requires_grad_()
        (gate(given) ** 2).sum().backward()
        assert given.grad.abs().sum() > 0
        assert given.grad.isfinite().all()
        for name, parameter in gate.named_parameters():
            bias_before_norm = spec["name"] == "coordinate" and name == "conv1.bias"  # which the norm takes away again
            assert bias_before_norm or parameter.grad.abs().sum() > 0, name


@every_form
def test_copies_and_stored_weights_give_the_same_scale(spec):
    gate, x = awake(spec)
    expected = gate.scale(x)
    assert torch.equal(copy.deepcopy(gate).scale(x), expected)
    other = create_gate(json.loads(json.dumps(spec)), SHAPE[1], feature_size=SHAPE[2:]).eval()
    other.load_state_dict(load(save(gate.state_dict())))
    assert torch.equal(other.scale(x), expected)
    file = io.BytesIO()
    torch.save(gate, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False).scale(x), expected)


@every_form
def test_the_meta_device_knows_the_shape(spec):
    gate, x = awake(spec)
    with torch.device("meta"):
        shape = create_gate(spec, SHAPE[1], feature_size=SHAPE[2:]).eval().scale(torch.empty(SHAPE)).shape
    assert shape == gate.scale(x).shape
    assert shape in {(3, 32), (3, 1, 7, 6), (3, 32, 7, 6)}


@every_form
def test_one_graph(spec):
    gate, x = awake(spec)
    torch.compiler.reset()
    compiled = torch.compile(gate, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), gate(x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [s for s in FORMS if "gct" not in s["name"] and len(s) == 1], ids=str)
def test_inductor_forward_and_backward(spec):
    gate, x = awake(spec)
    torch.compiler.reset()
    compiled = torch.compile(gate, fullgraph=True)
    for given in layouts(x)[1:]:
        given.requires_grad_()
        grad = torch.randn_like(x)
        (expected,) = torch.autograd.grad(gate(given), given, grad)
        out = compiled(given)
        torch.testing.assert_close(out, gate(given), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(out, given, grad)[0], expected, atol=1e-5, rtol=1e-5)


@every_form
def test_a_gate_that_starts_as_the_identity_learns_from_its_first_step(spec):
    gate = create_gate({**spec, "identity": True}, SHAPE[1], feature_size=SHAPE[2:])
    x = torch.randn(SHAPE, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            scale = gate.scale(x.to(dtype))
        assert torch.equal(scale, torch.ones_like(scale))
    (gate(x) * torch.randn(SHAPE)).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters())


@pytest.mark.parametrize(
    ("name", "size", "spec"),
    [
        *(("cifar_resnet20", 16, spec) for spec in FORMS),
        *((name, 32, {"name": gate}) for name in ("resnet18", "cifar_wrn16_8") for gate in ("eca", "cbam")),
    ],
    ids=str,
)
def test_models_take_it_and_can_be_built_again(name, size, spec):
    with torch.device("meta"):
        model = create_model(name, gate=spec, image_size=size)
        again = create_model(model.model_name, **json.loads(json.dumps(model.model_args)))
        gates = [block.gate for stage in model.stages() for block in stage]
        out = model.eval()(torch.empty(2, 3, size, size))
        plain = create_model(name, gate="none", image_size=size).state_dict()
    assert {type(gate) for gate in gates} == {type(create_gate(spec, 8, feature_size=(4, 4)))}
    assert out.shape == (2, model.num_classes)
    assert repr(again) == repr(model)
    added = {name for name in model.state_dict() if name not in plain}
    assert added == {name for name in model.state_dict() if ".gate." in name}
    assert len(added) == sum(len(gate.state_dict()) for gate in gates)


@every_form
@pytest.mark.parametrize("position", POSITIONS)
def test_at_every_position_the_two_pass_form_is_the_textbooks(position, spec):
    torch.manual_seed(0)
    blocks = [BasicBlock(8, 16, 2, (8, 6), BlockOptions(gate=spec, gate_position=position), 0.3).double()]
    blocks += [copy.deepcopy(blocks[0])]
    x = torch.randn(6, 8, 8, 6, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(6, 16, 4, 3, dtype=torch.float64)
    found = []
    for block, blocks_form in zip(blocks, ("off", "on"), strict=True):
        for module in block.modules():
            if hasattr(type(module), "fused"):
                module.fused = blocks_form
        torch.manual_seed(1)  # for the branches that are dropped
        out = block(x)
        found.append((out, *torch.autograd.grad(out, (x, *block.parameters()), grad)))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("spec", ["eca", "cbam"])
def test_the_tensorflow_reference_takes_them_too(spec):
    model = TFSEResNet(depth=11, gate=spec)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    assert {type(m) for m in model.modules() if isinstance(m, Gate)} == {type(create_gate(spec, 8))}


@every_form
def test_other_image_sizes(spec):
    model = create_model("cifar_resnet20", gate=spec, image_size=16).eval()
    resize_gates(model, 24)
    assert model(torch.randn(2, 3, 24, 24)).shape == (2, 10)


def test_defaults_are_those_of_the_constructor():
    assert gate_defaults("cbam") == {
        "reduction": 16,
        "rd_divisor": None,
        "bias": True,
        "kernel_size": 7,
        "channel": True,
        "spatial": True,
    }
    for name in list_gates():
        assert list(gate_defaults(name)) == gate_options(name)
        given = create_gate({"name": name, **gate_defaults(name)}, 16, feature_size=(4, 4))
        assert repr(given) == repr(create_gate(name, 16, feature_size=(4, 4)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "ese", "activation": "sigmoit"}, "one of hard_sigmoid, sigmoid, not 'sigmoit'; did you mean 'sigm"),
        ({"name": "eca", "kernel_size": 4}, "kernel_size of the gate 'eca' must be an odd whole number, not 4"),
        ({"name": "eca", "kernel_size": "3"}, "kernel_size is '3', but should be a valid integer"),
        ({"name": "eca", "gamma": 0}, "gamma of the gate 'eca' must be above 0"),
        ({"name": "cse", "reduction": 0}, "reduction must be"),
        ({"name": "scse", "merge": "mean"}, "merge of the gate 'scse' must be one of add, max, not 'mean'"),
        ({"name": "scse", "mode": "add"}, "the gate 'scse' has no option 'mode'"),
        ({"name": "cbam", "kernel_size": 6}, "kernel_size of the gate 'cbam' must be an odd whole number, not 6"),
        (
            {"name": "cbam", "channel": False, "spatial": False},
            "does nothing with channel=False and spatial=False; set one to True",
        ),
        (
            {"name": "coordinate", "min_width": 0},
            "the min_width of the gate 'coordinate' must be a whole number of at least 1",
        ),
        ({"name": "coordinate", "reduction": 1.5}, "reduction is 1.5, but should be a valid integer"),
        ({"name": "gct", "mode": "l3"}, "mode of the gate 'gct' must be l2 or l1, not 'l3'"),
        ({"name": "gct", "epsilon": 0}, "epsilon of the gate 'gct' must be a number above 0"),
        ({"name": "gaussian_gct", "std": -1}, "std of the gate 'gaussian_gct' must be a number above 0"),
        ({"name": "gaussian_gct", "std": 2, "learnable": True}, "leave std out"),
        ({"name: eca": None}, "a gate must be a name or a table with a 'name', not {'name: eca': None}; known: cbam, "),
        (["eca"], r"a gate must be a name or a table with a 'name', not \['eca'\]"),
        ("gcd", "unknown gate 'gcd'; did you mean 'gct'"),
    ],
    ids=str,
)
def test_mistakes(spec, message):
    with pytest.raises(ExciteError, match=message):
        create_gate(spec, 32)
    with pytest.raises(ExciteError, match=message):
        create_model("cifar_resnet20", gate=spec, image_size=8)
