"""Put gates into a network that has none, and take them out.  Letters: N images, C channels, H x W positions."""

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
#: Sides of images to try where the network does not say what it takes, pixels.
_SIDES = (224, 32, 28, 64, 128, 256, 299)


class GraftRow(TypedDict):
    """A place: ``map`` is its "HxW", ``parameters`` those of its new gate, 0 where it is gated already."""

    place: str
    channels: int
    map: str
    parameters: int
    what: str


class GraftPlanValues(TypedDict):
    """A :class:`GraftPlan` in JSON; ``added`` are the parameters of all new gates."""

    gate: GateTable
    sentence: str
    notes: list[str]
    added: int
    places: list[GraftRow]


@dataclass(frozen=True)
class GraftPlan:
    """What :func:`graft` is going to do, or has done.

    Attributes:
        gate: the gate's table, with ``identity`` where it starts so.
        places: all places, those that are gated already included.
        parameters: parameters of the new gate, by the name of its place.
        sentence: how the places were found.
        notes: what else there is to know, one sentence each.
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
        """Parameters of all new gates."""
        return sum(self.parameters.values())

    def rows(self) -> list[GraftRow]:
        """One row a place."""
        kind = self.gate["name"]
        return [
            {
                "place": p.name,
                "channels": p.channels,
                "map": f"{p.size[0]}x{p.size[1]}",
                "parameters": self.parameters.get(p.name, 0),
                "what": f"gated already: {p.gated}" if p.gated else f"{'in' if p.slot else 'behind'} it: {kind}",
            }
            for p in self.places
        ]

    def to_dict(self) -> GraftPlanValues:
        """For JSON."""
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
    """Put gates into any network of convolutions: ours, timm's, torchvision's, Hugging Face's, your own.

    In our own models the gates go into the blocks' slots, where the fused operator runs them. In others a module at
    each place is replaced by :class:`excite.grafting.Grafted`, which keeps the names of its parameters in
    ``state_dict``. Places that are gated already are left alone. Make the optimiser, ``torch.compile`` and DDP
    afterwards.

    Args:
        model: any ``nn.Module`` that takes images.
        gate: a gate's name, or a table ``{"name": "se", "reduction": 8}``.
        at: "auto" (the ends of residual branches; see ``find_places``), or module names and shell patterns.
        init: "identity": the network computes at first exactly what it did before, and the gates learn from the first
            step (``Gate.start_as_identity``, or ``excite.gates.blend.Blend``); "paper": the gate's usual start.
        dry_run: change nothing and return the :class:`GraftPlan`; ``print`` shows it as a table.
        inplace: change ``model`` itself; the default leaves it alone and changes a deep copy.
        example: an input: a tensor (N, channels, H, W), or a tuple or dictionary of arguments. None: of the size that
            the model says that it takes, or one that it turns out to take.
        options: options of the gate.

    Returns:
        The network with gates, in the training mode, on the device and of the type of ``model``.

    Raises:
        ExciteError: an unknown gate or option, no place, a network that is wrapped (DDP, torch.compile) already.
    """
    _refuse_wrapped(model)
    spec = _spec(gate, init, options)
    found_example = example_for(model, example)
    found = find_places(model, at, found_example)
    plan = _plan(found, spec)
    if dry_run:
        return plan
    if not plan.new:
        raise ExciteError(f"every place is gated already ({plan.places[0].name}: {plan.places[0].gated}, ...)")
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
        raise ExciteError(f"a gate is grafted onto an nn.Module, not a {type(model).__name__}")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ExciteError("graft before you wrap: DistributedDataParallel has counted the parameters; give its .module")
    if hasattr(model, "_orig_mod"):
        raise ExciteError("graft before you compile: torch.compile has seen the network as it is; give its ._orig_mod")


def _spec(gate: GateSpec, init: str, options: GateTable) -> GateTable:
    """The gate's table; every option is checked by building one."""
    check_choice("init", init, INITS)
    spec = {**({"name": gate} if isinstance(gate, str) else dict(gate)), **options}
    if "identity" in spec:
        raise ExciteError("how the gates start is said by init='identity' or 'paper', not by the option 'identity'")
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
            f"the gate {spec['name']!r} has no last layer that could be zeroed, so it starts as the identity by a "
            "learnt strength per channel, x * (1 + strength * (scale - 1)), from 0; init='paper' starts with it whole"
        )
    bound = [p for p in found.places if not p.gated and _is_bound(spec, p)]
    if bound:
        notes.append(
            f"these gates fit images of this size only (a map of {bound[0].size[0]}x{bound[0].size[1]} at "
            f"{bound[0].name}); excite.resize_gates adapts them to another"
        )
    return GraftPlan(spec, found.places, parameters, found.sentence, notes)


def _is_bound(spec: GateTable, place: Place) -> bool:
    with torch.device("meta"):
        return create_gate(spec, place.channels, feature_size=place.size).feature_size is not None


# --- carrying it out ------------------------------------------------------------------------------------------------


def _fill_slots(model: Classifier, plan: GraftPlan) -> None:
    """Gates into the slots, and into what ``create_model`` needs to know to build the same network."""
    slots = model.gate_slots()
    kept = [name for name, block in slots.items() if block.gate is not None]
    spec = plan.gate
    if kept and model.gate_spec != spec:
        raise ExciteError(
            f"{model.model_name} has gates of another kind in {len(kept)} of its blocks ({model.gate_spec}); one "
            "network of ours has one kind of gate: give the same, or take those away (excite.ungraft, excite prune)"
        )
    for place in plan.new:
        like = next(model.get_submodule(place.name).parameters())
        gate = create_gate(spec, place.channels, feature_size=place.size)
        slots[place.name].gate = gate.to(device=like.device, dtype=like.dtype).train(model.training)
    model.set_fused(model.fused)
    record_gates(model, spec)


