"""Each gate against its paper's formula, written out in numpy (float64) from the gate's weights."""

import numpy as np
import pytest
import torch

from excite.gates import create_gate
from tests.gates.test_gates import build, layouts

SHAPES = [(2, 24, 7, 7), (1, 5, 3, 5), (3, 1, 4, 4), (2, 16, 1, 1), (2, 17, 9, 6)]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def weights(gate):
    return {name: value.detach().numpy() for name, value in gate.state_dict().items()}


def mlp(w, m, prefix=""):
    """W2 relu(W1 m + b1) + b2 on (N, C)."""
    hidden = np.maximum(m @ w[f"{prefix}fc1.weight"].T + w.get(f"{prefix}fc1.bias", 0), 0)
    return hidden @ w[f"{prefix}fc2.weight"].T + w.get(f"{prefix}fc2.bias", 0)


def normalised(z, w, name):
    """Batch norm in evaluation, channels second."""
    shape = (1, -1, *[1] * (z.ndim - 2))
    mean, variance = (w[f"{name}.running_{which}"].reshape(shape) for which in ("mean", "var"))
    return (z - mean) / np.sqrt(variance + 1e-5) * w[f"{name}.weight"].reshape(shape) + w[f"{name}.bias"].reshape(shape)


def effective_se(w, x, activation):
    z = x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    return np.clip(z / 6 + 0.5, 0, 1) if activation == "hard_sigmoid" else sigmoid(z)


def eca(w, x):
    means, kernel = x.mean((2, 3)), w["conv.weight"][0, 0]
    scale, reach = np.zeros_like(means), len(kernel) // 2
    for c in range(means.shape[1]):
        for j, weight in enumerate(kernel):
            neighbour = c + j - reach
            if 0 <= neighbour < means.shape[1]:
                scale[:, c] += weight * means[:, neighbour]
    return sigmoid(scale)


def spatial_se(w, x, prefix=""):
    z = np.einsum("nchw,c->nhw", x, w[f"{prefix}conv.weight"][0, :, 0, 0])
    return sigmoid(z + w.get(f"{prefix}conv.bias", 0))[:, None]


def scse(w, x, merge):
    """The scale is worked out of the two recalibrated maps, which is how the paper has it."""
    of_channels = x * sigmoid(mlp(w, x.mean((2, 3)), "channel."))[:, :, None, None]
    of_positions = x * spatial_se(w, x, "spatial.")
    return (of_channels + of_positions if merge == "add" else np.maximum(of_channels, of_positions)) / x


