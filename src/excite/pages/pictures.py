"""Images as people see them: pixels of any number of channels become grey or RGB. Imports nothing heavy."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def visible(pixels: "np.ndarray") -> "np.ndarray":
    """uint8 (H, W, C) -> (H, W) or (H, W, 3): RGB and grey as they are, the first three of more bands as red, green
    and blue, the first of two."""
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]


def bands_shown(channels: int) -> str | None:
    """A sentence on what pictures of so many channels show; None for grey and RGB."""
    if channels in (1, 3):
        return None
    if channels == 2:
        return "pictures show the first of 2 bands, as grey"
    return f"pictures show the first three of {channels} bands, as red, green and blue"
