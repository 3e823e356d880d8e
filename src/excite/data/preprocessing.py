"""The preprocessing of images for a trained network, which is stored in every checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Self

import numpy as np
import torch

from excite.data.config import PILLOW_LIMIT
from excite.data.decode import ImageSource, Opened, open_picture, reading
from excite.data.geometry import Fit, Interpolation
from excite.data.pixels import FULL_WHITE
from excite.data.resize import eval_transform
from excite.data.stored import PreprocessingValues
from excite.data.views import with_margin
from excite.errors import ExciteError, nearest
from excite.size import Size, as_size, plain_size


def normalize(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """(pixels / 255 - mean) / std per channel: uint8 (B, C, H, W) -> `dtype` of the same shape and layout."""
    scale, shift = _constants(tuple(mean), tuple(std), images.device)
    return torch.addcmul(shift, images.float(), scale).to(dtype)


@cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and offset, float32 (C, 1, 1). Cached, because creating them on a GPU waits for all its queued work."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.view(-1, 1, 1), shift.view(-1, 1, 1)


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation preprocessing: decode and fit to the size (`load`), then normalise (`normalize`).

    `image_size` is a number of pixels, or (height, width) if they differ; `size` is always the latter. `white` is the
    white level of images with 16 bits per channel, such as 4095 for a 12-bit camera.
    """

    image_size: int | tuple[int, int]
    crop_pct: float
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_chans: int
    white: int = FULL_WHITE
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        height, width = self.size
        object.__setattr__(self, "image_size", height if height == width else (height, width))

    @property
    def size(self) -> Size:
        """Height and width of the network's images, in pixels."""
        return as_size(self.image_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's images."""
        return (self.in_chans, *self.size)

    def to_dict(self) -> PreprocessingValues:
        """Plain numbers, strings and lists, for JSON or a safetensors header; `white` only if it is not 65535, `fit`
        only if it is not "crop"."""
        values: PreprocessingValues = {
            "image_size": plain_size(self.image_size),
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "in_chans": self.in_chans,
            "white": self.white,
            "fit": self.fit,
        }
        # As before these keys existed, so that stored predictions still match.
        if self.white == FULL_WHITE:
            del values["white"]
        if self.fit == "crop":
            del values["fit"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ExciteError for a missing or unknown key."""
        values = {"white": FULL_WHITE, "fit": "crop", **values}
        names = [field.name for field in fields(cls)]
        for key in values:
            if key not in names:
                raise ExciteError(f"preprocessing has an unknown key {key!r}{nearest(key, names)}")
        missing = [name for name in names if name not in values]
        if missing:
            raise ExciteError(f"preprocessing lacks {', '.join(missing)}: the checkpoint is incomplete")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def load(self, path: ImageSource, max_pixels: int = PILLOW_LIMIT, margin: bool = False) -> torch.Tensor:
        """Read an image file, or pixels in memory: uint8 (C, H, W), with `margin` larger (see `excite.data.views`).
        Raises BadImageError if that fails."""
        with reading(path):
            image = open_picture(path, self.in_chans, max_pixels, self.white)
            return torch.from_numpy(self.fitted(image, margin)).permute(2, 0, 1).contiguous()

    def fitted(self, image: Opened, margin: bool = False) -> np.ndarray:
        """Bring an image of any size to the network's (see `eval_transform`): uint8 (H, W, C), with `margin` larger."""
        fit = with_margin if margin else eval_transform
        return fit(image, self.size, self.crop_pct, self.interpolation, self.fit)

    def normalize(self, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """uint8 (B, C, H, W) -> normalised `dtype` of the same shape; a single channel is repeated to `in_chans`."""
        return normalize(images.expand(-1, self.in_chans, -1, -1), self.mean, self.std, dtype)
