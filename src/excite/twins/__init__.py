"""``excite twins``: train a recipe with each gate and each seed, and compare what the gates gain and cost."""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.twins.runner import run_twins as run_twins

_HOMES = {
    "run_twins": "excite.twins.runner",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES, call="run_twins")
