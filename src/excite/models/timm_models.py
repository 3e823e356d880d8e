"""timm's models as ``create_model("timm:NAME")``, so that recipes, runs and predictions take them like our own.

They remain timm's own modules with timm's parameter names. They only get the attributes that the rest of the package
needs: ``model_name``, ``model_args``, ``gate_spec`` (None), ``input_size``, ``in_chans``, ``num_classes``.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from excite.data.stored import KnownPreprocessing
from excite.errors import ExciteError, first_line, install_line, nearest
from excite.models.catalog import ModelArgs
from excite.size import as_size, plain_size

PREFIX = "timm:"
#: Environment variable: a folder with timm (and torchvision), for those who do not want them in excite's environment.
PEERS = "EXCITE_PEERS"
#: Modules of timm 1.0 that scale or select channels depending on their input.
GATES = (
    "SEModule",
    "EffectiveSEModule",
    "SqueezeExcite",
    "SqueezeExciteCl",
    "SEWithNorm",
    "BlockESE",
    "EcaModule",
    "CecaModule",
    "GatherExcite",
    "GlobalContext",
    "CbamModule",
    "LightCbamModule",
    "CoordAttn",
    "SimpleCoordAttn",
    "EfficientLocalAttn",
    "StripAttn",
    "SelectiveKernel",
    "SplitAttn",
)

_stand_ins: torch.library.Library | None = None
_torchvision_fails = ""


def mend_torchvision() -> str:
    """Work around a torchvision that does not load. Returns why it does not load, or "".

    timm imports torchvision, and so does torchmetrics if it is installed. Its wheels do not load beside a CPU build of
    torch: its Python code fails when it registers fake kernels for two operators of its compiled library. Stand-ins
    with the same signature suffice, because no classifier calls them. If it fails in another way, it is treated as not
    installed.
    """
    global _stand_ins, _torchvision_fails
    if _torchvision_fails or importlib.util.find_spec("torchvision") is None:
        return _torchvision_fails
    try:
        importlib.import_module("torchvision")
        return ""
    except Exception as error:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        if "torchvision::nms" in str(error) and _stand_ins is None:
            _stand_ins = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                _stand_ins.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            return mend_torchvision()
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # makes Python refuse to import it
        _torchvision_fails = first_line(error)
        return _torchvision_fails


def import_timm() -> ModuleType:
    """Import timm from the environment or from the folder in EXCITE_PEERS.

    Raises:
        ExciteError: timm is not installed, or cannot be imported.
    """
    folder = os.environ.get(PEERS)
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    if importlib.util.find_spec("timm") is None:
        raise ExciteError(f"timm is not installed: {install_line('timm')}, or set {PEERS} to the folder it is in")
    if why := mend_torchvision():
        raise ExciteError(f"timm cannot be imported, because torchvision, which it needs, does not load ({why})")
    try:
        return importlib.import_module("timm")
    except Exception as error:
        raise ExciteError(f"timm cannot be imported: {first_line(error)}") from error


def check_timm_name(timm: ModuleType, name: str) -> None:
    """Raise ExciteError with the nearest name if timm has no model of this name (with or without a tag after a dot)."""
    if not timm.is_model(name):
        raise ExciteError(f"timm has no model {name!r}{nearest(name.partition('.')[0], timm.list_models())}")


def is_timm_model(model: nn.Module) -> bool:
    """Whether this model was created by ``create_timm_model``."""
    return str(getattr(model, "model_name", "")).startswith(PREFIX)


def modules_of_timm(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module, for the modules in ``model`` whose classes are timm's, not PyTorch's or ours."""
    return {name: m for name, m in model.named_modules() if type(m).__module__.startswith("timm.")}


