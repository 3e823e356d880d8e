"""The plan of an experiment: recipe, gates and seeds; putting a gate into a recipe's model; ``twins.json``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from excite.data.config import MOST_FOLDS
from excite.errors import ExciteError, explain, nearest, shown
from excite.files import read_json, write_json
from excite.gates import create_gate, gate_options, list_gates
from excite.gates.gather_excite import VARIANTS as GE_VARIANTS
from excite.gates.registry import GateTable
from excite.models import create_model
from excite.models.base import placements
from excite.models.catalog import VARIANTS, ModelArgs, get_variant
from excite.recipe import ModelConfig, Recipe, flatten, parse_yaml

DEFAULT_GATES = ("none", "se", "ge_theta_minus", "ge_theta", "ge_theta_plus")
DEFAULT_SEEDS = 3
#: The most seeds of a gate with ``--until decided``, unless it is said; and its margin in points.
MOST_SEEDS, MARGIN = 30, 0.1
UNGATED = "none"
#: What follows the @ of a label for all placements by order.
AUTO = "auto"
PLAN = "twins.json"
FORMAT_VERSION = 1


class Labels(TypedDict):
    """What a run of an experiment is known by."""

    gate: str
    seed: int
    fold: NotRequired[int]


@dataclass(frozen=True)
class Plan:
    """The plan of an experiment.

    Attributes:
        recipe: the recipe of all runs, except for gate and seed.
        gates: labels, see :func:`parse_gate`.
        seeds: values of ``train.seed``; with folds, there is one.
        folds: number of folds to validate on in turn (``data.fold``); 0: that of the recipe alone.
        margin: points within which a gate counts as equivalent to the baseline, if a gate gets no more seeds once there
            is a verdict on it; None: all get all.
    """

    recipe: Recipe
    gates: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: int = 0
    margin: float | None = None

    @property
    def unit(self) -> Literal["seed", "fold"]:
        """What the runs of a gate differ in."""
        return "fold" if self.folds else "seed"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The seeds, or the numbers of the folds, from 1."""
        return tuple(range(1, self.folds + 1)) if self.folds else self.seeds

    def labels(self, gate: str, number: int) -> Labels:
        """What a run is known by."""
        return {"gate": gate, "seed": self.seeds[0], "fold": number} if self.folds else {"gate": gate, "seed": number}

    def run_name(self, gate: str, number: int) -> str:
        """The name of a run folder."""
        return run_name(gate, number, self.unit)

    def runs(self) -> list[tuple[str, int]]:
        """(gate, seed or fold) in the order of training: all gates of a seed or fold before the next.

        An interrupted experiment is thus balanced, and a machine that slows down affects all gates equally.
        """
        return [(gate, number) for number in self.numbers for gate in self.gates]

    @property
    def baseline(self) -> str:
        """The gate that the others are compared with: no gate, or else the first one."""
        return UNGATED if UNGATED in self.gates else self.gates[0]

    def twin(self, gate: str, number: int) -> Recipe:
        """The recipe of one run. Raises ExciteError if the gate does not fit the model."""
        recipe = self.recipe
        parts: dict[str, Any] = {"train": recipe.train.model_copy(update={"seed": number})}
        if self.folds:
            parts = {"data": recipe.data.model_copy(update={"fold": [number, self.folds]})}
        return recipe.model_copy(update={"model": with_gate(recipe.model, gate), **parts})

    def check(self) -> None:
        """Raise ExciteError if a gate is unknown or does not fit, or if two labels give the same network."""
        seen: dict[str, str] = {}
        for gate in self.gates:
            model = with_gate(self.recipe.model, gate).model_dump_json()
            if model in seen:
                raise ExciteError(f"the gates {seen[model]!r} and {gate!r} are the same for this recipe; leave one out")
            seen[model] = gate

    def save(self, folder: Path) -> None:
        """Write ``twins.json``."""
        recipe = self.recipe.model_dump(mode="json")
        plan = {"format_version": FORMAT_VERSION, "gates": self.gates, "seeds": self.seeds, "recipe": recipe}
        plan |= {"folds": self.folds} if self.folds else {}
        plan |= {"margin": self.margin} if self.margin is not None else {}
        write_json(folder / PLAN, plan)


