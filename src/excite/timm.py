"""excite's models in timm: ``import excite.timm``, then ``timm.create_model("geresnet50_theta_plus.excite")``.

Every model of excite is registered under its own name with the tag ``excite``. A name that timm also has
(``seresnet50``) stays timm's unless the tag is given. ``timm.list_models("*.excite", include_tags=True)`` lists them.
They take timm's arguments ``num_classes``, ``in_chans``, ``drop_rate``, ``drop_path_rate``, ``global_pool``,
``features_only``, ``checkpoint_path``, ``img_size``, ``device``, ``dtype``, ``act_layer``, ``output_stride``,
``zero_init_last``, other arguments of timm's ResNet as far as the network supports them (:func:`as_ours`), and options
of ``excite.create_model``. Weights have excite's parameter names. Defaults are excite's: residual branches do not start
at zero unless ``zero_init_last=True``. TorchScript (``torch.jit.script``, timm's ``--torchscript``) is not supported.
"""

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError, nearest
from excite.models import EfficientNetLite as _EfficientNetLite
from excite.models import FastNet as _FastNet
from excite.models import ResNet as _ResNet
from excite.models import TFSEResNet as _TFSEResNet
from excite.models import create_model as _create_model
from excite.models.activation import ACTIVATIONS
from excite.models.base import Classifier
from excite.models.catalog import VARIANTS, ModelArgs, Variant
from excite.models.factory import model_options
from excite.models.timm_models import import_timm
from excite.ops import spatial_mean
from excite.ops.boundaries import is_heard

_timm = import_timm()  # before timm's submodules, which need torchvision or a stand-in for it

from timm.layers import SelectAdaptivePool2d  # noqa: E402
from timm.models import (  # noqa: E402
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    model_entrypoint,
    register_model,
)


class _Images(TypedDict, total=False):
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float


class _Config(_Images):
    """timm's configuration of a model and its images."""

    input_size: tuple[int, int, int]
    pool_size: tuple[int, ...]
    fixed_input_size: bool
    num_classes: int
    first_conv: str
    classifier: str
    license: str
    origin_url: str


TAG = "excite"
POOLS = ("avg", "max", "avgmax", "catavgmax", "")
_CIFAR: _Images = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616), "crop_pct": 1.0}
_ORIGIN = "https://arxiv.org/abs/1709.01507"


class _AsTimm(Classifier):
    """The methods that timm's scripts expect of a model. Letters: N images, C channels, K classes."""

    global_pool: nn.Module
    head_hidden_size: int

    def adopt(self, global_pool: str) -> None:
        """Finish a model that was built by excite and then given this class."""
        self._set_pool(global_pool)
        if self.head_hidden_size != self.num_features or not global_pool:
            self.reset_classifier(self.num_classes)

    def _set_pool(self, kind: str) -> None:
        if kind not in POOLS:
            raise ExciteError(
                f"global_pool must be one of {', '.join(map(repr, POOLS))}, not {kind!r}{nearest(kind, POOLS)}"
            )
        pool = SelectAdaptivePool2d(pool_type=kind, flatten=bool(kind))
        self.global_pool, self.head_hidden_size = pool, self.num_features * pool.feat_mult()

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:  # type: ignore[override]
        """The final linear layer, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the final linear layer, and optionally the pooling.

        Args:
            num_classes: classes of the new layer; 0: no layer.
            global_pool: one of :data:`POOLS`; "": no pooling, so that the output is a map; None: leave it.

        Raises:
            ExciteError: ``global_pool`` is unknown, or "" with ``num_classes`` above 0.
        """
        if global_pool is not None:
            self._set_pool(global_pool)
        if num_classes and not self.global_pool.pool_type:
            raise ExciteError("without pooling (global_pool='') there is no classifier: also give num_classes=0")
        like = next(self.parameters())
        super().reset_classifier(num_classes)
        if num_classes and self.head_hidden_size != self.num_features:
            self.fc = nn.Linear(self.head_hidden_size, num_classes, bias=self.fc_bias).to(like.device, like.dtype)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (N, C, H, W) -> logits (N, K), or with ``pre_logits`` the input of the linear layer."""
        # timm's average pooling and ours compute the same; ours is faster.
        plain = self.global_pool.pool_type == "avg" and not any(is_heard(m) for m in self.global_pool.modules())
        x = spatial_mean(x) if plain else self.global_pool(x)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last map and the intermediate maps (N, C, H, W) of ``feature_info``.

        Args:
            x: images (N, in_chans, H, W).
            indices: None: all maps; an int: the last n; a sequence: these numbers, negative ones from the end.
            norm: no effect: the last map has always passed the final norm, if there is one.
            stop_early: do not run the stages after the last map asked for; the last map returned is then that one.
            output_fmt: only "NCHW".
            intermediates_only: return only the intermediate maps; later stages do not run.

        Raises:
            ExciteError: another format, or a number that does not exist.
        """
        if output_fmt != "NCHW":
            raise ExciteError(f"maps are only returned as NCHW, not {output_fmt!r}")
        stages = self.stages()
        wanted = _wanted(indices, 1 + len(stages))
        x = self.stem_map(x)
        maps = [x]
        x = self.before_stages(x)
        for number, stage in enumerate(stages, 1):
            if (stop_early or intermediates_only) and number > max(wanted):
                break
            x = self.run_stage(stage, x)
            if number == len(stages):
                x = self.after_stages(x)
            maps.append(x)
        taken = [maps[i] for i in wanted]
        return taken if intermediates_only else (x, taken)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove stages that the maps do not need; return the maps' numbers. A final norm stays with the last stage."""
        count = len(self.stages())
        wanted = _wanted(indices, 1 + count)
        for number in range(max(wanted) + 1, count + 1):
            setattr(self, f"layer{number}", nn.Sequential())
        if max(wanted) < count and "norm" in self._modules:
            self._modules["norm"] = None
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> logits (N, K)."""
        return self.forward_head(self.forward_features(x))

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str | list[tuple[str, tuple[int] | None]]]:
        """Parameter-name patterns for layer-wise learning-rate decay: by stage if ``coarse``, else by block."""
        blocks = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": r"^(?:conv1|bn1|stem)", "blocks": [(blocks, None), (r"^norm", (99_999,))]}


def _wanted(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Map numbers: all, the last ``indices``, or those given; negative ones count from the end."""
    if indices is None:
        return list(range(count))
    given = range(-indices, 0) if isinstance(indices, int) else indices
    if not given or any(not -count <= i < count for i in given):
        raise ExciteError(f"there are {count} maps, so indices={indices!r} cannot be selected")
    return [i % count for i in given]


