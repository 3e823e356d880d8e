"""How fast: what `excite bench` and the scripts in benchmarks/ share."""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.bench.runner import run_in_turns as run_in_turns
    from excite.bench.settings import Setting as Setting
    from excite.bench.timing import training_step_seconds as training_step_seconds

_HOMES = {
    "Setting": "excite.bench.settings",
    "run_in_turns": "excite.bench.runner",
    "training_step_seconds": "excite.bench.timing",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
