"""Models by name. Names and published numbers need no torch; everything else is imported when first used."""

from typing import TYPE_CHECKING

from excite.lazy import lazily
from excite.models.catalog import VARIANTS, list_models
from excite.models.published import PUBLISHED

if TYPE_CHECKING:
    from excite.models.base import Classifier
    from excite.models.efficientnet_lite import EfficientNetLite
    from excite.models.factory import create_model, model_options
    from excite.models.fastnet import FastNet
    from excite.models.folding import FoldedClassifier, fold
    from excite.models.resize import resize_gates
    from excite.models.resnet import ResNet
    from excite.models.summary import count_macs, describe
    from excite.models.tf_seresnet import TFSEResNet

_LAZY = {
    "Classifier": "base",
    "EfficientNetLite": "efficientnet_lite",
    "FastNet": "fastnet",
    "ResNet": "resnet",
    "TFSEResNet": "tf_seresnet",
    "count_macs": "summary",
    "create_model": "factory",
    "describe": "summary",
    "FoldedClassifier": "folding",
    "fold": "folding",
    "model_options": "factory",
    "resize_gates": "resize",
}

__all__ = [
    "PUBLISHED",
    "VARIANTS",
    "Classifier",
    "EfficientNetLite",
    "FastNet",
    "FoldedClassifier",
    "ResNet",
    "TFSEResNet",
    "count_macs",
    "create_model",
    "describe",
    "fold",
    "list_models",
    "model_options",
    "resize_gates",
]


__getattr__ = lazily(__name__, {name: f"{__name__}.{module}" for name, module in _LAZY.items()})
