"""The key maps, one table per family of sources. The first with a matching signature is used."""

from excite.weights.layouts.base import Anatomy, Choice, Layout, Settings, Source, listed
from excite.weights.layouts.cadene import CADENE, CADENE_SENET154
from excite.weights.layouts.caffe import CAFFE
from excite.weights.layouts.efficientnet_lite import OWN_EFFICIENTNET_LITE, TIMM_EFFICIENTNET_LITE
from excite.weights.layouts.genet import GENET
from excite.weights.layouts.huggingface import HUGGING_FACE
from excite.weights.layouts.mindspore import MINDCV, MINDCV_SENET154
from excite.weights.layouts.mmpretrain import MMPRETRAIN, MMPRETRAIN_UNGATED
from excite.weights.layouts.own import OWN
from excite.weights.layouts.senet_pytorch import SENET_PYTORCH
from excite.weights.layouts.tensorflow import TENSORFLOW
from excite.weights.layouts.timm import TIMM
from excite.weights.layouts.torchvision import TORCHVISION

#: Specific ones first: torchvision's signature matches everything that builds on its names.
LAYOUTS: tuple[Layout, ...] = (
    OWN_EFFICIENTNET_LITE,
    TIMM_EFFICIENTNET_LITE,
    OWN,
    MINDCV_SENET154,
    MINDCV,
    GENET,
    TENSORFLOW,
    CAFFE,
    CADENE_SENET154,
    CADENE,
    MMPRETRAIN,
    MMPRETRAIN_UNGATED,
    HUGGING_FACE,
    TIMM,
    SENET_PYTORCH,
    TORCHVISION,
)

__all__ = [
    "CADENE",
    "CADENE_SENET154",
    "LAYOUTS",
    "TIMM",
    "TIMM_EFFICIENTNET_LITE",
    "TORCHVISION",
    "Anatomy",
    "Choice",
    "Layout",
    "Settings",
    "Source",
    "listed",
]
