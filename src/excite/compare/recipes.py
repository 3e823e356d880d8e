"""In what the recipes of several runs differ, and whether that has a say in what they learn."""

from collections.abc import Mapping, Sequence
from typing import Any

from excite.recipe import as_yaml, says


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; an empty mapping has no keys, a list is one value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(recipes: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """The keys in which recipes differ, in their order there.

    Args:
        recipes: defaults filled in; None for a network that has none, which differs in nothing.

    Returns:
        Rows of ``key``; ``values``, one a recipe, as YAML (None where it has no such key, which only options of
        gates and the like may lack); and ``kind``: "network" for the network and its gate, "neutral" for what has no
        say in what is learned, else "training".
    """
    flat = [flatten(recipe or {}) for recipe in recipes]
    known = [i for i, recipe in enumerate(recipes) if recipe is not None]
    rows = []
    for key in dict.fromkeys(key for recipe in flat for key in recipe):
        values = [as_yaml(recipe[key]) if key in recipe else None for recipe in flat]
        if len({values[i] for i in known}) > 1:
            rows.append({"key": key, "kind": says(key), "values": values})
    return rows
