"""Ungated ResNets and ResNeXts of torchvision and timm, whose names we use, too."""

from excite.weights.layouts.base import BILINEAR, Layout, Row, block_rows, plain_options, stem_rows

AVERAGE_DOWN = {
    r"\.downsample\.2\.": "a ResNet-D has an average pooling in its shortcuts, which excite's ResNet does not support"
}
HEAD = (Row("fc", "fc", "dense"),)
#: One convolution, or three (timm's "deep" stems) that end in the same norm.
STEMS = (*stem_rows("conv1", "bn1"), *stem_rows("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1")[:-1])

TORCHVISION = Layout(
    key="torchvision",
    title="the names of torchvision's and timm's ResNet",
    signature=(r"^layer1\.0\.conv1\.weight$", r"^conv1\.(0\.)?weight$"),
    rows=(*STEMS, *block_rows(), *HEAD),
    options=plain_options,
    preprocessing=BILINEAR,
    refused=AVERAGE_DOWN,
    source="torchvision/models/resnet.py",
)
