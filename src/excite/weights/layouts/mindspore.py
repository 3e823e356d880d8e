"""MindSpore checkpoints: MindCV's SENets."""

from dataclasses import replace

from excite.weights.layouts.base import (
    BICUBIC,
    MINDSPORE_LEAVES,
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

#: What a training run stores besides the network.
OPTIMISER_STATE = (
    r"^(moments|accum|stat|moment1|moment2|adam_m|adam_v)\.",
    r"^(global_step|learning_rate|momentum|weight_decay|epoch_num|step_num|scale_sense|current_iterator_step)$",
    r"^(last_overflow_iterator_step|beta1_power|beta2_power)$",
)


def mindcv_options(anatomy: Anatomy, source: Source) -> Settings:
    """Pooling padded on the right and bottom only; the stride of bottlenecks on the 3x3."""
    return settings(
        max_pool="ceil",
        conv_padding="symmetric",
        stride_on="conv2",
        gate_position="standard",
        bn_eps=1e-5,
        identity=False,
    )


MINDCV = Layout(
    key="mindcv",
    title="the names of MindCV's SENets",
    signature=(r"^layer1\.0\.se_module\.conv_reduce\.weight$", r"^layer0\.0\.weight$"),
    rows=(
        *stem_rows("layer0.0", "layer0.1"),
        *block_rows(),
        *gate_rows("se_module.conv_reduce", "se_module.conv_expand"),
        Row("fc", "classifier", "dense"),
    ),
    leaves=MINDSPORE_LEAVES,
    ignored=OPTIMISER_STATE,
    options=mindcv_options,
    preprocessing=BICUBIC,
    source="MindCV 0.3.0, models/senet.py",
)
MINDCV_SENET154 = replace(
    MINDCV,
    key="mindcv-senet154",
    signature=(*MINDCV.signature, r"^layer0\.6\.weight$"),
    rows=(
        *stem_rows(*(f"layer0.{i}" for i in (0, 1, 3, 4, 6, 7))),
        *(row for row in MINDCV.rows if not row.theirs.startswith("layer0.")),
    ),
)