class _StoredPlan(BaseModel):
    """``twins.json``."""

    model_config = ConfigDict(strict=True)

    format_version: Literal[1]
    gates: Annotated[list[Annotated[str, Field(max_length=200)]], Field(min_length=1, max_length=1000)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 63)]], Field(min_length=1, max_length=10_000)]
    recipe: dict[str, Any]
    folds: Annotated[int, Field(ge=0, le=MOST_FOLDS)] = 0
    margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


def run_name(gate: str, number: int, unit: str = "seed") -> str:
    """The name of a run folder."""
    return f"{gate.replace(':', '-')}-{unit}{number}"


def load_plan(folder: Path) -> Plan | None:
    """The plan in a folder; None if there is none. Raises ExciteError if it cannot be read."""
    path = folder / PLAN
    if not path.is_file():
        return None
    values = read_json(path, "restore the file, or start again with another --out")
    version = values.get("format_version")
    if type(version) is int and version != FORMAT_VERSION:
        raise ExciteError(f"{path} has format {shown(version)}; this version of excite reads {FORMAT_VERSION}")
    try:
        stored = _StoredPlan.model_validate(values)
    except ValidationError as error:
        why = "; ".join(explain(e) for e in error.errors()[:3])
        raise ExciteError(f"{path} cannot be read as a plan of twins: {why}") from None
    recipe = Recipe.from_dict(stored.recipe, str(path))
    plan = Plan(recipe, tuple(stored.gates), tuple(stored.seeds), stored.folds, stored.margin)
    plan.check()
    return plan


def make_plan(
    folder: Path,
    recipe: Recipe | None,
    gates: Sequence[str] | None,
    seeds: int | None,
    folds: int | None = None,
    until_decided: bool = False,
    margin: float | None = None,
) -> Plan:
    """The plan for ``folder``: a new one, or the existing one, with new gates or seeds added.

    Args:
        folder: the folder of the experiment.
        recipe: the recipe; None: that of the existing plan.
        gates: labels of the gates; None: those of the existing plan, or the default.
        seeds: number of seeds, counting up from the recipe's ``train.seed``; None: as for the gates.
        folds: number of folds to validate on in turn, instead of seeds; None: as for the gates, by default none.
        until_decided: whether a gate gets no more seeds than a verdict takes; ``seeds`` is then the most. An experiment
            that is so stays so.
        margin: see :class:`Plan`; None: that of the existing plan, or the default.

    Raises:
        ExciteError: a gate does not fit, or the folder contains the twins of another recipe.
    """
    old = load_plan(folder)
    if recipe is not None and old is not None and not any((folder / old.run_name(*run)).is_dir() for run in old.runs()):
        old = None  # nothing was trained yet, so the plan may be replaced
    if recipe is None:
        if old is None:
            raise ExciteError(f"{folder} is not an experiment of `excite twins`: it has no {PLAN}")
        recipe = old.recipe
    elif old is not None and old.recipe != recipe:
        raise ExciteError(
            f"{folder} contains twins of another recipe ({_differences(old.recipe, recipe)}); give another --out, or "
            "the same recipe"
        )
    folds = _folds(folder, recipe, old, seeds, folds)
    first = recipe.train.seed
    new_gates = expanded(gates, recipe.model) if gates is not None else old.gates if old else DEFAULT_GATES
    new_seeds = tuple(range(first, first + seeds)) if seeds is not None else old.seeds if old else None
    kept = None if old is None else old.margin
    if margin is not None and not until_decided and kept is None:
        raise ExciteError(f"--margin {margin:g} is for --until decided: give both")
    if margin is None:
        margin = MARGIN if until_decided and kept is None else kept
    if margin is not None and folds:
        raise ExciteError("--until decided goes on with further seeds, which folds do not have: leave out --folds")
    if new_seeds is None or (margin is not None and seeds is None and kept is None):
        new_seeds = tuple(range(first, first + (1 if folds else DEFAULT_SEEDS if margin is None else MOST_SEEDS)))
    if len(set(new_gates)) < len(new_gates) or not new_gates:
        raise ExciteError(f"--gates must name each gate once, and at least one, not {','.join(new_gates)!r}")
    if old is not None:  # gates and seeds may be added; finished runs stay in the report
        new_gates = tuple(dict.fromkeys([*old.gates, *new_gates]))
        new_seeds = tuple(dict.fromkeys([*old.seeds, *new_seeds]))
    plan = Plan(recipe, new_gates, new_seeds, folds, margin)
    plan.check()
    return plan


