"""timm's SE-ResNets and SE-ResNeXts (``timm.models.resnet`` with ``attn_layer="se"``)."""

from excite.weights.layouts.base import BICUBIC, Layout, block_rows, gate_rows, plain_options
from excite.weights.layouts.torchvision import AVERAGE_DOWN, HEAD, STEMS

TIMM = Layout(
    key="timm",
    title="the names of timm's ResNet with SE",
    signature=(r"^layer1\.0\.se\.fc1\.weight$", r"^conv1\.(0\.)?weight$"),
    rows=(*STEMS, *block_rows(), *gate_rows("se.fc1", "se.fc2"), *HEAD),
    options=plain_options,
    preprocessing=BICUBIC,
    refused=AVERAGE_DOWN,
    source="timm 1.0.31, models/resnet.py and layers/squeeze_excite.py",
)
