"""Losses of five training steps per family, from fixed seeds; run it as a script to write them anew."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from excite.models import VARIANTS, ResNet, TFSEResNet, create_model

GOLDEN = Path(__file__).parents[1] / "golden" / "models.json"
STEPS = 5


def shrunk(name: str, **arch: Any) -> Callable[[], ResNet]:
    """A variant's net with fewer, narrower layers and half-sized images or smaller."""
    variant = VARIANTS[name]
    image_size = 16 if name.startswith("cifar") else 48
    return lambda: ResNet(**{**variant["arch"], **arch}, gate=variant["gate"], num_classes=10, image_size=image_size)


SMALL = {"layers": (1, 1, 1, 1), "widths": (16, 32, 64, 128), "stem_width": 16}
SMALL_GROUPED = {"layers": (1, 1, 1, 1), "widths": (64, 64, 64, 64), "stem_width": 32, "groups": 16}

FAMILIES: dict[str, Callable[[], Any]] = {
    "resnet": shrunk("resnet18", **SMALL),
    "seresnet": shrunk("seresnet18", **SMALL),
    "seresnet_bottleneck": shrunk("seresnet50", **SMALL),
    "geresnet_theta_minus": shrunk("geresnet18_theta_minus", **SMALL),
    "geresnet_theta": shrunk("geresnet18_theta", **SMALL),
    "geresnet_theta_plus": shrunk("geresnet18_theta_plus", **SMALL),
    "resnext": shrunk("resnext26_32x4d", **SMALL_GROUPED),
    "seresnext": shrunk("seresnext26_32x4d", **SMALL_GROUPED),
    "senet": shrunk("senet154", **SMALL_GROUPED),
    "cifar_resnet": lambda: create_model("cifar_resnet20", image_size=16),
    "cifar_seresnet": lambda: create_model("cifar_seresnet20", image_size=16),
    "cifar_geresnet_theta": lambda: create_model("cifar_geresnet20_theta", image_size=16),
    "cifar_preresnet": shrunk("cifar_preresnet110", layers=(2, 2, 2)),
    "cifar_sepreresnet": shrunk("cifar_sepreresnet110", layers=(2, 2, 2)),
    "cifar_sewrn": shrunk("cifar_sewrn16_8", widths=(16, 32, 64)),
    "tf_seresnet": lambda: TFSEResNet(depth=11, image_size=16),
}


def losses(family: str) -> list[float]:
    """Five steps of SGD with momentum on the same eight random images; the loss before each.

    In float64, random numbers included: in float32 another number of threads or another instruction set turns over a
    ReLU now and then, which moved the fifth loss by up to 6e-4 (measured).
    """
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        model = FAMILIES[family]().train()
        x, y = torch.randn(8, *model.input_size), torch.arange(8)
    finally:
        torch.set_default_dtype(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    history = []
    for _ in range(STEPS):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


if __name__ == "__main__":
    table = {family: [round(loss, 10) for loss in losses(family)] for family in FAMILIES}
    lines = ",\n".join(f'  "{family}": {json.dumps(values)}' for family, values in table.items())
    GOLDEN.write_text(f"{{\n{lines}\n}}\n")
    print(f"wrote {GOLDEN}")
