"""Training and evaluation."""

from excite.training.evaluate import Evaluation, evaluate
from excite.training.loop import train

__all__ = ["Evaluation", "evaluate", "train"]
