"""The columns of a table, read from CSV, TSV, JSON lines or Parquet.

Rows are named as an editor or a spreadsheet counts them: the header is row 1.
"""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from excite.data.packed import Packed
from excite.data.walk import is_image
from excite.errors import ExciteError, shown, shown_text


@dataclass
class Table:
    """The columns of a table.

    Attributes:
        name: its path, for messages.
        columns: name -> values; None for a value that is missing.
        rows: the number of each row, as an editor counts.
        names: name of a column -> class names, for columns of numbers that the file itself gives names for.
        images: name of a column that holds images -> where they are.
        parts: the part of each row, if the file itself says so (several files, such as train-00000.parquet).
        notes: sentences for the user.
    """

    name: str
    columns: dict[str, list[Any]]
    rows: list[int]
    names: dict[str, list[str]] = field(default_factory=dict)
    images: dict[str, Packed] = field(default_factory=dict)
    parts: list[str] | None = None
    notes: list[str] = field(default_factory=list)

    def take(self, index: np.ndarray) -> "Table":
        """The rows at these positions, in this order."""
        columns = {name: [values[i] for i in index] for name, values in self.columns.items()}
        images = {name: packed.take(index) for name, packed in self.images.items()}
        parts = None if self.parts is None else [self.parts[i] for i in index]
        return replace(self, columns=columns, rows=[self.rows[i] for i in index], images=images, parts=parts)


def _decoded(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 with its mark, as spreadsheets write it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ExciteError(f"{path} cannot be read: {error.strerror or error}") from None
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ExciteError(
            f"{path}, row {line}: it is not UTF-8 text (byte {data[error.start]:#04x}); save it as UTF-8, "
            f"as with iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def read_csv(path: Path) -> Table:
    """Read a CSV or TSV file. Raises ExciteError; see :func:`~excite.data.table.read_table`."""
    text = _decoded(path)
    if "\0" in text:
        raise ExciteError(f"{path} is not text: it has a NUL byte")
    first = next((line for line in text.split("\n") if line.strip()), "")
    counts = {mark: len(next(csv.reader([first], delimiter=mark), [])) for mark in ",;\t|"}
    between = "\t" if path.suffix.lower() == ".tsv" else max(counts, key=counts.__getitem__)
    csv.field_size_limit(1 << 20)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    header: list[str] | None = None
    columns: list[list[Any]] = []
    rows: list[int] = []
    begin = 1
    try:
        for values in reader:
            row, begin = begin, reader.line_num + 1
            if not any(value.strip() for value in values):
                continue
            if header is None:
                header = [value.strip() for value in values]
                columns = [[] for _ in header]
                _check_header(path, header)
                continue
            if len(values) != len(header):
                raise ExciteError(
                    f"{path}, row {row}: it has {len(values)} values, but the header has {len(header)} columns "
                    f"({', '.join(map(shown_text, header))}); put values with {between!r} in them into quotes"
                )
            rows.append(row)
            for column, value in zip(columns, values, strict=True):
                column.append(value.strip() or None)
    except csv.Error as error:
        raise ExciteError(f"{path}, row {begin}: {error}") from None
    return Table(os.fspath(path), dict(zip(header or [], columns, strict=True)), rows)


def _check_header(path: Path, header: Sequence[str]) -> None:
    twice = [name for name, n in Counter(name for name in header if name).items() if n > 1]
    if twice:
        raise ExciteError(f"{path} has two columns {shown(twice[0])}: rename one of them")
    if any(is_image(name) for name in header):
        raise ExciteError(
            f"{path} has no header: its first row must name the columns, such as path,label (it is "
            f"{shown(','.join(header))})"
        )


def read_lines(path: Path) -> Table:
    """Read JSON lines. Raises ExciteError; see :func:`~excite.data.table.read_table`."""
    found: list[dict[str, Any]] = []
    rows: list[int] = []
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ExciteError(f"{path}, row {number}: it is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ExciteError(f'{path}, row {number}: it is not an object such as {{"path": "a.jpg", "label": "cat"}}')
        found.append(values)
        rows.append(number)
    names = dict.fromkeys(name for values in found for name in values)
    return Table(os.fspath(path), {name: [values.get(name) for values in found] for name in names}, rows)
