"""Registry of gates: creates them by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from excite.errors import ExciteError, first_line, nearest, shown, shown_text
from excite.gates.base import Gate
from excite.gates.blend import Blend
from excite.gates.facts import Facts
from excite.gates.sheets import unknown_gate
from excite.options import check_types

#: A gate's settings, JSON-serialisable: ``{"name": "se", "reduction": 8}``. The other keys depend on the gate: they are
#: the keyword arguments of its constructor, and "identity"; :func:`create_gate` checks them.
GateTable = dict[str, Any]
#: A gate's name, such as ``"se"``, or its table.
GateSpec = str | Mapping[str, Any]

_GATES: dict[str, type[Gate]] = {}
_GateType = TypeVar("_GateType", bound=type[Gate])


def register_gate(name: str) -> Callable[[_GateType], _GateType]:
    """Class decorator that registers a gate as ``name``. Raises ExciteError if the name is taken."""

    def register(cls: _GateType) -> _GateType:
        if name in _GATES:
            raise ExciteError(f"the gate name {name!r} is already taken by {_GATES[name].__qualname__}")
        _GATES[name] = cls
        return cls

    return register


def list_gates() -> list[str]:
    """Names of all registered gates, sorted."""
    return sorted(_GATES)


def gate_options(name: str) -> list[str]:
    """Names of a gate's options: the keyword-only arguments of its constructor except ``feature_size``."""
    parameters = inspect.signature(gate_class(name).__init__).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "feature_size"]


#: A gate's option -> its name among a model's options, if it differs ("bias" alone would be ambiguous).
_AMONG_A_MODELS = {"bias": "gate_bias"}


def model_option_names(gate: str) -> dict[str, str]:
    """The options of one gate: name of the argument of ``create_model`` -> name in the gate's table."""
    return {_AMONG_A_MODELS.get(option, option): option for option in gate_options(gate)}


def gate_defaults(name: str) -> GateTable:
    """The options of one gate with their defaults, without the name."""
    parameters = inspect.signature(gate_class(name).__init__).parameters
    return {option: parameters[option].default for option in gate_options(name)}


def gate_facts(name: str) -> Facts | None:
    """A gate's data sheet; None if it has none."""
    return gate_class(name).facts


def gate_table(spec: GateSpec) -> GateTable:
    """A new table {"name": ..., **options}. Raises ExciteError if there is no name."""
    table: GateTable = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    if not isinstance(table.get("name"), str):
        raise ExciteError(
            f"a gate must be a name or a table with a 'name', not {shown(spec)}; known: {', '.join(list_gates())}"
        )
    return table


def create_gate(spec: GateSpec, channels: int, *, feature_size: tuple[int, int] | None = None) -> Gate:
    """Create a gate for maps of ``channels`` channels.

    Args:
        spec: a name or ``{"name": ..., **options}``. With ``identity: True``, an option of every gate, the scale of the
            fresh gate is exactly 1: by :meth:`Gate.start_as_identity`, or else by
            :class:`excite.gates.blend.Blend`. The option stays in the spec, because such a gate computes a different
            function of its weights.
        channels: C of the maps.
        feature_size: (height, width) of the maps. Only gates whose parameters depend on it (Gather-Excite theta and
            theta_plus with global extent) need it; all others ignore it.

    Raises:
        ExciteError: the gate or an option is unknown, or has a wrong value.
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
        raise ExciteError(f"the gate option 'identity' must be true or false, not {shown(identity)}")
    check_types(gate_class(name).__init__, options, f"the gate {name!r}")
    try:
        gate = gate_class(name)(channels, feature_size=feature_size, **options)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        given = ", ".join(f"{key}={shown(value)}" for key, value in options.items())
        raise ExciteError(
            f"the gate {name!r} cannot be created with {given or 'these maps'}: {shown_text(first_line(error))}"
        ) from error
    if identity:
        gate = gate if gate.start_as_identity() else Blend(gate, channels)
        gate.identity = True
    return gate


def gate_class(name: str) -> type[Gate]:
    """The class registered as ``name``. Raises ExciteError if there is none."""
    if name not in _GATES:
        raise unknown_gate(name, _GATES)
    return _GATES[name]
