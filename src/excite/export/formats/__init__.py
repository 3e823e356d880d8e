"""The export formats, one module each. Nothing heavy is imported until one is used.

To add one: a module with an object ``FORMAT`` (see :mod:`excite.export.formats.base`), and a line in :data:`MODULES`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from excite.choices import check_choice
from excite.errors import ExciteError, install_line

if TYPE_CHECKING:
    from excite.export.formats.base import Format

MODULES = {
    "onnx": "excite.export.formats.onnx",
    "openvino": "excite.export.formats.openvino",
    "pt2": "excite.export.formats.pt2",
}


def get(name: str) -> "Format":
    """The format of that name. Raises ExciteError if there is none."""
    check_choice("--format", name, MODULES)
    found: Format = import_module(MODULES[name]).FORMAT
    return found


def check(name: str, int8: bool) -> None:
    """Raise ExciteError for an unknown format, for int8 in a format without it, and for missing packages."""
    chosen = get(name)
    if int8 and chosen.int8 is None:
        able = [other for other in MODULES if get(other).int8 is not None]
        raise ExciteError(f"--int8 is only available in the formats {' and '.join(able)}, not in {name}")
    needs = chosen.needs + ((chosen.int8.quantiser,) if int8 and chosen.int8 is not None else ())
    missing = [package for package in dict.fromkeys(needs) if find_spec(package) is None]
    if missing:
        raise ExciteError(f"the format {name} needs {', '.join(missing)}: {install_line('export')}")
