"""Adds gates to a network that has none, and removes them. Notation: N images, C channels, H x W positions."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, TypeVar, cast, overload

import torch
from torch import nn

from excite.choices import INITS, check_choice
from excite.errors import ExciteError, first_line
from excite.gates import Gate, GateSpec, create_gate
from excite.gates.blend import Blend
from excite.gates.registry import GateTable, model_option_names
from excite.models.base import Classifier
from excite.models.catalog import VARIANTS
from excite.models.grafting.dataflow import Example
from excite.models.grafting.places import Found, Place, find_places, run_once
from excite.models.grafting.wrapper import Grafted
from excite.models.timm_models import is_timm_model
from excite.pages.inline import show_table

Model = TypeVar("Model", bound=nn.Module)
Init = Literal["identity", "paper"]
#: Image sizes in pixels to try if the network does not say what it takes.
_SIDES = (224, 32, 28, 64, 128, 256, 299)


class GraftRow(TypedDict):
    """A place in a plan. ``map`` is its "HxW", ``parameters`` the number of its new gate's (0 if already gated)."""

    place: str
    channels: int
    map: str
    parameters: int
    what: str


class GraftPlanValues(TypedDict):
    """A :class:`GraftPlan` in JSON; ``added`` is the number of parameters of all new gates."""

    gate: GateTable
    sentence: str
    notes: list[str]
    added: int
    places: list[GraftRow]


@dataclass(frozen=True)
class GraftPlan:
    """What :func:`graft` would do, or has done.

    Attributes:
        gate: the gate's table, with ``identity`` if it starts as the identity.
        places: all places, including those that are already gated.
        parameters: name of the place -> number of parameters of its new gate.
        sentence: how the places were found.
        notes: further sentences for the user.
    """

    gate: GateTable
    places: list[Place]
    parameters: dict[str, int]
    sentence: str
    notes: list[str] = field(default_factory=list)

    @property
    def new(self) -> list[Place]:
        """The places that get a gate."""
        return [p for p in self.places if not p.gated]

    @property
    def added(self) -> int:
        """Number of parameters of all new gates."""
        return sum(self.parameters.values())

    def rows(self) -> list[GraftRow]:
        """One row per place."""
        kind = self.gate["name"]
        return [
            {
                "place": p.name,
                "channels": p.channels,
                "map": f"{p.size[0]}x{p.size[1]}",
                "parameters": self.parameters.get(p.name, 0),
                "what": f"already gated: {p.gated}" if p.gated else f"{'in' if p.slot else 'after'} it: {kind}",
            }
            for p in self.places
        ]

    def to_dict(self) -> GraftPlanValues:
        """The plan as JSON-serialisable values."""
        return {
            "gate": self.gate,
            "sentence": self.sentence,
            "notes": self.notes,
            "added": self.added,
            "places": self.rows(),
        }

    def _repr_html_(self) -> str:
        rows = [[str(value) for value in row.values()] for row in self.rows()]
        notes = [f"{self.sentence}; {self.added:,} new parameters", *self.notes]
        return show_table(["place", "channels", "map", "parameters", "what"], rows, notes=notes)

    def __str__(self) -> str:
        rows = [[str(v) for v in row.values()] for row in self.rows()]
        head = ["place", "channels", "map", "parameters", "what"]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
        ]
        return "\n".join([*lines, f"{self.sentence}; {self.added:,} new parameters", *self.notes])


@overload
def graft(
    model: Model,
    gate: GateSpec = ...,
    *,
    at: str | Sequence[str] = ...,
    init: Init = ...,
    dry_run: Literal[False] = ...,
    inplace: bool = ...,
    example: Any = ...,
    **options: Any,
) -> Model: ...


@overload
def graft(
    model: nn.Module,
    gate: GateSpec = ...,
    *,
    at: str | Sequence[str] = ...,
    init: Init = ...,
    dry_run: Literal[True],
    inplace: bool = ...,
    example: Any = ...,
    **options: Any,
) -> GraftPlan: ...


