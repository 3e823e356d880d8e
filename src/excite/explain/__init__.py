"""``excite explain``: what the gates of a trained network do, in statistics, figures and single images.

Figures need Matplotlib, Grad-CAM needs Captum.
"""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.explain.ablation import Ablation as Ablation
    from excite.explain.ablation import ablate_gates as ablate_gates
    from excite.explain.ablation import time_without_gates as time_without_gates
    from excite.explain.images import ExplainedImage as ExplainedImage
    from excite.explain.images import explain_image as explain_image
    from excite.explain.run import Explanation as Explanation
    from excite.explain.run import explain as explain
    from excite.explain.statistics import ScaleStatistics as ScaleStatistics
    from excite.explain.statistics import collect_scales as collect_scales
    from excite.explain.written import explain_and_write as explain_and_write
    from excite.models.listening import fixed_gates as fixed_gates
    from excite.models.listening import foreign_gates as foreign_gates
    from excite.models.listening import listening as listening
    from excite.models.listening import outer_gates as outer_gates
    from excite.models.listening import without_gates as without_gates

_HOMES = {
    "Ablation": "excite.explain.ablation",
    "ExplainedImage": "excite.explain.images",
    "Explanation": "excite.explain.run",
    "ScaleStatistics": "excite.explain.statistics",
    "ablate_gates": "excite.explain.ablation",
    "collect_scales": "excite.explain.statistics",
    "explain": "excite.explain.run",
    "explain_and_write": "excite.explain.written",
    "explain_image": "excite.explain.images",
    "fixed_gates": "excite.models.listening",
    "foreign_gates": "excite.models.listening",
    "listening": "excite.models.listening",
    "outer_gates": "excite.models.listening",
    "time_without_gates": "excite.explain.ablation",
    "without_gates": "excite.models.listening",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES, call="explain_and_write")
