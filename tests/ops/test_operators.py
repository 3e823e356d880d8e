"""Under torch.compile and torch.export. Letters: N images, C channels, H x W positions."""

import copy

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

from excite import create_model
from excite.models.resnet import ResNet
from excite.ops import native, norm_excite_residual, operators
from excite.ops.activations import GELU, LINEAR, RELU
from tests.ops.forked import compile_first, run_forked
from tests.ops.test_gated_norm import DEVICE, Fc, make_case, run, run_projected

CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
ON_CPU = DEVICE == "cpu"

needs_kernels = pytest.mark.skipif(
    ON_CPU and not native.available(), reason=f"no CPU kernels: {native.why_not() if ON_CPU else None}"
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that keeps the targets of every graph, forward and backward, and runs them as they are."""

    def __init__(self):
        self.targets = []
        self.count = 0

    def __call__(self, graph, inputs):
        def note(module, _):
            self.count += 1
            self.targets += [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
            return make_boxed_func(module.forward)

        return aot_autograd(fw_compiler=note, bw_compiler=note)(graph, inputs)


def compiled(backend):
    """``norm_excite_residual`` in one graph."""

    def form(*args, **options):
        return torch.compile(norm_excite_residual, fullgraph=True, backend=backend)(*args, **options)

    return form


@pytest.mark.parametrize(
    ("memory_format", "fused", "operator"),
    [
        # On a GPU, too, the operators are taken where there are kernels, but only if asked for.
        pytest.param(CHANNELS_LAST, "auto" if ON_CPU else "on", True, marks=needs_kernels),
        (CONTIGUOUS, "on" if ON_CPU else "plain", False),
    ],
    ids=["operators", "formulas"],
)
@pytest.mark.parametrize(
    ("gated", "identity", "projected", "drop"),
    [
        (True, True, False, False),
        (True, True, True, False),
        (True, True, False, True),
        (True, False, False, False),
        (False, True, True, False),
        (False, False, False, False),
    ],
)
def test_one_graph_with_the_same_results(memory_format, fused, operator, gated, identity, projected, drop):
    """Output, gradients and buffers, and whether it is our operators that run."""
    parts = {"gated": gated, "with_identity": identity, "act": "relu", "drop": drop}
    case = make_case((3, 6, 5, 4), memory_format, torch.float32, **parts)
    graphs = Graphs()
    runner = run_projected if projected else run
    expected = runner(norm_excite_residual, case, torch.float32, fused="off")
    found = runner(compiled(graphs), case, torch.float32, fused=fused)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert graphs.count == 2
    ours = {target for target in graphs.targets if target.startswith("excite.")}
    names = ("norm_statistics", "norm_apply", "norm_grad_sums", "norm_grad_input")
    assert ours == ({f"excite.{name}.default" for name in names} if operator else set())


@pytest.mark.parametrize("memory_format", [pytest.param(CHANNELS_LAST, marks=needs_kernels), CONTIGUOUS])
def test_inductor(memory_format):
    """The real compiler, on every gradient: 2.13 made a wrong one of the gate's first layer from packed statistics."""
    case = make_case(
        (4, 16, 8, 8), memory_format, torch.float32, gated=True, with_identity=True, act="relu", drop=False
    )
    expected = run(norm_excite_residual, case, torch.float32, fused="off")
    found = run(compiled("inductor"), case, torch.float32, fused="on")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", ["auto", *(pytest.param(f, marks=pytest.mark.slow) for f in ("plain", "off"))])
def test_a_network_in_one_graph(fused):
    """Forward, backward and the running statistics of a small SE-ResNet with a projection; then another batch size."""
    torch.manual_seed(0)
    shape = {"layers": (1, 1), "widths": (8, 16), "stem": "cifar", "stem_width": 8}
    model = ResNet(block="basic", **shape, gate="se", num_classes=5, image_size=32).to(memory_format=CHANNELS_LAST)
    eager = copy.deepcopy(model)
    model.set_fused(fused)
    eager.set_fused("off")
    graph = torch.compile(model, fullgraph=True, backend="aot_eager")
    for count in (4, 6):
        images = torch.randn(count, 3, 32, 32).to(memory_format=CHANNELS_LAST)
        labels = torch.randint(5, (count,))
        for net, call in ((model, graph), (eager, eager)):
            net.zero_grad()
            F.cross_entropy(call(images), labels).backward()
        for (name, p), q in zip(model.named_parameters(), eager.parameters(), strict=True):
            close = 1e-4 * q.grad.abs().max().item() + 1e-6
            assert (p.grad - q.grad).abs().max() <= close, name
    for p, q in zip(model.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_the_first_thing_a_process_does():
    """Whether there are kernels is found out while the compiler traces, which must not trace that."""
    assert run_forked(compile_first) == (False, ["excite.norm_apply", "excite.norm_statistics"])


def test_an_exported_network_holds_pytorchs_operators_only():
    model = create_model("cifar_seresnet20", fused="on").eval().to(memory_format=CHANNELS_LAST)
    images = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(model, (images,))
    assert not [node for node in exported.graph.nodes if "excite" in str(node.target)]
    torch.testing.assert_close(exported.module()(images), model(images), rtol=1e-4, atol=1e-5)


def test_autocast_inside_a_graph():
    """As recipes train: the network compiled, bfloat16 by autocast."""
    case = make_case(
        (4, 8, 6, 6), CHANNELS_LAST, torch.bfloat16, gated=True, with_identity=True, act="relu", drop=False
    )

    def form(*args, **options):
        with torch.autocast("cpu", torch.bfloat16):
            return compiled("aot_eager")(*args, **options)

    expected = run(norm_excite_residual, case, torch.bfloat16, fused="on")
    found = run(form, case, torch.bfloat16, fused="on")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-2, atol=2e-2)


def maps(count, memory_format=CHANNELS_LAST, shape=(3, 6, 5, 4)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(memory_format=memory_format) for _ in range(count)]


@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS])
def test_the_operators_keep_their_word(memory_format):
    """Schema (nothing changed in place, nothing aliased), fake tensors' shapes and strides, registered derivatives."""
    check = ("test_schema", "test_faketensor", "test_autograd_registration")
    y, add, grad, out = maps(4, memory_format)
    n, c = y.shape[:2]
    weight, bias, s, dq = torch.rand(c), torch.rand(c), torch.rand(n, c), torch.rand(n, c)
    outputs = operators.norm_statistics(y, weight, bias, 1e-5, LINEAR)
    packed, relays = outputs[1], outputs[3:]
    for inputs in ((y, weight, bias, 1e-5, LINEAR), (y.clone().requires_grad_(), weight, bias, 1e-5, RELU)):
        torch.library.opcheck(operators.norm_statistics, inputs, test_utils=check)
    for rest in ((s, add, packed, *relays[:2], RELU), (None, None, None, None, None, LINEAR)):
        torch.library.opcheck(operators.norm_apply, (y, packed, *relays, *rest), test_utils=check)
    of_relu, of_gelu, of_none = (out, RELU, True), (None, GELU, True), (None, LINEAR, False)
    for (o, *act), *shortcut in ((of_relu, add, packed), (of_gelu, add, None), (of_none, None, None)):
        torch.library.opcheck(operators.norm_grad_sums, (grad, o, y, packed, s, *act, *shortcut), test_utils=check)
    sums = torch.rand(2, n, c)
    for rest in ((s, sums, dq, GELU, True), (None, sums, None, LINEAR, False)):
        torch.library.opcheck(operators.norm_grad_input, (grad, y, packed, *rest), test_utils=check)


def test_the_first_derivative_is_all_there_is():
    """Gradients of gradients are refused in a sentence, as in eager mode."""
    (y,) = maps(1)
    y.requires_grad_()
    norm = nn.BatchNorm2d(6)
    squeezed, packed, _, *relays = operators.norm_statistics(y, norm.weight, norm.bias, 1e-5, LINEAR)
    out = operators.norm_apply(y.detach(), packed, *relays, Fc(6)(squeezed), None, None, None, None, LINEAR)
    (grad,) = torch.autograd.grad(out.square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        grad.sum().backward()
