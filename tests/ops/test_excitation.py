"""The fast forms against the textbook form. Letters: N images, C channels, H x W positions."""

import itertools

import pytest
import torch

from excite.ops import excite_residual, native, reference, spatial_mean, weighted_sum
from excite.ops.activations import ACTS

SHAPES = [(1, 1, 1, 1), (2, 3, 7, 7), (1, 24, 3, 5), (2, 8, 4, 4), (2, 70, 1, 5)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def make(shape, memory_format, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return x.to(memory_format=memory_format).requires_grad_()


@pytest.mark.parametrize(("shape", "memory_format"), list(itertools.product(SHAPES, FORMATS)))
def test_spatial_mean_and_its_gradients(shape, memory_format):
    x = make(shape, memory_format)
    torch.testing.assert_close(spatial_mean(x), reference.spatial_mean(x))
    assert torch.autograd.gradcheck(spatial_mean, (x,))
    assert torch.autograd.gradgradcheck(spatial_mean, (x,))


@pytest.mark.parametrize(("shape", "memory_format"), list(itertools.product(SHAPES, FORMATS)))
@pytest.mark.parametrize(("with_identity", "act"), list(itertools.product([True, False], [None, "relu", "gelu"])))
@pytest.mark.parametrize("kind", ["none", "channel", "image", "map"])
def test_excite_residual_and_its_gradients(shape, memory_format, with_identity, act, kind):
    n, c, h, w = shape
    x = make(shape, memory_format)
    scales = {"channel": (n, c), "image": (n, 1, 1, 1), "map": (n, c, h, w)}
    scale = None if kind == "none" else make(scales[kind], torch.contiguous_format, seed=1)
    identity = make(shape, memory_format, seed=2) if with_identity else None
    inputs = [t for t in (x, scale, identity) if t is not None]
    outs = [form(x, scale, identity, act) for form in (excite_residual, reference.excite_residual)]
    torch.testing.assert_close(*outs)
    weight = torch.randn_like(outs[0])
    fast, textbook = ([*torch.autograd.grad((out * weight).sum(), inputs)] for out in outs)
    for got, expected in zip(fast, textbook, strict=True):
        torch.testing.assert_close(got, expected)
    assert excite_residual(x, scale, identity, act).is_contiguous(memory_format=memory_format) or 1 in shape


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(1, 64, 7, 7), (4, 24, 3, 5), (2, 256, 14, 14), (16, 64, 32, 32)])
def test_bf16_is_as_near_to_float64_as_the_eager_textbook(shape, memory_format):
    """Three-way: the fast bf16 form may be at most twice as far from float64 as the textbook bf16 form."""
    grad = torch.randn(shape).to(memory_format=memory_format)

    def results(form_mean, form_residual, dtype):
        x, identity = (make(shape, memory_format, dtype, seed) for seed in (0, 2))
        squeezed = form_mean(x)
        out = form_residual(x, squeezed.sigmoid(), identity, "relu")
        return [t.double() for t in (squeezed, out, *torch.autograd.grad(out, (x, identity), grad.to(dtype)))]

    exact = results(reference.spatial_mean, reference.excite_residual, torch.float64)
    textbook = results(reference.spatial_mean, reference.excite_residual, torch.bfloat16)
    fast = results(spatial_mean, excite_residual, torch.bfloat16)
    for true, slow, quick in zip(exact, textbook, fast, strict=True):
        assert (quick - true).abs().mean() <= 2 * (slow - true).abs().mean() + 1e-7


def test_autocast_leaves_a_float32_squeeze_in_float32():
    x = make((2, 8, 4, 4), torch.channels_last, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        squeezed = spatial_mean(x)
    assert squeezed.dtype is torch.float32
    torch.testing.assert_close(squeezed, x.mean((2, 3)))


def test_no_graph_is_kept_without_gradients():
    x = make((2, 8, 4, 4), torch.channels_last)
    with torch.no_grad():
        assert not excite_residual(x, spatial_mean(x), x, "relu").requires_grad


WIDE = [*SHAPES, (3, 300, 14, 14), (2, 16, 32, 32), (2, 2048, 7, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "memory_format"), list(itertools.product(WIDE, FORMATS)))
def test_weighted_sum_is_as_near_to_float64_as_a_matrix_product(shape, memory_format, dtype):
    n, c, h, w = shape
    x = make(shape, memory_format, dtype)
    weight = make((c, h, w), torch.contiguous_format, torch.float32, seed=1)
    grad = torch.randn(n, c)

    def results(form, kind):
        inputs = [t.detach().to(kind).requires_grad_() for t in (x, weight)]
        out = form(*inputs)
        return [t.double() for t in (out, *torch.autograd.grad(out, inputs, grad.to(out.dtype)))]

    def product(x, weight):
        return torch.einsum("nchw,chw->nc", x, weight)

    def fast(x, weight):  # the gate's parameters stay float32
        return weighted_sum(x, weight.float())

    for true, slow, quick in zip(
        results(product, torch.float64), results(product, dtype), results(fast, dtype), strict=True
    ):
        # Sums over several hundred positions in float32: some roundings of the sum of magnitudes.
        assert (quick - true).abs().mean() <= 2 * (slow - true).abs().mean() + 1e-6 * true.abs().mean() + 1e-7


@pytest.mark.parametrize("act", [None, *ACTS])
@pytest.mark.parametrize("with_identity", [False, True])
@pytest.mark.parametrize("shape", [(1, 24, 3, 5), (2, 300, 14, 14), (3, 16, 32, 32)])
def test_the_kernels_of_excite_residual_agree_with_float64(shape, with_identity, act):
    if not native.available():
        pytest.skip(f"no CPU kernels: {native.why_not()}")
    x, identity = (make(shape, torch.channels_last, torch.float32, seed) for seed in (0, 2))
    scale = make(shape[:2], torch.contiguous_format, torch.float32, seed=1)
    grad = torch.randn(shape).to(memory_format=torch.channels_last)
    assert native.takes(x)

    def results(form, kind):
        inputs = [t.detach().to(kind).requires_grad_() for t in (x, scale, identity)[: 2 + with_identity]]
        out = form(*inputs, *([] if with_identity else [None]), act)
        return [t.double() for t in (out, *torch.autograd.grad(out, inputs, grad.to(kind)))]

    for true, quick in zip(
        results(reference.excite_residual, torch.float64), results(excite_residual, torch.float32), strict=True
    ):
        torch.testing.assert_close(quick, true, rtol=1e-4, atol=1e-4)
