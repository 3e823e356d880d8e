"""Hugging Face transformers' ResNet (``ResNetForImageClassification``): no gates, the stride on the 3x3.

The ``config.json`` beside the weights may say otherwise.
"""

from excite.errors import ExciteError
from excite.weights.layouts.base import BICUBIC, PLAIN, Anatomy, Layout, Row, Settings, Source, stem_rows


def _options(anatomy: Anatomy, source: Source) -> Settings:
    """As torchvision's, or with the stride on the first 1x1 if the configuration has ``downsample_in_bottleneck``.

    Raises:
        ExciteError: the configuration has an activation or a first stage that ours do not have.
    """
    config = source.metadata.get("config", {})
    for key, usual in (("hidden_act", "relu"), ("downsample_in_first_stage", False)):
        if config.get(key, usual) != usual:
            raise ExciteError(f"config.json says {key}={config[key]!r}, but excite's ResNets only support {usual!r}")
    return {**PLAIN, "stride_on": "conv1" if config.get("downsample_in_bottleneck") else "conv2"}


_BLOCK = "encoder.stages.{s-1}.layers.{b}"
HUGGING_FACE = Layout(
    key="transformers",
    title="the names of Hugging Face transformers' ResNet",
    signature=(r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight$",),
    rows=(
        Row("fc", "classifier.1", "dense"),
        *(
            row
            for prefix in ("resnet.", "")  # the classifier's file, the bare model's
            for row in (
                *stem_rows(f"{prefix}embedder.embedder.convolution", f"{prefix}embedder.embedder.normalization"),
                Row("layer{s}.{b}.conv{i}", f"{prefix}{_BLOCK}.layer.{{i-1}}.convolution", "conv"),
                Row("layer{s}.{b}.bn{i}", f"{prefix}{_BLOCK}.layer.{{i-1}}.normalization", "norm"),
                Row("layer{s}.{b}.downsample.0", f"{prefix}{_BLOCK}.shortcut.convolution", "conv"),
                Row("layer{s}.{b}.downsample.1", f"{prefix}{_BLOCK}.shortcut.normalization", "norm"),
            )
        ),
    ),
    options=_options,
    preprocessing=BICUBIC,
    source="transformers, models/resnet/modeling_resnet.py",
)
