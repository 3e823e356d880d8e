"""ImageNet weights for excite's networks: where to get them, how accurate and how fast the networks are.

Plain data without torch, so that ``excite models --pretrained`` and the choice of a recipe are instant. The accuracies
were measured by timm (results/results-imagenet.csv of pytorch-image-models 1.0.31, at the size given here).
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import TypedDict


@dataclass(frozen=True)
class Pretrained:
    """Weights on a hub.

    Attributes:
        model: the network of excite that takes them.
        source: for ``train.init_from``.
        params_m: parameters in millions, as timm counts them; four bytes each in the file.
        image_size: image size for which the accuracy was measured, pixels.
        top1, top5: accuracy on the ImageNet validation set, percent.
    """

    model: str
    source: str
    params_m: float
    image_size: int
    top1: float
    top5: float

    @property
    def megabytes(self) -> float:
        """Size of the download, MB."""
        return 4 * self.params_m


#: One entry per network that timm has weights for, at 224 pixels.
PRETRAINED = (
    Pretrained("efficientnet_lite0", "timm:tf_efficientnet_lite0.in1k", 4.65, 224, 74.846, 92.180),
    Pretrained("resnet18", "timm:resnet18.a1_in1k", 11.69, 224, 71.504, 90.086),
    Pretrained("resnet34", "timm:resnet34.a1_in1k", 21.80, 224, 76.420, 92.896),
    Pretrained("resnet50", "timm:resnet50.a1_in1k", 25.56, 224, 80.382, 94.598),
    Pretrained("resnet101", "timm:resnet101.a1h_in1k", 44.55, 224, 81.950, 95.760),
    Pretrained("resnet152", "timm:resnet152.a1h_in1k", 60.19, 224, 82.818, 96.124),
    Pretrained("resnext50_32x4d", "timm:resnext50_32x4d.a1h_in1k", 25.03, 224, 81.140, 95.320),
    Pretrained("resnext101_32x4d", "timm:resnext101_32x4d.gluon_in1k", 44.18, 224, 80.336, 94.908),
    Pretrained("seresnet50", "timm:seresnet50.ra2_in1k", 28.09, 224, 80.260, 95.068),
    Pretrained("seresnext50_32x4d", "timm:seresnext50_32x4d.racm_in1k", 27.56, 224, 81.268, 95.624),
    Pretrained("seresnext101_32x4d", "timm:seresnext101_32x4d.gluon_in1k", 48.96, 224, 80.886, 95.268),
)


def pretrained_of(model: str) -> Pretrained | None:
    """The weights for a network of excite, or None."""
    return next((each for each in PRETRAINED if each.model == model), None)


#: The file of measured speeds, in this package; ``benchmarks/pretrained_speed.py`` writes it.
SPEEDS = "speeds.json"


class Speeds(TypedDict):
    """Images per second of the networks in ``PRETRAINED`` on one device, by model name: evaluation at 224 pixels."""

    device: str
    date: str
    torch: str
    excite: str
    batch: int
    images_per_second: dict[str, float]


def measured_speeds() -> Speeds:
    """The stored measurements, which are not of this machine."""
    speeds: Speeds = json.loads(files("excite.weights").joinpath(SPEEDS).read_text(encoding="utf-8"))
    return speeds
