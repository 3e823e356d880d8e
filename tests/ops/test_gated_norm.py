"""Norm + gate + addition + ReLU in two passes against the textbook. Letters: N images, C channels, H x W positions."""

import copy
import gc
import itertools
import os
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from excite import create_model
from excite.errors import ExciteError
from excite.ops import native, norm_excite_residual, plain, reference
from excite.ops.activations import ACTS
from excite.ops.gated_norm import _choose

CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
SHAPES = [(1, 1, 7, 7), (2, 24, 3, 5), (37, 64, 3, 5), (2, 2048, 7, 7), (1, 64, 56, 56), (2, 130, 9, 1), (5, 3, 1, 1)]

#: benchmarks/gpu.sh runs the comparisons with the textbook on an accelerator.
DEVICE = os.environ.get("EXCITE_TEST_DEVICE", "cpu")
if DEVICE != "cpu":
    torch.backends.cudnn.allow_tf32 = False  # float32 is to be float32
needs_kernels = pytest.mark.skipif(not native.available(), reason=f"no CPU kernels: {native.why_not()}")


class Fc(nn.Module):
    """A gate's excitation: (N, C) -> (N, C)."""

    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Linear(channels, max(channels // 16, 2))
        self.fc2 = nn.Linear(max(channels // 16, 2), channels)

    def forward(self, squeezed):
        return self.fc2(F.gelu(self.fc1(squeezed.to(self.fc1.weight.dtype)))).sigmoid().to(squeezed.dtype)


def make_case(shape, memory_format, dtype, *, gated, with_identity, act, drop, seed=0):
    """Tensors that ``dtype`` can hold exactly, so that every form sees the same input."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator).to(dtype)

    n, c = shape[:2]
    norm = nn.BatchNorm2d(c)
    with torch.no_grad():
        norm.weight.copy_(draw(c) + 1)
        norm.bias.copy_(draw(c))
    y = (2 * draw(*shape) + 3 * draw(1, c, 1, 1)).to(dtype)
    torch.manual_seed(seed)
    case = {
        "y": y.to(memory_format=memory_format),
        "norm": norm,
        "gate": Fc(c) if gated else None,
        "identity": draw(*shape).to(memory_format=memory_format) if with_identity else None,
        "keep": draw(n, 1, 1, 1).abs() if drop else None,
        "act": act,
        "grad": draw(*shape).to(memory_format=memory_format),
    }
    return {name: part.to(DEVICE) if hasattr(part, "to") else part for name, part in case.items()}


def run(form, case, dtype, **options):
    """Output, every gradient and the buffers afterwards, by name, in float64."""
    norm, gate = copy.deepcopy(case["norm"]), copy.deepcopy(case["gate"])
    if dtype is torch.float64:
        norm.double()
        gate = gate.double() if gate is not None else None
    y = case["y"].to(dtype, copy=True).requires_grad_()
    identity = None if case["identity"] is None else case["identity"].to(dtype, copy=True).requires_grad_()
    keep = None if case["keep"] is None else case["keep"].to(dtype)
    out = form(y, norm, gate, identity, keep=keep, act=case["act"], **options)
    out.backward(case["grad"].to(dtype))
    results = {"out": out, "y": y.grad, "identity": None if identity is None else identity.grad}
    for prefix, module in (("norm", norm), ("gate", gate)):
        if module is not None:
            results |= {f"{prefix}.{name}": p.grad for name, p in module.named_parameters()}
            results |= {f"{prefix}.{name}": b for name, b in module.named_buffers()}
    return {name: t.detach().double() for name, t in results.items() if t is not None}


def run_projected(form, case, dtype, **options):
    """As ``run``, with a norm of its own on the shortcut."""
    exact = dtype is torch.float64
    other = copy.deepcopy(case["norm"]).double() if exact else copy.deepcopy(case["norm"])
    with torch.no_grad():
        other.weight.mul_(-0.5).add_(0.25)

    def projected(y, norm, gate, identity, **rest):
        return form(y, norm, gate, identity, identity_norm=other, **rest, **options)

    results = run(projected, case, dtype)
    tensors = {**{n: p.grad for n, p in other.named_parameters()}, **dict(other.named_buffers())}
    return results | {f"other.{name}": tensor.detach().double() for name, tensor in tensors.items()}


def cases(shape, memory_format, dtype, *, act, **parts):
    """One case; several where there are few channels, whose gradients' errors are chance: behind an activation other
    than ReLU, every form rounds the gradient map."""
    count = 16 if act not in (None, "relu") and shape[0] * shape[1] < 24 else 1
    return [make_case(shape, memory_format, dtype, act=act, **parts, seed=seed) for seed in range(count)]


def assert_as_near_as_the_textbook(cases, dtype, form):
    """Three-way: output, every gradient, running statistics; at most twice the textbook's error in the same type."""
    errors, allowed = {}, {}
    for case in cases:
        exact = form(reference.norm_excite_residual, case, torch.float64)
        textbook = form(reference.norm_excite_residual, case, dtype)
        ours = form(norm_excite_residual, case, dtype, fused="on")
        assert exact.keys() == ours.keys() == textbook.keys()
        for name, true in exact.items():
            errors[name] = errors.get(name, 0) + (ours[name] - true).abs().mean()
            # Sums, statistics and gradients of parameters are float32 in every form: some roundings are no difference.
            most = 2 * (textbook[name] - true).abs().mean() + 2e-6 * true.abs().mean() + 1e-7
            allowed[name] = allowed.get(name, 0) + most
    for name, error in errors.items():
        assert error <= allowed[name], name


#: gated, with_identity, act, drop: everything with a ReLU; the other activations with and without what else differs.
OPTIONS = [
    *itertools.product([False, True], [False, True], [None, "relu"], [False, True]),
    *((gated, gated, act, False) for act in ACTS if act != "relu" for gated in (False, True)),
    (False, True, "gelu", False),
    (True, False, "gelu", False),
]


@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_near_to_float64_as_the_textbook(shape, dtype, memory_format):
    for gated, with_identity, act, drop in OPTIONS:
        parts = {"gated": gated, "with_identity": with_identity, "act": act, "drop": drop}
        assert_as_near_as_the_textbook(cases(shape, memory_format, dtype, **parts), dtype, run)


@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 7, 7), (37, 64, 3, 5), (2, 130, 9, 1), (1, 64, 56, 56)], ids=str)
def test_a_projections_norm_joins_the_passes(shape, dtype, memory_format):
    """The same three-way test, with the shortcut's norm in the same last pass and the same first pass backward."""
    for gated, act in itertools.product([False, True], [None, "relu", "gelu"]):
        parts = {"gated": gated, "with_identity": True, "act": act, "drop": False}
        assert_as_near_as_the_textbook(cases(shape, memory_format, dtype, **parts), dtype, run_projected)


@pytest.mark.parametrize("act", [None, *ACTS])
def test_gradcheck_with_a_projection(act):
    case = make_case((3, 4, 2, 3), CONTIGUOUS, torch.float64, gated=True, with_identity=True, act=act, drop=False)
    norm, gate, other = case["norm"].double(), case["gate"].double(), nn.BatchNorm2d(4).double().to(DEVICE)
    parameters = [*norm.parameters(), *gate.parameters(), *other.parameters()]
    inputs = [t.requires_grad_() for t in (case["y"], case["identity"], *parameters)]

    def form(y, identity, *rest):
        return norm_excite_residual(y, norm, gate, identity, identity_norm=other, act=act, fused="on")

    assert torch.autograd.gradcheck(form, inputs)


def test_a_projections_norm_that_cannot_join_runs_by_itself():
    """Another mode, or somebody who listens to it."""
    case = make_case((3, 4, 5, 5), CONTIGUOUS, torch.float32, gated=True, with_identity=True, act="relu", drop=False)
    seen = []
    listened = nn.BatchNorm2d(4).to(DEVICE)
    listened.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    frozen = nn.BatchNorm2d(4).eval().to(DEVICE)
    frozen.running_mean.normal_()
    for other in (listened, frozen):
        args = (case["y"], copy.deepcopy(case["norm"]), case["gate"], case["identity"])
        found = norm_excite_residual(*args, identity_norm=other, act="relu", fused="on")
        expected = reference.norm_excite_residual(*args, identity_norm=copy.deepcopy(other), act="relu")
        torch.testing.assert_close(found, expected)
    assert len(seen) == 2


@pytest.mark.parametrize("passes", [plain, pytest.param(native, marks=needs_kernels)], ids=["plain", "native"])
def test_both_executions_are_what_is_tested(passes):
    """That "on" takes the kernels where they are, and plain PyTorch elsewhere."""
    norm = nn.BatchNorm2d(8)
    y = torch.randn(2, 8, 4, 4).to(memory_format=CHANNELS_LAST if passes is native else CONTIGUOUS)
    assert _choose(y, norm, "on") is passes
    assert _choose(y, norm, "auto") is (native if passes is native else None)
    assert _choose(y, norm, "plain") is plain
    assert _choose(y, norm, "off") is None


@pytest.mark.parametrize(("gated", "with_identity", "act", "drop"), OPTIONS)
def test_gradcheck(gated, with_identity, act, drop):
    shape = (3, 4, 2, 3)
    case = make_case(shape, CONTIGUOUS, torch.float64, gated=gated, with_identity=with_identity, act=act, drop=drop)
    norm, gate = case["norm"].double(), case["gate"].double() if gated else None
    parameters = [*norm.parameters(), *(gate.parameters() if gated else [])]
    inputs = [t.requires_grad_() for t in (case["y"], case["identity"], *parameters) if t is not None]

    def form(y, *rest):
        identity = rest[0] if with_identity else None
        return norm_excite_residual(y, norm, gate, identity, keep=case["keep"], act=act, fused="on")

    assert torch.autograd.gradcheck(form, inputs)


def test_double_backward_is_refused_in_a_sentence():
    y = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = norm_excite_residual(y, nn.BatchNorm2d(3), act="relu", fused="on")
    (grad,) = torch.autograd.grad(out.square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS])
