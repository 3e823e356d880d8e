"""Gates: one per file, made by name."""

from excite.gates.base import Gate
from excite.gates.gather_excite import GatherExcite
from excite.gates.registry import GateSpec, create_gate, gate_options, list_gates, register_gate
from excite.gates.squeeze_excite import SqueezeExcite

__all__ = [
    "Gate",
    "GateSpec",
    "GatherExcite",
    "SqueezeExcite",
    "create_gate",
    "gate_options",
    "list_gates",
    "register_gate",
]
