"""MindSpore's GENet_Res50: Gather-Excite theta-minus, theta and theta-plus in a ResNet-50."""

from torch import Tensor

from excite.weights.layouts.base import BILINEAR, MINDSPORE_LEAVES, Anatomy, Layout, Row, Settings, Source, settings
from excite.weights.layouts.mindspore import OPTIMISER_STATE

#: Epsilon of the stem's batch norm, and of all others (MindSpore's default, and that of its Conv2dBnAct).
STEM_EPS, EPS = 1e-4, 1e-5
_BLOCK = "layer{s}.{b}"


def _prepare(source: Source) -> dict[str, Tensor]:
    """Use one epsilon for all norms: adding the difference to the variance preserves sqrt(variance + eps)."""
    tensors = dict(source.tensors)
    if (variance := tensors.get("bn1.moving_variance")) is not None and variance.is_floating_point():
        tensors["bn1.moving_variance"] = (variance.double() + (STEM_EPS - EPS)).float()
    if any(".downop." in name for name in tensors):
        return tensors
    return {name: _as_dense(tensor) if ".mlpLayer." in name else tensor for name, tensor in tensors.items()}


def _as_dense(weight: Tensor) -> Tensor:
    """(O, I, 1, 1) -> (O, I): with ``mlp`` and without ``extra``, the gate is SE, which has dense layers in ours."""
    return weight[:, :, 0, 0] if weight.shape[2:] == (1, 1) else weight


def _options(anatomy: Anatomy, source: Source) -> Settings:
    """``pad_mode="same"`` everywhere: strided convolutions and pooling are padded at the right and bottom first."""
    return settings(
        max_pool="ceil",
        conv_padding="same",
        stride_on="conv2",
        gate_position="standard",
        bn_eps=EPS,
        identity=False,
    )


_GATE = (
    *(Row(f"{_BLOCK}.gate.gather.{n}", f"{_BLOCK}.downop.{n}", "norm" if n % 2 else "conv") for n in range(4)),
    Row(f"{_BLOCK}.gate.fc1", f"{_BLOCK}.mlpLayer.0", "conv"),
    Row(f"{_BLOCK}.gate.fc2", f"{_BLOCK}.mlpLayer.2", "conv"),
)
GENET = Layout(
    key="genet",
    title="the names of MindSpore's GENet_Res50",
    signature=(r"^layer1\.0\.conv1\.batchnorm\.gamma$", r"^end_point\.weight$"),
    rows=(
        Row("conv1", "conv1", "conv"),
        Row("bn1", "bn1", "norm"),
        Row(f"{_BLOCK}.conv{{i}}", f"{_BLOCK}.conv{{i}}.conv", "conv"),
        Row(f"{_BLOCK}.bn{{i}}", f"{_BLOCK}.conv{{i}}.batchnorm", "norm"),
        Row(f"{_BLOCK}.downsample.0", f"{_BLOCK}.down_layer.conv", "conv"),
        Row(f"{_BLOCK}.downsample.1", f"{_BLOCK}.down_layer.batchnorm", "norm"),
        *_GATE,
        Row("fc", "end_point", "dense"),
    ),
    leaves=MINDSPORE_LEAVES,
    ignored=OPTIMISER_STATE,
    options=_options,
    preprocessing=BILINEAR,
    prepare=_prepare,
    silent_gate={"name": "ge", "variant": "theta_minus"},
    source="MindSpore model zoo, research/cv/GENet_Res50/src/{GENet,GEBlock,dataset}.py",
)
