"""What the Triton kernels compute; run by ``test_triton.py``.

It does so by Triton's interpreter (with TRITON_INTERPRET=1) and, where there is one, on the GPU (without).

Letters: N images, C channels, H x W positions. The interpreter takes milliseconds a program: shapes are small, but do
not divide the tiles, and an image alone is split.
"""

import itertools
import os

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import nn
from triton.runtime import interpreter

from excite.ops import gated_norm, norm_excite_residual, plain, reference, triton_kernels
from excite.ops.activations import ACTS, GELU, HARD_SWISH, LINEAR, RELU, RELU6, SILU
from excite.ops.triton_kernels import launch
from tests.ops.test_gated_norm import assert_as_near_as_the_textbook, cases, make_case, run, run_projected

CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
LAYOUTS = pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS], ids=["channels_last", "contiguous"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu") if INTERPRETED else torch.accelerator.current_accelerator()
#: Some roundings of float32 sums and arithmetic.
FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}


interpreters_own_cast = interpreter.InterpreterBuilder.cast_impl


def cast_as_gpus_do(self, source, target):
    """The interpreter cuts float32 off to bfloat16; GPUs round (``test_triton.py`` sees to the instruction)."""
    if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
        return interpreters_own_cast(self, source, target)
    values = torch.from_numpy(np.array(source.data)).to(torch.bfloat16)
    return interpreter.TensorHandle(values.view(torch.uint16).numpy(), target.scalar)


@pytest.fixture(autouse=True)
def by_triton(monkeypatch):
    assert triton_kernels.why_not() is None
    if INTERPRETED:
        monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast_as_gpus_do)
    monkeypatch.setattr(gated_norm, "_choose", lambda y, norm, fused: None if fused == "off" else triton_kernels)


def on_device(case):
    return {k: v.to(DEVICE) if isinstance(v, (torch.Tensor, nn.Module)) else v for k, v in case.items()}


def draw(*size):
    return torch.randn(*size).to(DEVICE)


#: gated, with_identity, act, drop: whatever the activation's derivative comes from, with and without a gate.
SOME_OPTIONS = [
    (True, True, "relu", True),
    (True, False, "relu", False),
    (False, True, "gelu", False),
    (False, False, None, False),
]


def three_way(shape, dtype, memory_format, options):
    for gated, with_identity, act, drop in options:
        parts = {"gated": gated, "with_identity": with_identity, "act": act, "drop": drop}
        ours = [on_device(case) for case in cases(shape, memory_format, dtype, **parts)]
        assert_as_near_as_the_textbook(ours, dtype, run)
        if with_identity:
            assert_as_near_as_the_textbook(ours, dtype, run_projected)


@LAYOUTS
@DTYPES
def test_as_near_to_float64_as_the_textbook(dtype, memory_format):
    # What the options do is the same in every type; the interpreter is slow.
    three_way((2, 24, 3, 5), dtype, memory_format, SOME_OPTIONS if dtype is torch.float32 else SOME_OPTIONS[:2])
    if dtype is torch.bfloat16:
        three_way((1, 1, 7, 7), dtype, memory_format, SOME_OPTIONS[1:])


@pytest.mark.slow
@LAYOUTS
@DTYPES
@pytest.mark.parametrize("shape", [(37, 64, 3, 5), (1, 2048, 7, 7), (1, 64, 56, 56), (2, 130, 9, 1)], ids=str)
def test_as_near_to_float64_as_the_textbook_on_larger_shapes(shape, dtype, memory_format):
    # In turns where they are interpreted: every option with every shape and every type, not all with all.
    turn = (torch.float32, torch.bfloat16, torch.float16).index(dtype) + 2 * (memory_format is CONTIGUOUS)
    options = [SOME_OPTIONS[turn % 4]] if shape[1] * shape[2] > 2048 else SOME_OPTIONS[turn % 2 :: 2]
    three_way(shape, dtype, memory_format, options if INTERPRETED else SOME_OPTIONS)


def make_maps(shape, memory_format, count, dtype=torch.float32):
    torch.manual_seed(0)
    return [(draw(*shape) + 1).to(dtype).contiguous(memory_format=memory_format) for _ in range(count)]


def affine(channels):
    """A norm's weight and bias as they start."""
    return torch.ones(channels, device=DEVICE), torch.zeros(channels, device=DEVICE)


