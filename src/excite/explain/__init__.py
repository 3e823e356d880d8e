"""What the gates of a trained network do: statistics of their scales, figures, and what they did to an image.

Names are imported when first used: the figures need Matplotlib, Grad-CAM needs Captum.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.explain.ablation import Ablation, ablate_gates, time_without_gates
    from excite.explain.images import ExplainedImage, explain_image
    from excite.explain.run import Explanation, explain
    from excite.explain.statistics import ScaleStatistics, collect_scales
    from excite.models.listening import fixed_gates, foreign_gates, listening, outer_gates, without_gates

_HOMES = {
    "Ablation": "ablation",
    "ExplainedImage": "images",
    "Explanation": "run",
    "ScaleStatistics": "statistics",
    "ablate_gates": "ablation",
    "collect_scales": "statistics",
    "explain": "run",
    "explain_image": "images",
    "fixed_gates": "gates",
    "foreign_gates": "gates",
    "listening": "gates",
    "outer_gates": "gates",
    "time_without_gates": "ablation",
    "without_gates": "gates",
}

__all__ = [
    "Ablation",
    "ExplainedImage",
    "Explanation",
    "ScaleStatistics",
    "ablate_gates",
    "collect_scales",
    "explain",
    "explain_image",
    "fixed_gates",
    "foreign_gates",
    "listening",
    "outer_gates",
    "time_without_gates",
    "without_gates",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
