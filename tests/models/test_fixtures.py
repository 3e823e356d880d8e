"""Logits of the reference systems' own checkpoints, made by the reference frameworks themselves."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from excite.models import TFSEResNet, create_model

from .foreign import read_mindspore, read_tensorflow

ROOT = Path(os.environ.get("EXCITE_FIXTURES", Path(__file__).resolve().parents[3] / "shared" / "fixtures"))
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference checkpoints at {ROOT} (set EXCITE_FIXTURES)")

MINDSPORE_NAMES = {
    "layer0.0": "conv1",
    "layer0.1": "bn1",
    "se_module.conv_reduce": "gate.fc1",
    "se_module.conv_expand": "gate.fc2",
    "classifier": "fc",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "gamma": "weight",
    "beta": "bias",
}


def tensor(array):
    return torch.from_numpy(np.array(array, dtype=np.float32))


def relative(got, expected):
    return (got - tensor(expected)).abs().max().item() / np.abs(expected).max()


def load(model, state):
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model.eval()


def test_mindcv_seresnet18():
    state = {}
    for name, array in read_mindspore(ROOT / "mindspore" / "seresnet18.ckpt").items():
        for theirs, ours in MINDSPORE_NAMES.items():
            name = name.replace(theirs, ours)
        state[name] = tensor(array)
    model = load(create_model("seresnet18", num_classes=10, rd_divisor=8, max_pool="ceil"), state)
    expected = np.load(ROOT / "mindspore" / "seresnet18.npz")
    with torch.no_grad():
        x = tensor(expected["input"])
        logits = model(x)
        stem, layer1, *_, layer4 = model.forward_intermediates(x[:1])
        pooled = model.before_stages(stem)
    assert relative(pooled, expected["out_pool0"]) < 1e-5
    assert relative(layer1, expected["out_layer1"]) < 1e-5
    assert relative(layer4, expected["out_layer4"]) < 1e-5
    assert relative(logits, expected["logits"]) < 1e-5


def tensorflow_state(model, arrays):
    """Their variables in order of creation: per unit BN (if any), convolution, two dense layers; projections last."""
    made = {"conv2d": 0, "BatchNorm": 0, "dense": 0}
    state = {}

    def take(kind, ours, **parts):
        number, made[kind] = made[kind], made[kind] + 1
        prefix = f"{kind}_{number}" if number else kind
        for part, (theirs, axes) in parts.items():
            array = arrays.pop(f"{prefix}/{theirs}")
            state[f"{ours}.{part}"] = tensor(array if axes is None else array.transpose(axes))

    def take_norm(ours):
        plain = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        take("BatchNorm", ours, **{part: (theirs, None) for part, theirs in plain.items()})

    def take_unit(unit, ours):
        if unit.bn is not None:
            take_norm(f"{ours}.bn")
        take("conv2d", f"{ours}.conv", weight=("kernel", (3, 2, 0, 1)), bias=("bias", None))
        take("dense", f"{ours}.gate.fc1", weight=("kernel", (1, 0)))
        take("dense", f"{ours}.gate.fc2", weight=("kernel", (1, 0)))

    take_unit(model.stem, "stem")
    for i, stage in enumerate(model.stages(), 1):
        for j, block in enumerate(stage):
            for part in ("unit1", "unit2", "unit3", "downsample"):
                if getattr(block, part) is not None:
                    take_unit(getattr(block, part), f"layer{i}.{j}.{part}")
    take_norm("norm")
    take("dense", "fc", weight=("kernel", (1, 0)))
    ignored = ("Momentum", "biased", "local_step")
    assert not [name for name in arrays if not name.endswith(ignored)], "variables left over"
    return state


@pytest.mark.parametrize(("prefix", "depth"), [("small/seresnet20", 20), ("seresnet110", 110)])
def test_tensorflow_seresnet(prefix, depth):
    model = create_model("cifar_seresnet110_tf") if depth == 110 else TFSEResNet(depth=depth)
    path = ROOT / "tensorflow" / prefix
    arrays = read_tensorflow(path.with_name(path.name + ".ckpt"))
    load(model, tensorflow_state(model, arrays))
    expected = np.load(path.with_name(path.name + ".npz"))
    with torch.no_grad():
        logits = model(tensor(expected["input_nhwc"]).permute(0, 3, 1, 2))
    assert relative(logits, expected["logits"]) < 1e-5
