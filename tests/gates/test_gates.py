"""Every gate against an independent formulation, and on awkward shapes."""

import pytest
import torch
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.gates import (
    CBAM,
    CoordinateAttention,
    EfficientChannelAttention,
    Gate,
    GatedChannelTransformation,
    GatherExcite,
    SqueezeExcite,
    create_gate,
    gate_options,
    list_gates,
    register_gate,
    registry,
)
from excite.gates.gather_excite import resample_kernel
from excite.gates.squeeze_excite import squeeze_width

SHAPES = [(2, 24, 7, 7), (1, 5, 3, 5), (3, 1, 4, 4), (2, 16, 1, 1), (2, 17, 9, 6)]
GE_SPECS = [
    {"name": "ge", "variant": variant, "extent": extent}
    for variant in ("theta_minus", "theta", "theta_plus")
    for extent in (2, 4, 8, "global")
]


START = [{"name": "ge", "halve_from": 16}, {"name": "ge", "extent": 4, "identity": True}]


def build(spec, shape, dtype=torch.float64):
    torch.manual_seed(0)
    gate = create_gate(spec, shape[1], feature_size=shape[2:]).to(dtype).eval()
    for name, buffer in gate.named_buffers():  # batch norms that do something in evaluation, too
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return gate, torch.randn(shape, dtype=dtype)


def layouts(x):
    return [x, x.contiguous(memory_format=torch.channels_last)]


def test_the_names():
    assert list_gates() == [
        *("cbam", "coordinate", "cse", "eca", "ese", "gaussian_gct"),
        *("gct", "ge", "scse", "se", "sse"),
    ]
    assert gate_options("se") == ["reduction", "rd_divisor", "bias"]


@pytest.mark.parametrize(
    ("channels", "floor", "rounded"), [(64, 4, 8), (128, 8, 8), (256, 16, 16), (8, 1, 8), (200, 12, 16)]
)
def test_the_two_width_rules(channels, floor, rounded):
    assert squeeze_width(channels) == squeeze_width(channels, rd_divisor=1) == floor
    assert squeeze_width(channels, rd_divisor=8) == rounded
    assert squeeze_width(channels, reduction=1) == squeeze_width(channels, 1, 1) == channels


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_se_is_two_1x1_convolutions_on_the_pooled_map(shape, bias):
    gate, x = build({"name": "se", "reduction": 4, "bias": bias}, shape)
    for given in layouts(x):
        squeezed = torch.einsum("nchw->nc", x)[..., None, None] / (shape[2] * shape[3])
        hidden = F.conv2d(squeezed, gate.fc1.weight[..., None, None], gate.fc1.bias).clamp(min=0)
        scale = 1 / (1 + torch.exp(-F.conv2d(hidden, gate.fc2.weight[..., None, None], gate.fc2.bias)))
        torch.testing.assert_close(gate.scale(given), scale.flatten(1))
        torch.testing.assert_close(gate(given), x * scale)
        torch.testing.assert_close(gate.excitation(x.mean((2, 3))), scale.flatten(1))


