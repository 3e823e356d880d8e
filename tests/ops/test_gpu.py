"""What only a GPU can show of the two passes: graphs, streams, synchronisation, size, determinism.

Letters: N images, C channels, H x W positions. ``benchmarks/gpu.sh`` runs these before it measures anything.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from excite import create_model
from excite.ops import norm_excite_residual, triton_kernels
from excite.ops.activations import LINEAR, RELU
from tests.ops.test_gated_norm import Fc

CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
    pytest.mark.skipif(not triton_kernels.available(), reason=f"no Triton kernels: {triton_kernels.why_not()}"),
]


class Block:
    """A gated block's end with everything it needs, and one training step of it."""

    def __init__(self, shape=(8, 64, 14, 14), dtype=torch.bfloat16, device="cuda"):
        torch.manual_seed(0)
        self.norm, self.gate = nn.BatchNorm2d(shape[1]).to(device), Fc(shape[1]).to(device)
        self.y, self.identity, self.grad = (
            torch.randn(shape, device=device).to(dtype).contiguous(memory_format=CHANNELS_LAST) for _ in range(3)
        )
        self.inputs = [self.y.requires_grad_(), self.identity.requires_grad_(), *self.norm.parameters()]
        self.inputs += self.gate.parameters()

    def step(self):
        out = norm_excite_residual(self.y, self.norm, self.gate, self.identity, act="relu", fused="on")
        return [out.detach(), *torch.autograd.grad(out, self.inputs, self.grad)]


def test_the_same_bits_every_time():
    block = Block()
    first = block.step()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, block.step(), strict=True))


def test_nothing_waits_for_the_gpu():
    block = Block()
    block.step()  # compiles and tunes, which waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        block.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_replays_what_was_captured():
    """Forward and backward in one CUDA graph, on inputs that change afterwards."""
    block = Block()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            block.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = block.step()
    with torch.no_grad():
        block.y.copy_(torch.randn_like(block.y))
        block.grad.copy_(torch.randn_like(block.grad))
    graph.replay()
    replayed = [t.clone() for t in captured]
    assert all(torch.equal(a, b) for a, b in zip(replayed, block.step(), strict=True))


def test_work_goes_to_the_current_stream():
    """A stream that is kept busy beforehand: kernels sent elsewhere would read what is not there yet."""
    block, side = Block(), torch.cuda.Stream()
    expected = block.step()
    filled = block.y.detach().clone(memory_format=torch.preserve_format)
    torch.cuda.synchronize()
    with torch.cuda.stream(side), torch.no_grad():
        block.y.fill_(float("nan"))
        torch.cuda._sleep(50_000_000)
        block.y.copy_(filled)
    with torch.cuda.stream(side):
        found = block.step()
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is only one GPU here")
def test_another_device_than_the_current_one():
    expected, found = Block(device="cuda:0").step(), Block(device="cuda:1").step()
    assert all(t.device.index == 1 for t in found)
    # Random numbers are drawn on each device alike.
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS], ids=["channels_last", "contiguous"])
def test_maps_of_more_than_two_to_the_31_values(memory_format):
    """The last image of a map too large for 32-bit offsets, passes one by one, against that image alone."""
    shape = (641, 64, 230, 230)
    needed = 5 * 2 * torch.Size(shape).numel()
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"the GPU has no {needed / 2**30:.0f} GiB left")
    n, c = shape[:2]
    y = torch.empty(shape, device="cuda", dtype=torch.bfloat16, memory_format=memory_format).normal_()
    assert y.numel() > 2**31
    weight, bias, s = torch.ones(c, device="cuda"), torch.zeros(c, device="cuda"), torch.rand(n, c, device="cuda")
    mean, variance = triton_kernels.moments(y)
    exact = torch.var_mean(y[-1].double(), (1, 2), correction=0)
    torch.testing.assert_close(mean[-1].double(), exact[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(variance[-1].double(), exact[0], rtol=1e-4, atol=1e-6)
    known = triton_kernels.statistics(y, weight, bias, 1e-5, None, 0.0)
    scale, squeezed = known.packed[-1], known.squeezed[-1]

    def normed(gate):
        centred = y[-1].float() - known.packed[n - 1][:, None, None]
        return centred * (scale * gate)[:, None, None] + (squeezed * gate)[:, None, None]

    out = triton_kernels.apply(y, known, s, y, RELU)
    expected = (normed(s[-1]) + y[-1].float()).relu()
    torch.testing.assert_close(out[-1].float(), expected, rtol=2e-2, atol=2e-2)
    sums = triton_kernels.grad_sums(y, out, y, known, s, RELU, True)
    g = torch.where(out[-1] > 0, y[-1], 0)
    assert torch.equal(sums.map[-1], g)
    torch.testing.assert_close(sums.packed[0, -1].double(), g.double().sum((1, 2)), rtol=1e-4, atol=1e-1)
    means = torch.zeros(2, c, device="cuda")  # leaves g times its factor
    dy = triton_kernels.grad_input(sums.map, y, known, s, sums, None, LINEAR, True, means)[2]
    torch.testing.assert_close(dy[-1].float(), g.float() * (scale * s[-1])[:, None, None], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "reduce-overhead"])
def test_a_network_trains_alike_by_triton_and_in_the_textbook_form(compiled):
    """Float32, ten steps of a small gated network; compiled, with CUDA graphs and our operators in them."""
    torch.manual_seed(0)
    images = torch.randn(16, 3, 16, 16, device="cuda").to(memory_format=CHANNELS_LAST)
    labels = torch.randint(10, (16,), device="cuda")
    start = create_model("cifar_seresnet20", image_size=16).state_dict()
    losses = {}
    for fused in ("off", "on"):
        model = create_model("cifar_seresnet20", image_size=16, fused=fused)
        model.load_state_dict(start)
        model = model.to("cuda", memory_format=CHANNELS_LAST)
        net = torch.compile(model, mode="reduce-overhead") if compiled and fused == "on" else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses[fused] = []
        for _ in range(10):
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[fused].append(loss.item())
    # Roundings of float32 (and of cuDNN's choice of convolutions) grow over the steps.
    torch.testing.assert_close(torch.tensor(losses["on"]), torch.tensor(losses["off"]), rtol=1e-2, atol=1e-2)
    assert losses["on"][9] < losses["on"][0]
