"""Export: a trained network as one file that runs without this package, proven to be the same network.

Names are imported when first used: torch.export, ONNX and the runtimes are slow to load.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.export.command import export as export

FORMATS = ("onnx", "openvino", "pt2")

__all__ = ["FORMATS", "export"]


def __getattr__(name: str) -> Any:
    if name == "export":
        from excite.export.command import export

        return export
    raise AttributeError(f"module 'excite.export' has no attribute {name!r}")
