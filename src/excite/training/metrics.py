"""What evaluation and reports take from torchmetrics: 1.4 s to import, for those who evaluate.

torchmetrics imports torchvision where it is installed, and ends with its error where it does not load.

Raises:
    ExciteError: on import, if that torchvision cannot be made harmless, or Matplotlib's settings are wrong.
"""

from excite.errors import ExciteError
from excite.models.timm_models import mend_torchvision

_torchvision_fails = mend_torchvision()
try:
    from torchmetrics import MeanMetric, MetricCollection, MinMetric
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
    from torchmetrics.functional.classification import (
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )
except ImportError as error:
    if not _torchvision_fails:
        raise
    raise ExciteError(
        "torchmetrics cannot be imported, because torchvision is installed and does not load "
        f"({_torchvision_fails}): mend it, or uninstall it, which excite does not need"
    ) from error
except ValueError as error:  # Matplotlib's, which torchmetrics imports where it is installed
    raise ExciteError(
        f"Matplotlib cannot be imported ({str(error).split(';')[0]}): mend its settings (MPLBACKEND, matplotlibrc)"
    ) from error

__all__ = [
    "MeanMetric",
    "MetricCollection",
    "MinMetric",
    "MulticlassAccuracy",
    "MulticlassConfusionMatrix",
    "multiclass_confusion_matrix",
    "multiclass_f1_score",
    "multiclass_precision",
    "multiclass_recall",
]