@pytest.mark.parametrize("gated", [False, True])
def test_running_statistics_are_those_of_batch_norm(momentum, memory_format, gated):
    torch.manual_seed(0)
    ours, theirs = nn.BatchNorm2d(6, momentum=momentum), nn.BatchNorm2d(6, momentum=momentum)
    gate = Fc(6) if gated else None
    for _ in range(3):
        y = (torch.randn(3, 6, 4, 5) * 2 + 1).to(memory_format=memory_format)
        norm_excite_residual(y, ours, gate, fused="on")
        theirs(y)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)


@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS])
@pytest.mark.parametrize("gated", [False, True])
def test_evaluation_uses_the_running_statistics(memory_format, gated):
    case = make_case(
        (4, 24, 5, 3), memory_format, torch.float32, gated=gated, with_identity=True, act="relu", drop=False
    )
    norm = case["norm"].eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    before = copy.deepcopy(norm.state_dict())
    with torch.no_grad():
        args = (case["y"], norm, case["gate"], case["identity"])
        torch.testing.assert_close(
            norm_excite_residual(*args, act="relu", fused="on"), reference.norm_excite_residual(*args, act="relu")
        )
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())


@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS])
def test_frozen_norms_keep_their_statistics_and_still_learn(memory_format):
    case = make_case((4, 8, 5, 3), memory_format, torch.float32, gated=True, with_identity=True, act="relu", drop=False)
    case["norm"].eval()
    textbook, fused = (
        run(form, case, torch.float32, **options)
        for form, options in ((reference.norm_excite_residual, {}), (norm_excite_residual, {"fused": "on"}))
    )
    for name, value in textbook.items():
        torch.testing.assert_close(fused[name].float(), value.float(), rtol=1e-4, atol=1e-5)
    assert "norm.weight" in fused


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_and_inf_come_through(bad, memory_format, dtype):
    case = make_case((3, 5, 4, 4), memory_format, dtype, gated=True, with_identity=True, act="relu", drop=False)
    case["y"][1, 2, 3, 3] = bad
    case["identity"][0, 4, 0, 0] = bad
    textbook = run(reference.norm_excite_residual, case, dtype)
    fused = run(norm_excite_residual, case, dtype, fused="on")
    for name in ("out", "y", "norm.weight", "norm.running_mean", "norm.running_var"):
        assert torch.equal(textbook[name].isfinite(), fused[name].isfinite()), name
    assert not fused["out"].isfinite().all()