def _folds(folder: Path, recipe: Recipe, old: Plan | None, seeds: int | None, folds: int | None) -> int:
    """The number of folds, 0 for none. Raises ExciteError if they do not go with the rest."""
    count = folds if folds is not None else old.folds if old is not None else 0
    if count and seeds is not None:
        raise ExciteError("give --folds or --seeds, not both: each fold is trained with the recipe's own train.seed")
    if old is not None and count != old.folds:
        there = f"{old.folds} folds" if old.folds else f"{len(old.seeds)} seeds"
        raise ExciteError(f"{folder} contains twins of {there}; give another --out for {count} folds")
    if count and not 2 <= count <= MOST_FOLDS:
        raise ExciteError(f"--folds must be from 2 to {MOST_FOLDS}, such as 5, not {count}")
    if count and recipe.data.fold is not None:
        raise ExciteError(f"--folds {count} sets data.fold itself: leave data.fold out")
    if count:  # says what does not go with folds
        recipe.changed([f"data.fold=1/{count}"])
    return count


def _differences(old: Recipe, new: Recipe) -> str:
    before, now = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    shown = [f"{key} is {before.get(key)!r} there and {now.get(key)!r} here" for key in keys[:3]]
    return "; ".join(shown) + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


# --- a gate's label -------------------------------------------------------------------------------------------------


def known_gates() -> dict[str, dict[str, str] | None]:
    """Every label without options -> the table of its gate; None for no gate."""
    known: dict[str, dict[str, str] | None] = {UNGATED: None}
    known |= {name: {"name": name} for name in list_gates() if name != "ge"}
    return known | {f"ge_{variant}": {"name": "ge", "variant": variant} for variant in GE_VARIANTS}


def parse_gate(label: str) -> GateTable | None:
    """The gate table for a label: ``none``, ``se``, ``ge_theta``, ``se:reduction=8``, ``ge_theta_plus:extent=4`` ...
    What follows an @ is no matter of the gate; see :func:`places_in`.

    Raises:
        ExciteError: there is no such gate or option.
    """
    whole, label = label, label.partition("@")[0]
    name, *options = label.split(":")
    known = known_gates()
    if name not in known:
        raise ExciteError(f"--gates: unknown gate {shown(name)}{nearest(name, known)} (known: {', '.join(known)})")
    if not re.fullmatch(r"[\w.:=+-]+", label, re.ASCII):  # it becomes a folder name
        raise ExciteError(f"--gates: {shown(label)}: options must be words and numbers, such as se:reduction=8")
    known_table = known[name]
    if known_table is None:
        if options or whole != label:
            raise ExciteError(f"--gates: {shown(whole)}: none takes no {'options' if options else 'places'}")
        return None
    allowed = [option for option in gate_options(known_table["name"]) if option not in known_table]
    table: GateTable = {**known_table}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in allowed:
            hint = nearest(key, allowed)
            raise ExciteError(
                f"--gates: the gate {name!r} has no option {shown(option)}{hint} "
                f"(allowed, as NAME:OPTION=VALUE: {', '.join(allowed)})"
            )
        table[key] = parse_yaml(value, f"the value of {key} in --gates")
    _try_gate(table, f"--gates: {shown(label)}: ")
    return table


def places_in(label: str) -> list[str] | None:
    """The places that a label restricts a gate to, as ``gate_at`` of ``create_model``: ``se@layer3``,
    ``se:reduction=8@layer2+layer3.0``; None: all. Raises ExciteError if they are not written so."""
    _, at, where = label.partition("@")
    if not at:
        return None
    places = where.split("+")
    if not all(re.fullmatch(r"[\w.-]+", place, re.ASCII) for place in places):  # they become part of a folder's name
        raise ExciteError(
            f"--gates: {shown(label)}: after @ come names of blocks or stages, joined by +, such as se@layer3 or "
            "se@layer2+layer3.0"
        )
    return places


