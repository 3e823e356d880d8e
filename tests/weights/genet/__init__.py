"""The small checkpoints that MindSpore wrote of GENet_Res50, and networks of ours to hold them. See README.md."""

from pathlib import Path

import numpy as np
import torch

from excite.models.resnet import ResNet
from excite.weights.layouts.genet import GENET
from excite.weights.read import read_weights
from excite.weights.recognise import unwrapped
from excite.weights.verify import relative_error

FOLDER = Path(__file__).parent
#: Checkpoint -> the gate that ``GENET`` and ``dissect`` must find in it.
GATES = {
    "plus": {"name": "ge", "variant": "theta_plus", "bias": False, "halve_from": 56},
    "minus": {"name": "ge", "variant": "theta_minus"},
}


def translated(name: str) -> dict[str, torch.Tensor]:
    """The tensors under our names; none is left over."""
    ours, _, unknown = GENET.read(unwrapped(read_weights(FOLDER / f"{name}.ckpt")))
    assert unknown == []
    return ours


def network(name: str, **changes: object) -> ResNet:
    """The checkpoint in one of our networks; ``changes`` of its settings are for tests that must fail."""
    settings = {"max_pool": "ceil", "conv_padding": "same", "gate": GATES[name], **changes}
    net = ResNet(block="bottleneck", layers=(1, 1), widths=(4, 8), stem_width=4, num_classes=10, **settings)
    missing, unexpected = net.load_state_dict(translated(name), strict=False)
    assert unexpected == []
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return net.eval()


def images() -> torch.Tensor:
    """What MindSpore was given."""
    return torch.from_numpy(np.random.default_rng(1).normal(0, 1, (2, 3, 224, 224)).astype(np.float32))


def error(name: str, **changes: object) -> float:
    """Largest difference from MindSpore's logits, relative to the largest."""
    with torch.no_grad():
        mine = network(name, **changes)(images())
    return relative_error(mine, torch.from_numpy(np.load(FOLDER / f"{name}.npz")["logits"]))
