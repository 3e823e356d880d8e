"""Makes timm importable beside a CPU build of torch, for comparisons only.

timm imports torchvision, whose Python code registers fake kernels for two operators of its compiled library; that
library does not load beside a CPU build of torch. Stand-ins of the same signature will do: nothing here calls them.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

#: Where `make bench-cpu` installs timm and torchvision: out of the environment, in which this torchvision is broken.
FOLDER = Path(__file__).resolve().parents[1] / ".peers"

_library: torch.library.Library | None = None


def import_timm() -> ModuleType:
    """Import timm, with stand-ins for torchvision's operators where torchvision cannot load its own.

    Raises:
        SystemExit: timm or torchvision is not installed (`make bench-cpu` puts both into .peers).
    """
    global _library
    if FOLDER.is_dir():
        sys.path.append(str(FOLDER))
    for name in ("timm", "torchvision"):
        if importlib.util.find_spec(name) is None:
            sys.exit(f"{name} is not installed: run this through `make bench-cpu`")
    if _library is None and not torch.cuda.is_available():
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("timm")
