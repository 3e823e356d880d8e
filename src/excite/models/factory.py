"""From a name and options to a model."""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from excite.errors import ExciteError, first_line, nearest, shown, shown_text
from excite.gates import Gate, GateSpec, gate_options, gate_table
from excite.gates.registry import GateTable, model_option_names
from excite.models.base import Classifier
from excite.models.catalog import ModelArgs, Variant, get_variant
from excite.models.efficientnet_lite import EfficientNetLite
from excite.models.grafting.core import Init, graft
from excite.models.resnet import ResNet
from excite.models.tf_seresnet import TFSEResNet
from excite.models.timm_models import PREFIX, create_timm_model
from excite.options import check_types

_Builder = type[ResNet] | type[TFSEResNet] | type[EfficientNetLite]
_BUILDERS: dict[str, _Builder] = {
    "resnet": ResNet,
    "cifar_resnet": ResNet,
    "preresnet": ResNet,
    "tf_seresnet": TFSEResNet,
    "efficientnet_lite": EfficientNetLite,
}
_NORMS = ("bn_eps", "bn_momentum")
_BODY_OPTIONS: dict[str, tuple[str, ...]] = {
    "resnet": (
        "stem",
        "max_pool",
        "conv_padding",
        "block_conv",
        "down_kernel",
        "gate_position",
        "init",
        "zero_init_last_gamma",
        "act_layer",
        "output_stride",
        *_NORMS,
    ),
    "cifar_resnet": ("act_layer", "block_conv", "gate_position", "init", "shortcut", "zero_init_last_gamma", *_NORMS),
    "preresnet": ("act_layer", "gate_position", "init", *_NORMS),
    "tf_seresnet": ("depth", *_NORMS),
    "efficientnet_lite": ("act_layer", "conv_padding", "gate_position", *_NORMS),
}


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    drop_rate: float | None = None,
    drop_path_rate: float = 0.0,
    image_size: int | Sequence[int] | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    gate: GateSpec | None = None,
    gate_at: Sequence[str] | None = None,
    fused: str = "auto",
    **options: Any,
) -> Classifier:
    """Build a model with fresh weights.

    - ``num_classes``: default 1000, or 10 for the CIFAR family; 0 gives ``num_features`` features per image.
    - ``drop_rate``: dropout before the classifier (default 0, senet154 0.2); ``drop_path_rate``: stochastic depth.
    - ``image_size``: a number or (height, width); default 224, or 32 for the CIFAR family.
    - ``features_only``: the model returns a list of maps instead of logits; ``out_indices`` picks them (0 is the stem).
    - ``gate``: another gate than the name implies: "se", "ge" or ``{"name": "ge", "variant": "theta", "extent": 4}``;
      "none" for no gate at all. Every gate has the option ``identity``: it then starts as a factor of exactly 1.
    - ``gate_at``: only the blocks of these names or shell patterns have the gate (``["layer3", "layer4.*"]``).
    - ``fused``: how norms, gates, additions and ReLUs run: "auto", "on" or "off"; see ``Classifier.set_fused``.
    - ``options``: those of the body (:func:`model_options` lists them, :class:`excite.models.resnet.ResNet` explains
      them) and of the gate: for SE ``reduction``, ``rd_divisor``, ``gate_bias``; for GE ``extent`` and ``variant``,
      and for its theta_plus the three of SE.

    ``timm:NAME`` gives timm's model of that name, with options as timm has them; it is no ``Classifier``, see
    :mod:`excite.models.timm_models`. With ``gate`` (a name or table) it is grafted: ``gate_at`` are places as
    ``excite.graft`` takes them in ``at``; without it the gates go to the ends of the residual branches.

    The model remembers how to build it again: ``create_model(model.model_name, **model.model_args)``.
    """
    given: ModelArgs = {
        "num_classes": num_classes,
        "in_chans": in_chans,
        "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate,
        "image_size": image_size,
    }
    if name.startswith(PREFIX):
        _refuse_for_timm(name, gate, gate_at, fused, features_only)
        options |= {"features_only": features_only, "out_indices": out_indices}
        timms = create_timm_model(name.removeprefix(PREFIX), **given, **options)
        return cast(Classifier, timms if gate in (None, "none") else _grafted(timms, gate, gate_at))
    variant = get_variant(name)
    common: ModelArgs = {**variant["defaults"], **{key: value for key, value in given.items() if value is not None}}
    if variant["family"] == "tf_seresnet" and common.pop("drop_path_rate"):
        raise ExciteError(f"{name} is the TensorFlow reference as it is: it has no stochastic depth")
    lists = {"gate_at": gate_at, "out_indices": out_indices}
    check_types(create_model, {key: value for key, value in lists.items() if value is not None}, name)
    spec, body = _split_options(name, variant, gate, options)
    model = _built(name, builder(variant), {**variant["arch"], **body, **common}, spec)
    model.model_name, model.gate_spec = name, spec
    if gate_at is not None:
        if spec is None:
            raise ExciteError(f"gate_at says where gates are, but {name} has none; give gate=")
        model.keep_gates(gate_at)
    for module in model.modules():
        if isinstance(module, Gate) and module.identity:
            module.start_as_identity()  # once more: the body's initialisation may have gone over it
    model.set_fused(fused)
    model.model_args = _model_args(variant, common, features_only, out_indices, gate, options)
    if gate_at is not None:
        model.model_args["gate_at"] = list(gate_at)
    model.model_args["num_classes"] = model.num_classes
    if features_only:
        model.select_features(out_indices)
    elif out_indices is not None:
        raise ExciteError("out_indices picks maps, so it needs features_only=True")
    return model


