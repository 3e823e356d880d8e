"""Writes the picture of the layers in docs/development.md anew: ``python docs/layers.py``.

The order is that of the contract in pyproject.toml, which ``make lint`` checks; what each package is for is the first
line of its docstring.
"""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "development.md"
BEGIN, END = "<!-- layers: `python docs/layers.py` writes them -->\n", "<!-- end of layers -->"


def layers() -> list[list[str]]:
    """The packages and modules of each layer, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    found = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in line.replace(":", "|").split("|")] for line in found]


def purpose(name: str) -> str:
    """The first sentence of a package's or module's docstring."""
    path = ROOT / "src" / "excite" / name
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def picture() -> str:
    """A table: one row a package, the layers from top to bottom."""
    lines = ["| layer | package | what it is for |", "|---|---|---|"]
    for number, names in enumerate(reversed(layers())):
        for name in names:
            lines.insert(2, f"| {number} | `{name}` | {purpose(name)} |")
    return "\n".join(lines) + "\n"


def rewritten(page: str) -> str:
    """The page with the picture of today."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{picture()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
