"""The networks of the CIFAR-10 speed records: how they start, and what is computed where."""

import copy

import pytest
import torch
from torch.nn import functional as F

from excite import create_model
from excite.errors import ExciteError
from excite.gates import list_gates
from excite.models.fastnet import HEAD_SCALE


def nets():
    return (("cifar_fastnet7", 7, (64, 256, 256)), ("cifar_fastnet10", 10, (128, 384, 512)))


@pytest.mark.parametrize(("name", "convolutions", "widths"), nets())
def test_the_layers_are_those_published(name, convolutions, widths):
    model = create_model(name).eval()
    found = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(found) == convolutions
    assert found[0].weight.shape == (24, 3, 2, 2)
    assert [each.bias is None for each in found] == [False] + [True] * (convolutions - 1)
    assert model.fc.weight.shape == (10, widths[-1])
    assert model.fc.bias is None
    with torch.no_grad():
        maps = model.forward_intermediates(torch.randn(2, 3, 32, 32))
    wanted = [(2, 24, 31, 31), *((2, width, side, side) for width, side in zip(widths, (15, 7, 3), strict=True))]
    assert [tuple(each.shape) for each in maps] == wanted
    assert [each["module"] for each in model.feature_info] == ["act1", "layer1", "layer2", "layer3"]


def test_logits_are_those_of_the_published_formula():
    """In single steps: whitening, groups, maximum over 3 x 3 positions, a dense layer of a ninth of the usual size."""
    torch.manual_seed(0)
    model = create_model("cifar_fastnet7").eval()
    x = torch.randn(2, 3, 32, 32)
    y = F.gelu(F.conv2d(x, model.conv1.weight, model.conv1.bias))
    for stage in model.stages():
        group = stage[0]
        y = F.gelu(group.bn1(F.max_pool2d(F.conv2d(y, group.conv1.weight, padding=1), 2)))
        y = F.gelu(group.bn2(F.conv2d(y, group.conv2.weight, padding=1)))
    wanted = F.max_pool2d(y, 3).flatten(1) @ model.fc.weight.T
    assert torch.allclose(model(x), wanted, atol=1e-5)
    assert 0.8 < model.fc.weight.std() / (HEAD_SCALE / (3 * 256) ** 0.5) < 1.2


def test_the_last_two_of_three_convolutions_have_a_shortcut():
    torch.manual_seed(0)
    model = create_model("cifar_fastnet10").eval()
    group, x = model.layer2[0], torch.randn(2, 128, 14, 14)
    first = F.gelu(group.bn1(group.pool(group.conv1(x))))
    wanted = F.gelu(group.bn3(group.conv3(F.gelu(group.bn2(group.conv2(first))))) + first)
    assert torch.allclose(group(x), wanted, atol=1e-5)


def test_convolutions_start_as_the_identity_and_the_first_one_whitens():
    torch.manual_seed(0)
    model = create_model("cifar_fastnet7")
    for stage in model.stages():
        weight = stage[0].conv1.weight
        x = torch.randn(2, weight.shape[1], 6, 6)
        assert torch.equal(F.conv2d(x, weight[: weight.shape[1]], padding=1), x)
    images = torch.randn(300, 3, 32, 32).cumsum(3) / 4 + 0.3  # neighbours are alike
    model.start_from_images(images.split(70))
    out = F.conv2d(images, model.conv1.weight).transpose(0, 1).flatten(1).double()
    assert torch.equal(out[:12], -out[12:])
    second = out[:12] @ out[:12].T / out.shape[1]
    assert torch.allclose(second, torch.diag(second.diag()), atol=1e-4)
    assert second.diag().min() > 0.9
    assert second.diag().max() < 1 + 1e-6
    other = create_model("cifar_fastnet7")
    before = other.conv1.weight.detach().clone()
    other.start_from_images([])
    assert torch.equal(other.conv1.weight, before), "no images, no change"
    other.start_from_images(images.split(70))
    assert torch.equal(model.conv1.weight, other.conv1.weight), "the same images, the same weights"


@pytest.mark.parametrize("size", [32, 33, 34, (32, 35), (36, 33)])
def test_training_leaves_out_what_the_pooling_does_and_nothing_else(size):
    torch.manual_seed(0)
    model = create_model("cifar_fastnet7", image_size=size)
    x = torch.randn(4, 3, *(size if isinstance(size, tuple) else (size, size)), requires_grad=True)
    hooked = copy.deepcopy(model)
    for stage in hooked.stages():
        stage[0].conv1.register_forward_hook(lambda *_: None)  # then it is called as it is
    found = []
    for each in (model, hooked):
        out = each(x)
        found.append((out, *torch.autograd.grad(out.square().sum(), [x, *each.parameters()])))
    for mine, whole in zip(*found, strict=True):
        assert torch.allclose(mine, whole, atol=1e-4 * float(whole.detach().abs().max() + 1))


@pytest.mark.parametrize("name", list_gates())
def test_every_gate_is_at_the_end_of_each_group(name):
    model = create_model("cifar_fastnet7", gate=name)
    assert list(model.gate_slots()) == ["layer1.0", "layer2.0", "layer3.0"]
    out = model(torch.randn(2, 3, 32, 32))
    out.sum().backward()
    assert all(p.grad is not None for block in model.gate_slots().values() for p in block.gate.parameters())


def test_narrower_and_wider():
    model = create_model("cifar_fastnet7", width=0.3)
    assert [stage[0].conv2.out_channels for stage in model.stages()] == [16, 80, 80]  # 19.2, 76.8 to multiples of 8
    again = create_model(model.model_name, **model.model_args)
    again.load_state_dict(model.state_dict())
    for width in (0, -1.0, 17):
        with pytest.raises(ExciteError, match="width is a factor above 0 and at most 16"):
            create_model("cifar_fastnet7", width=width)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ExciteError, match="images are too small for this network"):
        create_model("cifar_fastnet7", image_size=8)
    with pytest.raises(ExciteError, match="gate_position must be one of standard, post, not 'pre'"):
        create_model("cifar_fastnet7", gate="se", gate_position="pre")
    with pytest.raises(ExciteError, match="no stochastic depth"):
        create_model("cifar_fastnet7", drop_path_rate=0.1)
