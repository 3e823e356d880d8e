"""Training and evaluation: set-up, training loop, optimiser, schedule and checkpoints."""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.training.evaluation import Evaluation as Evaluation
    from excite.training.evaluation import evaluate as evaluate
    from excite.training.loop import train as train

_HOMES = {
    "Evaluation": "excite.training.evaluation",
    "evaluate": "excite.training.evaluation",
    "train": "excite.training.loop",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
