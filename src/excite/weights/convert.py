"""Loads foreign weights into our networks: read, recognise, translate, check that nothing is left over, load."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from excite.data.stored import KnownPreprocessing
from excite.errors import ExciteError
from excite.gates import Gate
from excite.gates.registry import GateTable
from excite.models import Classifier, create_model
from excite.models.blocks import Bottleneck
from excite.models.catalog import VARIANTS, ModelArgs
from excite.models.convolution import set_conv_padding
from excite.size import plain_size
from excite.weights.function import Function, check_kernels, other_gates, other_gates_of_ours, refuse
from excite.weights.header import ConvertedHeader, ConvertedMeta, read_header
from excite.weights.hub import local_weights
from excite.weights.layouts import Anatomy, Choice, Layout, Settings, Source, listed
from excite.weights.layouts.base import BICUBIC, CIFAR
from excite.weights.own import build_network
from excite.weights.prefixes import unwrapped
from excite.weights.read import read_weights
from excite.weights.recognise import dissect, find_layout, model_name, model_options, unsaid
from excite.weights.said import Said, check_named, check_pool, config_beside, said_by
from excite.weights.stem import fit_channels
from excite.weights.stored import Stored

#: Options of a model that change what its tensors compute but not their shapes, and that can be set on it. The position
#: of its gates cannot be changed afterwards.
SETTINGS = ("max_pool", "conv_padding", "stride_on", "bn_eps", "bn_momentum")
COUNTERS = "num_batches_tracked"


@dataclass(frozen=True)
class Foreign:
    """A checkpoint translated to our names, and the model that it belongs to.

    Attributes:
        source: as the user wrote it.
        format: format of the file, such as "MindSpore checkpoint".
        layout: the matching key map; None for a file of ours.
        name, options: ``create_model(name, **options)`` builds the network of the checkpoint.
        tensors: tensors under our names, with our axes, float32.
        origin: our name -> the stored name.
        unknown: stored names that match no row of the key map.
        preprocessing: preprocessing of images, except their size; empty if unknown.
        meta: the header of a file of ours; None for others.
        gate: the gates' table of another system's checkpoint, as far as its tensors show it; None if it has none.
        choice: which of the file's tensors these are, if it has others.
        assumed: settings that neither the layout nor the file gives, with the network's defaults.
        said: what the file says about itself.
        may_hide_gates: whether gates without tensors are possible: nothing names the network, and its tensors have
            names that are hardly used except by us.
        anatomy: what the shapes show; None if the file names the network.
    """

    source: str
    format: str
    layout: Layout | None
    name: str
    options: ModelArgs
    tensors: dict[str, Tensor]
    origin: dict[str, str]
    unknown: list[str]
    preprocessing: KnownPreprocessing
    meta: ConvertedMeta | None = None
    gate: GateTable | None = None
    choice: Choice = field(default_factory=Choice)
    assumed: Settings = field(default_factory=Settings)
    said: Said = field(default_factory=Said)
    may_hide_gates: bool = False
    anatomy: Anatomy | None = None

    def sentence(self) -> str:
        """A sentence on what was recognised."""
        names = "excite's own names" if self.layout is None else self.layout.title
        plain = {k: v for k, v in self.options.items() if k != "num_classes"}
        said = "".join(f", {key}={value}" for key, value in plain.items())
        classes = self.options.get("num_classes")
        head = f", {classes} classes" if classes else ", no classifier"
        what = f"{self.source}: {self.format} with {names}: {self.name}{head}{said}; {len(self.tensors)} tensors"
        return "; ".join(part for part in (what, self.choice.sentence(), *self._doubts()) if part)

    def _doubts(self) -> list[str]:
        """What the file does not say, and where it contradicts its tensors."""
        doubts = []
        if self.assumed:
            values = ", ".join(f"{key}={value}" for key, value in self.assumed.items())
            doubts.append(f"the file does not give these settings, so the defaults of {self.name} are used: {values}")
        if self.may_hide_gates:
            doubts.append("gates without tensors (ge theta_minus) cannot be detected; name such a network with --arch")
        called = self.said.variant
        if called is not None and called != self.name:
            doubts.append(f"its {self.said.where} says {self.said.name}, but its tensors are those of {self.name}")
        return doubts


@dataclass(frozen=True)
class Loaded:
    """The result of loading a checkpoint.

    Attributes:
        foreign: what was recognised.
        fresh: our tensors that the checkpoint has no values for; they were not changed.
        left_over: stored tensors that were not used.
        settings: options of the model that were changed to those of the checkpoint.
        adapted: how the stem was adapted to another number of channels; "" if it was not.
    """

    foreign: Foreign
    fresh: list[str]
    left_over: list[str]
    settings: ModelArgs
    adapted: str = ""

    def sentence(self) -> str:
        """A sentence on what was recognised and what does not fit."""
        return "; ".join(part for part in (self.foreign.sentence(), self.misfits()) if part)

    def misfits(self) -> str:
        """What was set, what is missing and what is left over, with counts; empty if everything fits."""
        parts = [self.adapted] if self.adapted else []
        if self.settings:
            parts.append("the model was set to " + ", ".join(f"{k}={v}" for k, v in self.settings.items()))
        if self.fresh:
            parts.append(f"not in the checkpoint, left unchanged: {listed(self.fresh)}")
        if self.left_over:
            parts.append(f"in the checkpoint, not used: {listed(self.left_over)}")
        return "; ".join(parts)


def load_weights(model: nn.Module, source: str | Path, *, allow_partial: bool = False) -> Loaded:
    """Load a checkpoint of any known system into a network of ours, in place.

    Format and architecture are recognised. Settings of the checkpoint's network that do not change any shapes are set
    on ``model``: pooling, which convolution has the stride, and epsilon and momentum of batch norms.

    Args:
        model: a model from ``create_model``.
        source: a file or folder, ``https://...``, ``hf:owner/name`` or ``timm:name`` (see docs/weights.md).
        allow_partial: load what fits (a new classifier keeps its fresh weights), and list the rest in the result.

    Returns:
        What was recognised and loaded.

    Raises:
        ExciteError: there is no checkpoint, its format or names are unknown, or tensors are missing or left over.
    """
    if not isinstance(model, Classifier):
        raise ExciteError(f"load_weights takes a model from excite.create_model, not a {type(model).__name__}")
    foreign = read_foreign(source, like=model)
    return load_into(model, foreign, allow_partial=allow_partial)


def start_from(model: Classifier, source: str | Path) -> Loaded:
    """``load_weights`` for training: a classifier of another size keeps its fresh weights; everything else must fit.

    Gates that start as the identity (``create_gate({..., "identity": True})``) also keep their fresh weights if the
    checkpoint has none for them: the network then computes exactly what it did without gates.

    Raises:
        ExciteError: as in ``load_weights``.
    """
    foreign = read_foreign(source, like=model)
    head = [name for name in model.state_dict() if name.startswith("fc.")]
    return load_into(model, foreign, may_be_fresh=[*head, *_fresh_identities(model, foreign)])


def _fresh_identities(model: Classifier, foreign: Foreign) -> list[str]:
    """Tensors of gates that start as the identity and that the checkpoint has no tensors for."""
    found: list[str] = []
    for slot, block in model.gate_slots().items():
        if isinstance(block.gate, Gate) and block.gate.identity:
            names = [f"{slot}.gate.{name}" for name in block.gate.state_dict()]
            found += [] if any(name in foreign.tensors for name in names) else names
    return found


def convert(source: str | Path, *, arch: str | None = None, allow_partial: bool = False) -> tuple[Classifier, Loaded]:
    """Create the network of a checkpoint and load the weights.

    Args:
        source: as in ``load_weights``.
        arch: name of the network, if it should not be recognised.
        allow_partial: as in ``load_weights``.

    Returns:
        The network, and what was recognised and loaded.

    Raises:
        ExciteError: as in ``load_weights``; or there is no such network, or the checkpoint has no classifier.
    """
    foreign = read_foreign(source, arch=arch)
    options = dict(foreign.options)
    if options.get("num_classes") == 0 and not foreign.meta:
        if not allow_partial:
            raise ExciteError(
                f"{source} has no classifier, only the body of {foreign.name}; --allow-partial (allow_partial=True) "
                "gives it a fresh one"
            )
        del options["num_classes"]
    if foreign.meta and not allow_partial:  # it describes itself
        model = cast(Classifier, build_network(source, {"name": foreign.name, "args": options}, foreign.tensors))
    else:
        model = create_model(foreign.name, **options)
    return model, load_into(model, foreign, allow_partial=allow_partial)


def read_foreign(source: str | Path, *, arch: str | None = None, like: Classifier | None = None) -> Foreign:
    """Read and translate a checkpoint.

    Args:
        source: as in ``load_weights``.
        arch: name of our network, if it should not be recognised.
        like: a network whose name is used instead.

    Raises:
        ExciteError: as in ``load_weights``.
    """
    if arch is not None and arch not in VARIANTS:
        create_model(arch)  # raises with the nearest name
    stored = read_weights(local_weights(source))
    own = own_header(stored)
    if own is not None:
        return _ours(str(source), stored, own)
    said = said_by(stored)
    if arch not in (None, said.variant):  # the user knows better
        said = replace(said, name="", options={}, global_pool=None)
    wrapped = unwrapped(stored, None if like is None else like.state_dict())
    named = _named(str(source), stored, wrapped, said)
    if named is not None:
        return named
    if like is not None and _is_plain(wrapped.tensors, like):
        return replace(_plain(str(source), stored, wrapped.tensors, like), choice=wrapped.choice, said=said)
    if arch is None:
        check_named(str(source), said)
    wrapped = replace(wrapped, metadata={**wrapped.metadata, "config": config_beside(stored.path)})
    return _recognised(str(source), stored, wrapped, said, arch or (None if like is None else like.model_name))


def _recognised(source: str, stored: Stored, wrapped: Source, said: Said, name: str | None) -> Foreign:
    """A checkpoint with the names of a known layout; ``name`` is that of the network, if known."""
    layout = find_layout(wrapped, source)
    tensors, origin, unknown = layout.read(wrapped)
    anatomy = dissect(tensors, source)
    if anatomy.gate is None and layout.silent_gate is not None:
        anatomy = replace(anatomy, gate=dict(layout.silent_gate))
    if anatomy.image_size is None and said.image_size is not None:
        anatomy = replace(anatomy, image_size=said.image_size)
    may_hide_gates = name is None and not said.name and anatomy.stem == "cifar" and anatomy.gate is None
    name = name or model_name(anatomy, source)
    extra = layout.options(anatomy, wrapped)
    if "bn_eps" in said.options:
        extra = {**extra, "bn_eps": said.options["bn_eps"]}
    gate = None if anatomy.gate is None else {"identity": extra.get("identity", False), **anatomy.gate}
    return Foreign(
        source=source,
        format=stored.description(),
        layout=layout,
        name=name,
        options=model_options(name, anatomy, extra),
        tensors={n: _as_float(t, origin[n]) for n, t in tensors.items()},
        origin=origin,
        unknown=unknown,
        preprocessing={**_preprocessing(layout, anatomy), **said.preprocessing},
        gate=gate,
        choice=wrapped.choice,
        assumed=unsaid(name, anatomy, extra),
        said=said,
        may_hide_gates=may_hide_gates,
        anatomy=anatomy,
    )


def _named(source: str, stored: Stored, wrapped: Source, said: Said) -> Foreign | None:
    """The network of ours that a file names, as timm's trainer does for ``NAME.excite``; None if it names none.

    Raises:
        ExciteError: its tensors are not that network's, or the network cannot be created with its options.
    """
    tensors, name = wrapped.tensors, said.variant
    if name is None or not (said.is_ours or _only_ours(name, tensors)):
        return None
    check_pool(source, said)
    options = _sizes(tensors) | {k: v for k, v in said.options.items() if k not in ("num_classes", "in_chans")}
    if said.image_size is not None:
        options["image_size"] = plain_size(said.image_size)
    claim = f"{source} says ({said.where}) that it is {said.name}"
    try:
        with torch.device("meta"):
            own = create_model(name, **options).state_dict()
    except (ExciteError, TypeError) as error:
        raise ExciteError(
            f"{claim}, which cannot be created with its options: {error}; use --arch NAME if that is wrong"
        ) from None
    wrong = [n for n in own if n not in tensors and not n.endswith(COUNTERS)] + [n for n in tensors if n not in own]
    wrong += [n for n, t in tensors.items() if n in own and own[n].shape != t.shape]
    if wrong:
        if not said.is_ours:  # somebody else's network of that name
            return None
        raise ExciteError(f"{claim}, but its tensors are not: {listed(wrong)}; use --arch NAME if that is wrong")
    small = VARIANTS[name]["defaults"].get("image_size") == 32
    return Foreign(
        source=source,
        format=stored.description(),
        layout=None,
        name=name,
        options=options,
        tensors={n: _as_float(t, n) for n, t in tensors.items()},
        origin={name: name for name in tensors},
        unknown=[],
        preprocessing={**BICUBIC, **(CIFAR if small else {}), **said.preprocessing},
        choice=wrapped.choice,
        said=said,
    )


def _only_ours(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether only we have a network with that name or with such tensor names."""
    variant = VARIANTS[name]
    families = ("resnet", "efficientnet_lite")
    shared = variant["family"] in families and variant["gate"] in (None, {"name": "se"}) and "sk" not in name
    return not shared or any(".gate." in tensor for tensor in tensors)


