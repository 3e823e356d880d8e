"""The table of gates: what its rows hold, in JSON and in gates.csv."""

from typing import TypedDict

from excite.explain.statistics import ScaleColumns, ScaleDetails


class GateName(TypedDict):
    """Which gate it is: its place in the network, its class, how many parameters it has."""

    gate: str
    kind: str
    parameters: int


class GatePrice(TypedDict):
    """What fixing a gate at its mean costs, see :class:`Ablation`; None where that was not measured."""

    top1_lost: float | None
    top1_lost_low: float | None
    top1_lost_high: float | None
    loss_added: float | None
    estimated: bool


class GateSaving(TypedDict):
    """Milliseconds that a pass over ``batch`` images saves without a gate; None where that was not timed."""

    saved_ms: float | None
    saved_ms_low: float | None
    saved_ms_high: float | None
    batch: int | None


class GateColumns(GateName, ScaleColumns, GatePrice, GateSaving):
    """The scalar columns of the table of gates; ``could_go`` is None where no evaluation told."""

    could_go: bool | None


class GateRow(GateColumns, ScaleDetails):
    """A row of the table of gates, see docs/explain.md."""
