"""Write every shipped recipe anew, its header kept and defaults left out: run this after a change of the schema, then
read the diff."""

from pathlib import Path

import excite
from excite.recipe import Recipe

FOLDER = Path(excite.__file__).parent / "recipes"


def rewritten(text: str, where: str) -> str:
    """The header (the comment lines at the top) and the keys that differ from the defaults."""
    lines = text.splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end]) + "\n\n" + Recipe.from_yaml(text, where).to_yaml(changes_only=True)


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.yaml")):
        before = path.read_text(encoding="utf-8")
        after = rewritten(before, path.name)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"rewritten: {path.name}")
