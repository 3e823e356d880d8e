"""Every module that a network names is called, with the same numbers, as soon as somebody would notice."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize, prune

import excite
from excite.errors import ExciteError
from excite.gates import create_gate, gate_facts, list_gates
from excite.models import create_model
from excite.models.resnet import ResNet
from excite.models.tf_seresnet import TFSEResNet

GATES = [{"name": name, **form.options} for name in list_gates() for form in gate_facts(name).forms]
GE_THETA = {"name": "ge", "variant": "theta"}
GATES += [{**GE_THETA, "extent": 4}, {"name": "ge", "variant": "theta_plus", "halve_from": 8}]
GATES += [{"name": "scse", "merge": "max"}, {"name": "se", "identity": True}]
GATES += [{"name": name, "identity": True} for name in ("ge", "gaussian_gct", "scse")]  # the first two become Blend
SMALL = {"layers": (1, 1), "widths": (16, 32), "stem_width": 16, "num_classes": 3, "image_size": 16}
BODIES = {
    "basic": {"block": "basic", "stem": "cifar"},
    "pad": {"block": "basic", "stem": "cifar", "shortcut": "pad"},
    "bottleneck": {"block": "bottleneck", "stem": "conv7"},
    "deep_stem": {"block": "bottleneck", "stem": "conv3x3x3", "max_pool": "ceil", "down_kernel": 3, "groups": 2},
    "same": {"block": "bottleneck", "stem": "conv7", "conv_padding": "same", "stride_on": "conv1"},
    "selective": {"block": "bottleneck", "stem": "cifar", "block_conv": "sk"},
    "selective_basic": {"block": "basic", "stem": "cifar", "block_conv": {"name": "sk", "split_input": True}},
    "pre_basic": {"block": "pre_basic", "stem": "cifar"},
    "pre_bottleneck": {"block": "pre_bottleneck", "stem": "cifar"},
}
POSITIONS = ("standard", "pre", "post", "identity")


def named(case):
    return "-".join(str(v) for v in case.values()) if isinstance(case, dict) else str(case)


def build(body, gate, position="standard", **options):
    """A small network in float64, in which a true difference stands out; the two passes run in it, too."""
    torch.manual_seed(0)
    if body == "tf":
        model = TFSEResNet(depth=11, gate=gate, num_classes=3, image_size=16)
    else:
        model = ResNet(**{**SMALL, **BODIES[body], **options}, gate=gate, gate_position=position)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # gates that start as the identity, zeros and ones hide what is left out
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.1)
    model.set_fused("on")
    return model.double()


def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def step(model, train):
    """Output, every gradient and the buffers afterwards."""
    model.zero_grad()
    out = model.train(train)(images())
    out.mean().backward()
    state = {name: p.grad for name, p in model.named_parameters()} | dict(model.named_buffers())
    return {"out": out.detach(), **{name: t.detach().clone() for name, t in state.items()}}


def same(mine, expected):
    """One order of operations and another. A gradient that is 0 but for rounding is compared with the others."""
    assert mine.keys() == expected.keys()
    grads = max(t.abs().max().item() for name, t in expected.items() if t.is_floating_point() and name != "out")
    for name, tensor in expected.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-7, atol=1e-10 * grads, msg=lambda m, n=name: f"{n}: {m}")


def callable_modules(model):
    """Name -> module; lists of modules have no ``forward`` that anybody could call."""
    return {n: m for n, m in model.named_modules() if not isinstance(m, nn.ModuleList)}


KINDS = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")


def listen(model, kind):
    """Hook every module: the names that were heard, and the handles."""
    heard, handles = set(), []
    for name, module in callable_modules(model).items():

        def note(*_, name=name):
            heard.add(name)

        handles.append(getattr(module, f"register_{kind}")(note))
    return heard, handles


def check_every_module(model, train, kind):
    plain = copy.deepcopy(model)
    heard, handles = listen(model, kind)
    found, expected = step(model, train), step(plain, train)
    assert set(callable_modules(model)) - heard == set()
    same(found, expected)
    return handles


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES, ids=named)
@pytest.mark.parametrize("body", ["basic", "bottleneck", "pre_basic", "selective", "tf"])
def test_forward_hooks_fire_in_every_family_with_every_gate(body, gate):
    for train in (True, False):
        check_every_module(build(body, gate), train, "forward_hook")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", [*BODIES, "tf"])
def test_every_kind_of_hook_fires_in_every_body(body, kind):
    for gate, train in itertools.product((None, "se", {"name": "ge", "identity": True}), (True, False)):
        check_every_module(build(body, gate), train, kind)


@pytest.mark.parametrize("gate", ["scse", "gct", GE_THETA], ids=named)
@pytest.mark.parametrize("position", POSITIONS)
def test_hooks_fire_at_every_position(position, gate):
    for body, kind in (("bottleneck", KINDS[0]), ("pre_bottleneck", KINDS[2])):
        check_every_module(build(body, gate, position), body == "bottleneck", kind)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["cifar_seresnet20", "cifar_geresnet20_theta_plus", "cifar_preresnet110"])
def test_hooks_beside_the_kernels(name, train):
    """In float32 and channels-last, where the CPU kernels run; and without hooks they run again, to the last bit."""
    torch.manual_seed(0)
    model = create_model(name, image_size=16).to(memory_format=torch.channels_last).train(train)
    x = torch.randn(8, 3, 16, 16).to(memory_format=torch.channels_last)
    start = copy.deepcopy(model.state_dict())

    def logits():
        model.load_state_dict(start)
        return model(x).detach()

    plain = logits()
    heard, handles = listen(model, "forward_hook")
    torch.testing.assert_close(logits(), plain, rtol=1e-3, atol=1e-3)
    assert heard == set(callable_modules(model))
    for handle in handles:
        handle.remove()
    assert torch.equal(logits(), plain)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_hooks_on_all_modules(kind):
    for body, gate in (("bottleneck", "se"), ("tf", "ge"), ("pre_basic", "scse")):
        model, heard = build(body, gate), set()
        expected = step(copy.deepcopy(model), True)
        handle = getattr(torch_module, f"register_module_{kind}")(lambda module, *_, heard=heard: heard.add(id(module)))
        try:
            found = step(model, True)
        finally:
            handle.remove()
        assert {id(m) for m in callable_modules(model).values()} <= heard
        same(found, expected)


def test_what_a_hook_answers_is_used():
    """Twice what each module gives, and a replaced forward method that gives 0."""
    names = [name for name in callable_modules(build("bottleneck", "se")) if name]
    for name in names:
        model = build("bottleneck", "se").eval()
        plain = model(images())
        model.get_submodule(name).register_forward_hook(lambda module, inputs, out: 2 * out + 1)
        assert not torch.allclose(model(images()), plain), name
        model = build("bottleneck", "se").eval()
        module = model.get_submodule(name)
        module.forward = lambda *args, of=module.forward: torch.zeros_like(of(*args))
        assert not torch.allclose(model(images()), plain), name


def test_what_a_hook_keeps_is_not_written_over():
    model, kept = build("deep_stem", "se", image_size=16), {}
    for name, module in callable_modules(model).items():
        module.register_forward_hook(lambda m, i, out, name=name: kept.update({name: (out, out.clone())}))
    step(model, True)
    assert all(torch.equal(out, then) for out, then in kept.values())
    assert kept["bn1"][0].min() < 0, "not the map behind the ReLU"


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


class Wrapped(nn.Module):
    """Stands in a module's place and calls it, as adapters (LoRA) do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("body", "gate"), [("bottleneck", "se"), ("basic", GE_THETA), ("selective", None), ("tf", "scse")]
)
def test_changed_modules(body, gate):
    """Parametrised, pruned and replaced modules take part, wherever they are."""
    expected = step(build(body, gate), True)
    names = [
        n
        for n in callable_modules(build(body, gate))
        if n.startswith(("layer2.0.unit3" if body == "tf" else "layer2.0", "bn1", "stem.conv", "norm", "fc"))
    ]
    weights = [n for n in names if hasattr(build(body, gate).get_submodule(n), "weight")]
    for name in weights:
        model = build(body, gate)
        module = model.get_submodule(name)
        parametrize.register_parametrization(module, "weight", Doubled())
        torch.testing.assert_close(step(model, True)["out"], expected["out"])
        module.parametrizations.weight.original.data.zero_()
        assert not torch.equal(step(model, True)["out"], expected["out"]), name
        model = build(body, gate)
        prune.random_unstructured(model.get_submodule(name), "weight", amount=0.0)
        torch.testing.assert_close(step(model, True)["out"], expected["out"])
    for name in [*names, "layer1"]:
        model = build(body, gate)
        model.set_submodule(name, Wrapped(model.get_submodule(name)))
        torch.testing.assert_close(step(model, True)["out"], expected["out"])


