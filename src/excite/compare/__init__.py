"""``excite compare``: compare trained networks image by image."""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.compare.build import Comparison as Comparison
    from excite.compare.build import compare as compare
    from excite.compare.written import compare_and_write as compare_and_write

_HOMES = {
    "Comparison": "excite.compare.build",
    "compare": "excite.compare.build",
    "compare_and_write": "excite.compare.written",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES, call="compare_and_write")
