"""Training and evaluation. Names are imported when first used: timing a step needs no metrics library."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.training.evaluation import Evaluation, evaluate
    from excite.training.loop import train

_HOME = {"Evaluation": "evaluation", "evaluate": "evaluation", "train": "loop"}
__all__ = ["Evaluation", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