def gather_by_loops(x, e):
    """Mean over the window of 2e-1 positions around each e-th position, as far as it lies in the map."""
    height, width = x.shape[2:]
    rows = []
    for i in range(0, height, e):
        row = []
        for j in range(0, width, e):
            window = x[:, :, max(i - e + 1, 0) : i + e, max(j - e + 1, 0) : j + e]
            row.append(window.sum((2, 3)) / (window.shape[2] * window.shape[3]))
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def stretch_by_loops(x, height, width):
    out = x.new_empty(*x.shape[:2], height, width)
    for i in range(height):
        for j in range(width):
            out[:, :, i, j] = x[:, :, i * x.shape[2] // height, j * x.shape[3] // width]
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("extent", [2, 4, 8])
def test_ge_theta_minus_by_loops(shape, extent):
    gate, x = build({"name": "ge", "extent": extent}, shape)
    assert not list(gate.parameters())
    assert not gate.channelwise
    expected = stretch_by_loops(torch.sigmoid(gather_by_loops(x, extent)), *shape[2:])
    for given in layouts(x):
        torch.testing.assert_close(gate.scale(given), expected)
        torch.testing.assert_close(gate(given), x * expected)


@pytest.mark.parametrize("extent", ["global", 0])
def test_ge_theta_minus_global_sees_the_mean_alone(extent):
    gate, x = build({"name": "ge", "extent": extent}, (2, 24, 7, 5))
    assert gate.channelwise
    assert create_gate({"name": "ge", "extent": extent, "identity": True}, 24).channelwise  # and blended in, too
    torch.testing.assert_close(gate.scale(x), torch.sigmoid(x.mean((2, 3))))


def normalised(x, bn):
    shape = (1, -1, 1, 1)
    scaled = (x - bn.running_mean.view(shape)) / torch.sqrt(bn.running_var.view(shape) + bn.eps)
    return scaled * bn.weight.view(shape) + bn.bias.view(shape)


def bottleneck(gate, x):
    if gate.fc1 is None:
        return x
    hidden = torch.einsum("nchw,sc->nshw", x, gate.fc1.weight[:, :, 0, 0]) + gate.fc1.bias.view(1, -1, 1, 1)
    return torch.einsum("nshw,cs->nchw", hidden.relu(), gate.fc2.weight[:, :, 0, 0]) + gate.fc2.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", ["theta", "theta_plus"])
def test_ge_theta_global_is_a_dot_product_with_the_map(shape, variant):
    gate, x = build({"name": "ge", "variant": variant}, shape)
    gathered = torch.einsum("nchw,chw->nc", x, gate.gather[0].weight[:, 0])[..., None, None]
    expected = torch.sigmoid(bottleneck(gate, normalised(gathered, gate.gather[1]))).flatten(1)
    for given in layouts(x):
        torch.testing.assert_close(gate.scale(given), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", ["theta", "theta_plus"])
@pytest.mark.parametrize("extent", [2, 4, 8])
def test_ge_theta_is_a_chain_of_strided_windows(shape, variant, extent):
    gate, x = build({"name": "ge", "variant": variant, "extent": extent}, shape)
    steps = {2: 1, 4: 2, 8: 3}[extent]
    layers = list(gate.gather)
    assert [type(layer).__name__ for layer in layers] == (["Conv2d", "BatchNorm2d", "ReLU"] * steps)[:-1]
    y = x
    for step in range(steps):
        y = y.relu() if step else y
        height, width = (y.shape[2] + 1) // 2, (y.shape[3] + 1) // 2
        windows = F.unfold(y, 3, padding=1, stride=2).view(y.shape[0], y.shape[1], 9, height, width)
        y = torch.einsum("nckhw,ck->nchw", windows, layers[3 * step].weight.flatten(1))
        y = normalised(y, layers[3 * step + 1])
    expected = stretch_by_loops(torch.sigmoid(bottleneck(gate, y)), *shape[2:])
    for given in layouts(x):
        torch.testing.assert_close(gate.scale(given), expected)


@pytest.mark.parametrize("variant", ["theta", "theta_plus"])
def test_ge_halves_a_map_that_is_large_enough_first(variant):
    """Of 8 rows, "same" padding has none above and one below; of 5 columns, one at either side."""
    gate, x = build({"name": "ge", "variant": variant, "halve_from": 5}, (2, 6, 8, 5))
    dense, norm, kernel, last = gate.gather
    halved = normalised(F.conv2d(F.pad(x, (1, 1, 0, 1)), dense.weight, stride=2), norm)
    gathered = torch.einsum("nchw,chw->nc", halved, kernel.weight[:, 0])[..., None, None]
    expected = torch.sigmoid(bottleneck(gate, normalised(gathered, last))).flatten(1)
    for given in layouts(x):
        torch.testing.assert_close(gate.scale(given), expected)


def test_ge_starts_he_normal_over_fan_in():
    """A depth-wise kernel sees one channel: fan-in is its own size. As the identity, its last norm is zeroed alone."""
    torch.manual_seed(0)
    gates = [create_gate({**spec, "variant": "theta"}, 128, feature_size=(16, 32)) for spec in START]
    found = [m.weight for gate in gates for m in gate.gather if isinstance(m, torch.nn.Conv2d)]
    for weight, fan_in in zip(found, (9 * 128, 8 * 16, 9, 9), strict=True):
        assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.08)
        assert weight.mean().item() == pytest.approx(0, abs=0.1 * (2 / fan_in) ** 0.5)
    assert [bool(m.weight.any()) for m in gates[1].gather if hasattr(m, "weight")] == [True, True, True, False]


@pytest.mark.parametrize("spec", ["se", *GE_SPECS], ids=str)
def test_gradients(spec):
    gate, x = build(spec, (2, 4, 5, 3))
    parameters = list(gate.parameters())

    def run(x, *_):
        return gate(x)

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *parameters))


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("se", 2 * 64 * 4 + 4 + 64),
        ({"name": "se", "bias": False, "rd_divisor": 8}, 2 * 64 * 8),
        ({"name": "ge", "variant": "theta_minus"}, 0),
        ({"name": "ge", "variant": "theta"}, 64 * 7 * 5 + 2 * 64),
        ({"name": "ge", "variant": "theta", "extent": 8}, 3 * 11 * 64),
        ({"name": "ge", "variant": "theta_plus", "extent": 4}, 2 * 11 * 64 + 2 * 64 * 4 + 4 + 64),
        ({"name": "ge", "variant": "theta_plus", "bias": False, "reduction": 8}, 64 * 37 + 2 * 64 * 8),
        ({"name": "ge", "variant": "theta_plus", "rd_divisor": 8}, 64 * 37 + 2 * 64 * 8 + 8 + 64),
        ({"name": "ge", "variant": "theta", "halve_from": 5}, 9 * 64 * 64 + 2 * 64 + 64 * 4 * 3 + 2 * 64),
        ({"name": "ge", "variant": "theta", "halve_from": 6}, 64 * 37),  # the map has 5 columns
        ({"name": "cbam", "channel": False}, 2 * 7 * 7 + 2),
        ({"name": "cbam", "spatial": False, "reduction": 4}, 2 * 64 * 16 + 16 + 64),
        ({"name": "cbam", "rd_divisor": 8, "bias": False, "kernel_size": 1}, 2 * 64 * 8 + 2 + 2),
        ({"name": "coordinate", "reduction": 4}, 3 * 64 * 16 + 2 * 16 + 16 + 2 * 64),
        ({"name": "coordinate", "min_width": 1, "bias": False}, 3 * 64 * 2 + 2 * 2),
        ({"name": "cse", "reduction": 16, "rd_divisor": 8, "bias": False}, 2 * 64 * 8),
        ({"name": "scse", "reduction": 16, "rd_divisor": 8}, 2 * 64 * 8 + 8 + 64 + 65),
        ({"name": "scse", "bias": False}, 2 * 64 * 32 + 64),
        ({"name": "eca", "kernel_size": 1}, 1),
    ],
    ids=str,
)
def test_parameter_counts(spec, count):
    assert sum(p.numel() for p in create_gate(spec, 64, feature_size=(7, 5)).parameters()) == count