@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS])
def test_channels_of_no_variance(memory_format):
    case = make_case((3, 5, 4, 4), memory_format, torch.float32, gated=True, with_identity=True, act="relu", drop=False)
    case["y"][:, 1] = 0.0
    case["y"][:, 3] = 1e4
    exact = run(reference.norm_excite_residual, case, torch.float64)
    fused = run(norm_excite_residual, case, torch.float32, fused="on")
    for name, true in exact.items():
        torch.testing.assert_close(fused[name], true, rtol=1e-4, atol=1e-3 if name == "y" else 1e-4)


def test_one_value_per_channel_is_an_error_as_in_batch_norm():
    y, norm = torch.randn(1, 4, 1, 1), nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match="more than 1 value per channel") as theirs:
        norm(y)
    with pytest.raises(ValueError, match="more than 1 value per channel") as ours:
        norm_excite_residual(y, nn.BatchNorm2d(4), act="relu", fused="on")
    assert str(ours.value) == str(theirs.value)
    assert norm_excite_residual(y, norm.eval(), act="relu", fused="on").shape == (1, 4, 1, 1)


@needs_kernels
@pytest.mark.parametrize("shape", [(3, 16, 32, 32), (2, 300, 40, 30)])
def test_results_do_not_depend_on_the_number_of_threads(shape):
    case = make_case(shape, CHANNELS_LAST, torch.bfloat16, gated=True, with_identity=True, act="relu", drop=False)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(run(norm_excite_residual, case, torch.bfloat16, fused="auto"))
    finally:
        torch.set_num_threads(threads)
    gate = {name for name in results[0] if name.startswith("gate")}  # PyTorch's own matrix products
    for other in results[1:]:
        assert all(torch.equal(other[name], value) for name, value in results[0].items() if name not in gate)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS])
