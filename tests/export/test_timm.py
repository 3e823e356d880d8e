"""Networks that are not folded before they are traced: timm's, and ours grafted into them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from excite.data import Preprocessing
from excite.export import export
from excite.export.deployable import GATE_SCOPE, Deployable
from excite.export.norms import fold_norms
from excite.models import create_model
from excite.models.grafting.core import wrap
from excite.models.grafting.places import Place
from excite.runtime.environment import versions
from excite.weights.own import save_weights
from tests.export.test_export import SIZE, needs
from tests.training.small import small

PREPROCESSING = Preprocessing(SIZE, 0.875, "bicubic", (0.4, 0.5, 0.6), (0.3, 0.2, 0.1), 3)


def shaken(net):
    """With norms and weights that are not those of a start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return net.eval()


class Branches(nn.Module):
    """What can be folded, and what only looks like it."""

    def __init__(self):
        super().__init__()
        self.model_name, self.num_classes = "timm:branches", 5
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.biased, self.second = nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8, eps=1e-2)
        self.forked, self.third = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.shared, self.fourth, self.fifth = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        x = self.second(self.biased(x)).relu()
        y = self.forked(x)
        x = self.third(y) + y  # the convolution's own result is used, too
        x = self.fourth(self.shared(x)) + self.fifth(self.shared(x))  # and here its weight
        return self.fc(self.plain(x.relu()).mean((2, 3)))


def norms_in(program):
    return sum(node.target is torch.ops.aten.batch_norm.default for node in program.graph.nodes)


def test_norms_are_folded_where_that_changes_nothing():
    net = shaken(Branches())
    images = torch.randn(4, 3, SIZE, SIZE)
    program = torch.export.export(net, (images,))
    expected = net(images)
    assert norms_in(program) == 6
    assert fold_norms(program) == 2
    assert norms_in(program) == 4
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-5, atol=1e-5)


def test_a_network_of_timms_is_left_as_it_is_and_its_gates_are_marked():
    net = shaken(Branches())
    wrap(net, Place("forked", 8, (SIZE - 2, SIZE - 2)), {"name": "se", "reduction": 4})
    shaken(net)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images = torch.rand(3, 3, SIZE, SIZE)
    deployable = Deployable(net, PREPROCESSING, "float")
    program = deployable.trace()
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    expected = net((images - mean) / std)
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-4)
    assert norms_in(program) == 4
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    scopes = [" ".join(node.meta.get("nn_module_stack", {})) for node in program.graph.nodes]
    assert sum(GATE_SCOPE in scope for scope in scopes) >= 4  # mean, two products, sigmoid at least


@pytest.mark.parametrize(("name", "gate"), [("test_resnet", "se"), ("test_efficientnet", None)])
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_timms_networks_are_exported(format, name, gate, timm, tmp_path):
    needs(*([] if format == "pt2" else ["onnx", "onnxscript", "onnxruntime"]))
    net = shaken(create_model(f"timm:{name}", num_classes=10, image_size=32, gate=gate))
    preprocessing = replace(PREPROCESSING, image_size=32)
    recipe = small(f"model.name={net.model_name}").model_dump(mode="json")
    meta = {"model": {"name": net.model_name, "args": net.model_args}, "classes": [str(k) for k in range(10)]}
    meta |= {"preprocessing": preprocessing.to_dict(), "recipe": recipe, "metrics": None, "step": 0, "epoch": 0.0}
    save_weights(tmp_path / "model.safetensors", net, {**meta, "precision": "fp32", "versions": versions()})
    result = export(tmp_path / "model.safetensors", format, images=8)
    assert result["rows"][1]["relative_difference"] < 1e-4
    assert result["rows"][1]["agreement"] == 100