def _sizes(tensors: Mapping[str, Tensor]) -> ModelArgs:
    """Numbers of classes and channels of a network of ours, from its tensors."""
    head = tensors.get("fc.weight")
    stem = next((tensors[n] for n in ("conv1.weight", "conv1.0.weight", "stem.conv.weight") if n in tensors), None)
    sizes: ModelArgs = {"num_classes": 0 if head is None or not head.ndim else head.shape[0]}
    return sizes if stem is None or stem.ndim < 2 or stem.shape[1] == 3 else {**sizes, "in_chans": stem.shape[1]}


def _is_plain(tensors: Mapping[str, Tensor], like: Classifier) -> bool:
    """Whether these are from ``like.state_dict()``, with gates, whose names nobody else uses."""
    own = like.state_dict()
    return any(".gate." in name for name in own) and tensors.keys() == own.keys()


def _plain(source: str, stored: Stored, tensors: Mapping[str, Tensor], like: Classifier) -> Foreign:
    """A state dict of a network like ``like``, with any gates; it says nothing else about what it computes."""
    return Foreign(
        source=source,
        format=stored.description(),
        layout=None,
        name=like.model_name,
        options=dict(like.model_args),
        tensors={n: _as_float(t, n) for n, t in tensors.items()},
        origin={name: name for name in tensors},
        unknown=[],
        preprocessing={},
    )


