"""What a report is made of, between the study that finds it and the page that shows it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from excite.explain import Explanation

#: The key in results.json.
KEY = "report"
#: What a report takes from results.json: the columns of the reference systems' tables, and what goes with them.
SUMMARY = (
    "recipe",
    "model",
    "params_m",
    "gmacs",
    "devices",
    "device",
    "precision",
    "batch_size",
    "resolution",
    "compile_seconds",
    "ms_per_step",
    "images_per_second",
    "top1",
    "top5",
    "loss",
    "last_top1",
    "last_top5",
    "test_top1",
    "test_top5",
    "test_images",
    "measured",
    "images",
    "best_epoch",
    "epochs",
    "train_seconds",
    "memory_gb",
    "skipped_steps",
    "bad_images",
    "data_fingerprint",
)


@dataclass
class Study:
    """All that a page is made of: ``numbers`` (JSON-able; see docs/report.md), and what is no number.

    Attributes:
        photographs: of the mistakes, uint8 (S, S, C), in their order.
        explanation: what the gates do; None without gates, or where it was not asked for.
        recipe: YAML.
    """

    numbers: dict[str, Any]
    photographs: list[np.ndarray] = field(default_factory=list)
    explanation: Explanation | None = None
    recipe: str = ""