def test_the_graph_is_freed(memory_format, backward):
    """The handover between the two halves of the backward pass must not keep the graph alive."""

    class Token:
        pass

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, token):
            ctx.token = token
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad, None

    token = Token()
    watched = weakref.ref(token)
    y = torch.randn(2, 3, 4, 4).to(memory_format=memory_format).requires_grad_()
    gc.collect()
    gc.disable()
    try:
        out = norm_excite_residual(Watched.apply(y, token), nn.BatchNorm2d(3), Fc(3), y, act="relu", fused="on")
        if backward:
            out.sum().backward()
        del token, out
        assert watched() is None
    finally:
        gc.enable()


def test_what_listens_to_the_norm_is_heard():
    y, norm, seen = torch.randn(2, 3, 4, 4), nn.BatchNorm2d(3), []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    norm_excite_residual(y, norm, act="relu", fused="on")
    assert seen == [y.shape]


def test_other_norms_keep_their_own_forward():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    y = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(
        norm_excite_residual(y, Doubled(3), act="relu", fused="on"), 2 * F.relu(nn.BatchNorm2d(3)(y))
    )


@pytest.mark.parametrize("fused", ["auto", "on"])
def test_a_network_in_bfloat16_throughout(fused):
    """Its norms' own buffers are bfloat16 then, which the kernels do not keep."""
    norm = nn.BatchNorm2d(4).to(torch.bfloat16)
    y = torch.randn(3, 4, 5, 5).to(torch.bfloat16, memory_format=CHANNELS_LAST)
    expected = copy.deepcopy(norm)(y).relu()
    torch.testing.assert_close(norm_excite_residual(y, norm, act="relu", fused=fused), expected, rtol=2e-2, atol=2e-2)
    assert norm.running_mean.dtype is torch.bfloat16
    assert norm.num_batches_tracked == 1


