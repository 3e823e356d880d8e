"""Cadene's port of the authors' Caffe nets, called ``legacy_seresnet*``, ``legacy_senet154`` ... in timm."""

from dataclasses import replace

from excite.errors import ExciteError
from excite.weights.layouts.base import (
    BILINEAR,
    Anatomy,
    Layout,
    Row,
    Settings,
    Source,
    block_rows,
    gate_rows,
    settings,
    stem_rows,
)


def caffe_options(anatomy: Anatomy, source: Source) -> Settings:
    """As in the authors' prototxt files: the stride is on the first 1x1, but on the 3x3 if that is grouped."""
    return settings(
        max_pool="ceil",
        conv_padding="symmetric",
        stride_on="conv1" if anatomy.groups == 1 else "conv2",
        gate_position="standard",
        bn_eps=1e-5,
        identity=False,
    )


def _options(anatomy: Anatomy, source: Source) -> Settings:
    if anatomy.block == "basic":
        raise ExciteError(
            "this is timm's legacy_seresnet18 or 34, which has one more ReLU between the last batch norm of a block "
            "and its gate; excite has no such network (timm's seresnet18 and 34 are without it)"
        )
    return caffe_options(anatomy, source)


CADENE = Layout(
    key="cadene",
    title="the names of Cadene's SENets and timm's legacy ones",
    signature=(r"^layer1\.0\.se_module\.fc1\.weight$", r"^layer0\.conv1\.weight$"),
    rows=(
        *stem_rows("layer0.conv1", "layer0.bn1"),
        *block_rows(),
        *gate_rows("se_module.fc1", "se_module.fc2"),
        Row("fc", "last_linear", "dense"),
    ),
    options=_options,
    preprocessing=BILINEAR,
    source="timm 1.0.31, models/senet.py",
)
CADENE_SENET154 = replace(
    CADENE,
    key="cadene-senet154",
    signature=(*CADENE.signature, r"^layer0\.conv3\.weight$"),
    rows=(
        *stem_rows(*(f"layer0.{part}{i}" for i in (1, 2, 3) for part in ("conv", "bn"))),
        *(row for row in CADENE.rows if not row.theirs.startswith("layer0.")),
    ),
)
