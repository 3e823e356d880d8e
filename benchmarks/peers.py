"""Finds timm where `make bench-cpu` puts it: out of the environment, in which the torchvision it needs is broken."""

import os
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[1] / ".peers"


def import_timm() -> ModuleType:
    """Import timm, from .peers where that is.

    Raises:
        SystemExit: it is not installed (`make bench-cpu` puts it into .peers).
    """
    from excite.errors import ExciteError
    from excite.models.timm_models import PEERS
    from excite.models.timm_models import import_timm as import_it

    if FOLDER.is_dir():
        os.environ.setdefault(PEERS, str(FOLDER))
    try:
        return import_it()
    except ExciteError as error:
        sys.exit(f"{error}; or run this through `make bench-cpu`")