#: One image, whose positions are split in both layouts, the last split being shorter; and several, that are not.
PASS_SHAPES = pytest.mark.parametrize("shape", [(1, 24, 13, 21), (3, 7, 3, 5)], ids=str)


@PASS_SHAPES
@LAYOUTS
def test_forward_every_form_gives_what_plain_pytorch_gives(shape, memory_format):
    n, c = shape[:2]
    y, add = make_maps(shape, memory_format, 2)
    weight, bias, s = draw(c), draw(c), draw(n, c).sigmoid()
    plan = launch._plan(y, launch.SUM_TILE, launch.SUM_PROGRAMS)
    assert (plan.splits > 1) == (n == 1)
    for ours, theirs in zip(triton_kernels.moments(y), plain.moments(y), strict=True):
        torch.testing.assert_close(ours, theirs, **FLOAT32)
    known, known_add = (plain.statistics(x, weight, bias, 1e-5, None, 0.0) for x in (y, add))
    ours = triton_kernels.statistics(y, weight, bias, 1e-5, None, 0.0)
    torch.testing.assert_close(ours.packed, known.packed, **FLOAT32)
    shortcuts = ((None, None), (add, None), (add, known_add))
    others = [(s, shortcuts[1], act) for act in ACTS.values()]
    for gate, (shortcut, known_shortcut), act in [*itertools.product((None, s), shortcuts, (LINEAR, RELU)), *others]:
        args = (y, known, gate, shortcut, act, known_shortcut)
        ours = triton_kernels.apply(*args)
        torch.testing.assert_close(ours, plain.apply(*args), **FLOAT32)
        assert ours.stride() == y.stride()


#: activation, gate, whether the shortcut has a norm (None: there is no shortcut).
SUMS_FORMS = [
    (LINEAR, False, None),
    (LINEAR, True, True),
    (RELU, True, True),
    (RELU, False, False),
    (RELU, True, None),
    (GELU, True, True),
    (GELU, False, False),
    (GELU, True, None),
    (SILU, False, False),
    (RELU6, True, None),
    (HARD_SWISH, True, False),
]
#: activation, gate, gradient of the squeeze, gradients of several processes.
INPUT_FORMS = [
    (LINEAR, False, False, False),
    (LINEAR, True, True, True),
    (RELU, True, True, False),
    (RELU, False, False, True),
    (GELU, True, False, True),
    (RELU6, False, True, False),
    (SILU, True, True, False),
    (HARD_SWISH, True, False, False),
]


@PASS_SHAPES
@LAYOUTS
def test_backward_every_form_gives_what_plain_pytorch_gives(shape, memory_format, monkeypatch):
    n, c = shape[:2]
    monkeypatch.setattr(launch, "MERGE_TILES", 0)
    y, add, grad = make_maps(shape, memory_format, 3)
    weight, bias, s, dq, means = draw(c), draw(c), draw(n, c).sigmoid(), draw(n, c), draw(2, c)
    known, known_add = (plain.statistics(x, weight, bias, 1e-5, None, 0.0) for x in (y, add))
    assert (launch._plan_sums(y).splits > 1) == (n == 1)
    for act, gated, normed in SUMS_FORMS:
        gate, write = s if gated else None, act != LINEAR and normed is not None
        shortcut = (None if normed is None else add, known_add if normed else None)
        out = plain.apply(y, known, gate, shortcut[0], act, shortcut[1]) if act == RELU and write else None
        args = (grad, out, y, known, gate, act, write, *shortcut)
        theirs, ours = plain.grad_sums(*args), triton_kernels.grad_sums(*args)
        torch.testing.assert_close(ours.packed, theirs.packed, rtol=2e-5, atol=2e-5 * y[0, 0].numel())
        assert (ours.map is not None) == write
        if write:
            torch.testing.assert_close(ours.map, theirs.map, **FLOAT32)
    for act, gated, squeezed, several in INPUT_FORMS:
        gate = s if gated else None
        sums = plain.grad_sums(grad, None, y, known, gate, act, False)
        args = (grad, y, known, gate, sums, dq if squeezed else None, act, True, means if several else None)
        for ours, theirs in zip(triton_kernels.grad_input(*args), plain.grad_input(*args), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-4)
    assert triton_kernels.grad_input(grad, y, known, gate, sums, dq, LINEAR, False)[2] is None


