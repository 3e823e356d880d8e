"""``excite bench``: speed and memory measurements, also used by the scripts in benchmarks/."""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.bench.build import Measured as Measured
    from excite.bench.build import bench as bench
    from excite.bench.runner import run_in_turns as run_in_turns
    from excite.bench.settings import Setting as Setting
    from excite.bench.timing import training_step_seconds as training_step_seconds

_HOMES = {
    "Measured": "excite.bench.build",
    "Setting": "excite.bench.settings",
    "bench": "excite.bench.build",
    "run_in_turns": "excite.bench.runner",
    "training_step_seconds": "excite.bench.timing",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES, call="bench")
