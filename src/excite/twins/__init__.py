"""Twins: one recipe trained with each gate and each seed, side by side; what the gates gain and what they cost."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.twins.runner import run_twins

__all__ = ["run_twins"]


def __getattr__(name: str) -> Any:
    if name == "run_twins":
        from excite.twins.runner import run_twins

        return run_twins
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