@LAYOUTS
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_batch_norm(memory_format, momentum):
    """Moved once a step, also where the first launch tries several tiles."""
    ours, theirs = (nn.BatchNorm2d(6, momentum=momentum).to(DEVICE) for _ in range(2))
    for y in make_maps((3, 6, 4, 5), memory_format, 3):
        norm_excite_residual(y, ours, fused="on")
        theirs(y)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)


@pytest.mark.parametrize("shape", [(1, 8, 40, 45), (6, 8, 5, 5)], ids=str)
@LAYOUTS
def test_the_variance_survives_a_large_mean(shape, memory_format):
    """Variance 1 around 3000: the squares' own sums would lose 24 of float32's 24 bits."""
    torch.manual_seed(0)
    y = (draw(*shape) + 3000).contiguous(memory_format=memory_format)
    y[:, 3] = 1e4  # and no variance at all
    exact = torch.var_mean(y.double(), (2, 3), correction=0)
    mean, variance = triton_kernels.moments(y)
    torch.testing.assert_close(mean, exact[1].float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, exact[0].float(), rtol=1e-4, atol=1e-12)
    known = triton_kernels.statistics(y, *affine(8), 1e-5, None, 0.0)
    total = torch.var(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(known.packed[-1], (total + 1e-5).rsqrt().float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@LAYOUTS
def test_nan_and_inf_come_through(bad, memory_format):
    case = make_case(
        (3, 5, 4, 4), memory_format, torch.bfloat16, gated=True, with_identity=True, act="relu", drop=False
    )
    case["y"][1, 2, 3, 3] = bad
    case["identity"][0, 4, 0, 0] = bad
    case = on_device(case)
    textbook = run(reference.norm_excite_residual, case, torch.bfloat16)
    ours = run(norm_excite_residual, case, torch.bfloat16, fused="on")
    for name in ("out", "y", "norm.weight", "norm.running_mean", "norm.running_var"):
        assert torch.equal(textbook[name].isfinite(), ours[name].isfinite()), name
    assert not ours["out"].isfinite().all()


def test_the_relu_of_nan_is_nan_and_lets_gradients_through():
    y = torch.full((1, 2, 2, 2), float("nan"), device=DEVICE)
    known = plain.statistics(draw(1, 2, 2, 2), *affine(2), 1e-5, None, 0.0)
    out = triton_kernels.apply(y, known, None, y, RELU)
    assert out.isnan().all()
    sums = triton_kernels.grad_sums(torch.ones_like(y), out, y, known, None, RELU, True)
    assert torch.equal(sums.map, torch.ones_like(y))


def test_maps_of_another_layout_or_type_are_brought_in_line():
    y, add, grad = make_maps((2, 6, 3, 5), CHANNELS_LAST, 3, torch.bfloat16)
    known = plain.statistics(y, *affine(6), 1e-5, None, 0.0)
    expected = triton_kernels.apply(y, known, None, add, LINEAR)
    assert torch.equal(triton_kernels.apply(y, known, None, add.contiguous().float(), LINEAR), expected)
    sums = triton_kernels.grad_sums(grad, None, y, known, None, LINEAR, False)
    other = triton_kernels.grad_sums(grad.contiguous(), None, y, known, None, LINEAR, False)
    assert torch.equal(sums.packed, other.packed)
    assert triton_kernels.dense(grad.contiguous().float(), y).stride() == y.stride()


def test_what_the_kernels_take():
    y, other = make_maps((2, 6, 3, 5), CHANNELS_LAST, 2, torch.bfloat16)
    assert triton_kernels.takes(y, other)
    assert triton_kernels.takes(y.contiguous(), other.contiguous())
    refused = {
        "two layouts": (y, other.contiguous()),
        "two types": (y, other.float()),
        "two shapes": (y, other[:1]),
        "float64": (y.double(),),
        "three dimensions": (y[0],),
        "holes": (y[:, :, :, ::2],),
        "nothing in it": (y[:0],),
    }
    assert not any(triton_kernels.takes(*maps) for maps in refused.values())
    one_channel = draw(2, 1, 3, 5)
    assert triton_kernels.takes(one_channel, one_channel.contiguous(memory_format=CHANNELS_LAST))
    with pytest.raises(ValueError, match="dense in neither layout"):
        triton_kernels.moments(y[:, :, :, ::2])
