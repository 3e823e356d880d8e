"""``excite report``: a self-contained page about a trained network."""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.pages.page import Page as Page
    from excite.report.build import Reported as Reported
    from excite.report.build import report as report
    from excite.trained.predictions import Predictions as Predictions

_HOMES = {
    "Page": "excite.pages.page",
    "Predictions": "excite.trained.predictions",
    "Reported": "excite.report.build",
    "report": "excite.report.build",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES, call="report")
