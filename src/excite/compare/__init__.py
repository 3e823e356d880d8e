"""Several trained networks side by side, image by image: ``excite compare``."""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.compare.build import Comparison as Comparison
    from excite.compare.build import compare as compare

_HOMES = {
    "Comparison": "excite.compare.build",
    "compare": "excite.compare.build",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
