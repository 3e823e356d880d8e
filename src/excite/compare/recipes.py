"""The differences between the recipes of several runs, and whether they affect training."""

from collections.abc import Sequence
from typing import TypedDict

from excite.recipe import as_yaml, flatten, says
from excite.weights.header import RecipeMeta


class Difference(TypedDict):
    """A key in which recipes differ.

    ``values`` are in the order of the recipes, as YAML; None for a missing key, such as an option of a gate. ``kind``
    is "network" for the network and its gate, "neutral" for keys without effect on training, else "training".
    """

    key: str
    kind: str
    values: list[str | None]


def differences(recipes: Sequence[RecipeMeta | None]) -> list[Difference]:
    """The keys in which recipes differ, in recipe order.

    Args:
        recipes: recipes with defaults; None for a network without a recipe, which is ignored.
    """
    flat = [flatten({} if recipe is None else recipe) for recipe in recipes]
    known = [i for i, recipe in enumerate(recipes) if recipe is not None]
    rows: list[Difference] = []
    for key in dict.fromkeys(key for recipe in flat for key in recipe):
        values = [as_yaml(recipe[key]) if key in recipe else None for recipe in flat]
        if len({values[i] for i in known}) > 1:
            rows.append({"key": key, "kind": says(key), "values": values})
    return rows