def cbam(w, x, channel=True, spatial=True):
    scale = np.ones((*x.shape[:2], 1, 1))
    if channel:
        scale = sigmoid(mlp(w, x.mean((2, 3))) + mlp(w, x.max((2, 3))))[:, :, None, None]
    if not spatial:
        return scale[:, :, 0, 0]
    x, kernel = x * scale, w["conv.weight"][0]
    pooled = np.stack([x.mean(1), x.max(1)], 1)
    reach, (height, width) = kernel.shape[-1] // 2, x.shape[2:]
    padded = np.pad(pooled, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    z = np.zeros((len(x), 1, height, width))
    for i in range(height):
        for j in range(width):
            window = padded[:, :, i : i + kernel.shape[1], j : j + kernel.shape[2]]
            z[:, 0, i, j] = (window * kernel).sum((1, 2, 3))
    positions = sigmoid(normalised(z, w, "bn"))
    return scale * positions if channel else positions


def coordinate(w, x):
    def part(pooled, name):
        """(N, C, L) of one axis -> (N, C, L)."""
        z = np.einsum("ncl,sc->nsl", pooled, w["conv1.weight"][:, :, 0, 0])
        z = normalised(z + bias("conv1"), w, "bn")
        z = z * np.clip(z / 6 + 0.5, 0, 1)
        return sigmoid(np.einsum("nsl,cs->ncl", z, w[f"{name}.weight"][:, :, 0, 0]) + bias(name))

    def bias(name):
        return w[f"{name}.bias"][:, None] if f"{name}.bias" in w else 0

    return part(x.mean(3), "conv_h")[:, :, :, None] * part(x.mean(2), "conv_w")[:, :, None, :]


def gather(x):
    """Gather-Excite theta_minus with extent 2: means of 3x3 windows, as far as they lie in the map."""
    near = [[slice(max(i // 2 * 2 - 1, 0), i // 2 * 2 + 2) for i in range(size)] for size in x.shape[2:]]
    means = np.stack(
        [np.stack([x[:, :, rows, columns].mean((2, 3)) for columns in near[1]], -1) for rows in near[0]], 2
    )
    return sigmoid(means)


def gct(w, x, mode, epsilon=1e-5):
    if mode == "l2":
        s = w["alpha"] * np.sqrt((x**2).sum((2, 3)) + epsilon)
        normed = s * np.sqrt(s.shape[1]) / np.sqrt((s**2).sum(1, keepdims=True) + s.shape[1] * epsilon)
    else:
        s = w["alpha"] * np.abs(x).sum((2, 3))
        normed = s * s.shape[1] / (np.abs(s).sum(1, keepdims=True) + s.shape[1] * epsilon)
    return 1 + np.tanh(w["gamma"] * normed + w["beta"])


def gaussian_gct(w, x, c):
    m = x.mean((2, 3))
    z = (m - m.mean(1, keepdims=True)) / np.sqrt(m.var(1, keepdims=True) + 1e-5)
    return np.exp(-(z**2) / (2 * c**2))


CASES = [
    ({"name": "ese"}, lambda w, x: effective_se(w, x, "hard_sigmoid")),
    ({"name": "ese", "activation": "sigmoid"}, lambda w, x: effective_se(w, x, "sigmoid")),
    ({"name": "eca"}, eca),
    ({"name": "eca", "kernel_size": 7}, eca),
    ({"name": "cse"}, lambda w, x: sigmoid(mlp(w, x.mean((2, 3))))),
    ({"name": "sse"}, spatial_se),
    ({"name": "sse", "bias": False}, spatial_se),
    ({"name": "scse"}, lambda w, x: scse(w, x, "add")),
    ({"name": "scse", "merge": "max", "bias": False, "reduction": 4}, lambda w, x: scse(w, x, "max")),
    ({"name": "cbam", "reduction": 4}, cbam),
    ({"name": "cbam", "kernel_size": 3, "bias": False, "rd_divisor": 8}, cbam),
    ({"name": "cbam", "channel": False}, lambda w, x: cbam(w, x, channel=False)),
    ({"name": "cbam", "spatial": False, "reduction": 4}, lambda w, x: cbam(w, x, spatial=False)),
    ({"name": "coordinate"}, coordinate),
    ({"name": "coordinate", "reduction": 2, "min_width": 1, "bias": False}, coordinate),
    ({"name": "gct"}, lambda w, x: gct(w, x, "l2")),
    ({"name": "gct", "mode": "l1"}, lambda w, x: gct(w, x, "l1")),
    ({"name": "gct", "mode": "l2", "epsilon": 3}, lambda w, x: gct(w, x, "l2", 3)),
    ({"name": "gct", "mode": "l1", "epsilon": 3}, lambda w, x: gct(w, x, "l1", 3)),
    ({"name": "gaussian_gct"}, lambda w, x: gaussian_gct(w, x, 2)),
    ({"name": "gaussian_gct", "std": 0.7}, lambda w, x: gaussian_gct(w, x, 0.7)),
    ({"name": "gaussian_gct", "learnable": True}, lambda w, x: gaussian_gct(w, x, 3 * sigmoid(w["theta"]) + 1)),
    # Twice the sigmoid, or blended in, whatever was learnt since.
    ({"name": "eca", "identity": True}, lambda w, x: 2 * eca(w, x)),
    ({"name": "gaussian_gct", "identity": True}, lambda w, x: 1 + w["strength"] * (gaussian_gct(w, x, 2) - 1)),
    ({"name": "ge", "extent": 2, "identity": True}, lambda w, x: 1 + w["strength"][:, None, None] * (gather(x) - 1)),
]


def with_random_weights(spec, shape, dtype=torch.float64):
    """No layer at its start: a GCT that is fresh does nothing, and a norm that is fresh hides its own weight."""
    gate, x = build(spec, shape, dtype)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_(0.3, 0.7)
    return gate, x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("spec", "formula"), CASES, ids=lambda case: str(case) if isinstance(case, dict) else "")
def test_the_scale_is_the_papers(spec, formula, shape):
    gate, x = with_random_weights(spec, shape)
    expected = torch.from_numpy(np.asarray(formula(weights(gate), x.numpy())))
    for given in layouts(x):
        scale = gate.scale(given)
        torch.testing.assert_close(scale, expected)
        whole = expected[:, :, None, None] if expected.ndim == 2 else expected
        torch.testing.assert_close(gate(given), x * whole)
        if scale.ndim == 4 and scale.shape[1] == x.shape[1]:  # a scale in another layout than the map's is slow to use
            assert scale.stride() == given.stride() or min(x.shape[1:]) == 1
    if gate.channelwise:
        torch.testing.assert_close(gate.excitation(x.mean((2, 3))), expected)


def test_every_gate_has_a_formula_here_or_in_test_gates():
    from excite.gates import list_gates

    assert {spec["name"] for spec, _ in CASES} | {"se", "ge"} == set(list_gates())


@pytest.mark.parametrize("spec", [spec for spec, _ in CASES], ids=str)
def test_gradients(spec):
    gate, x = with_random_weights(spec, (2, 4, 3, 4))

    def run(x, *_):
        return gate(x)

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *gate.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_over_positions_by_kernels_and_without(dtype):
    """GCT's pass over channels-last maps, forward and backward; without a compiler both are PyTorch's."""
    gate, x = with_random_weights({"name": "gct"}, (3, 40, 9, 7), torch.float32)
    x[:, 5] = 0  # the norm's gradient there is 0, not NaN
    x = x.to(dtype)
    found = []
    for given in layouts(x):
        given = given.detach().requires_grad_()
        out = gate(given)
        found.append((out, torch.autograd.grad((out.float() ** 2).sum(), given)[0]))
    (out, grad), (out_last, grad_last) = found
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 0.05, "rtol": 0.02}
    torch.testing.assert_close(out_last, out, **tolerance)
    torch.testing.assert_close(grad_last, grad, **tolerance)
    assert grad_last.isfinite().all()


@pytest.mark.parametrize(
    ("channels", "k"), [(1, 1), (2, 1), (8, 3), (16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_the_kernel_of_eca_grows_with_the_channels(channels, k):
    """64 to 2048 as in the authors' nets."""
    assert create_gate("eca", channels).conv.weight.shape == (1, 1, k)


def test_gamma_and_beta_set_the_kernel_of_eca():
    assert create_gate({"name": "eca", "gamma": 1, "beta": 2}, 256).conv.weight.shape[-1] == 11  # 8 + 2, made odd
    assert create_gate({"name": "eca", "gamma": 1, "beta": 1}, 256).conv.weight.shape[-1] == 9
