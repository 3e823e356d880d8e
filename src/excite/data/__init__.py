"""Image data: sources, decoding, batches and augmentation.

Names are imported when first used, so that `excite.data.config` (needed to read a recipe) does not load torch.
"""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.data.augment import BatchAugment
    from excite.data.config import AugmentConfig, DataConfig, RandAugmentConfig
    from excite.data.decode import BadImageError, load_image
    from excite.data.images import ArrayImages, FileImages
    from excite.data.loader import EvalLoader, TrainLoader
    from excite.data.preprocessing import Preprocessing, normalize
    from excite.data.resize import eval_transform, eval_transform_tensor
    from excite.data.sources import DataSets, open_data, open_measured

_HOME = {
    "ArrayImages": "images",
    "AugmentConfig": "config",
    "BadImageError": "decode",
    "BatchAugment": "augment",
    "DataConfig": "config",
    "DataSets": "sources",
    "EvalLoader": "loader",
    "FileImages": "images",
    "Preprocessing": "preprocessing",
    "RandAugmentConfig": "config",
    "TrainLoader": "loader",
    "eval_transform": "resize",
    "eval_transform_tensor": "resize",
    "load_image": "decode",
    "normalize": "preprocessing",
    "open_data": "sources",
    "open_measured": "sources",
}

__all__ = [
    "ArrayImages",
    "AugmentConfig",
    "BadImageError",
    "BatchAugment",
    "DataConfig",
    "DataSets",
    "EvalLoader",
    "FileImages",
    "Preprocessing",
    "RandAugmentConfig",
    "TrainLoader",
    "eval_transform",
    "eval_transform_tensor",
    "load_image",
    "normalize",
    "open_data",
    "open_measured",
]


__getattr__ = lazily(__name__, {name: f"{__name__}.{module}" for name, module in _HOME.items()})
