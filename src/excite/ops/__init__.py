"""Operators that gates and blocks are built from. Notation: N images, C channels, H x W positions."""

from excite.ops import operators as operators
from excite.ops.excitation import excite_residual, spatial_mean, weighted_sum
from excite.ops.gated_norm import norm_excite_residual

__all__ = ["excite_residual", "norm_excite_residual", "spatial_mean", "weighted_sum"]
