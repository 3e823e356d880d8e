"""Outputs of the reference systems' own checkpoints, made by the reference frameworks themselves."""

import os
from pathlib import Path

import pytest

from excite.models import TFSEResNet
from excite.weights.convert import convert
from excite.weights.verify import differences, read_reference, trace

ROOT = Path(os.environ.get("EXCITE_FIXTURES", Path(__file__).resolve().parents[3] / "shared" / "fixtures"))
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference checkpoints at {ROOT} (set EXCITE_FIXTURES)")


def check(checkpoint, outputs, places):
    """Every tensor is used, and every output of the file is compared, by the largest value of each."""
    model, loaded = convert(checkpoint)
    assert (loaded.fresh, loaded.left_over) == ([], [])
    reference = read_reference(outputs)
    found = differences(trace(model, reference.images), reference.outputs)
    assert [difference.place for difference in found] == places
    assert all(difference.relative < 1e-5 for difference in found)
    return model


def test_mindcv_seresnet18():
    folder = ROOT / "mindspore"
    places = ["pool0", "layer1", "layer4", "logits"]
    model = check(folder / "seresnet18.ckpt", folder / "seresnet18.npz", places)
    options = {key: model.model_args[key] for key in ("num_classes", "rd_divisor", "max_pool")}
    assert (model.model_name, options) == ("seresnet18", {"num_classes": 10, "rd_divisor": 8, "max_pool": "ceil"})


@pytest.mark.parametrize(("prefix", "depth"), [("small/seresnet20", 20), ("seresnet110", 110)])
def test_tensorflow_seresnet(prefix, depth):
    path = ROOT / "tensorflow" / prefix
    model = check(path.with_name(f"{path.name}.ckpt"), path.with_name(f"{path.name}.npz"), ["logits"])
    assert isinstance(model, TFSEResNet)
    assert model.model_args.get("depth", 110) == depth
