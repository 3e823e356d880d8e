"""Hugging Face transformers' ResNet (``ResNetForImageClassification``): no gates, the stride on the 3x3."""

from excite.weights.layouts.base import BICUBIC, Layout, Row, stem_rows

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
    preprocessing=BICUBIC,
    source="transformers, models/resnet/modeling_resnet.py",
)
