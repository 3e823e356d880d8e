"""What a checkpoint says about its network besides the tensors: the architecture's name, its options, its images.

Training scripts of timm and torchvision store their command line (``args``) with the weights, Lightning stores its
``hyper_parameters``, and the hub has a ``config.json`` beside them.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from excite.data.stored import KnownPreprocessing
from excite.errors import ExciteError
from excite.models.catalog import VARIANTS, ModelArgs
from excite.weights.header import LARGEST
from excite.weights.stored import Metadata, Stored

#: Keys of a training script's dictionary that hold its settings.
_SETTINGS = ("args", "hyper_parameters", "hparams", "config", "opt")
_NAMES = ("arch", "architecture", "model", "model_name", "model_arch")
#: timm's ResNets with smoothing (blur or average pooling) before the strides, which has no tensors.
_ALIASED = re.compile(r"(?<![a-z])(resnet(?:blur|aa)\d+)(?![a-z])")
#: timm's names of average pooling; None means the network's default, which is average pooling.
_MEAN = (None, "", "avg", "fast", "fastavg")
#: Options of other libraries' ResNets that do not affect what a trained network computes, or that its tensors show.
_HARMLESS = (
    *("num_classes", "in_chans", "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last", "pretrained"),
    *("zero_init_residual", "width_per_group", "groups", "cardinality", "base_width", "attn_layer", "bn_eps"),
)
#: Options that matter, and the values that ours support.
_USUAL: dict[str, tuple[Any, ...]] = {
    "output_stride": (32, None),
    "act_layer": ("relu", None),
    "norm_layer": ("batchnorm2d", None),
}
TAG = "excite"


@dataclass(frozen=True)
class Said:
    """What a checkpoint says about itself.

    Attributes:
        name: name of the architecture, as written; "" if there is none.
        where: the key with the name.
        options: options of the network, as its library's ``create_model`` takes them.
        global_pool: timm's name for the pooling before the classifier; None if not given.
        image_size: (height, width) of the images, or None.
        preprocessing: what is given of the preprocessing.
    """

    name: str = ""
    where: str = ""
    options: ModelArgs = field(default_factory=dict)
    global_pool: str | None = None
    image_size: tuple[int, int] | None = None
    preprocessing: KnownPreprocessing = field(default_factory=KnownPreprocessing)

    @property
    def variant(self) -> str | None:
        """Our network with that name ("seresnet50", "seresnet50.excite"), or None."""
        base = self.name.partition(".")[0]
        return base if base in VARIANTS else None

    @property
    def is_ours(self) -> bool:
        """Whether the name has the tag that ``excite.timm`` gives our networks."""
        return self.variant is not None and self.name.partition(".")[2] == TAG


def said_by(stored: Stored) -> Said:
    """What the file says, or the ``config.json`` beside a ``model.safetensors`` from the hub."""
    values = stored.metadata.get("values", {})
    settings: dict[str, object] = {}
    for key in _SETTINGS:
        found = values.get(key)
        settings |= found if isinstance(found, dict) else {}
    beside = config_beside(stored.path)
    about = _table(beside.get("pretrained_cfg")) or beside
    name, where = _name(stored.metadata, values, settings, beside)
    options = {**_table(beside.get("model_args")), **_table(settings.get("model_kwargs"))}
    if isinstance(settings.get("bn_eps"), float):
        options.setdefault("bn_eps", settings["bn_eps"])
    pool = options.pop("global_pool", None) or settings.get("gp") or settings.get("global_pool")
    pool = pool or beside.get("global_pool")
    size = options.pop("img_size", None) or options.pop("image_size", None)
    return Said(
        name=name,
        where=where,
        options=options,
        global_pool=pool if isinstance(pool, str) else None,
        image_size=_size(size) or _size_in(settings) or _size_in(about),
        preprocessing={**_images(about), **_images(settings)},
    )


def _name(
    metadata: Metadata,
    values: Mapping[str, object],
    settings: Mapping[str, object],
    beside: Mapping[str, object],
) -> tuple[str, str]:
    texts: Mapping[str, object] = metadata.get("texts", {})
    places = [("", values), ("args.", settings), ("", texts), ("config.json: ", beside)]
    for where, table in places:
        for key in _NAMES:
            name = table.get(key)
            if isinstance(name, str) and name:
                return name.rpartition("/")[2], f"{where}{key}"
    return "", ""


def config_beside(path: Path) -> dict[str, object]:
    """The ``config.json`` beside the weights, as in the hub's repositories; empty if there is none."""
    from excite.weights.hub import CONFIG, FILES

    config = path.with_name(CONFIG)
    if path.name not in FILES or not config.is_file():
        return {}
    with suppress(OSError, ValueError):
        found = json.loads(config.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _table(value: Any) -> dict[str, object]:
    return dict(value) if isinstance(value, dict) else {}


def _size(value: Any) -> tuple[int, int] | None:
    """A number, (height, width) or (channels, height, width)."""
    two = [value, value] if isinstance(value, int) else list(value)[-2:] if isinstance(value, list | tuple) else []
    if len(two) != 2 or not all(type(n) is int and 0 < n <= LARGEST for n in two):
        return None
    return two[0], two[1]


def _size_in(table: Mapping[str, object]) -> tuple[int, int] | None:
    found = (_size(table.get(key)) for key in ("input_size", "img_size", "image_size", "val_crop_size"))
    return next((size for size in found if size is not None), None)


def _images(table: Mapping[str, Any]) -> KnownPreprocessing:
    """Mean, standard deviation, interpolation and crop, if we support their values."""
    images: KnownPreprocessing = {}
    mean, std = _numbers(table.get("mean")), _numbers(table.get("std"))
    if mean and std and len(mean) == len(std) and min(std) > 0:
        images["mean"], images["std"] = mean, std
    if table.get("interpolation") in ("bilinear", "bicubic"):
        images["interpolation"] = table["interpolation"]
    crop, resize = table.get("val_crop_size"), table.get("val_resize_size")
    share = table.get("crop_pct")
    if type(crop) is int and type(resize) is int and 0 < resize <= LARGEST:
        share = min(crop, 2 * LARGEST) / resize
    if isinstance(share, float | int) and 0 < share <= 1:
        images["crop_pct"] = float(share)
    return images


def _numbers(value: Any) -> tuple[float, ...] | None:
    """Per-channel values; None for anything else, such as invalid numbers or absurd ones."""
    plain = isinstance(value, list | tuple) and value and all(type(v) in (int, float) for v in value)
    return tuple(float(v) for v in value) if plain and all(abs(v) < LARGEST for v in value) else None


def check_named(source: str, said: Said) -> None:
    """Refuse a file that claims to be a different network than its tensors suggest.

    Args:
        source: as the user wrote it; the name of a file or repository often names the network.
        said: what the file says.

    Raises:
        ExciteError: its name or options are those of a network that we do not have.
    """
    for name in (source, said.name):
        match = _ALIASED.search(name)
        if match is not None:
            raise ExciteError(
                f"{source} is named {match[1]}, which has a ResNet's tensors but smooths before its strides, which "
                f"excite's ResNets do not: use timm:{match[1]} as the model's name, or --arch if the name is misleading"
            )
    check_pool(source, said)
    for key, value in said.options.items():
        if key not in _HARMLESS and value not in _USUAL.get(key, ()):
            raise ExciteError(
                f"{source} says that {said.name or 'its network'} was created with {key}={value!r}, which excite does "
                f"not know and which may change what its tensors compute; try timm:{said.name or 'NAME'} as the "
                "model's name, or --arch if it does not matter"
            )


def check_pool(source: str, said: Said) -> None:
    """Raise ExciteError if the pooling before the classifier is not the mean."""
    if said.global_pool not in _MEAN:
        raise ExciteError(
            f"{source} says that {said.name or 'its network'} has global_pool={said.global_pool!r} before its "
            "classifier; excite's networks take the mean and would compute something else; use --arch if it is wrong"
        )
