"""The activations of the passes: values and derivatives in float32, everywhere, at corners, for NaN and Inf."""

import itertools

import pytest
import torch
from torch import nn

from excite.errors import ExciteError
from excite.models.activation import ACTIVATIONS, activation, norm_act, rides_along
from excite.ops import excite_residual, native, norm_excite_residual, plain
from excite.ops.activations import ACTS, LINEAR, RELU, activate, differentiate

BOTH = [plain, pytest.param(native, marks=pytest.mark.skipif(not native.available(), reason="no CPU kernels"))]
#: Where they change, or leave the range of float32 on the way.
CORNERS = [-0.0, 0.0, -3.0, 3.0, 6.0, -87.0, -88.0, 87.9, 88.0, -13.0, -14.5, 100.0, -5e37, 5e37]


def both_sides(passes, act, z, kind=torch.float32):
    """Values, and derivatives times 2 by both backward passes, of a map (1, 4, 1, P) that the norm leaves as it is."""
    y = z.to(kind).view(1, 1, 1, -1).expand(1, 4, 1, len(z)).contiguous(memory_format=torch.channels_last)
    known, grad, nothing = native.no_norm(y), torch.full_like(y, 2), torch.zeros_like(y)
    out = passes.apply(y, known, None, None, act)
    sums = passes.grad_sums(grad, passes.apply(y, known, None, nothing, act), y, known, None, act, True, nothing)
    means = torch.zeros(2, 4)
    dy = passes.grad_input(grad, y, known, None, sums, None, act, True, means)[2]
    assert sums.map is not None
    return [t[0, 0, 0] for t in (out, sums.map, dy)]


@pytest.mark.parametrize("passes", BOTH, ids=["plain", "native"])
@pytest.mark.parametrize("act", ACTS)
def test_float32_values_and_derivatives_are_within_a_few_roundings(passes, act):
    """Also of the small values of GELU and SiLU on the far left, whose relative error counts."""
    z = torch.cat([torch.linspace(-12, 12, 20001), torch.tensor(CORNERS)])
    exact = activate(z.double(), ACTS[act]), differentiate(torch.full_like(z.double(), 2), z.double(), ACTS[act])
    out, *derivatives = both_sides(passes, ACTS[act], z)
    # PyTorch's own GELU is off by a thousandth of such small values.
    torch.testing.assert_close(out.double(), exact[0], rtol=4e-6, atol=1e-12 if passes is native else 1e-6)
    for found in derivatives:
        torch.testing.assert_close(found.double(), exact[1], rtol=4e-6, atol=1e-6)


@pytest.mark.parametrize("passes", BOTH, ids=["plain", "native"])
@pytest.mark.parametrize("act", ACTS)
def test_nan_and_infinity_come_through_and_touch_nothing_else(passes, act):
    z = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0])
    out, *derivatives = both_sides(passes, ACTS[act], z)
    # Of the left infinity, PyTorch makes NaN or 0, and of the right one of a GELU NaN or Inf, as it happens.
    assert out[0].isnan()
    assert act == "relu6" or not out[1].isfinite()
    torch.testing.assert_close(out[3], activate(z, ACTS[act])[3])
    for found in derivatives:
        torch.testing.assert_close(found[3], differentiate(torch.full_like(z, 2), z, ACTS[act])[3])


@pytest.mark.skipif(not native.available(), reason="no CPU kernels")
@pytest.mark.parametrize("act", ACTS)
def test_widths_that_fill_no_vector(act):
    """Narrow, odd and very wide maps: buffers end somewhere, and nothing behind their end counts."""
    for c, side in itertools.product((1, 3, 17, 255, 1025, 2049), (1, 2)):
        y, add, grad = (torch.randn(2, c, side, side).contiguous(memory_format=torch.channels_last) for _ in range(3))
        known = plain.statistics(y, torch.rand(c), torch.rand(c), 1e-5, None, 0.0)
        s = torch.rand(2, c)
        for shortcut, of_add in ((None, None), (add, None), (add, known)):
            mine, theirs = (p.apply(y, known, s, shortcut, ACTS[act], of_add) for p in (native, plain))
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
            args = (grad, theirs, y, known, s, ACTS[act], shortcut is not None, shortcut, of_add)
            mine, theirs = (p.grad_sums(*args).packed for p in (native, plain))
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_kernels_refuse_what_they_cannot_do():
    if not native.available():
        pytest.skip("no CPU kernels")
    y = torch.randn(1, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    known = native.no_norm(y)
    for act, write in ((9, False), (-1, False), (LINEAR, True), (ACTS["gelu"], True), (RELU, True)):
        with pytest.raises(RuntimeError, match="do not support"):
            native.grad_sums(y, None, y, known, None, act, write)


def test_an_unknown_activation_is_refused():
    x, norm = torch.zeros(2, 2, 1, 1), nn.BatchNorm2d(2)
    for call in (lambda: excite_residual(x, act="gelo"), lambda: norm_excite_residual(x, norm, act="gelo")):
        with pytest.raises(ExciteError, match=r"act is 'gelo'; did you mean 'gelu'\? \(allowed: relu, "):
            call()


def test_what_rides_along_gives_what_the_module_gives():
    for name in ACTIVATIONS:
        act = activation(name)
        assert rides_along(act) == (name if name in ACTS else None)
        norm, y = nn.BatchNorm2d(3).eval(), 4 * torch.randn(2, 3, 5, 5)
        torch.testing.assert_close(norm_act(y, norm, act, "on"), act(norm(y)))
        heard = []
        act.register_forward_hook(lambda *_, heard=heard: heard.append(1))
        assert rides_along(act) is None
        norm_act(y, norm, act, "on")
        assert heard == [1]