def _preprocessing(layout: Layout, anatomy: Anatomy) -> KnownPreprocessing:
    """The layout's preprocessing; with a stem for 32x32 images, these are not cropped and normalised as CIFAR."""
    return {**layout.preprocessing, **(CIFAR if anatomy.stem == "cifar" and anatomy.in_chans == 3 else {})}


def own_header(stored: Stored) -> ConvertedMeta | None:
    """The header of a weights file of this package, or None for a foreign one."""
    header = stored.metadata.get("texts", {}).get("excite")
    return None if header is None else read_header(header, stored.path, ConvertedHeader)


def _ours(source: str, stored: Stored, meta: ConvertedMeta) -> Foreign:
    given = {k: v for k, v in meta.get("preprocessing", {}).items() if k not in ("image_size", "in_chans")}
    model = meta["model"]
    return Foreign(
        source=source,
        format=stored.format,
        layout=None,
        name=model["name"],
        options=dict(model["args"]),
        tensors=dict(stored.tensors),
        origin={name: name for name in stored.tensors},
        unknown=[],
        preprocessing=cast(KnownPreprocessing, given),
        meta=meta,
    )


def _as_float(tensor: Tensor, name: str) -> Tensor:
    """The tensor as float32; counters stay integers."""
    if name.endswith(COUNTERS) or tensor.dtype == torch.float32:
        return tensor
    if not tensor.is_floating_point():
        raise ExciteError(f"the tensor {name!r} is stored as {tensor.dtype}, which is not a dtype of weights")
    return tensor.float()


