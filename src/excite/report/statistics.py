"""The statistics of ``excite.intervals`` under the name that they had before ``excite explain`` took them, too."""

from excite.intervals import (
    FEW_DISCORDANT,
    Pairs,
    holm,
    mcnemar,
    mean_difference,
    normal_quantile,
    paired_interval,
    wilson,
)

__all__ = [
    "FEW_DISCORDANT",
    "Pairs",
    "holm",
    "mcnemar",
    "mean_difference",
    "normal_quantile",
    "paired_interval",
    "wilson",
]
