"""torchvision's ResNet with SE layers of two dense layers without bias: moskomule's senet.pytorch, ModelZoo-PyTorch.

Both call the SE layer ``se`` and its two dense layers ``fc.0`` and ``fc.2``, with width C // 16 and the stride on the
3x3. Users of that code have other names for the layer, so each of the usual spellings has a row.
"""

from excite.weights.layouts.base import BILINEAR, Layout, block_rows, gate_rows, plain_options, stem_rows
from excite.weights.layouts.torchvision import AVERAGE_DOWN, HEAD

SPELLINGS = ("se", "se_layer", "selayer", "se_module", "se_block")

SENET_PYTORCH = Layout(
    key="senet.pytorch",
    title="the names of moskomule's senet.pytorch and ModelZoo-PyTorch",
    signature=(rf"^layer1\.0\.({'|'.join(SPELLINGS)})\.fc\.0\.weight$", r"^conv1\.weight$"),
    rows=(
        *stem_rows("conv1", "bn1"),
        *block_rows(),
        *(row for spelling in SPELLINGS for row in gate_rows(f"{spelling}.fc.0", f"{spelling}.fc.2")),
        *HEAD,
    ),
    options=plain_options,
    preprocessing=BILINEAR,
    refused=AVERAGE_DOWN,
    source="moskomule/senet.pytorch, senet/se_resnet.py and se_module.py; ModelZoo-PyTorch, contrib/cv/classification/"
    "SE-ResNet-50/senet.py and se_module.py",
)
