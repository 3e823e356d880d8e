"""Operators that gates and blocks are made of. Letters: N images, C channels, H x W positions."""

from excite.ops.excitation import excite_residual, spatial_mean

__all__ = ["excite_residual", "spatial_mean"]
