"""torch.export and torch.compile take every family."""

import copy

import pytest
import torch

from excite.models import create_model

NAMES = ["cifar_seresnet20", "cifar_geresnet20_theta_plus", "cifar_seresnet110_tf"]


@pytest.mark.parametrize("name", NAMES[:2])
def test_export(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    x = torch.randn(2, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    other = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(other), model(other))


def test_one_graph():
    """The whole training step's forward pass is traced without a break, stochastic depth and all."""
    torch.manual_seed(0)
    model = create_model("cifar_seresnet20", drop_path_rate=0.1, image_size=8)
    ungated = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(2, 3, 8, 8)
    torch.manual_seed(1)
    expected = ungated(x)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(x), expected)
    compiled(x).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["cifar_seresnet20", "cifar_geresnet20_theta"])
def test_inductor(name, checkpointing):
    torch.manual_seed(0)
    model = create_model(name, image_size=8)
    model.set_grad_checkpointing(checkpointing)
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(compiled(x), plain(x), atol=1e-4, rtol=1e-4)
    compiled(x).sum().backward()
    assert model.layer1[0].bn1.num_batches_tracked == 2
