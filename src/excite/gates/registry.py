"""Gates by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from excite.errors import ExciteError, first_line, nearest, shown, shown_text
from excite.gates.base import Gate
from excite.gates.blend import Blend
from excite.gates.facts import Facts
from excite.gates.sheets import unknown_gate
from excite.options import check_types

#: A gate's settings, JSON-able: ``{"name": "se", "reduction": 8}``. The keys besides the name differ from gate to gate:
#: they are keyword arguments of its constructor, and "identity"; :func:`create_gate` checks them.
GateTable = dict[str, Any]
#: ``"se"``, or a gate's table.
GateSpec = str | Mapping[str, Any]

_GATES: dict[str, type[Gate]] = {}
_GateType = TypeVar("_GateType", bound=type[Gate])


def register_gate(name: str) -> Callable[[_GateType], _GateType]:
    """Class decorator that makes a gate available as ``name``. A name can be taken only once."""

    def register(cls: _GateType) -> _GateType:
        if name in _GATES:
            raise ExciteError(f"the gate name {name!r} is already taken by {_GATES[name].__qualname__}")
        _GATES[name] = cls
        return cls

    return register


def list_gates() -> list[str]:
    """The names that ``create_gate`` knows, sorted."""
    return sorted(_GATES)


def gate_options(name: str) -> list[str]:
    """The options of one gate, as its constructor declares them (all keyword-only, save the map's size)."""
    parameters = inspect.signature(gate_class(name).__init__).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "feature_size"]


#: A gate's option -> its name among a model's options, where "bias" alone would not say whose.
_AMONG_A_MODELS = {"bias": "gate_bias"}


def model_option_names(gate: str) -> dict[str, str]:
    """The options of one gate: the name by which ``create_model`` takes each -> its name in the gate's table."""
    return {_AMONG_A_MODELS.get(option, option): option for option in gate_options(gate)}


def gate_defaults(name: str) -> GateTable:
    """The options of one gate with their defaults; no name."""
    parameters = inspect.signature(gate_class(name).__init__).parameters
    return {option: parameters[option].default for option in gate_options(name)}


def gate_facts(name: str) -> Facts | None:
    """A gate's data sheet; None for a gate that came without one."""
    return gate_class(name).facts


def gate_table(spec: GateSpec) -> GateTable:
    """A new table {"name": ..., **options}. Raises ExciteError where there is no name."""
    table: GateTable = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    if not isinstance(table.get("name"), str):
        raise ExciteError(
            f"a gate is a name or a table with a 'name', not {shown(spec)}; known: {', '.join(list_gates())}"
        )
    return table


def create_gate(spec: GateSpec, channels: int, *, feature_size: tuple[int, int] | None = None) -> Gate:
    """Build a gate for maps of ``channels`` channels.

    ``spec`` is a name or ``{"name": ..., **options}``. ``feature_size`` is the (height, width) of those maps; gates
    whose parameters depend on it (Gather-Excite theta with global extent) need it, all others ignore it.

    With the option ``identity``, which every gate has, the fresh gate's scale is exactly 1: by
    :meth:`Gate.start_as_identity`, or blended in (:class:`excite.gates.blend.Blend`) where it has no such start. It
    stays in the spec, because a gate that started so is another function of its weights ever after.
    """
    options = gate_table(spec)
    name = options.pop("name")
    identity = options.pop("identity", False)
    allowed = gate_options(name)
    for option in options:
        if option not in allowed:
            raise ExciteError(
                f"the gate {name!r} has no option {shown(option)}{nearest(str(option), [*allowed, 'identity'])} "
                f"(allowed: {', '.join([*allowed, 'identity'])})"
            )
    if not isinstance(identity, bool):
        raise ExciteError(f"the gate option 'identity' is true or false, not {shown(identity)}")
    check_types(gate_class(name).__init__, options, f"the gate {name!r}")
    try:
        gate = gate_class(name)(channels, feature_size=feature_size, **options)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        given = ", ".join(f"{key}={shown(value)}" for key, value in options.items())
        raise ExciteError(
            f"the gate {name!r} cannot be made with {given or 'these maps'}: {shown_text(first_line(error))}"
        ) from error
    if identity:
        gate = gate if gate.start_as_identity() else Blend(gate, channels)
        gate.identity = True
    return gate


def gate_class(name: str) -> type[Gate]:
    """The class that is registered as ``name``. Raises ExciteError where there is none."""
    if name not in _GATES:
        raise unknown_gate(name, _GATES)
    return _GATES[name]
