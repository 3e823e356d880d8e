"""Published accuracies and their sources. Pure data: importing it must stay fast (the command line completes names from
here).

"""

from typing import TypedDict

IMAGENET, CIFAR10, CIFAR100 = "imagenet", "cifar10", "cifar100"


class PublishedAccuracy(TypedDict):
    """A published accuracy in percent.

    Attributes:
        dataset: one of the names above.
        confirmed: whether we checked the number against its source (the reference systems' README files, torchvision's
            documentation, the authors' repository).
    """

    top1: float
    top5: float | None
    dataset: str
    source: str
    note: str
    confirmed: bool


def _entry(top1: float, top5: float | None, dataset: str, source: str, note: str, confirmed: bool) -> PublishedAccuracy:
    return {
        "top1": top1,
        "top5": top5,
        "dataset": dataset,
        "source": source,
        "note": note,
        "confirmed": confirmed,
    }


def _errors(
    name: str, top1: float, top5: float | None, source: str, note: str, confirmed: bool, dataset: str = IMAGENET
) -> tuple[str, PublishedAccuracy]:
    """An entry from error rates, which papers print, converted to accuracies."""
    accuracy5 = None if top5 is None else round(100 - top5, 2)
    return name, _entry(round(100 - top1, 2), accuracy5, dataset, source, note, confirmed)


_TORCHVISION = {
    "resnet18": (69.758, 89.078),
    "resnet34": (73.314, 91.42),
    "resnet50": (76.13, 92.862),
    "resnet101": (77.374, 93.546),
    "resnet152": (78.312, 94.046),
    "resnext50_32x4d": (77.618, 93.698),
}
_MINDCV = {
    "seresnet18": (71.81, 90.49),
    "seresnet34": (75.38, 92.50),
    "seresnet50": (78.32, 94.07),
    "seresnext26_32x4d": (77.17, 93.42),
    "seresnext50_32x4d": (78.71, 94.36),
}
_MINDCV_NOTE = "8 Ascend 910, 150 epochs; squeeze width rounded to 8, ceil-mode max-pool, our options reproduce both"
# Errors from here on, as printed.
_SENET_CAFFE = {
    "seresnet50": (22.37, 6.36),
    "seresnet101": (21.75, 5.72),
    "seresnet152": (21.34, 5.54),
    "seresnext50_32x4d": (20.97, 5.54),
    "seresnext101_32x4d": (19.81, 4.96),
    "senet154": (18.68, 4.47),
}
_SE_PAPER = {
    "resnet50": (24.80, 7.48),
    "seresnet50": (23.29, 6.62),
    "resnet101": (23.17, 6.52),
    "seresnet101": (22.38, 6.07),
    "resnet152": (22.42, 6.34),
    "seresnet152": (21.57, 5.73),
    "resnext50_32x4d": (22.11, 5.90),
    "seresnext50_32x4d": (21.10, 5.49),
    "resnext101_32x4d": (21.18, 5.57),
    "seresnext101_32x4d": (20.70, 5.01),
}
_SE_PAPER_CIFAR10 = {
    "cifar_preresnet110": 6.37,
    "cifar_sepreresnet110": 5.21,
    "cifar_preresnet164": 5.46,
    "cifar_sepreresnet164": 4.39,
    "cifar_wrn16_8": 4.27,
    "cifar_sewrn16_8": 3.88,
}
# Table 2, 224x224; confirmed in the authors' README (implus/SKNet), which repeats it.
_SK_PAPER = {"sknet50": 20.79, "sknet101": 20.19}
_GE_PAPER = {
    "resnet50": (23.30, 6.55),
    "seresnet50": (22.12, 5.99),
    "geresnet50_theta_minus": (22.14, 6.24),
    "geresnet50_theta": (22.00, 5.87),
    "geresnet50_theta_plus": (21.88, 5.80),
}
_GENET_MINDSPORE: dict[str, tuple[float, float | None, str]] = {
    "geresnet50_theta_minus": (77.8, None, "8 Ascend 910, 220 epochs"),
    "geresnet50_theta": (78.0, None, "8 Ascend 910, 150 epochs"),
    "geresnet50_theta_plus": (78.47, 94.13, "8 Ascend 910, 150 epochs; 49,920 of the 50,000 images"),
}


def _collect() -> dict[str, list[PublishedAccuracy]]:
    table: dict[str, list[PublishedAccuracy]] = {}

    def put(name: str, entry: PublishedAccuracy) -> None:
        table.setdefault(name, []).append(entry)

    for name, (top1, top5) in _TORCHVISION.items():
        put(name, _entry(top1, top5, IMAGENET, "torchvision documentation, IMAGENET1K_V1 weights", "", True))
    for name, (top1, top5) in _MINDCV.items():
        put(name, _entry(top1, top5, IMAGENET, "MindCV configs/senet/README.md", _MINDCV_NOTE, True))
    newer = "8 Ascend 910*, MindSpore 2.5, 150 epochs"
    put("seresnet18", _entry(72.05, 90.59, IMAGENET, "MindCV configs/senet/README.md", newer, True))
    note = "8 Ascend, 100 epochs, batch 1024; gates without bias"
    put("seresnet50", _entry(77.521, None, IMAGENET, "ModelZoo-PyTorch SE-ResNet-50 README", note, True))
    for name, (top1, maybe5, note) in _GENET_MINDSPORE.items():
        put(name, _entry(top1, maybe5, IMAGENET, "MindSpore GENet_Res50 README", note, True))
    note = "the authors' released Caffe model, better than in their paper"
    for name, (top1, top5) in _SENET_CAFFE.items():
        put(*_errors(name, top1, top5, "hujie-frank/SENet README, table 1", note, True))
    for name, (top1, top5) in _SE_PAPER.items():
        put(*_errors(name, top1, top5, "SE paper (arXiv 1709.01507), table 2, re-implementation", "", False))
    for name, top1 in _SE_PAPER_CIFAR10.items():
        put(*_errors(name, top1, None, "SE paper (arXiv 1709.01507), table 4", "", False, CIFAR10))
    for name, top1 in _SK_PAPER.items():
        put(*_errors(name, top1, None, "implus/SKNet README, table 2 of the paper (arXiv 1903.06586)", "", True))
    for name, (top1, top5) in _GE_PAPER.items():
        put(*_errors(name, top1, top5, "GE paper (arXiv 1810.12348)", "", False))
    tensorflow = "ModelZoo-TensorFlow SE-ResNet-110 README"
    put(*_errors("cifar_seresnet110_tf", 5.21, None, tensorflow, "on one V100", True, CIFAR10))
    put(*_errors("cifar_seresnet110_tf", 5.45, None, tensorflow, "on one Ascend 910", True, CIFAR10))
    return table


#: Name of the model -> its published accuracies.
PUBLISHED = _collect()
