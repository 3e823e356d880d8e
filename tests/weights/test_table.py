"""The table of sources in docs/weights.md is of this code's sources."""

import importlib.util
import re
from pathlib import Path

from excite.weights.layouts import LAYOUTS
from excite.weights.write import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]


def script():
    spec = importlib.util.spec_from_file_location("weights_table", ROOT / "docs" / "weights_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_every_source_with_its_error():
    made = script()
    text = made.PAGE.read_text(encoding="utf-8").split(made.BEGIN)[1].split(made.END)[0].strip()
    header, _, *lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in (header, *lines)]
    assert rows[0] == made.HEADER
    assert {row[1] for row in rows[1:]} == {layout.key for layout in LAYOUTS}
    asked = [row for row in rows[1:] if row[1] not in made.UNASKED]
    errors = [float(row[4]) for row in asked]
    assert all(0.0 <= error < 1e-4 for error in errors)
    assert {row[1] for row in rows[1:] if row[4] == "-"} == set(made.UNASKED)
    named = [name for row in asked if "timm" in row[3] for name in row[2].split(", ")]
    assert sorted(named) == sorted(ARCHITECTURES["timm"])
    assert re.search(r"^Measured on \d{4}-\d\d-\d\d with torch \S+", text, re.MULTILINE)
