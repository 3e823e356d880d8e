"""What evaluation and reports use of torchmetrics. It takes 1.4 s to import, so only they import it.

torchmetrics imports torchvision if it is installed, and fails with it if torchvision does not load.

Raises:
    ExciteError: on import, if torchvision does not load and cannot be bypassed, or Matplotlib's settings are wrong.
"""

from excite.errors import ExciteError
from excite.models.timm_models import mend_torchvision

_torchvision_fails = mend_torchvision()
try:
    from torchmetrics import MetricCollection, MinMetric
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
        f"({_torchvision_fails}): repair it, or uninstall it with `pip uninstall torchvision`; excite does not need it"
    ) from error
except ValueError as error:  # from Matplotlib, which torchmetrics imports if it is installed
    raise ExciteError(
        f"Matplotlib cannot be imported ({str(error).split(';')[0]}): correct its settings (MPLBACKEND, matplotlibrc)"
    ) from error

__all__ = [
    "MetricCollection",
    "MinMetric",
    "MulticlassAccuracy",
    "MulticlassConfusionMatrix",
    "multiclass_confusion_matrix",
    "multiclass_f1_score",
    "multiclass_precision",
    "multiclass_recall",
]