def test_checkpointed_stages_are_heard():
    for enable in (True, False):
        model = build("bottleneck", "se")
        model.set_grad_checkpointing(enable)
        heard, _ = listen(model, "forward_hook")
        found = step(model, True)
        assert heard == set(callable_modules(model))
        same(found, step(build("bottleneck", "se"), True))
    model = build("bottleneck", "se")
    model.layer2 = Wrapped(model.layer2)
    model.set_grad_checkpointing(True)
    torch.testing.assert_close(step(model, True)["out"], step(build("bottleneck", "se"), True)["out"])


def test_explain_changes_gates_that_are_hooked():
    """Both at once: the scale is the one that was fixed, and the hook fires."""
    from excite.models.listening import fixed_gates, outer_gates

    for gate in ("se", "scse", {"name": "ge", "identity": True}):
        model = build("bottleneck", gate).eval()
        scales = {name: torch.full((1,), 0.5) for name in outer_gates(model)}
        with fixed_gates(model, scales):
            expected = model(images())
            heard, _ = listen(model, "forward_hook")
            torch.testing.assert_close(model(images()), expected)
        assert set(scales) <= heard


# --- graphs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [None, *GATES], ids=named)
@pytest.mark.parametrize("fused", ["off", "auto"])
def test_symbolic_trace(gate, fused):
    bodies = (
        ("bottleneck", "same", "selective_basic", "pre_basic", "pad", "tf") if gate in (None, {"name": "se"}) else ()
    )
    for body in bodies or ("bottleneck",):
        model = build(body, gate).eval()
        model.set_fused(fused)
        traced = torch.fx.symbolic_trace(model)
        x = images()
        assert torch.equal(traced(x), model(x))
        called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
        leaves = {n for n, m in model.named_modules() if type(m).__module__.startswith("torch.nn.modules")}
        holders = {n for n in leaves if isinstance(model.get_submodule(n), nn.Sequential | nn.ModuleList)}
        assert all(".gate.gather." in name for name in leaves - called - holders), (
            "a kernel of the map's size: a product"
        )


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("gate", [None, *GATES], ids=named)
def test_jit_trace(gate, train):
    """With gradients on, in the memory format of the kernels; and the trace trains."""
    # CBAM picks maxima: rounding of float32 may pick others in the kernels than in the trace (0.07 % of a gradient).
    dtype = torch.float64 if "cbam" in str(gate) else torch.float32
    model = build("bottleneck", gate).to(dtype).to(memory_format=torch.channels_last).train(train)
    model.set_fused("auto")
    x = images().to(dtype).to(memory_format=torch.channels_last)
    before = copy.deepcopy(model.state_dict())
    traced = torch.jit.trace(model, (x,), check_trace=False)
    model.load_state_dict(before)
    expected = model(x)
    expected.sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.load_state_dict(before)
    out = traced(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    out.sum().backward()
    largest = max(g.abs().max().item() for g in gradients.values())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-5 * largest, msg=lambda m, n=name: n + m)


