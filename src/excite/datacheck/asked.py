"""What the words of ``excite data check`` mean. Nothing heavy is imported, so that mistakes are told at once."""

import os
from collections.abc import Sequence
from pathlib import Path

from excite.data.catalog import SOURCES
from excite.data.root import source_of
from excite.errors import ExciteError
from excite.recipe import Recipe, load_recipe, overridden
from excite.weights.locate import EMA, WEIGHTS, run_folder

#: The recipe whose data section is the base for data without a run.
BASE = "folder-small"
#: Nothing is augmented here, and images of other bands have no colours to change.
PLAIN = "augment.color_jitter=null"


def is_network(source: str | Path) -> bool:
    """Whether a source is a run or a checkpoint of ours, rather than data."""
    text = str(source)
    if text.endswith(".safetensors") or run_folder(text) is not None:
        return True
    return any(os.path.isfile(os.path.join(text, name)) for name in (WEIGHTS, EMA))


def data_recipe(source: str | Path | None, words: Sequence[str]) -> Recipe:
    """The recipe for data without a run.

    Images in memory keep their size: sources whose images all have one size are read at that size.

    Args:
        source: ``data.root``, or None.
        words: ``data.key=value`` strings.

    Raises:
        ExciteError: a word is wrong, or the data are given twice.
    """
    given = overridden(words)
    if source is not None and "data.root" in given:
        raise ExciteError(f"give the data once: as {str(source)!r} or as data.root")
    kind = None if source is None or "data.source" in given else source_of(str(source))
    more = [PLAIN] if source is None else [PLAIN, f"data.root={source}", *([f"data.source={kind}"] if kind else [])]
    recipe = load_recipe(BASE, [*more, *words])
    side = SOURCES[recipe.data.source].side
    if side is not None and "data.image_size" not in given:
        recipe = load_recipe(BASE, [*more, *words, f"data.image_size={side}"])
    return recipe
