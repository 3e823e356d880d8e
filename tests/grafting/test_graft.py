"""Gates in networks that have none: found where they belong, the identity to the bit, and out again."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import excite
from excite.errors import ExciteError
from excite.gates import Gate, create_gate, list_gates
from excite.gates.blend import Blend
from excite.grafting import Grafted, graft, ungraft
from tests.grafting import networks
from tests.grafting.networks import randomised

#: Network -> where its residual branches (or stages) end, read off its source by hand.
PLACES = {
    networks.TorchvisionStyle: ["layer1.0.bn3", "layer1.1.bn3", "layer2.0.bn3", "layer2.1.bn3"],
    networks.Functional: ["b"],
    networks.InvertedResiduals: ["blocks.0.7", "blocks.2.7"],
    networks.ChannelsLastBlocks: ["pwconv2"],
    networks.Untraceable: ["body.layer1.0.bn3", "body.layer1.1.bn3", "body.layer2.0.bn3", "body.layer2.1.bn3"],
    networks.Plain: ["4", "11", "15"],
    networks.HuggingFaceStyle: ["stages.1.layer.3"],
    networks.Parallel: ["stem"],
    networks.InPlaceStatements: ["norm_a", "norm_b"],
}
GATES = list_gates()
IMAGES = (3, 3, 16, 16)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomised(kind())


def images() -> torch.Tensor:
    return torch.randn(IMAGES, generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, x: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        out = model(images() if x is None else x)
    return getattr(out, "logits", out)


def options_of(gate: str) -> dict[str, object]:
    return {"variant": "theta"} if gate == "ge" else {}


def plan_of(model: nn.Module, **options):
    return graft(model, dry_run=True, **{"example": images()[:1], **options})


# --- where ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLACES)
def test_places_are_where_the_source_says(kind):
    plan = plan_of(made(kind))
    assert [p.name for p in plan.new] == PLACES[kind]
    for place in plan.new:  # each of them is what a forward pass says it is
        seen = []
        model = made(kind)
        model.get_submodule(place.name).register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.shape))
        logits(model)
        _, *rest = seen[0]
        c, h, w = (rest[2], rest[0], rest[1]) if place.channels_last else rest
        assert (place.channels, place.size) == (c, (h, w))


def test_which_tracer_found_them_is_said():
    assert "torch.fx" in plan_of(made(networks.TorchvisionStyle)).sentence
    assert "torch.export" in plan_of(made(networks.Untraceable)).sentence
    assert "no residual additions" in plan_of(made(networks.Plain)).sentence


def test_a_gate_in_the_branch_is_recognised_whatever_it_is_called():
    plan = plan_of(made(networks.HuggingFaceStyle))
    gated = [p for p in plan.places if p.gated]
    assert [(p.name, p.gated) for p in gated] == [("stages.0.layer.3", "Squeeze stages.0.layer.2")]


def test_grafting_twice_finds_the_first_gates():
    once = graft(made(networks.TorchvisionStyle), at="layer1")
    plan = plan_of(once)
    assert [p.name for p in plan.new] == ["layer2.0.bn3", "layer2.1.bn3"]
    assert [p.gated for p in plan.places if p.gated] == ["Grafted layer1.0.bn3", "Grafted layer1.1.bn3"]
    twice = graft(once, "eca")
    assert torch.equal(logits(twice), logits(once))
    assert list(ungraft(twice).state_dict()) == list(made(networks.TorchvisionStyle).state_dict())
    with pytest.raises(ExciteError, match="every place is already gated"):
        graft(graft(made(networks.TorchvisionStyle)))


def test_patterns_pick_among_the_places_and_then_among_all_modules():
    model = made(networks.TorchvisionStyle)
    assert [p.name for p in plan_of(model, at="layer2").new] == ["layer2.0.bn3", "layer2.1.bn3"]
    assert [p.name for p in plan_of(model, at=["layer1.0", "layer*.1.*"]).new] == [
        "layer1.0.bn3",
        "layer1.1.bn3",
        "layer2.1.bn3",
    ]
    assert [p.name for p in plan_of(model, at=["layer1.?.bn2", "bn1"]).new] == ["layer1.0.bn2", "layer1.1.bn2", "bn1"]


def test_what_cannot_be_traced_can_be_named(capfd):
    model = made(networks.DataDependent)
    with pytest.raises(ExciteError, match=r"cannot be traced \(torch.fx: .*torch.export: .*name the modules"):
        graft(model, example=images())
    assert capfd.readouterr() == ("", "")  # the sentence, and none of what the tracers print
    gated = graft(model, at="body.layer?.1.bn3", example=images())
    assert torch.equal(logits(gated), logits(model))
    assert sum(isinstance(m, Grafted) for m in gated.modules()) == 2


def test_a_dry_run_changes_nothing_and_counts():
    model = made(networks.TorchvisionStyle)
    before = copy.deepcopy(model.state_dict())
    plan = plan_of(model, reduction=4)
    assert list(model.state_dict()) == list(before)
    gated = graft(model, reduction=4, example=images())
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, gated)]
    assert plan.added == counts[1] - counts[0] == sum(row["parameters"] for row in plan.rows())
    assert str(plan).splitlines()[1].split()[:4] == ["layer1.0.bn3", "32", "16x16", str(2 * 32 * 8 + 8 + 32)]


# --- the identity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLACES)
def test_nothing_changes_at_first_not_one_bit(kind):
    model = made(kind)
    gated = graft(model, example=images()[:1])
    assert torch.equal(logits(gated), logits(model))
    assert not torch.equal(logits(graft(model, init="paper", example=images()[:1])), logits(model))
    assert sum(isinstance(m, Grafted) for m in model.modules()) == 0  # a copy was changed


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_can_start_as_the_identity(gate):
    model = made(networks.TorchvisionStyle)
    gated = graft(model, gate, example=images()[:1], **options_of(gate))
    assert torch.equal(logits(gated), logits(model))
    assert torch.equal(logits(gated.double(), images().double()), logits(model.double(), images().double()))


@pytest.mark.parametrize(
    ("name", "gate"), [*(("cifar_resnet20", gate) for gate in GATES), ("cifar_preresnet110", "se")]
)
def test_in_our_models_the_textbook_form_is_the_same_to_the_bit(name, gate):
    torch.manual_seed(0)
    model = randomised(excite.create_model(name, num_classes=5, image_size=16))
    gated = graft(model, gate, at=["layer1.0", "layer2.0", "layer3"], **options_of(gate))
    assert torch.equal(logits(gated), logits(model))


def test_the_fused_form_of_a_channelwise_gate_is_the_same_to_the_bit():
    torch.manual_seed(0)
    model = randomised(excite.create_model("resnet18", num_classes=5, image_size=64))
    model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    assert torch.equal(logits(graft(model), x), logits(model, x))
    assert torch.equal(logits(graft(model).bfloat16(), x.bfloat16()), logits(model.bfloat16(), x.bfloat16()))


@pytest.mark.parametrize("gate", GATES)
def test_gates_learn_from_the_first_step(gate):
    """Some parameter of every gate has a gradient at once, and after a few steps every gate says something new."""
    model = graft(made(networks.TorchvisionStyle), gate, example=images()[:1], **options_of(gate)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.tensor([0, 1, 2])
    gates = {name: module.gate for name, module in model.named_modules() if isinstance(module, Grafted)}
    for step in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images()), labels).backward()
        if step == 0:
            for name, module in gates.items():
                largest = max(float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None)
                assert largest > 0, name
        optimizer.step()
    model.eval()
    for name, module in gates.items():
        wrapper = model.get_submodule(name)
        scale = module.scale(torch.randn(2, wrapper.channels, *wrapper.size))
        assert not torch.allclose(scale, torch.ones_like(scale), atol=1e-6), name


def test_a_gate_without_parameters_is_blended_in_and_said_to_be():
    model = made(networks.TorchvisionStyle)
    plan = plan_of(model, gate={"name": "ge", "variant": "theta_minus"})
    assert plan.parameters == {p.name: p.channels for p in plan.new}
    assert "learnt strength of 0 per channel" in plan.notes[0]
    gated = graft(model, {"name": "ge", "variant": "theta_minus"})
    blend = gated.layer1[0].bn3.gate
    assert isinstance(blend, Blend)
    x = torch.randn(2, 32, 4, 4)
    sigmoid = torch.sigmoid(x.mean((2, 3), keepdim=True))
    for strength, expected in ((0.0, x), (1.0, x * sigmoid), (0.25, x * (0.75 + 0.25 * sigmoid))):
        nn.init.constant_(blend.strength, strength)
        torch.testing.assert_close(blend(x), expected)


def test_twice_a_sigmoid_is_what_the_identity_is_made_of():
    """Against the formula: 2 * sigmoid(fc2(relu(fc1(mean)))), of whatever weights were learnt since."""
    gate = create_gate({"name": "se", "reduction": 4, "identity": True}, 8)
    nn.init.normal_(gate.fc2.weight)
    nn.init.normal_(gate.fc2.bias)
    x = torch.randn(3, 8, 5, 4)
    hidden = (x.mean((2, 3)) @ gate.fc1.weight.T + gate.fc1.bias).clamp(min=0)
    torch.testing.assert_close(gate.scale(x), 2 / (1 + torch.exp(-(hidden @ gate.fc2.weight.T + gate.fc2.bias))))


# --- what users do with networks --------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    model = made(networks.TorchvisionStyle)
    gated = graft(model)
    for module in gated.modules():
        if isinstance(module, Gate):  # something to lose
            nn.init.normal_(module.fc2.weight)
    return model, gated


def test_names_are_the_old_ones_and_the_gates(pair):
    model, gated = pair
    old, new = set(model.state_dict()), set(gated.state_dict())
    assert old < new
    assert all(".bn3.gate." in key for key in new - old)
    missing, unexpected = gated.load_state_dict(model.state_dict(), strict=False)
    assert set(missing) == new - old
    assert unexpected == []
    missing, unexpected = model.load_state_dict(gated.state_dict(), strict=False)
    assert missing == []
    assert set(unexpected) == new - old
    assert torch.equal(gated.layer1[0].bn3.weight, model.layer1[0].bn3.weight)  # attributes, too


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_copies_compute_the_same(pair, way):
    model, gated = pair
    if way == "deepcopy":
        other = copy.deepcopy(gated)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(gated))
    elif way == "torch.save":
        torch.save(gated, buffer := io.BytesIO())
        other = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    else:
        other = graft(model)
        other.load_state_dict(gated.state_dict())
    assert torch.equal(logits(other), logits(gated))
    assert not torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_export(pair, strict):
    _, gated = pair
    program = torch.export.export(gated, (images(),), strict=strict)
    torch.testing.assert_close(logits(program.module()), logits(gated))


@pytest.mark.slow
def test_compile_in_one_graph(pair):
    _, gated = pair
    compiled = torch.compile(gated, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(gated))


def test_autocast(pair):
    _, gated = pair
    with torch.autocast("cpu", torch.bfloat16):
        assert logits(gated).dtype == torch.bfloat16


def test_sync_batch_norm_keeps_the_gates(pair):
    _, gated = pair
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(gated))
    assert isinstance(synced.layer1[0].bn3, Grafted)
    assert isinstance(synced.layer1[0].bn3.inner, nn.SyncBatchNorm)
    assert list(synced.state_dict()) == list(gated.state_dict())


def test_ddp_trains_a_grafted_network(pair, tmp_path):
    _, gated = pair
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(gated.train())
        nn.functional.cross_entropy(net(images()), torch.tensor([0, 1, 2])).backward()
        assert all(p.grad is not None for p in gated.parameters())
        with pytest.raises(ExciteError, match=r"graft before wrapping.*\.module"):
            graft(net)
    finally:
        torch.distributed.destroy_process_group()


def test_device_type_and_mode_are_the_networks_own():
    model = made(networks.TorchvisionStyle).double().train()
    gated = graft(model, example=images().double())
    assert {p.dtype for p in gated.parameters()} == {torch.float64}
    assert all(m.training for m in gated.modules())
    assert all(m.training for m in model.modules())


# --- out again --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLACES)
def test_ungraft_gives_the_original_modules_back(kind):
    model = made(kind)
    modules = dict(model.named_modules())
    outcome = logits(model)
    gated = graft(model, inplace=True, example=images()[:1])
    assert gated is model
    bare = ungraft(model, inplace=True)
    assert bare is model
    assert {name: id(m) for name, m in model.named_modules()} == {name: id(m) for name, m in modules.items()}
    assert torch.equal(logits(bare), outcome)


def test_a_model_of_ours_remembers_its_gates_and_forgets_them():
    model = excite.create_model("cifar_resnet20", num_classes=4)
    before = copy.deepcopy(model.model_args)
    gated = graft(model, "se", at=["layer2", "layer3.1"], reduction=4)
    assert gated.model_args["gate"] == {"name": "se", "reduction": 4, "identity": True}
    assert gated.model_args["gate_at"] == ["layer2.0", "layer2.1", "layer2.2", "layer3.1"]
    again = excite.create_model(gated.model_name, **gated.model_args)
    again.load_state_dict(gated.state_dict())
    assert {type(b.gate).__name__ for b in again.layer1} == {"NoneType"}
    assert again.layer2[0].gate.amplitude == 2.0  # the form belongs to the spec, not to the weights
    bare = ungraft(again)
    assert bare.model_args == before
    assert bare.gate_spec is None
    assert list(bare.state_dict()) == list(model.state_dict())


def test_identity_survives_an_initialisation_of_the_body():
    model = excite.create_model(
        "cifar_resnet20", gate={"name": "ge", "variant": "theta_plus", "identity": True}, init="he_uniform"
    )
    assert all(torch.equal(b.gate.scale(torch.randn(2, 16, 32, 32)), torch.ones(2, 16)) for b in model.layer1.eval())


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "see"}, "unknown gate 'see'; did you mean 'se'"),
        ({"reducton": 8}, "no option 'reducton'; did you mean 'reduction'"),
        ({"init": "identiy"}, "init is 'identiy'; did you mean 'identity'"),
        ({"gate": {"name": "se", "identity": True}}, "init='identity' or 'paper'"),
        ({"at": "layer1.0.bn9"}, "no module of TorchvisionStyle matches 'layer1.0.bn9'; did you mean 'layer1.0.bn"),
        ({"at": []}, "at must be 'auto', or one or more"),
        ({"at": "layer1.0.relu"}, "the module 'layer1.0.relu' is called 3 times with maps of several sizes"),
        ({"at": "fc"}, r"the module 'fc' returns a tensor of shape \(1, 5\), but a gate needs a map"),
    ],
    ids=str,
)
def test_mistakes(options, message):
    model = made(networks.TorchvisionStyle)
    before = list(model.state_dict())
    with pytest.raises(ExciteError, match=message):
        graft(model, inplace=True, **options)
    assert list(model.state_dict()) == before


def test_networks_that_no_gate_can_go_into():
    with pytest.raises(
        ExciteError, match=r"no place for a gate was found in Tokens .*\(N, L, C\).*, such as at=\['patches'\]$"
    ):
        graft(networks.Tokens())
    with pytest.raises(ExciteError, match=r"0 residual branches .*; 1 more do not end in a layer that takes a gate"):
        graft(networks.UsedTwice())
    with pytest.raises(ExciteError, match="failed with"):
        graft(nn.Bilinear(3, 4, 5))
    with pytest.raises(ExciteError, match="not a dict"):
        graft({})
    with pytest.raises(ExciteError, match="graft before compiling"):
        graft(torch.compile(networks.TorchvisionStyle(), backend="eager"))
    with pytest.raises(ExciteError, match="'inner' is used without being called"):
        graft(reads := networks.ReadsWeights(), inplace=True)
    assert not any(isinstance(m, Grafted) for m in reads.modules())  # as it was


def test_mistakes_with_models_of_ours():
    model = excite.create_model("cifar_seresnet20")
    with pytest.raises(ExciteError, match="every place is already gated"):
        graft(model)
    with pytest.raises(ExciteError, match="are part of it and were not grafted"):
        ungraft(model)
    with pytest.raises(ExciteError, match="no place for a gate matches 'layer4'; did you mean"):
        graft(excite.create_model("cifar_resnet20"), at="layer4")
    with pytest.raises(ExciteError, match="has other gates in 3"):
        graft(graft(excite.create_model("cifar_resnet20"), at="layer1"), "eca")
    with pytest.raises(ExciteError, match="no grafted gates"):
        ungraft(networks.Plain())
    with pytest.raises(ExciteError, match=r"gate_at is given, but .* has no gates"):
        excite.create_model("cifar_resnet20", gate_at=["layer1"])