def load_into(
    model: Classifier, foreign: Foreign, *, allow_partial: bool = False, may_be_fresh: Sequence[str] = ()
) -> Loaded:
    """Copy translated tensors into a network of ours. If they do not fit, nothing is changed.

    Args:
        model: the network.
        foreign: the checkpoint.
        allow_partial: load what fits.
        may_be_fresh: tensors of ours that need not be in the checkpoint.

    Raises:
        ExciteError: tensors are missing, unexpected or of the wrong shape (with ``allow_partial``: none fits).
    """
    own = model.state_dict()
    tensors, adapted = fit_channels(foreign.tensors, own)
    foreign = replace(foreign, tensors=tensors)
    fits = {n: t for n, t in tensors.items() if n in own and own[n].shape == t.shape}
    different = _different_gates(model, foreign)
    if different and not allow_partial:
        raise refuse(foreign.source, different)
    for name in [n for n in fits if any(n.startswith(f"{slot}.gate.") for slot in different)]:
        del fits[name]  # it computes a different function of these tensors: they would be noise
    _without_halves(fits, foreign.tensors, own)
    fresh = [n for n in own if n not in fits and not n.endswith(COUNTERS)]
    unused = [n for n in foreign.tensors if n not in fits]
    misfits = {*fresh, *unused} - {*may_be_fresh}
    if (misfits or foreign.unknown) and not allow_partial:
        raise ExciteError(misfit(foreign, own, fresh, model.model_name))
    if not any(not n.startswith("fc.") and not n.endswith(COUNTERS) for n in fits):
        raise ExciteError(f"{foreign.source}: none of its tensors fits {model.model_name}")
    _check_values(fits, foreign)
    check_blocks(model, foreign.source, foreign.name, foreign.options, _is_gated(foreign))
    settings = apply_settings(model, foreign.name, foreign.options)
    model.load_state_dict(fits, strict=False)
    left_over = [*(foreign.origin[n] for n in unused), *foreign.unknown]
    return Loaded(foreign, fresh, left_over, settings, adapted)


