"""What the scripts here share: which excite was measured, and rows for a CSV file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def commit() -> str:
    """The first ten digits, with a "+" where the tree had changed since."""
    from excite.runtime.environment import git_state  # not before a peer is imported: see train_speed.py

    git = git_state() or {"commit": "unknown", "changed": True}
    return git["commit"][:10] + ("+" if git["changed"] else "")


def append_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows of the same columns to a file, which gets a header if it is new, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)
    print(f"rows appended to {path}")
