"""The rows of the table of gates, in JSON and in gates.csv."""

from typing import TypedDict

from excite.explain.statistics import ScaleColumns, ScaleDetails


class GateName(TypedDict):
    """The gate: its place in the network, its class, and its number of parameters."""

    gate: str
    kind: str
    parameters: int


class GatePrice(TypedDict):
    """The cost of fixing a gate at its mean, see :class:`Ablation`; None if not measured. With several labels an image
    it is mAP that is lost, and files have it under ``map_lost``; see :func:`excite.measures.named`."""

    top1_lost: float | None
    top1_lost_low: float | None
    top1_lost_high: float | None
    loss_added: float | None
    estimated: bool


class GateSaving(TypedDict):
    """Milliseconds that removing a gate saves in a pass over ``batch`` images; None if not timed."""

    saved_ms: float | None
    saved_ms_low: float | None
    saved_ms_high: float | None
    batch: int | None


class GateColumns(GateName, ScaleColumns, GatePrice, GateSaving):
    """The scalar columns of the table of gates; ``could_go`` is None if not evaluated."""

    could_go: bool | None


class GateRow(GateColumns, ScaleDetails):
    """A row of the table of gates, see docs/explain.md."""