def expanded(labels: Sequence[str], model: ModelConfig) -> tuple[str, ...]:
    """The labels, with ``se@auto`` replaced by ``se`` (all places) and the other placements by order that this network
    has: ``se@first``, ``se@last``, ``se@last2``, ``se@every2``. Raises ExciteError if the gate does not fit."""
    found: list[str] = []
    for label in labels:
        gate, _, where = label.partition("@")
        if where != AUTO:
            found.append(label)
            continue
        if parse_gate(gate) is None:
            raise ExciteError(f"--gates: {shown(label)}: none takes no places")
        gated = with_gate(model, gate)
        options = {key: value for key, value in gated.options.items() if key != "pretrained"}  # download nothing
        slots = list(create_model(gated.name, **options).gate_slots())
        found += [gate if name == "all" else f"{gate}@{name}" for name in placements(slots)]
    return tuple(found)


def _try_gate(table: GateTable, where: str = "") -> None:
    """Build the gate for an example map. Raises ExciteError if its options are wrong."""
    try:
        with torch.device("meta"):
            create_gate(table, 64, feature_size=(8, 8))
    except ExciteError as error:
        raise ExciteError(f"{where}{error}") from None


# --- a gate in a recipe's model -------------------------------------------------------------------------------------


def _in_gate(option: str) -> str:
    """The name in the gate of a model option: the gate option "bias" is the model option "gate_bias"."""
    return "bias" if option == "gate_bias" else option


def _in_model(option: str) -> str:
    return "gate_bias" if option == "bias" else option


def with_gate(model: ModelConfig, label: str) -> ModelConfig:
    """The same model with another gate, under its name in the catalogue if there is one.

    Options of the recipe's own gate (reduction, extent ...) are passed to every gate that has them, and
    ``gate_position`` to all. Everything else is unchanged; with the recipe's own gate, nothing changes.

    Raises:
        ExciteError: there is no such gate.
    """
    gate, places = parse_gate(label), places_in(label)
    own, body = _split(model)
    if gate is not None and own is not None:
        gate = _inherit(gate, own)
    if gate == own and places is None:
        return model
    if gate is None:
        body.pop("gate_position", None)
        body.pop("gate_at", None)
    name, left = _nearest_variant(model.name, gate)
    at = {} if places is None else {"gate_at": places}
    return model.model_copy(update={"name": name, "options": {**body, **left, **at}})


def _split(model: ModelConfig) -> tuple[GateTable | None, ModelArgs]:
    """The recipe's own gate with its options, and the other options of the model."""
    variant = get_variant(model.name)
    spec = model.options.get("gate", variant["gate"])
    own: GateTable | None = None
    if spec not in (None, UNGATED):
        own = {"name": spec} if isinstance(spec, str) else dict(spec)
    of_gate = [] if own is None else gate_options(cast(str, own.get("name", "")))
    body = {}
    for option, value in model.options.items():
        if own is not None and _in_gate(option) in of_gate:
            own[_in_gate(option)] = value
        elif option != "gate":
            body[option] = value
    if own is not None:
        _try_gate(own, "model.options: ")
    return own, body


def _inherit(gate: GateTable, own: GateTable) -> GateTable:
    """The gate with the options of the recipe's own gate that it also has."""
    for option, value in own.items():
        if option in gate or option == "variant" or option not in gate_options(cast(str, gate["name"])):
            continue
        try:
            _try_gate(gate | {option: value})
        except ExciteError:  # theta_minus has no bottleneck, hence no reduction, though "ge" has the option
            continue
        gate = gate | {option: value}
    return gate


def _nearest_variant(name: str, gate: GateTable | None) -> tuple[str, ModelArgs]:
    """The catalogue name of this network with this gate, and the model options that the name does not imply."""
    own = get_variant(name)
    siblings = {
        other: table["gate"]
        for other, table in VARIANTS.items()
        if (table["family"], table["arch"], table["defaults"]) == (own["family"], own["arch"], own["defaults"])
    }
    plain = next((other for other, table in siblings.items() if table is None), None)
    if gate is None:
        return (name, {"gate": UNGATED}) if plain is None else (plain, {})
    fits = [other for other, table in siblings.items() if table is not None and table.items() <= gate.items()]
    if not fits:
        return plain or name, {"gate": gate}
    best = max(fits, key=lambda other: len(siblings[other] or {}))
    return best, {_in_model(k): v for k, v in gate.items() if k not in (siblings[best] or {})}
