"""Gates for networks that have none: found places, identity at the start, and the way back."""

from excite.grafting.core import GraftPlan, graft, ungraft
from excite.grafting.places import Place
from excite.grafting.stored import load_grafted, save_grafted
from excite.grafting.wrapper import Grafted

__all__ = ["GraftPlan", "Grafted", "Place", "graft", "load_grafted", "save_grafted", "ungraft"]
