"""``excite export``: a trained network as one file that runs without this package, verified to compute the same.

Loaded lazily, because torch.export, ONNX and the runtimes are slow to load.
"""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.export.build import export as export

_HOMES = {
    "export": "excite.export.build",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES, call="export")