def record_gates(model: Classifier, spec: GateTable) -> None:
    """Tell a model of ours which blocks have a gate now, so that ``create_model(**model_args)`` builds the same.

    ``spec``: the gates' table, for when some are left.
    """
    slots = model.gate_slots()
    filled = [name for name, block in slots.items() if block.gate is not None]
    model.gate_spec = dict(spec) if filled else None
    args = model.model_args
    if not args:
        return
    # The gate is told by its table; options beside it would be counted twice, and are no options of an ungated net.
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
    """Place -> the wrapper there, each under one name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Grafted)}


def record_wrappers(model: nn.Module) -> None:
    """:func:`record_gates` for a model of ``create_model("timm:...")``; nothing to do for other people's."""
    if not is_timm_model(model):
        return
    described: Any = model
    found = wrappers_of(model)
    described.gate_spec = dict(next(iter(found.values())).spec) if found else None
    args = {k: v for k, v in described.model_args.items() if k not in ("gate", "gate_at")}
    described.model_args = args | ({"gate": dict(described.gate_spec), "gate_at": list(found)} if found else {})


def _refuse_another_kind(model: nn.Module, spec: GateTable) -> None:
    """As for our own models, and for the same reason: their arguments name one gate."""
    earlier = wrappers_of(model)
    if is_timm_model(model) and any(wrapper.spec != spec for wrapper in earlier.values()):
        raise ExciteError(
            f"{model.model_name} has gates of another kind at {len(earlier)} of its places ({model.gate_spec}); one "
            "network has one kind of gate: give the same, or take those away (excite.ungraft)"
        )


def wrap(model: nn.Module, place: Place, spec: GateTable) -> None:
    """Put ``Grafted`` in the place of one module, under every name that it has in ``model``."""
    inner = model.get_submodule(place.name)
    if "gate" in inner._modules or isinstance(getattr(inner, "gate", None), nn.Module | nn.Parameter):
        raise ExciteError(f"the module {place.name!r} has a part called 'gate' already; name another module")
    grafted = Grafted(inner, spec, place.channels, place.size, place.channels_last)
    for _, parent in model.named_modules(remove_duplicate=False):
        for name, child in list(parent._modules.items()):
            if child is inner and parent is not grafted:
                parent._modules[name] = grafted


def _check_called(model: nn.Module, plan: GraftPlan, example: Example) -> None:
    """Every gate must run: a parent that reads a module's weights without calling it would never ask the gate."""
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
        raise ExciteError(f"the module {missed[0]!r} is used without being called, so that a gate behind it never runs")


def ungraft(model: Model, *, inplace: bool = False) -> Model:
    """Take the gates out again, whatever they have learnt: the very modules that were there before :func:`graft`.

    A network fresh from ``graft`` with ``init="identity"`` computes the same before and after. A trained one does not;
    ``excite prune`` takes gates out by their effect, with what they do on average folded into the layers before them.

    Args:
        model: a network with grafted gates. Of our own models, one whose name is that of an ungated network.
        inplace: change ``model`` itself; the default changes a deep copy.

    Raises:
        ExciteError: it has no gates, or they are part of its architecture.
    """
    _refuse_wrapped(model)
    bare = model if inplace else copy.deepcopy(model)
    if isinstance(bare, Classifier):
        _empty_slots(bare)
        return bare
    if not unwrap(bare):
        raise ExciteError(f"{type(model).__name__} has no grafted gates to take out")
    record_wrappers(bare)
    return bare


def unwrap(model: nn.Module, which: Callable[[Grafted], bool] = lambda wrapper: True) -> int:
    """Put the original modules back, in place of all wrappers or of some; how many names that were."""
    found = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, Grafted) and which(m)}
    for name, wrapper in found.items():
        wrapper.inner.train(wrapper.training)
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent)._modules[leaf] = wrapper.inner
    return len(found)


def _empty_slots(model: Classifier) -> None:
    slots = [block for block in model.gate_slots().values() if block.gate is not None]
    if not slots:
        raise ExciteError(f"{model.model_name} has no grafted gates to take out")
    known = VARIANTS.get(model.model_name)
    own = None if known is None else known["gate"]
    if own is not None and not all(isinstance(block.gate, Gate) and block.gate.identity for block in slots):
        raise ExciteError(
            f"the gates of {model.model_name} belong to it and were not grafted; excite prune removes gates by their "
            "effect, and create_model(..., gate='none') builds the network without"
        )
    for block in slots:
        block.gate = None  # type: ignore[assignment]
    record_gates(model, model.gate_spec or {"name": "se"})


# --- an input to trace with -----------------------------------------------------------------------------------------


def example_for(model: nn.Module, given: Any = None) -> Example:
    """Arguments for one pass: those given, or one image of zeros of the size that the model says, or takes.

    Raises:
        ExciteError: the network takes none of the sizes that were tried.
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
        f"{type(model).__name__} does not say what it takes, and took none of {len(tried)} sizes ({tried[0]}); "
        "give example="
    )


def _shapes_to_try(model: nn.Module) -> list[tuple[int, ...]]:
    """(channels, H, W), most trustworthy first: ours, timm's ``default_cfg``, Hugging Face's ``config``, a guess."""
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