@pytest.mark.parametrize("spec", ["se", *GE_SPECS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_the_type_and_fp16_gates_stay_in_float32(spec, dtype):
    gate, x = build(spec, (2, 32, 7, 7), torch.float32)
    seen = []
    for layer in (getattr(gate, "fc1", None), getattr(gate, "fc2", None)):
        if layer is not None:
            layer.register_forward_hook(lambda _, inputs, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=dtype):
        scale = gate.scale(x.to(dtype))
    assert scale.dtype == dtype
    assert set(seen) <= {torch.float32 if dtype is torch.float16 else dtype}
    torch.testing.assert_close(scale.float(), gate.scale(x), atol=0.02, rtol=0.02)


def test_fp16_autocast_survives_a_squeeze_beyond_float16():
    gate = create_gate("se", 32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        gate.fc1.weight.fill_(100.0)
        scale = gate.scale(torch.full((1, 32, 4, 4), 100.0, dtype=torch.float16))  # the hidden layer holds 320,000
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sesse", "unknown gate 'sesse'; did you mean 'sse'"),
        ({"name": "se", "reducton": 8}, "no option 'reducton'; did you mean 'reduction'"),
        ({"reduction": 8}, "a gate must be a name"),
        ({"name": "se", "reduction": 0}, "reduction must be"),
        ({"name": "se", "rd_divisor": -8}, "rd_divisor must be"),
        ({"name": "ge", "variant": "theta_pus"}, "did you mean 'theta_plus'"),
        ({"name": "ge", "extent": 3}, "extent of the gate 'ge' must be one of"),
        ({"name": "ge", "variant": "theta", "reduction": 8}, "takes no reduction, because it has no bottleneck"),
        ({"name": "ge", "variant": "theta"}, "give image_size="),
    ],
    ids=str,
)
def test_mistakes(spec, message):
    with pytest.raises(ExciteError, match=message):
        create_gate(spec, 32)


def test_a_name_is_taken_once():
    with pytest.raises(ExciteError, match="already taken"):
        register_gate("se")(Gate)
    assert isinstance(create_gate("se", 16), Gate)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"name": "se", "identity": "yes"}, "the gate option 'identity' must be true or false, not 'yes'"),
        ({"name": "se", "reduction": "8"}, "the gate 'se': reduction is '8', but should be a valid integer"),
        (3, "a gate must be a name or a table with a 'name', not 3; known: cbam, coordinate, cse, "),
        ({"name": "eca", "kernel": 3}, "the gate 'eca' has no option 'kernel'; did you mean 'kernel_size'? (allowed: "),
        ({"name": "se", "identit": True}, "; did you mean 'identity'? (allowed: reduction, "),
    ],
    ids=str,
)
def test_mistakes_are_sentences(spec, sentence):
    with pytest.raises(ExciteError) as caught:
        create_gate(spec, 16)
    assert sentence in str(caught.value)


