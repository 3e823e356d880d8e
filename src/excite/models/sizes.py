"""The results of ``describe`` for every model, kept in a file, because building all models takes 15 s.

``python -m excite.models.sizes`` writes ``sizes.json`` again; a test compares it with the models.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from excite.models.catalog import list_models
from excite.models.published import PUBLISHED

if TYPE_CHECKING:
    from excite.models.summary import ModelRow, ModelSize

_FILE = "sizes.json"


def list_sizes(names: list[str]) -> "list[ModelRow]":
    """``[describe(name) for name in names]``, without torch."""
    stored: dict[str, ModelSize] = json.loads(files("excite.models").joinpath(_FILE).read_text())
    return [{"name": name, **stored[name], "published": PUBLISHED.get(name, [])} for name in names]


def _measure_all() -> "dict[str, ModelSize]":
    from excite.models.summary import describe

    rows = map(describe, list_models())
    return {
        row["name"]: {
            "params": row["params"],
            "gmacs": row["gmacs"],
            "input_size": row["input_size"],
            "gate": row["gate"],
        }
        for row in rows
    }


if __name__ == "__main__":
    lines = [f"  {json.dumps(name)}: {json.dumps(sizes)}" for name, sizes in _measure_all().items()]
    Path(__file__).with_name(_FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n")
