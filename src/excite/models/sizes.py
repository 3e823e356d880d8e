"""What ``describe`` finds for every name, kept in a file: building all models takes 15 s, listing them no time.

``python -m excite.models.sizes`` writes ``sizes.json`` anew; a test compares it with the models.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from excite.models.catalog import list_models
from excite.models.published import PUBLISHED

_FILE = "sizes.json"


def list_sizes(names: list[str]) -> list[dict[str, Any]]:
    """As ``[describe(name) for name in names]``, without torch."""
    stored = json.loads(files("excite.models").joinpath(_FILE).read_text())
    return [{"name": name, **stored[name], "published": PUBLISHED.get(name, [])} for name in names]


def _measure_all() -> dict[str, Any]:
    from excite.models.summary import describe

    return {name: {k: v for k, v in describe(name).items() if k not in ("name", "published")} for name in list_models()}


if __name__ == "__main__":
    lines = [f"  {json.dumps(name)}: {json.dumps(sizes)}" for name, sizes in _measure_all().items()]
    Path(__file__).with_name(_FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n")
