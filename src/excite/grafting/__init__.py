"""Grafting gates onto trained networks, proving that nothing changed, and pruning gates again."""

from excite.grafting.costs import GateCosts, gate_costs
from excite.grafting.proof import graft
from excite.models.grafting.core import GraftPlan, ungraft
from excite.models.grafting.places import Place
from excite.models.grafting.wrapper import Grafted
from excite.weights.grafted import load_grafted, save_grafted

__all__ = [
    "GateCosts",
    "GraftPlan",
    "Grafted",
    "Place",
    "gate_costs",
    "graft",
    "load_grafted",
    "save_grafted",
    "ungraft",
]
