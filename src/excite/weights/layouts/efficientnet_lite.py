"""EfficientNet-Lite: timm's names (``timm.models.efficientnet``), which number the modules differently, and those of
our own state dicts.

timm's ``tf_efficientnet_lite0`` pads as TensorFlow does, its ``efficientnet_lite0`` does not, but their tensors have
the same names and shapes.
"""

from excite.weights.layouts.base import BICUBIC, Anatomy, Layout, Row, Settings, Source

#: TensorFlow's ports take images in -1..1.
_HALF = (0.5, 0.5, 0.5)
_STAGE, _FIRST = "layer{s}.{b}", "layer1.{b}"
_THEIR_STAGE, _THEIR_FIRST = "blocks.{s-1}.{b}", "blocks.0.{b}"
_PARTS = ("conv_pw", "conv_dw", "conv_pwl")


def _options(anatomy: Anatomy, source: Source) -> Settings:
    """The padding and epsilon that the weights were trained with: ``config.json`` names the network; tensors do not
    show it."""
    config = source.metadata.get("config", {})
    name = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(name, str) or "efficientnet_lite" not in name:
        return {}
    if name.startswith("tf_"):
        return {"conv_padding": "same", "bn_eps": 1e-3}
    return {"conv_padding": "symmetric", "bn_eps": 1e-5}


TIMM_EFFICIENTNET_LITE = Layout(
    key="timm-efficientnet",
    title="the names of timm's EfficientNet-Lite",
    signature=(r"^conv_stem\.weight$", r"^blocks\.1\.0\.conv_pwl\.weight$", r"^conv_head\.weight$"),
    # The first stage comes first: its blocks have no expansion, so its numbers are one lower.
    rows=(
        Row("conv1", "conv_stem", "conv"),
        Row("bn1", "bn1", "norm"),
        Row("conv2", "conv_head", "conv"),
        Row("bn2", "bn2", "norm"),
        Row("fc", "classifier", "dense"),
        Row(f"{_FIRST}.conv1", f"{_THEIR_FIRST}.conv_dw", "conv"),
        Row(f"{_FIRST}.conv2", f"{_THEIR_FIRST}.conv_pw", "conv"),
        Row(f"{_FIRST}.bn{{i}}", f"{_THEIR_FIRST}.bn{{i}}", "norm"),
        *(Row(f"{_STAGE}.conv{i}", f"{_THEIR_STAGE}.{part}", "conv") for i, part in enumerate(_PARTS, start=1)),
        Row(f"{_STAGE}.bn{{i}}", f"{_THEIR_STAGE}.bn{{i}}", "norm"),
    ),
    options=_options,
    preprocessing={**BICUBIC, "mean": _HALF, "std": _HALF},
    refused={
        r"\.se\.": "EfficientNet with SE has activations that excite's does not; use model.name=timm:NAME",
        r"\.conv_rep": "it is another kind of network; use model.name=timm:NAME",
    },
    source="timm 1.0.31, models/_efficientnet_blocks.py",
)


def _unsaid(anatomy: Anatomy, source: Source) -> Settings:
    """Nothing: only a header would say how such a network was created."""
    return {}


_GATE = f"{_STAGE}.gate"

OWN_EFFICIENTNET_LITE = Layout(
    key="excite-efficientnet",
    title="the names of excite's own EfficientNet-Lite",
    signature=(r"^conv1\.weight$", r"^conv2\.weight$", r"^layer7\.0\.conv3\.weight$"),
    rows=(
        *(Row(f"conv{i}", f"conv{i}", "conv") for i in (1, 2)),
        *(Row(f"bn{i}", f"bn{i}", "norm") for i in (1, 2)),
        Row(f"{_STAGE}.conv{{i}}", f"{_STAGE}.conv{{i}}", "conv"),
        Row(f"{_STAGE}.bn{{i}}", f"{_STAGE}.bn{{i}}", "norm"),
        *(
            Row(f"{_GATE}.gather.{3 * k + n}", f"{_GATE}.gather.{3 * k + n}", kind)
            for k in range(3)
            for n, kind in enumerate(("conv", "norm"))
        ),
        *(Row(f"{_GATE}.{layer}", f"{_GATE}.{layer}", "dense") for layer in ("fc1", "fc2")),
        Row("fc", "fc", "dense"),
    ),
    options=_unsaid,
    preprocessing={**BICUBIC, "mean": _HALF, "std": _HALF},
    source="excite.models.efficientnet_lite",
)
