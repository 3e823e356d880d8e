"""Sizes of images: a number of pixels for squares, or height and width. One way to read, store and show both.

Height comes first, as in the shapes of arrays.
"""

from collections.abc import Sequence
from typing import Any

from excite.errors import ExciteError, shown

#: (height, width) in pixels.
Size = tuple[int, int]


def as_size(given: int | Sequence[int], name: str = "image_size") -> Size:
    """A number of pixels or (height, width) -> (height, width). Raises ExciteError for anything else."""
    pair: tuple[Any, ...] = (given, given)
    if not isinstance(given, int):
        pair = tuple(given) if isinstance(given, list | tuple) else ()
    if len(pair) != 2 or any(type(n) is not int or n < 1 for n in pair):
        raise ExciteError(f"{name} must be a number of pixels or (height, width), not {shown(given)}")
    return pair


def plain_size(given: int | Sequence[int]) -> int | list[int]:
    """A size as recipes and headers store it: a number for squares, else [height, width]."""
    height, width = as_size(given)
    return height if height == width else [height, width]


def by_text(given: int | Sequence[int]) -> str:
    """A size as in tables: "224x224" (height x width)."""
    return "x".join(map(str, as_size(given)))


def size_text(given: int | Sequence[int]) -> str:
    """A size in words: "224 pixels", or "96 x 160 pixels" (height x width)."""
    height, width = as_size(given)
    return f"{height} pixels" if height == width else f"{height} x {width} pixels"
