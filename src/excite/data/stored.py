"""What checkpoints say of images, as it stands in their headers; types alone, so that reading one needs no torch."""

from collections.abc import Sequence
from typing import Literal, NotRequired, TypedDict


class PreprocessingValues(TypedDict):
    """A :class:`excite.data.Preprocessing` in JSON; ``white`` is there where it is not 65535."""

    image_size: int
    crop_pct: float
    interpolation: Literal["bicubic", "bilinear"]
    mean: list[float]
    std: list[float]
    in_chans: int
    white: NotRequired[int]


class KnownPreprocessing(TypedDict, total=False):
    """What is known of how somebody else's network sees images: of the keys of ``Preprocessing``, those that are
    said, as they are said. ``image_size`` may be (height, width)."""

    image_size: int | Sequence[int] | None
    crop_pct: float
    interpolation: str
    mean: Sequence[float]
    std: Sequence[float]
    in_chans: int
    white: int
