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
    """A variant's net with fewer, narrower layers, for families without a small member."""
    variant = VARIANTS[name]
    image_size = variant["defaults"].get("image_size", 64)
    return lambda: ResNet(**{**variant["arch"], **arch}, gate=variant["gate"], num_classes=10, image_size=image_size)


def small(name: str) -> Callable[[], torch.nn.Module]:
    return lambda: create_model(name, num_classes=10, image_size=64)


FAMILIES: dict[str, Callable[[], Any]] = {
    "resnet": small("resnet18"),
    "seresnet": small("seresnet18"),
    "geresnet_theta_minus": small("geresnet18_theta_minus"),
    "geresnet_theta": small("geresnet18_theta"),
    "geresnet_theta_plus": small("geresnet18_theta_plus"),
    "resnext": shrunk("resnext26_32x4d", layers=(1, 1, 1, 1)),
    "seresnext": shrunk("seresnext26_32x4d", layers=(1, 1, 1, 1)),
    "senet": shrunk("senet154", layers=(1, 1, 1, 1), widths=(64, 64, 64, 64), stem_width=32, groups=16),
    "cifar_resnet": lambda: create_model("cifar_resnet20"),
    "cifar_seresnet": lambda: create_model("cifar_seresnet20"),
    "cifar_geresnet_theta": lambda: create_model("cifar_geresnet20_theta"),
    "cifar_preresnet": shrunk("cifar_preresnet110", layers=(2, 2, 2)),
    "cifar_sepreresnet": shrunk("cifar_sepreresnet110", layers=(2, 2, 2)),
    "cifar_sewrn": shrunk("cifar_sewrn16_8", widths=(32, 64, 128)),
    "tf_seresnet": lambda: TFSEResNet(depth=11),
}


def losses(family: str) -> list[float]:
    """Five steps of SGD with momentum on the same eight random images; the loss before each."""
    torch.manual_seed(0)
    model = FAMILIES[family]().train()
    x, y = torch.randn(8, *model.input_size), torch.arange(8)
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
    table = {family: [round(loss, 7) for loss in losses(family)] for family in FAMILIES}
    lines = ",\n".join(f'  "{family}": {json.dumps(values)}' for family, values in table.items())
    GOLDEN.write_text(f"{{\n{lines}\n}}\n")
    print(f"wrote {GOLDEN}")