def timms_gates(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module, for the gates that timm itself built into ``model``."""
    return {name: m for name, m in modules_of_timm(model).items() if type(m).__name__ in GATES}


def create_timm_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    drop_rate: float | None = None,
    drop_path_rate: float = 0.0,
    image_size: int | Sequence[int] | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """Create a timm model.

    Args:
        name: timm's name, such as "resnet50" or "resnet50.a1_in1k".
        num_classes, drop_rate, drop_path_rate: None (or 0 for the last) means timm's default.
        in_chans: channels of the images.
        image_size: in pixels; it only matters to models that take images of one size, such as vision transformers.
        features_only: the model returns a list of maps, selected by ``out_indices``.
        out_indices: see ``features_only``.
        pretrained: download timm's weights.
        options: further arguments of timm's ``create_model``.

    Raises:
        ExciteError: timm is missing, has no such model, or cannot create it with these options.
    """
    timm = import_timm()
    check_timm_name(timm, name)
    found = timm.get_pretrained_cfg(name)
    about: dict[str, Any] = {} if found is None else found.to_dict()
    own_size = tuple(about.get("input_size", (3, 224, 224)))[1:]
    size = own_size if image_size is None else as_size(image_size)
    given = {"num_classes": num_classes, "drop_rate": drop_rate, "drop_path_rate": drop_path_rate or None}
    arguments: ModelArgs = {key: value for key, value in given.items() if value is not None}
    arguments |= {"in_chans": in_chans, **options}
    if features_only:
        arguments |= {"features_only": True, **({} if out_indices is None else {"out_indices": tuple(out_indices)})}
    if about.get("fixed_input_size") and size != own_size:
        arguments["img_size"] = size
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # timm checks little itself, so nearly any error can come out
        raise ExciteError(f"timm cannot create {name!r} with these options: {first_line(error)}") from error
    args = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items() if k != "img_size"}
    args["image_size"] = plain_size(size)
    described: Any = model
    described.model_name, described.model_args, described.gate_spec = PREFIX + name, args, None
    described.in_chans, described.input_size, described.image_size = in_chans, (in_chans, *size), size
    return model


def classifier_name(model: nn.Module) -> str:
    """Name of the dense layer in ``model``: "fc" in ours, timm's name for it in theirs ("head.fc", "classifier")."""
    return _named_in_config(model, "classifier", "fc")


def images_of_timm(model: nn.Module) -> KnownPreprocessing:
    """The preprocessing that timm gives for a model's weights; empty if it gives none."""
    about = getattr(model, "pretrained_cfg", None)
    if not isinstance(about, dict) or not about.get("mean") or not about.get("std"):
        return {}
    images: KnownPreprocessing = {}
    if about.get("interpolation"):
        images["interpolation"] = about["interpolation"]
    if about.get("crop_pct"):
        images["crop_pct"] = about["crop_pct"]
    size = tuple(about.get("input_size") or ())[1:]
    if len(size) == 2:
        images["image_size"] = size
    images["mean"], images["std"] = tuple(about["mean"]), tuple(about["std"])
    return images


def first_name(model: nn.Module) -> str:
    """Name of the first convolution in ``model`` ("conv1", "stem.conv", "conv_stem")."""
    return _named_in_config(model, "first_conv", "conv1")


def _named_in_config(model: nn.Module, key: str, default: str) -> str:
    about = getattr(model, "pretrained_cfg", None)
    name = about.get(key) if isinstance(about, dict) else None
    return name if isinstance(name, str) else default


def parameter_depths(model: nn.Module) -> dict[str, int]:
    """Depth of every parameter of a timm model by its ``group_matcher``; the stem has depth 0.

    Raises:
        ExciteError: the model has no ``group_matcher``.
    """
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise ExciteError(
            f"optimizer.layer_decay: timm does not give the order of layers in {model.model_name}; leave it out"
        )
    models = importlib.import_module("timm.models")
    return dict(models.group_parameters(model, matcher(coarse=False), reverse=True))


def check_plain_norms(model: nn.Module) -> None:
    """Refuse batch norms that do more than normalise, because synchronised batch norm would leave that out.

    Raises:
        ExciteError: there is such a norm.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    odd = next((m for m in model.modules() if isinstance(m, _BatchNorm) and type(m) not in kinds), None)
    if odd is not None:
        raise ExciteError(
            f"{model.model_name} has norms of type {type(odd).__name__}, which include an activation and cannot be "
            "synchronised; use train.sync_bn=false"
        )
