"""The table of the classes of a report: short if there are few, else the worst of them and the rest to be opened."""

from collections.abc import Mapping, Sequence
from typing import Any

from excite.pages.page import Column, Section

#: Tables with more classes are collapsed.
LONG = 30


def class_table(
    section: Section, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], key: str, name: str
) -> None:
    """Add the table to a section; of many classes, the ten with the lowest ``key``, which is called ``name``."""
    if len(rows) <= LONG:
        section.table(columns, rows)
        return
    known = [row for row in rows if row[key] is not None]
    worst = sorted(known, key=lambda row: row[key])[:10]
    section.table(columns, worst, f"The ten classes with the lowest {name}")
    section.details(f"All {len(rows):,} classes").table(columns, rows)
