"""Models of excite and of other libraries, by name."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from excite.bench.settings import Setting
from excite.models.timm_models import check_timm_name, import_timm
from excite.size import Size, as_size


@dataclass(frozen=True)
class Contender:
    """A model to be timed: (N, in_chans, *image_size) -> (N, num_classes)."""

    model: nn.Module
    in_chans: int
    image_size: Size
    num_classes: int
    version: str


def make_contender(setting: Setting) -> Contender:
    """Build the model of a setting with new weights. Raises ExciteError if there is no model of that name."""
    return _from_timm(setting) if setting.library == "timm" else _from_excite(setting)


def _from_excite(setting: Setting) -> Contender:
    import excite

    size: dict[str, Any] = {} if setting.image_size is None else {"image_size": setting.image_size}
    model = excite.create_model(setting.model, fused=setting.fused, **size)
    return Contender(model, model.in_chans, model.image_size, model.num_classes, excite.__version__)


def _from_timm(setting: Setting) -> Contender:
    timm = import_timm()
    check_timm_name(timm, setting.model)
    arguments: dict[str, Any] = {}
    if setting.image_size is not None:
        arguments["img_size"] = as_size(setting.image_size)
    try:
        model = timm.create_model(setting.model, **arguments)
    except TypeError:  # convolutional networks take images of any size and lack this argument
        model = timm.create_model(setting.model)
    channels, *size = model.default_cfg["input_size"]
    return Contender(model, channels, as_size(setting.image_size or size), model.num_classes, timm.__version__)