class ResNet(_AsTimm, _ResNet):
    """``excite.models.ResNet`` with timm's model interface."""


class TFSEResNet(_AsTimm, _TFSEResNet):
    """``excite.models.TFSEResNet`` with timm's model interface."""


class EfficientNetLite(_AsTimm, _EfficientNetLite):
    """``excite.models.EfficientNetLite`` with timm's model interface."""


class FastNet(_AsTimm, _FastNet):
    """``excite.models.FastNet`` with timm's model interface."""


#: Network of ours -> the same with timm's interface.
_CLASSES: dict[type[Classifier], type[_AsTimm]] = {
    _ResNet: ResNet,
    _TFSEResNet: TFSEResNet,
    _EfficientNetLite: EfficientNetLite,
    _FastNet: FastNet,
}


def _build(
    name: str,
    *,
    global_pool: str | None = None,
    img_size: int | Sequence[int] | None = None,
    drop_rate: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> _AsTimm:
    """An excite model with timm's interface; it is the same object, so that parameter names stay."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ExciteError(f"dtype must be a floating-point type of torch, such as torch.bfloat16, not {dtype!r}")
    options = as_ours(name, options)
    with nullcontext() if device is None else torch.device(device):
        built: Any = _create_model(name, image_size=img_size, drop_rate=drop_rate, **options)
        built.__class__ = _CLASSES[type(built)]
        if dtype is not None:
            built.to(dtype=dtype)
        built.adopt(("max" if isinstance(built, _FastNet) else "avg") if global_pool is None else global_pool)
    return built


#: Arguments of timm's ResNet that have another name in excite.
_RENAMED = {"zero_init_last": "zero_init_last_gamma", "down_kernel_size": "down_kernel"}
#: Arguments that may only have these values, which mean "without", as in our networks.
_WITHOUT: dict[str, tuple[Any, ...]] = {
    "aa_layer": (None, ""),
    "avg_down": (False,),
    "block_args": (None, {}),
    "drop_block_rate": (None, 0, 0.0),
    "norm_layer": (None, nn.BatchNorm2d, "batchnorm", "batchnorm2d"),
    "output_stride": (),
    "replace_stem_pool": (False,),
    "zero_init_last": (False,),
    "act_layer": (None, nn.ReLU, "relu"),
}
#: Arguments that the name of our network determines.
_SETTLED = ("block", "layers", "channels", "cardinality", "base_width", "stem_width", "stem_type", "block_reduce_first")


def as_ours(name: str, given: ModelArgs) -> ModelArgs:
    """Translate arguments of timm's ResNet to options of ``excite.create_model``, which rejects unknown ones.

    Args:
        name: the excite model.
        given: the arguments.

    Raises:
        ExciteError: timm's ResNet has the argument, but this network does not support it.
    """
    options = dict(given)
    allowed = model_options(name)
    for argument, value in given.items():
        ours = _RENAMED.get(argument, argument)
        if argument in _SETTLED:
            raise ExciteError(
                f"{name} takes no {argument}: the model name determines it; `excite models` lists the names"
            )
        if argument not in _RENAMED and argument not in _WITHOUT:
            continue
        del options[argument]
        if ours in allowed:
            options[ours] = _activation_name(value) if argument == "act_layer" else value
        elif not any(value is w or (type(value) is type(w) and value == w) for w in _WITHOUT.get(argument, ())):
            raise ExciteError(f"{name} does not support {argument}={_said(value)}: leave {argument} out")
    return options


def _activation_name(act: Any) -> Any:
    """The excite name of an activation, given by timm's or excite's name or as a PyTorch class."""
    if act is None:
        return "relu"
    if isinstance(act, str):
        return {"swish": "silu", "hardswish": "hard_swish"}.get(act, act)
    known = next((name for name, kind in ACTIVATIONS.items() if kind is act), None)
    if known is None:
        raise ExciteError(f"act_layer={_said(act)} is not supported: give one of {', '.join(ACTIVATIONS)}")
    return known


def _said(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def _is_ours(pretrained_cfg: Any) -> bool:
    tag = pretrained_cfg.get("tag") if isinstance(pretrained_cfg, dict) else getattr(pretrained_cfg, "tag", None)
    return TAG in (pretrained_cfg, tag)


def _entrypoint(name: str, others: Callable[..., nn.Module] | None) -> Callable[..., nn.Module]:
    """The function that timm calls for ``name``; ``others`` is timm's own, for all other tags."""

    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        if others is not None and not _is_ours(arguments.get("pretrained_cfg")):
            return others(pretrained=pretrained, **arguments)
        maps = {"feature_cls": "getter", "out_indices": tuple(range(1 + _stages(name)))}
        build = functools.partial(_build, name)
        return build_model_with_cfg(build, name, pretrained, feature_cfg=maps, **arguments)

    create.__name__ = create.__qualname__ = name
    create.__module__ = __name__ if others is None else others.__module__
    create.__doc__ = f"excite's {name}" if others is None else others.__doc__
    return create


def _stages(name: str) -> int:
    return len(VARIANTS[name]["arch"].get("layers", "123"))  # the TensorFlow network always has three


def _stride(variant: Variant) -> int:
    """Pixels of an image for one of the last map, along a side."""
    if variant["family"] == "fastnet":
        return 10  # of 32 pixels: 31, 15, 7, 3
    return 4 if variant["arch"].get("stem", "") == "cifar" or variant["family"] == "tf_seresnet" else 32


def _config(name: str) -> _Config:
    variant = VARIANTS[name]
    size, gate = variant["defaults"].get("image_size", 224), variant["gate"] or {}
    # A global gather with a kernel of the map's size (Gather-Excite theta with global extent).
    bound = gate.get("name") == "ge" and gate.get("variant") != "theta_minus" and "extent" not in gate
    tensorflow = variant["family"] == "tf_seresnet"
    images: _Images = _CIFAR if size == 32 else {}
    stem = {"conv3x3x3": "conv1.0"}.get(variant["arch"].get("stem", ""), "conv1")
    return {
        "input_size": (3, size, size),
        "pool_size": (size // _stride(variant),) * 2,
        "fixed_input_size": bound,
        "num_classes": variant["defaults"].get("num_classes", 1000),
        "first_conv": "stem.conv" if tensorflow else stem,
        "classifier": "fc",
        "license": "apache-2.0",
        "origin_url": _ORIGIN,
        **images,
    }


def _register(name: str) -> None:
    own = generate_default_cfgs({f"{name}.{TAG}": _config(name)})[name]
    if not is_model(name):
        default_cfgs[name] = own
        register_model(_entrypoint(name, None))
        return
    others = model_entrypoint(name)
    theirs = getattr(sys.modules[others.__module__], "default_cfgs", {}).get(name)
    if theirs is None or TAG in theirs.cfgs:  # without a table of tags, ours cannot be added
        return
    theirs.tags.append(TAG)
    theirs.cfgs[TAG] = own.cfgs[TAG]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Overwriting .* in registry")  # the same function, with one more tag
        register_model(_entrypoint(name, others))


#: timm reads the configurations of this module's models from here.
default_cfgs: dict[str, Any] = {}

for _name in VARIANTS:
    _register(_name)
