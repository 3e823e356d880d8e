# ruff: noqa: F401 - excite.gates re-exports these names
"""Imports all gates, so that each is registered by name, and the functions to create one."""

from excite.gates.base import Gate
from excite.gates.cbam import CBAM
from excite.gates.coordinate import CoordinateAttention
from excite.gates.eca import EfficientChannelAttention
from excite.gates.effective_se import EffectiveSqueezeExcite
from excite.gates.facts import Facts, Form
from excite.gates.gather_excite import GatherExcite
from excite.gates.gct import GatedChannelTransformation, GaussianContextTransformer
from excite.gates.registry import (
    GateSpec,
    create_gate,
    gate_defaults,
    gate_facts,
    gate_options,
    gate_table,
    list_gates,
    register_gate,
)
from excite.gates.scse import ChannelSqueezeExcite, SpatialChannelSqueezeExcite, SpatialSqueezeExcite
from excite.gates.squeeze_excite import SqueezeExcite