def test_what_a_gate_itself_refuses_is_said_with_what_was_given(monkeypatch):
    class Breaks(Gate):
        def __init__(self, channels, *, strength=1.0, feature_size=None):
            raise RuntimeError("no memory\nat all")

    monkeypatch.setitem(registry._GATES, "breaks", Breaks)
    for options, given in (({"strength": 2.0}, "strength=2.0"), ({}, "these maps")):
        with pytest.raises(ExciteError, match=f"^the gate 'breaks' cannot be created with {given}: no memory$"):
            create_gate({"name": "breaks", **options}, 8)


def test_a_wrong_map_size_names_both_and_the_way_out():
    gate = create_gate({"name": "ge", "variant": "theta"}, 8, feature_size=(7, 7))
    with pytest.raises(ExciteError, match=r"7x7 .* 8x9.*excite\.resize_gates\(model, image_size\)"):
        gate(torch.zeros(2, 8, 8, 9))


@pytest.mark.parametrize("size", [(7, 7), (14, 10), (3, 5), (1, 1)])
def test_resampled_kernels_keep_their_sum(size):
    torch.manual_seed(0)
    kernel = torch.randn(6, 1, 7, 7, dtype=torch.float64)
    new = resample_kernel(kernel, size)
    torch.testing.assert_close(new.sum((2, 3)), kernel.sum((2, 3)))
    flat = resample_kernel(torch.full((1, 1, 7, 7), 0.5, dtype=torch.float64), size)
    torch.testing.assert_close(flat, torch.full((1, 1, *size), 0.5 * 49 / (size[0] * size[1]), dtype=torch.float64))


@pytest.mark.parametrize(("size", "axes"), [((2, 2), (2, 3)), ((2, 16), (2,)), ((16, 2), (3,))])
def test_a_kernel_that_shrinks_is_antialiased_so_that_each_old_place_counts(size, axes):
    """The corner's weight goes to the new corner; without antialiasing it lies between the samples and is spread."""
    kernel = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    kernel[0, 0, 0, 0] = 1.0
    new = resample_kernel(kernel, size)
    near = new.narrow(axes[0], 0, 1)
    near = near.narrow(axes[-1], 0, 1) if len(axes) > 1 else near
    assert 0.6 < float(near.sum()) < 1.2


def test_a_kernel_that_grows_is_interpolated_as_it_is():
    """Keys' bicubic with a = -0.75, PyTorch's; the antialiasing one has a = -0.5."""
    kernel = torch.zeros(1, 1, 20, 8, dtype=torch.float64)
    kernel[..., 3] = 1.0
    new = resample_kernel(kernel, (20, 16))[0, 0, 0]
    a, t = -0.75, 0.25
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    assert float(new[6]) == pytest.approx(near / 2)
    assert float(new[9]) == pytest.approx((a * 1.25**3 - 5 * a * 1.25**2 + 8 * a * 1.25 - 4 * a) / 2)