def _built(name: str, builder: _Builder, arguments: ModelArgs, gate: GateTable | None) -> Classifier:
    """The network; what its constructor cannot make of the arguments is a mistake in them, told in one sentence."""
    check_types(builder.__init__, arguments, name)
    if arguments.get("in_chans", 1) < 1:
        raise ExciteError(f"{name}: in_chans is {shown(arguments['in_chans'])}, but an image has channels")
    try:
        return builder(**arguments, gate=gate)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise ExciteError(f"{name} cannot be made with these options: {shown_text(first_line(error))}") from error


def _refuse_for_timm(
    name: str, gate: GateSpec | None, gate_at: Sequence[str] | None, fused: str, features_only: bool
) -> None:
    if fused == "on":
        raise ExciteError(f"{name} is timm's own module, for which fused='on' means nothing: leave it 'auto'")
    if gate_at is not None and gate in (None, "none"):
        raise ExciteError(f"gate_at says where gates are, but {name} is given none; give gate=")
    if features_only and gate not in (None, "none"):
        raise ExciteError(f"{name} with features_only gives maps and no logits: put gates into it by excite.graft")


def _grafted(model: nn.Module, gate: GateSpec, gate_at: Sequence[str] | None) -> nn.Module:
    """One of timm's models with gates in it; they are found as ``excite.graft`` finds them, at the size it is for."""

    table = gate_table(gate)
    init: Init = "identity" if table.pop("identity", False) else "paper"
    example = torch.zeros(1, *model.input_size)  # type: ignore[misc]
    at = "auto" if gate_at is None else list(gate_at)
    return graft(model, table, at=at, init=init, inplace=True, example=example)


def builder(variant: Variant) -> _Builder:
    """The class that builds a variant of the catalog."""
    return _BUILDERS[variant["family"]]


def model_options(name: str, gate: GateSpec | None = None) -> list[str]:
    """The options of ``create_model`` beyond its named arguments, for one model (and, if given, another gate)."""
    variant = get_variant(name)
    body = list(_BODY_OPTIONS[variant["family"]])
    if variant["arch"].get("block") == "bottleneck":
        body.append("stride_on")
    table = _gate_table(variant, gate)
    if table is None:
        return sorted(option for option in body if option != "gate_position")
    return sorted(body) + sorted(model_option_names(table["name"]))


def _gate_table(variant: Variant, gate: GateSpec | None) -> GateTable | None:
    """The gate as a table with a name, or None for an ungated net."""
    if gate == "none":
        return None
    spec = variant["gate"] if gate is None else gate
    if spec is None:
        return None
    table = gate_table(spec)
    gate_options(table["name"])  # raises where there is no such gate
    return table


def _split_options(
    name: str, variant: Variant, gate: GateSpec | None, options: ModelArgs
) -> tuple[GateTable | None, ModelArgs]:
    """``options`` -> (the gate's table, the body's arguments)."""
    allowed = model_options(name, gate)
    table = _gate_table(variant, gate)
    of_gate = model_option_names(table["name"]) if table is not None else {}
    body = {}
    for option, value in options.items():
        if option == "pretrained":
            raise ExciteError("there are no pretrained weights to fetch; load a checkpoint's state dict into the model")
        if option not in allowed:
            named = [p for p in inspect.signature(create_model).parameters if p not in ("name", "options")]
            close = nearest(option, allowed + named)
            raise ExciteError(f"{name} has no option {option!r}{close} (allowed: {', '.join(named + allowed)})")
        if option in of_gate and table is not None:
            table[of_gate[option]] = value
        else:
            body[option] = value
    return table, body


def _model_args(
    variant: Variant,
    common: ModelArgs,
    features_only: bool,
    out_indices: Sequence[int] | None,
    gate: GateSpec | None,
    options: ModelArgs,
) -> ModelArgs:
    """JSON-able, and complete: a default that changes later does not change a stored model."""
    args = {**common, **options}
    size = args.setdefault("image_size", 224)
    args["image_size"] = size if isinstance(size, int) else list(size)
    if gate is not None:
        args["gate"] = gate if isinstance(gate, str) else dict(gate)
    if features_only:
        args |= {"features_only": True, "out_indices": None if out_indices is None else list(out_indices)}
    return args
