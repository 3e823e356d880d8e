"""OpenMMLab's MMPretrain and MMClassification: ``backbone.`` with ``se_layer``, ``head.fc``."""

import re

from torch import Tensor

from excite.weights.layouts.base import (
    BILINEAR,
    PLAIN,
    Anatomy,
    Layout,
    Row,
    Settings,
    Source,
    block_rows,
    gate_rows,
    stem_rows,
)
from excite.weights.layouts.torchvision import AVERAGE_DOWN


def _without_backbone(source: Source) -> dict[str, Tensor]:
    return {name.removeprefix("backbone."): tensor for name, tensor in source.tensors.items()}


def _options(anatomy: Anatomy, source: Source) -> Settings:
    """As torchvision's (``style='pytorch'``), or with the stride on the first 1x1 if the file says 'caffe'.

    The training configuration is a text in ``meta``.
    """
    meta = source.metadata.get("values", {}).get("meta", {})
    text = str(meta.get("cfg") or meta.get("config") or "") if isinstance(meta, dict) else ""
    style = re.search(r"""['"]?style['"]?\s*[=:]\s*['"](caffe|pytorch)['"]""", text)
    return {**PLAIN, "stride_on": "conv1" if style is not None and style[1] == "caffe" else "conv2"}


_BODY = (*stem_rows("conv1", "bn1"), *block_rows())
_HEAD = (Row("fc", "head.fc", "dense"),)
#: In some versions, the numbers of their data_preprocessor are buffers; ours are stored elsewhere.
_IGNORED = (r"^data_preprocessor\.",)
_SOURCE = "open-mmlab/mmpretrain, models/backbones/{resnet,seresnet}.py and models/utils/se_layer.py"

MMPRETRAIN = Layout(
    key="mmpretrain",
    title="MMPretrain's names",
    signature=(r"(^|\.)layer1\.0\.se_layer\.conv1\.conv\.weight$",),
    rows=(*_BODY, *gate_rows("se_layer.conv1.conv", "se_layer.conv2.conv"), *_HEAD),
    options=_options,
    preprocessing=BILINEAR,
    ignored=_IGNORED,
    refused=AVERAGE_DOWN,
    prepare=_without_backbone,
    source=_SOURCE,
)
MMPRETRAIN_UNGATED = Layout(
    key="mmpretrain-ungated",
    title="MMPretrain's names, without gates",
    signature=(r"^backbone\.layer1\.0\.conv1\.weight$", r"^backbone\.conv1\.weight$", r"^head\.fc\.weight$"),
    rows=(*_BODY, *_HEAD),
    options=_options,
    preprocessing=BILINEAR,
    ignored=_IGNORED,
    refused=AVERAGE_DOWN,
    prepare=_without_backbone,
    source=_SOURCE,
)