def test_a_resized_gate_answers_a_smooth_map_alike():
    gate, _ = build({"name": "ge", "variant": "theta"}, (2, 8, 14, 14))
    blob = F.interpolate(torch.rand(8, 1, 4, 4, dtype=torch.float64), size=(14, 14), mode="bicubic")
    gate.gather[0].weight.data.copy_(blob)
    x = F.interpolate(torch.rand(2, 8, 4, 4, dtype=torch.float64), size=(14, 14), mode="bicubic")
    before = gate.scale(x)
    gate.resize((20, 20))
    assert gate.feature_size == (20, 20)
    after = gate.scale(F.interpolate(x, size=(20, 20), mode="bicubic"))
    torch.testing.assert_close(after, before, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("built", "kernel", "other", "new", "refused"),
    [((8, 7), (4, 4), (10, 13), (5, 7), (5, 9)), ((5, 9), (5, 9), (4, 4), (4, 4), (6, 6))],
)
def test_a_gate_that_halves_is_resized_to_what_halves_too(built, kernel, other, new, refused):
    torch.manual_seed(0)
    gate = create_gate({"name": "ge", "variant": "theta", "halve_from": 6}, 3, feature_size=built).eval()
    conv = gate.gather[-2]
    old = conv.weight.requires_grad_(False)  # frozen, and frozen it stays
    assert old.shape[2:] == kernel
    gate.resize(built)
    assert conv.weight is old
    with pytest.raises(
        ExciteError,
        match=r"from 6 rows on, so it cannot be resampled from {}x{} to {}x{}, where".format(*built, *refused),
    ):
        gate.resize(refused)
    assert (gate.feature_size, conv.weight is old) == (built, True)
    gate.resize(other)
    assert (gate.feature_size, conv.kernel_size) == (other, new)
    assert torch.equal(conv.weight, resample_kernel(old, new))
    assert (conv.weight.dtype, conv.weight.requires_grad) == (torch.float32, False)
    assert gate.scale(torch.randn(2, 3, *other)).shape == (2, 3)


def test_strided_kernels_fit_every_map():
    gate = create_gate({"name": "ge", "variant": "theta", "extent": 2}, 3, feature_size=(8, 8))
    old = gate.gather[0].weight
    gate.resize((16, 16))
    assert gate.gather[0].weight is old


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CBAM(8, kernel_size=3.0), "kernel_size of the gate 'cbam' must be an odd"),
        (lambda: EfficientChannelAttention(8, kernel_size=3.0), "kernel_size of the gate 'eca' must be an odd"),
        (lambda: EfficientChannelAttention(8, kernel_size=-1), "kernel_size of the gate 'eca' must be an odd"),
        (lambda: CoordinateAttention(8, min_width=8.0), "the min_width of the gate 'coordinate' must be"),
        (lambda: SqueezeExcite(8, reduction=2.0), "reduction must be"),
        (lambda: SqueezeExcite(8, rd_divisor=8.0), "rd_divisor must be"),
        (lambda: GatedChannelTransformation(8, epsilon=True), "epsilon of the gate 'gct' must be a number above 0"),
        (lambda: GatedChannelTransformation(8, epsilon="1"), "epsilon of the gate 'gct' must be a number above 0"),
        (
            lambda: GatherExcite(8, variant="theta", halve_from=True, feature_size=(8, 8)),
            "must be a whole number of at least 2, not True",
        ),
        (
            lambda: GatherExcite(8, variant="theta", halve_from=1, feature_size=(8, 8)),
            "must be a whole number of at least 2, not 1",
        ),
        (
            lambda: GatherExcite(8, halve_from=8),
            "halve_from is only for the gate 'ge' theta or theta_plus with global extent",
        ),
        (lambda: GatherExcite(8, variant="theta", extent=2, halve_from=8), "halve_from is only for the gate 'ge'"),
    ],
)
def test_classes_refuse_what_create_gate_does(make, message):
    with pytest.raises(ExciteError, match=message):
        make()


def test_the_smallest_options_are_taken():
    assert GatherExcite(8, variant="theta", halve_from=2, feature_size=(2, 2)).gather[2].kernel_size == (1, 1)
    assert SqueezeExcite(8, reduction=1).fc1.out_features == 8


def test_gct_starts_by_seeing_all_channels_alike_and_changing_none():
    gate, x = create_gate("gct", 5), torch.randn(2, 5, 3, 3)
    assert [p.tolist() for p in (gate.alpha, gate.gamma, gate.beta)] == [[1.0] * 5, [0.0] * 5, [0.0] * 5]
    assert torch.equal(gate(x), x)
    assert create_gate({"name": "gaussian_gct", "learnable": True}, 5).theta.item() == 0