def test_script_is_refused_in_one_sentence():
    model = create_model("cifar_seresnet20").eval()
    for thing in (model, model.layer1[0], nn.Sequential(create_gate("se", 16)), excite.fold(model)):
        with pytest.raises(
            ExciteError, match=r"torch.jit.script cannot compile excite's .*; use torch.export"
        ) as caught:
            torch.jit.script(thing)
        assert "\n" not in str(caught.value)


def test_fold_refuses_what_it_does_not_know():
    for name, place in (("layer1.0.conv1", "a convolution"), ("layer1.0.gate", "one of excite's gates")):
        model = create_model("cifar_seresnet20").eval()
        model.set_submodule(name, Wrapped(model.get_submodule(name)).eval())
        with pytest.raises(ExciteError, match=f"fold cannot handle a Wrapped in place of {place}"):
            excite.fold(model)


# --- activations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["relu", "silu", "gelu_tanh", "leaky_relu"])
@pytest.mark.parametrize("body", ["deep_stem", "selective", "pre_basic"])
def test_activation(body, act):
    """Behind every norm and addition, as hooks see it; and in the evaluation form, too."""
    model = build(body, "se", act_layer=act, image_size=16).float().eval()
    kinds = {type(m) for n, m in model.named_modules() if n.rpartition(".")[2] in ("act", "act1")}
    assert len(kinds) == 1
    check_every_module(build(body, "se", act_layer=act, image_size=16), True, "forward_hook")
    x = images().float()
    with torch.no_grad():
        expected = model(x)
        for portable in (True, False):
            torch.testing.assert_close(excite.fold(model, portable=portable)(x), expected, rtol=1e-3, atol=1e-4)
    if act != "relu":
        other = build(body, "se", image_size=16).float().eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert not torch.allclose(other(x), expected)
