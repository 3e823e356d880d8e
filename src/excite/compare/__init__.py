"""Several trained networks side by side, image by image: ``excite compare``. Names are imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.compare.build import Comparison, compare

_HOMES = {"Comparison": "build", "compare": "build"}
__all__ = ["Comparison", "compare"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
