"""Models of ours and of others, by name."""

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from excite.bench.settings import Setting
from excite.errors import ExciteError, nearest

#: A folder that holds timm (and torchvision) for those who do not want them in the environment of excite.
PEERS = "EXCITE_PEERS"

_stand_ins: torch.library.Library | None = None


@dataclass(frozen=True)
class Contender:
    """A model to be timed: (N, in_chans, image_size, image_size) -> (N, num_classes)."""

    model: nn.Module
    in_chans: int
    image_size: int
    num_classes: int
    version: str


def make_contender(setting: Setting) -> Contender:
    """Build the model of a setting, with fresh weights. Raises ExciteError where there is none of that name."""
    return _from_timm(setting) if setting.library == "timm" else _from_excite(setting)


def _from_excite(setting: Setting) -> Contender:
    import excite

    size: dict[str, Any] = {} if setting.image_size is None else {"image_size": setting.image_size}
    model = excite.create_model(setting.model, **size)
    return Contender(model, model.in_chans, model.image_size[0], model.num_classes, excite.__version__)


def _from_timm(setting: Setting) -> Contender:
    timm = import_timm()
    if not timm.is_model(setting.model):
        raise ExciteError(f"timm has no model {setting.model!r}{nearest(setting.model, timm.list_models())}")
    arguments: dict[str, Any] = {}
    if setting.image_size is not None:
        arguments["img_size"] = setting.image_size
    try:
        model = timm.create_model(setting.model, **arguments)
    except TypeError:  # convolutional nets take images of any size and have no such argument
        model = timm.create_model(setting.model)
    channels, size, _ = model.default_cfg["input_size"]
    return Contender(model, channels, setting.image_size or size, model.num_classes, timm.__version__)


def import_timm() -> ModuleType:
    """Import timm, from the environment or the folder that EXCITE_PEERS names.

    timm imports torchvision, whose wheels do not load beside a CPU build of torch: its Python code then fails as it
    registers fake kernels for two operators of its compiled library. Stand-ins of the same signature will do, as
    nothing in a classifier calls them.

    Raises:
        ExciteError: it is not installed, or cannot be imported.
    """
    global _stand_ins
    folder = os.environ.get(PEERS)
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    if importlib.util.find_spec("timm") is None:
        raise ExciteError(f"timm is not installed: pip install timm, or name the folder it is in as {PEERS}")
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        if "torchvision::nms" in str(error) and _stand_ins is None:
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            _stand_ins = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                _stand_ins.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        return importlib.import_module("timm")
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ExciteError(f"timm cannot be imported: {why}") from error
