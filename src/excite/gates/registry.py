"""Gates by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from excite.errors import ExciteError, nearest
from excite.gates.base import Gate

#: ``"se"``, or ``{"name": "se", "reduction": 8}``.
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
    parameters = inspect.signature(_gate_class(name).__init__).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "feature_size"]


def create_gate(spec: GateSpec, channels: int, *, feature_size: tuple[int, int] | None = None) -> Gate:
    """Build a gate for maps of ``channels`` channels.

    ``spec`` is a name or ``{"name": ..., **options}``. ``feature_size`` is the (height, width) of those maps; gates
    whose parameters depend on it (Gather-Excite theta with global extent) need it, all others ignore it.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ExciteError(f"a gate is a name or a table with a 'name', not {spec!r}; known: {', '.join(list_gates())}")
    allowed = gate_options(name)
    for option in options:
        if option not in allowed:
            raise ExciteError(
                f"the gate {name!r} has no option {option!r}{nearest(option, allowed)} (allowed: {', '.join(allowed)})"
            )
    return _gate_class(name)(channels, feature_size=feature_size, **options)


def _gate_class(name: str) -> type[Gate]:
    if name not in _GATES:
        raise ExciteError(f"unknown gate {name!r}{nearest(name, _GATES)} (known: {', '.join(list_gates())})")
    return _GATES[name]
