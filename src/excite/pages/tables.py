"""Tables as text: Markdown and CSV. For tables on a terminal, see ``excite.console.make_table``."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from excite.errors import ExciteError
from excite.files import append_text
from excite.text import printable_lines


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int | None = None) -> str:
    """A table in Markdown.

    Args:
        heads: column headings.
        lines: the cells, as text, row by row.
        left: pad the columns, so that the table is readable as plain text, too; this many columns on the left are text,
            the others numbers. None: no padding, for documents in which a changed number should change only one line.
    """
    if left is None:
        rows = [heads, *lines]
        text = ["| " + " | ".join(cells) + " |" for cells in rows]
        return "\n".join([text[0], "|" + "---|" * len(heads), *text[1:]])
    widths = [max(len(line[i]) for line in [heads, *lines]) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        parts = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(parts) + " |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(heads), line(rule), *map(line, lines)])


def to_csv(rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> str:
    """Rows as CSV with a heading; None or a missing key becomes an empty field.

    Args:
        rows: the values by column.
        columns: the columns, in order; None: all keys, in order of appearance.
    """
    text = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row)) if columns is None else columns
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return printable_lines(text.getvalue())


def check_csv(path: Path, columns: Sequence[str]) -> None:
    """Raise ExciteError if the file has other columns or cannot be used, before the work that fills it."""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            return
        with path.open(newline="", encoding="utf-8") as file:
            found = next(csv.reader(file), None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExciteError(f"{path} cannot be used: {error}") from None
    if found not in (None, list(columns)):
        raise ExciteError(f"{path} has other columns than the new rows; choose another file")


def append_csv(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Append rows to a CSV file, with a heading if it is new; floats are rounded to 4 decimals.

    Raises:
        ExciteError: the file has other columns, or cannot be written.
    """
    check_csv(path, columns)
    rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    if not path.is_file() or not path.stat().st_size:
        writer.writeheader()
    writer.writerows(rounded)
    append_text(path, text.getvalue())
