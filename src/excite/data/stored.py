"""Types of the preprocessing values in checkpoint headers. Only types, so that reading a header does not need torch."""

from collections.abc import Sequence
from typing import Literal, NotRequired, TypedDict


class PreprocessingValues(TypedDict):
    """A :class:`excite.data.Preprocessing` in JSON; ``white`` is only there if it is not 65535, ``fit`` only if it is
    not "crop". ``image_size`` is [height, width] for images that are not square."""

    image_size: int | list[int]
    crop_pct: float
    interpolation: Literal["bicubic", "bilinear"]
    mean: list[float]
    std: list[float]
    in_chans: int
    white: NotRequired[int]
    fit: NotRequired[Literal["crop", "letterbox", "stretch"]]


class KnownPreprocessing(TypedDict, total=False):
    """The known preprocessing of a foreign network: those keys of ``Preprocessing`` that its source gives, with its
    values. ``image_size`` may be (height, width)."""

    image_size: int | Sequence[int] | None
    crop_pct: float
    interpolation: str
    mean: Sequence[float]
    std: Sequence[float]
    in_chans: int
    white: int
    fit: str