def test_off_has_gradients_of_gradients():
    case = make_case((2, 8, 4, 4), CHANNELS_LAST, torch.float32, gated=True, with_identity=True, act="relu", drop=False)
    y = case["y"].requires_grad_()
    out = norm_excite_residual(y, case["norm"], case["gate"], case["identity"], act="relu", fused="off")
    (grad,) = torch.autograd.grad(out.square().sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), y)
    assert second.abs().sum() > 0


def test_checkpointed_blocks_give_the_same_gradients():
    case = make_case((4, 8, 6, 6), CHANNELS_LAST, torch.float32, gated=True, with_identity=True, act="relu", drop=False)

    def recomputed(y, norm, gate, identity, **options):
        def block(y, identity):
            return norm_excite_residual(y, norm, gate, identity, fused="on", **options)

        momentum, norm.momentum = norm.momentum, 0.0
        try:
            return checkpoint(block, y, identity, use_reentrant=False)
        finally:
            norm.momentum = momentum

    expected = run(norm_excite_residual, case, torch.float32, fused="on")
    got = run(recomputed, case, torch.float32)
    for name, value in expected.items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(got[name], value), name


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # float64: plain PyTorch, only roundings of 1e-16 to grow over ten steps; float32: the kernels.
    [(torch.float64, 1e-8), pytest.param(torch.float32, 2e-3, marks=needs_kernels)],
    ids=str,
)
@pytest.mark.parametrize("name", ["cifar_seresnet20", "cifar_geresnet20_theta_minus", "cifar_resnet20"])
def test_a_network_trains_alike_fused_and_textbook(name, dtype, tolerance):
    """The same losses over ten steps; the state_dict moves between the forms."""
    torch.manual_seed(0)
    images = torch.randn(16, 3, 16, 16).to(DEVICE, memory_format=CHANNELS_LAST, dtype=dtype)
    labels = torch.randint(10, (16,)).to(DEVICE)
    start = create_model(name, image_size=16).state_dict()
    losses = {}
    for fused in ("off", "on"):
        model = create_model(name, image_size=16, fused=fused).to(DEVICE, memory_format=CHANNELS_LAST, dtype=dtype)
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses[fused] = []
        for _ in range(10):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[fused].append(loss.item())
    torch.testing.assert_close(torch.tensor(losses["on"]), torch.tensor(losses["off"]), rtol=tolerance, atol=tolerance)
    assert losses["on"][9] < losses["on"][0]


def test_a_wrong_mode_is_named():
    with pytest.raises(ExciteError, match=r"fused is 'yes'.*allowed: auto, on, plain, off"):
        create_model("cifar_seresnet20", fused="yes")


@needs_kernels
def test_less_is_kept_for_the_backward_pass():
    """Neither the normalised nor the scaled map: what is saved is the norm's input and the block's output."""
    saved = {}
    y = torch.randn(8, 64, 16, 16).to(memory_format=CHANNELS_LAST)
    for fused in ("auto", "off"):
        storages = {}

        def pack(t, storages=storages):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        inputs = [y.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = norm_excite_residual(inputs[0], nn.BatchNorm2d(64), Fc(64), inputs[1], act="relu", fused=fused)
        saved[fused] = sum(size == y.nbytes for size in storages.values())
        assert out.requires_grad
    assert saved == {"auto": 2, "off": 3}
