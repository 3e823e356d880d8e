"""Where the gate stands, stochastic depth, shortcuts and gradient checkpointing."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from excite.models import TFSEResNet, create_model
from excite.models.blocks import BLOCKS, POSITIONS, BlockOptions

SE = {"name": "se", "reduction": 4}
GATES = [SE, {"name": "ge", "extent": 2}, {"name": "ge", "variant": "theta"}]


def block_and_input(kind, position, gate=SE, *, stride=2, drop_path=0.0):
    torch.manual_seed(0)
    planes = 16 if kind.endswith("basic") else 4
    options = BlockOptions(gate=gate, gate_position=position)
    block = BLOCKS[kind](8 if stride == 2 else 16, planes, stride, (8, 6), options, drop_path)
    return block.double().eval(), torch.randn(4, 8 if stride == 2 else 16, 8, 6, dtype=torch.float64)


def branch(block, x):
    """The residual branch up to and with its last norm, spelled out."""
    convs = [getattr(block, f"conv{i}") for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
    norms = [getattr(block, f"bn{i}") for i in (1, 2, 3) if hasattr(block, f"bn{i}")]
    if block.last_act:
        for conv, norm in zip(convs[:-1], norms[:-1], strict=True):
            x = norm(conv(x)).relu()
        return norms[-1](convs[-1](x))
    x = convs[0](x)
    for conv, norm in zip(convs[1:], norms[1:], strict=True):
        x = conv(norm(x).relu())
    return x


def shortcut(block, x, active):
    if block.downsample is None:
        return x
    return block.downsample(x if block.last_act else active)


def gated(gate, x):
    scale = gate.scale(x)
    return x * (scale[:, :, None, None] if scale.ndim == 2 else scale)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("position", ["standard", "pre", "post", "identity"])
@pytest.mark.parametrize("kind", list(BLOCKS))
def test_gate_positions(kind, position, stride):
    block, x = block_and_input(kind, position, stride=stride)
    active = x if block.last_act else block.bn1(x).relu()
    side = shortcut(block, x, active)
    out = branch(block, gated(block.gate, active) if position == "pre" else active)
    if position == "standard":
        out = gated(block.gate, out)
    elif position == "identity":
        side = gated(block.gate, side)
    out = out + side
    out = out.relu() if block.last_act else out
    out = gated(block.gate, out) if position == "post" else out
    before = x.clone()
    torch.testing.assert_close(block(x), out)
    torch.testing.assert_close(x, before, atol=0, rtol=0)


@pytest.mark.parametrize(("gate", "position"), [(None, "standard"), *itertools.product(GATES, POSITIONS)], ids=str)
def test_dropped_branches_leave_the_shortcut(gate, position):
    """A branch that is kept counts double at rate 0.5; one that is dropped counts nothing."""
    block, x = block_and_input("basic", position, gate, stride=1, drop_path=0.5)
    x = x[:1].repeat(64, 1, 1, 1)
    block.training = True  # the block alone: its batch norms stay in evaluation mode, so that images are independent
    torch.manual_seed(1)
    out = block(x)
    side = gated(block.gate, x) if position == "identity" else x
    added = branch(block, gated(block.gate, x) if position == "pre" else x)
    added = gated(block.gate, added) if gate and position == "standard" else added
    dropped, doubled = side.relu(), (2 * added + side).relu()
    if position == "post":
        dropped, doubled = gated(block.gate, dropped), gated(block.gate, doubled)
    kept = [torch.allclose(*pair) for pair in zip(out, doubled, strict=True)]
    assert all(keep or torch.allclose(*pair) for keep, *pair in zip(kept, out, dropped, strict=True))
    assert 16 < sum(kept) < 48


def test_drop_path_rises_linearly():
    with torch.device("meta"):
        model = create_model("resnet18", drop_path_rate=0.7)
    rates = [block.drop_path for stage in model.stages() for block in stage]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_option_a_shortcut_subsamples_and_pads_with_zeros():
    model = create_model("cifar_resnet20")
    x = torch.randn(1, 16, 8, 8)
    side = model.layer2[0].downsample(x)
    torch.testing.assert_close(side[:, :16], x[:, :, ::2, ::2])
    assert side.shape == (1, 32, 4, 4)
    assert not side[:, 16:].any()


def step(model, x, y):
    F.cross_entropy(model(x), y).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return gradients, dict(model.named_buffers())


@pytest.mark.parametrize("name", ["cifar_seresnet20", "cifar_geresnet20_theta", "tf"])
def test_a_checkpointed_step_is_an_ordinary_step(name):
    """Same gradients, same running statistics: the recomputation does not count the batch twice."""
    torch.manual_seed(0)
    ordinary = TFSEResNet(depth=11) if name == "tf" else create_model(name, drop_path_rate=0.3, image_size=16)
    saving = copy.deepcopy(ordinary)
    saving.set_grad_checkpointing(True)
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(1)
    gradients, buffers = step(ordinary, x, y)
    torch.manual_seed(1)
    gradients_again, buffers_again = step(saving, x, y)
    assert all(torch.equal(value, buffers_again[key]) for key, value in buffers.items())
    for key, value in gradients.items():
        torch.testing.assert_close(gradients_again[key], value)
    counts = {value.item() for key, value in buffers_again.items() if key.endswith("num_batches_tracked")}
    assert counts == {1}
    assert {m.momentum for m in saving.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    saving.set_grad_checkpointing(False)
    assert not saving.grad_checkpointing


def test_checkpointing_stores_less():
    model = create_model("cifar_seresnet20", image_size=16)
    stored = []

    def pack(tensor):
        stored.append(tensor.numel())
        return tensor

    sums = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        stored.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 3, 16, 16))
        sums.append(sum(stored))
    assert sums[1] < sums[0] / 3
