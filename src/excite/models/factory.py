"""Creates models from a name and options."""

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
from excite.models.fastnet import FastNet
from excite.models.grafting.core import Init, graft
from excite.models.resnet import ResNet
from excite.models.tf_seresnet import TFSEResNet
from excite.models.timm_models import PREFIX, create_timm_model
from excite.options import check_types

_Builder = type[ResNet] | type[TFSEResNet] | type[EfficientNetLite] | type[FastNet]
_BUILDERS: dict[str, _Builder] = {
    "resnet": ResNet,
    "cifar_resnet": ResNet,
    "preresnet": ResNet,
    "tf_seresnet": TFSEResNet,
    "efficientnet_lite": EfficientNetLite,
    "fastnet": FastNet,
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
    "fastnet": ("act_layer", "gate_position", "width", *_NORMS),
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
    """Create a model with fresh weights.

    ``timm:NAME`` creates timm's model of that name, with timm's options; it is not a ``Classifier``, see
    :mod:`excite.models.timm_models`. With ``gate`` (a name or table), gates are grafted onto it: ``gate_at`` then names
    places as ``at`` of ``excite.graft`` does; without it, the gates go to the ends of the residual branches.

    The model stores how to create it again: ``create_model(model.model_name, **model.model_args)``.

    Args:
        name: a name from :func:`list_models`, or ``timm:NAME``.
        num_classes: 1000 by default, or 10 for the CIFAR family; 0 gives ``num_features`` features per image.
        in_chans: channels of the images.
        drop_rate: dropout before the classifier; 0 by default, or 0.2 for senet154.
        drop_path_rate: stochastic depth.
        image_size: a number of pixels or (height, width); 224 by default, or 32 for the CIFAR family.
        features_only: the model returns a list of maps instead of logits.
        out_indices: the maps to return with ``features_only`` (0 is the stem's).
        gate: a gate other than the name implies: "se", "ge" or ``{"name": "ge", "variant": "theta", "extent": 4}``;
            "none" for no gate. With ``identity: True``, an option of every gate, it starts as a factor of exactly 1.
        gate_at: only the blocks that match these names or shell patterns have the gate (``["layer3", "layer4.*"]``), or
            those of a place in the order: ``["last2"]``, ``["first"]``, ``["every2"]``.
        fused: how norms, gates, additions and ReLUs run: "auto", "on", "plain" or "off"; see ``Classifier.set_fused``.
        options: options of the body (:func:`model_options` lists them, :class:`excite.models.resnet.ResNet` explains
            them) and of the gate: for SE ``reduction``, ``rd_divisor`` and ``gate_bias``; for GE ``extent`` and
            ``variant``, and with theta_plus those of SE.

    Raises:
        ExciteError: the model, a gate or an option is unknown, or has a wrong value.
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
        raise ExciteError(f"{name} reproduces the TensorFlow reference, which has no stochastic depth; leave it out")
    lists = {"gate_at": gate_at, "out_indices": out_indices}
    check_types(create_model, {key: value for key, value in lists.items() if value is not None}, name)
    spec, body = _split_options(name, variant, gate, options)
    model = _built(name, builder(variant), {**variant["arch"], **body, **common}, spec)
    model.model_name, model.gate_spec = name, spec
    if gate_at is not None:
        if spec is None:
            raise ExciteError(f"gate_at is given, but {name} has no gates; give gate=, too")
        model.keep_gates(gate_at)
    for module in model.modules():
        if isinstance(module, Gate) and module.identity:
            module.start_as_identity()  # once more: the body's initialisation may have overwritten it
    model.set_fused(fused)
    model.model_args = _model_args(variant, common, features_only, out_indices, gate, options)
    if gate_at is not None:
        model.model_args["gate_at"] = list(gate_at)
    model.model_args["num_classes"] = model.num_classes
    if features_only:
        model.select_features(out_indices)
    elif out_indices is not None:
        raise ExciteError("out_indices selects maps, so it needs features_only=True")
    return model


def _built(name: str, builder: _Builder, arguments: ModelArgs, gate: GateTable | None) -> Classifier:
    """Build the network. Any error in its constructor is a mistake in the arguments, reported in one sentence."""
    check_types(builder.__init__, arguments, name)
    if arguments.get("in_chans", 1) < 1:
        raise ExciteError(f"{name}: in_chans must be at least 1, not {shown(arguments['in_chans'])}")
    try:
        return builder(**arguments, gate=gate)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise ExciteError(f"{name} cannot be created with these options: {shown_text(first_line(error))}") from error


def _refuse_for_timm(
    name: str, gate: GateSpec | None, gate_at: Sequence[str] | None, fused: str, features_only: bool
) -> None:
    if fused == "on":
        raise ExciteError(f"{name} is timm's own module, which fused='on' does not apply to; use fused='auto'")
    if gate_at is not None and gate in (None, "none"):
        raise ExciteError(f"gate_at is given for {name}, but no gate; give gate=, too")
    if features_only and gate not in (None, "none"):
        raise ExciteError(f"{name} with features_only takes no gate=: add gates with excite.graft afterwards")


def _grafted(model: nn.Module, gate: GateSpec, gate_at: Sequence[str] | None) -> nn.Module:
    """A timm model with gates at the places that ``excite.graft`` finds, for the model's image size."""

    table = gate_table(gate)
    init: Init = "identity" if table.pop("identity", False) else "paper"
    example = torch.zeros(1, *model.input_size)  # type: ignore[misc]
    at = "auto" if gate_at is None else list(gate_at)
    return graft(model, table, at=at, init=init, inplace=True, example=example)


def builder(variant: Variant) -> _Builder:
    """The class that builds a variant of the catalog."""
    return _BUILDERS[variant["family"]]


def model_options(name: str, gate: GateSpec | None = None) -> list[str]:
    """Names of a model's further options in ``create_model`` (with another gate, if given)."""
    variant = get_variant(name)
    body = list(_BODY_OPTIONS[variant["family"]])
    if variant["arch"].get("block") == "bottleneck":
        body.append("stride_on")
    table = _gate_table(variant, gate)
    if table is None:
        return sorted(option for option in body if option != "gate_position")
    return sorted(body) + sorted(model_option_names(table["name"]))


def _gate_table(variant: Variant, gate: GateSpec | None) -> GateTable | None:
    """The gate as a table with a name, or None for an ungated network."""
    if gate == "none":
        return None
    spec = variant["gate"] if gate is None else gate
    if spec is None:
        return None
    table = gate_table(spec)
    gate_options(table["name"])  # raises if there is no such gate
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
            raise ExciteError("pretrained weights cannot be downloaded here; load a checkpoint's state_dict instead")
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
    """JSON-serialisable and complete, so that a default that changes later does not change a stored model."""
    args = {**common, **options}
    size = args.setdefault("image_size", 224)
    args["image_size"] = size if isinstance(size, int) else list(size)
    if gate is not None:
        args["gate"] = gate if isinstance(gate, str) else dict(gate)
    if features_only:
        args |= {"features_only": True, "out_indices": None if out_indices is None else list(out_indices)}
    return args
