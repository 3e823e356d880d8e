"""How fast: what `excite bench` and the scripts in benchmarks/ share. Nothing heavy is imported until it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.bench.runner import run_in_turns as run_in_turns
    from excite.bench.settings import Setting as Setting
    from excite.bench.timing import training_step_seconds as training_step_seconds

_HOMES = {
    "Setting": "settings",
    "run_in_turns": "runner",
    "training_step_seconds": "timing",
}
__all__ = ["Setting", "run_in_turns", "training_step_seconds"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