def _without_halves(fits: dict[str, Tensor], tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Drop all tensors of a module if one does not fit: the bias of another classifier would be noise."""
    broken = {n.rpartition(".")[0] for n in tensors if n in own and n not in fits}
    for name in [n for n in fits if n.rpartition(".")[0] in broken]:
        del fits[name]


def _check_values(fits: Mapping[str, Tensor], foreign: Foreign) -> None:
    for name, tensor in fits.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ExciteError(f"{foreign.source}: the tensor {foreign.origin[name]!r} has non-finite values")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise ExciteError(f"{foreign.source}: the variances {foreign.origin[name]!r} have values below 0")


def _different_gates(model: nn.Module, foreign: Foreign) -> dict[str, tuple[Function, Function]]:
    """Our slots whose gate computes a different function of the checkpoint's tensors."""
    if not isinstance(model, Classifier):  # timm's
        return {}
    if foreign.layout is not None:
        return other_gates(model, foreign.gate)
    same = (foreign.name, foreign.options) == (model.model_name, model.model_args)
    return {} if same else other_gates_of_ours(model, foreign.name, foreign.options)


def check_blocks(model: Classifier, source: str, name: str, options: ModelArgs, gated: bool) -> None:
    """Check what shapes do not show: the gates' position in a block, selective kernels' dilation, the activation.

    Args:
        model: the network to load the weights into.
        source: for the message.
        name, options: the checkpoint's network, as for ``create_model``.
        gated: whether that one has gates, with or without tensors.

    Raises:
        ExciteError: one of them differs.
    """
    wanted = options.get("gate_position", _of_variant(name, "gate_position", "standard"))
    found = setting(model, "gate_position", "standard")
    if wanted != found and model.gate_spec is not None and gated:
        raise ExciteError(f"{source} has its gates at the position {wanted!r}, but this network at {found!r}")
    act, own_act = options.get("act_layer", "relu"), setting(model, "act_layer", "relu")
    if act != own_act:  # activations have no tensors
        raise ExciteError(f"{source} has act_layer {act!r}, but this network has {own_act!r}")
    theirs = options.get("block_conv", _of_variant(name, "block_conv", None))
    check_kernels(setting(model, "block_conv", None), theirs, source)


def _is_gated(foreign: Foreign) -> bool:
    if foreign.layout is None:
        return gated(foreign.name, foreign.options)
    return foreign.gate is not None or any(".gate." in name for name in foreign.tensors)


def gated(name: str, options: ModelArgs) -> bool:
    """Whether ``create_model(name, **options)`` has gates, with or without tensors."""
    known = VARIANTS.get(name)
    return options.get("gate", None if known is None else known["gate"]) not in (None, "none")


def misfit(foreign: Foreign, own: Mapping[str, Tensor], fresh: list[str], name: str) -> str:
    """A sentence on everything that does not fit the network ``name``, with counts, and which network it is."""
    found = _found(foreign)
    is_other = f"it is {found} (set model.name={found}); " if found not in (None, name) else ""
    missing = [n for n in fresh if n not in foreign.tensors]
    extra = [foreign.origin[n] for n in foreign.tensors if n not in own] + foreign.unknown
    shapes = [
        f"{foreign.origin[n]} {tuple(t.shape)} instead of {tuple(own[n].shape)}"
        for n, t in foreign.tensors.items()
        if n in own and own[n].shape != t.shape
    ]
    parts = [
        f"{what} {listed(names)}"
        for what, names in (("missing", missing), ("unexpected", extra), ("of the wrong shape", shapes))
        if names
    ]
    what = is_other + "; ".join(parts)
    return f"{foreign.source} does not fit {name}: {what} (--allow-partial or allow_partial=True loads what fits)"


def _found(foreign: Foreign) -> str | None:
    """The network of ours that a checkpoint belongs to, if known."""
    if foreign.anatomy is None:
        return foreign.name
    with suppress(ExciteError):
        return model_name(foreign.anatomy, foreign.source)
    return None


def apply_settings(model: Classifier, name: str, options: ModelArgs) -> ModelArgs:
    """Make ``model`` compute what ``create_model(name, **options)`` does; returns option -> new value."""
    changed: ModelArgs = {}
    for key, default in _setting_defaults(model).items():
        wanted = options.get(key, _of_variant(name, key, default))
        # The momentum of running averages does not affect what the network computes, so the model's own is kept.
        if wanted != setting(model, key, default) and (key != "bn_momentum" or key in options):
            changed[key] = wanted
    model.model_args |= changed
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = changed.get("bn_eps", norm.eps)
            norm.momentum = changed.get("bn_momentum", norm.momentum)
    if "max_pool" in changed:
        ceil = changed["max_pool"] == "ceil"
        model.maxpool = nn.MaxPool2d(3, 2, padding=0 if ceil else 1, ceil_mode=ceil)
    if "stride_on" in changed:
        _move_strides(model, changed["stride_on"])
    if {"stride_on", "conv_padding"} & changed.keys():
        set_conv_padding(model, setting(model, "conv_padding", "symmetric"))
    return changed


def setting(model: Classifier, key: str, default: Any) -> Any:
    """The value of a model's option: as given, else by its variant, else ``default``."""
    return model.model_args.get(key, _of_variant(model.model_name, key, default))


def _of_variant(name: str, key: str, default: Any) -> Any:
    known = VARIANTS.get(name)
    return default if known is None else known["arch"].get(key, default)


def _setting_defaults(model: Classifier) -> ModelArgs:
    """The settings that this network has, with ``create_model``'s defaults."""
    parameters = inspect.signature(type(model).__init__).parameters
    defaults = {key: parameters[key].default for key in SETTINGS if key in parameters}
    if getattr(model, "maxpool", None) is None:
        defaults.pop("max_pool", None)
    if not any(isinstance(m, Bottleneck) for m in model.modules()):
        defaults.pop("stride_on", None)
    return defaults


def _move_strides(model: nn.Module, to: str) -> None:
    for block in model.modules():
        if isinstance(block, Bottleneck) and isinstance(block.conv2, nn.Conv2d):
            stride = max(block.conv1.stride, block.conv2.stride)
            block.conv1.stride, block.conv2.stride = (stride, (1, 1)) if to == "conv1" else ((1, 1), stride)