def graft(
    model: nn.Module,
    gate: GateSpec = "se",
    *,
    at: str | Sequence[str] = "auto",
    init: Init = "identity",
    dry_run: bool = False,
    inplace: bool = False,
    example: Any = None,
    **options: Any,
) -> nn.Module | GraftPlan:
    """Add gates to any convolutional network: ours, timm's, torchvision's, Hugging Face's or your own.

    In our own models, the gates go into the blocks' slots, where the fused operator runs them. In others, a module at
    each place is replaced by :class:`excite.grafting.Grafted`, which keeps the names of its parameters in
    ``state_dict``. Places that are already gated are left as they are. Create the optimiser and apply
    ``torch.compile`` and DDP afterwards.

    Args:
        model: any ``nn.Module`` that takes images.
        gate: a gate's name, or a table ``{"name": "se", "reduction": 8}``.
        at: "auto" (the ends of residual branches; see ``find_places``), or module names and shell patterns.
        init: "identity": at first, the network computes exactly what it did before, and the gates learn from the first
            step (``Gate.start_as_identity``, or ``excite.gates.blend.Blend``). "paper": the gate's usual
            initialisation.
        dry_run: change nothing and return the :class:`GraftPlan`, which ``print`` shows as a table.
        inplace: change ``model`` itself rather than a deep copy.
        example: an input: a tensor (N, channels, H, W), or a tuple or dictionary of arguments. None: zeros of the size
            that the model declares, or of one that it turns out to accept.
        options: options of the gate.

    Returns:
        The network with gates, with the training mode, device and dtype of ``model``; with ``dry_run``, the plan.

    Raises:
        ExciteError: the gate or an option is unknown, there is no place for a gate, or the network is already wrapped
            (DDP, torch.compile).
    """
    _refuse_wrapped(model)
    spec = _spec(gate, init, options)
    found_example = example_for(model, example)
    found = find_places(model, at, found_example)
    plan = _plan(found, spec)
    if dry_run:
        return plan
    if not plan.new:
        raise ExciteError(f"every place is already gated ({plan.places[0].name}: {plan.places[0].gated}, ...)")
    grafted = model if inplace else copy.deepcopy(model)
    if isinstance(grafted, Classifier):
        _fill_slots(grafted, plan)
    else:
        _refuse_another_kind(grafted, spec)
        earlier = {id(m) for m in grafted.modules()}
        try:
            for place in plan.new:
                wrap(grafted, place, spec)
            _check_called(grafted, plan, found_example)
        except ExciteError:
            unwrap(grafted, lambda wrapper: id(wrapper) not in earlier)
            raise
        record_wrappers(grafted)
    return grafted


