"""MindSpore's GENet_Res50, recognised by its names."""

from excite.weights.layouts.base import MINDSPORE_LEAVES, Layout

#: Its strided convolutions are padded on the right and bottom ("same"), ours on every side: one pixel apart in each of
#: four places. Theta and theta-plus also start the first stage's gather with a dense 3x3 convolution.
GENET = Layout(
    key="genet",
    title="the names of MindSpore's GENet_Res50",
    signature=(r"^layer1\.0\.conv1\.batchnorm\.gamma$", r"^end_point\.weight$"),
    rows=(),
    leaves=MINDSPORE_LEAVES,
    refused={
        r"^end_point\.weight$": "MindSpore's GENet_Res50 pads its strided convolutions on the right and bottom only "
        "and gathers in its first stage by a dense convolution, which excite's GE-ResNets do not"
    },
    source="MindSpore model zoo, research/cv/GENet_Res50/src/{GENet,GEBlock}.py",
)
