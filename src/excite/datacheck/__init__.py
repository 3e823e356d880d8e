"""``excite data check``: whether data are any good, and what that does to a measured accuracy."""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
    from excite.datacheck.build import DataCheck as DataCheck
    from excite.datacheck.build import check_data as check_data

_HOMES = {"DataCheck": "excite.datacheck.build", "check_data": "excite.datacheck.build"}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