def _refuse_wrapped(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ExciteError(f"gates are grafted onto an nn.Module, not a {type(model).__name__}")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ExciteError(
            "graft before wrapping: DistributedDataParallel has already registered the parameters; give its .module"
        )
    if hasattr(model, "_orig_mod"):
        raise ExciteError("graft before compiling: torch.compile works on the ungated network; give its ._orig_mod")


def _spec(gate: GateSpec, init: str, options: GateTable) -> GateTable:
    """The gate's table. Options are checked by creating a gate."""
    check_choice("init", init, INITS)
    spec = {**({"name": gate} if isinstance(gate, str) else dict(gate)), **options}
    if "identity" in spec:
        raise ExciteError("set how the gates start with init='identity' or 'paper', not with the option 'identity'")
    create_gate(spec, 16, feature_size=(8, 8))
    return {**spec, "identity": True} if init == "identity" else spec


def _plan(found: Found, spec: GateTable) -> GraftPlan:
    parameters, blended = {}, False
    with torch.device("meta"):
        for place in found.places:
            if not place.gated:
                made = create_gate(spec, place.channels, feature_size=place.size)
                parameters[place.name] = sum(p.numel() for p in made.parameters())
                blended = blended or isinstance(made, Blend)
    notes = []
    if blended:
        notes.append(
            f"the gate {spec['name']!r} has no last layer to zero, so it starts as the identity with a learnt strength "
            "of 0 per channel, x * (1 + strength * (scale - 1)); init='paper' starts with the full gate"
        )
    bound = [p for p in found.places if not p.gated and _is_bound(spec, p)]
    if bound:
        notes.append(
            f"these gates only fit images of this size (a {bound[0].size[0]}x{bound[0].size[1]} map at "
            f"{bound[0].name}); excite.resize_gates adapts them to another size"
        )
    return GraftPlan(spec, found.places, parameters, found.sentence, notes)


def _is_bound(spec: GateTable, place: Place) -> bool:
    with torch.device("meta"):
        return create_gate(spec, place.channels, feature_size=place.size).feature_size is not None


# --- carrying it out ------------------------------------------------------------------------------------------------


def _fill_slots(model: Classifier, plan: GraftPlan) -> None:
    """Put gates into the slots, and record them so that ``create_model`` can build the same network."""
    slots = model.gate_slots()
    kept = [name for name, block in slots.items() if block.gate is not None]
    spec = plan.gate
    if kept and model.gate_spec != spec:
        raise ExciteError(
            f"{model.model_name} has other gates in {len(kept)} of its blocks ({model.gate_spec}), and a network can "
            "only have one kind of gate: use the same, or remove those first (excite.ungraft, excite prune)"
        )
    for place in plan.new:
        like = next(model.get_submodule(place.name).parameters())
        gate = create_gate(spec, place.channels, feature_size=place.size)
        slots[place.name].gate = gate.to(device=like.device, dtype=like.dtype).train(model.training)
    model.set_fused(model.fused)
    record_gates(model, spec)


def record_gates(model: Classifier, spec: GateTable) -> None:
    """Record in a model of ours which blocks now have a gate, so that ``create_model(**model_args)`` builds the same.

    ``spec`` is the gates' table, used if any gates are left.
    """
    slots = model.gate_slots()
    filled = [name for name, block in slots.items() if block.gate is not None]
    model.gate_spec = dict(spec) if filled else None
    args = model.model_args
    if not args:
        return
    # The table describes the gate; separate options would count twice, and an ungated network has no such options.
    for key in ("gate", "gate_at", *model_option_names(spec["name"]), *(() if filled else ("gate_position",))):
        args.pop(key, None)
    own = VARIANTS[model.model_name]["gate"]
    if filled:
        args["gate"] = dict(spec)
    elif own is not None:
        args["gate"] = "none"
    if 0 < len(filled) < len(slots):
        args["gate_at"] = filled


def wrappers_of(model: nn.Module) -> dict[str, Grafted]:
    """Place -> the wrapper there, each listed once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Grafted)}


def record_wrappers(model: nn.Module) -> None:
    """:func:`record_gates` for a model of ``create_model("timm:...")``; does nothing for other models."""
    if not is_timm_model(model):
        return
    described: Any = model
    found = wrappers_of(model)
    described.gate_spec = dict(next(iter(found.values())).spec) if found else None
    args = {k: v for k, v in described.model_args.items() if k not in ("gate", "gate_at")}
    described.model_args = args | ({"gate": dict(described.gate_spec), "gate_at": list(found)} if found else {})


def _refuse_another_kind(model: nn.Module, spec: GateTable) -> None:
    """Refuse a second kind of gate, as for our own models: the model's arguments can only name one."""
    earlier = wrappers_of(model)
    if is_timm_model(model) and any(wrapper.spec != spec for wrapper in earlier.values()):
        raise ExciteError(
            f"{model.model_name} has other gates at {len(earlier)} of its places ({model.gate_spec}), and a network "
            "can only have one kind of gate: use the same, or remove those first (excite.ungraft)"
        )


def wrap(model: nn.Module, place: Place, spec: GateTable) -> None:
    """Replace a module by ``Grafted`` under every name that it has in ``model``."""
    inner = model.get_submodule(place.name)
    if "gate" in inner._modules or isinstance(getattr(inner, "gate", None), nn.Module | nn.Parameter):
        raise ExciteError(f"the module {place.name!r} already has a part named 'gate'; choose another module")
    grafted = Grafted(inner, spec, place.channels, place.size, place.channels_last)
    for _, parent in model.named_modules(remove_duplicate=False):
        for name, child in list(parent._modules.items()):
            if child is inner and parent is not grafted:
                parent._modules[name] = grafted


def _check_called(model: nn.Module, plan: GraftPlan, example: Example) -> None:
    """Check that every gate runs: a parent that reads a module's weights without calling it would skip the gate."""
    called: set[str] = set()
    gates = {place.name: model.get_submodule(place.name).gate for place in plan.new}
    hooks = [
        gate.register_forward_hook(lambda *_, name=name: called.add(name))  # type: ignore[union-attr]
        for name, gate in gates.items()
    ]
    try:
        run_once(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    missed = [name for name in gates if name not in called]
    if missed:
        raise ExciteError(
            f"the module {missed[0]!r} is used without being called, so a gate after it would never run; choose another"
        )


def ungraft(model: Model, *, inplace: bool = False) -> Model:
    """Remove grafted gates, whatever they have learnt, and put back the original modules.

    Right after ``graft`` with ``init="identity"``, this does not change what the network computes. After training, it
    does; ``excite prune`` removes gates by their effect and folds their average scale into the layers before them.

    Args:
        model: a network with grafted gates; of our own models, one with the name of an ungated network.
        inplace: change ``model`` itself rather than a deep copy.

    Returns:
        The network without the gates.

    Raises:
        ExciteError: the network has no gates, or they are part of its architecture.
    """
    _refuse_wrapped(model)
    bare = model if inplace else copy.deepcopy(model)
    if isinstance(bare, Classifier):
        _empty_slots(bare)
        return bare
    if not unwrap(bare):
        raise ExciteError(f"{type(model).__name__} has no grafted gates to remove")
    record_wrappers(bare)
    return bare


def unwrap(model: nn.Module, which: Callable[[Grafted], bool] = lambda wrapper: True) -> int:
    """Put the original modules back for the wrappers that ``which`` selects; returns the number of names changed."""
    found = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, Grafted) and which(m)}
    for name, wrapper in found.items():
        wrapper.inner.train(wrapper.training)
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent)._modules[leaf] = wrapper.inner
    return len(found)


