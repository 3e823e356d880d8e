"""Gates, one per file, created by name. Data sheets need no torch; everything else is imported when first used."""

from typing import TYPE_CHECKING

from excite.lazy import lazily

if TYPE_CHECKING:
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

__all__ = [
    "CBAM",
    "ChannelSqueezeExcite",
    "CoordinateAttention",
    "EffectiveSqueezeExcite",
    "EfficientChannelAttention",
    "Facts",
    "Form",
    "Gate",
    "GateSpec",
    "GatedChannelTransformation",
    "GatherExcite",
    "GaussianContextTransformer",
    "SpatialChannelSqueezeExcite",
    "SpatialSqueezeExcite",
    "SqueezeExcite",
    "create_gate",
    "gate_defaults",
    "gate_facts",
    "gate_options",
    "gate_table",
    "list_gates",
    "register_gate",
]

#: One import registers all gates: a gate has its name only once its module is imported.
__getattr__ = lazily(__name__, dict.fromkeys(__all__, f"{__name__}.known"))
