"""One self-contained page about a trained network: ``excite report``. Names are imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.report.build import report
    from excite.report.page import Page
    from excite.report.predictions import Predictions

_HOMES = {"Page": "page", "Predictions": "predictions", "report": "build"}
__all__ = ["Page", "Predictions", "report"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