def _empty_slots(model: Classifier) -> None:
    slots = [block for block in model.gate_slots().values() if block.gate is not None]
    if not slots:
        raise ExciteError(f"{model.model_name} has no grafted gates to remove")
    known = VARIANTS.get(model.model_name)
    own = None if known is None else known["gate"]
    if own is not None and not all(isinstance(block.gate, Gate) and block.gate.identity for block in slots):
        raise ExciteError(
            f"the gates of {model.model_name} are part of it and were not grafted; excite prune removes gates by their "
            "effect, and create_model(..., gate='none') builds the network without them"
        )
    for block in slots:
        block.gate = None  # type: ignore[assignment]
    record_gates(model, model.gate_spec or {"name": "se"})


# --- an input to trace with -----------------------------------------------------------------------------------------


def example_for(model: nn.Module, given: Any = None) -> Example:
    """Arguments for one pass: those given, or an image of zeros of a size that the model declares or accepts.

    Raises:
        ExciteError: the network accepts none of the sizes that were tried.
    """
    if given is not None:
        if isinstance(given, Mapping):
            return (), dict(given)
        return (tuple(given) if isinstance(given, list | tuple) else (given,)), {}
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    tried = []
    for shape in _shapes_to_try(model):
        image = like.new_zeros(1, *shape)
        try:
            run_once(model, ((image,), {}))
        except Exception as error:
            tried.append(f"{'x'.join(map(str, shape))}: {first_line(error)}")
            continue
        return (image,), {}
    raise ExciteError(
        f"{type(model).__name__} does not say what input it takes, and failed with {len(tried)} sizes ({tried[0]}); "
        "give example="
    )


def _shapes_to_try(model: nn.Module) -> list[tuple[int, ...]]:
    """(channels, H, W), most reliable first: ours, timm's ``default_cfg``, Hugging Face's ``config``, a guess."""
    if isinstance(model, Classifier) or is_timm_model(model):
        return [cast(Classifier, model).input_size]
    shapes: list[tuple[int, ...]] = []
    for config in (getattr(model, "pretrained_cfg", None), getattr(model, "default_cfg", None)):
        if isinstance(config, Mapping) and config.get("input_size"):
            shapes.append(tuple(config["input_size"]))
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    config = getattr(model, "config", None)
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        shapes.append((getattr(config, "num_channels", channels), size, size))
    return [*shapes, *((channels, side, side) for side in _SIDES)]
