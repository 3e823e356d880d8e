"""The columns of a table, read from CSV, TSV, JSON lines or Parquet.

Rows are named as an editor or a spreadsheet counts them: the header is row 1.
"""

import csv
import io
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from excite.data.packed import Packed
from excite.data.parts import part_named
from excite.data.walk import is_image
from excite.errors import ExciteError, shown, shown_text


@dataclass
class Table:
    """The columns of a table.

    Attributes:
        name: its path, for messages.
        columns: name -> values; None for a value that is missing.
        rows: the number of each row, as an editor counts; in a folder of lists, also the list ("3 of cat.txt").
        names: name of a column -> class names, for columns of numbers that the file itself gives names for.
        images: name of a column that holds images -> where they are.
        parts: the part of each row, if the file itself says so (several files, such as train-00000.parquet).
        notes: sentences for the user.
        listed: whether each row is a line of a list, so that an image without any class is in none.
    """

    name: str
    columns: dict[str, list[Any]]
    rows: Sequence[int | str]
    names: dict[str, list[str]] = field(default_factory=dict)
    images: dict[str, Packed] = field(default_factory=dict)
    parts: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    listed: bool = False

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
            f"{path}, row {line}: it is not UTF-8 text (byte {data[error.start]:#04x}); save it as UTF-8, as with "
            f"iconv -f WINDOWS-1252 -t UTF-8 {shlex.quote(os.fspath(path))} > utf8-{path.name}"
        ) from None


def read_csv(path: Path) -> Table:
    """Read a CSV or TSV file. Raises ExciteError; see :func:`~excite.data.table.read_table`."""
    text = _decoded(path)
    if "\0" in text:
        raise ExciteError(f"{path} is not text: it has a NUL byte")
    told = re.match(r"sep=(.)\r?\n", text)  # how Excel is told what stands between columns; it is no row of the table
    text = "\n" + text[told.end() :] if told else text  # rows are still counted as an editor does
    first = next((line for line in text.splitlines() if line.strip()), "")
    counts = {mark: _columns(first, mark) for mark in ",;\t|"}
    between = "\t" if path.suffix.lower() == ".tsv" else max(counts, key=counts.__getitem__)
    between = told[1] if told else between
    csv.field_size_limit(1 << 20)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    header: list[str] | None = None
    columns: list[list[Any]] = []
    rows: list[int] = []
    short: list[int] = []
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
            while len(values) > len(header) and not values[-1].strip():
                values.pop()  # a comma at the end of the row
            if len(values) < len(header):  # spreadsheets leave out empty values at the end
                short.append(row)
                values += [""] * (len(header) - len(values))
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
    table = Table(os.fspath(path), dict(zip(header or [], columns, strict=True)), rows)
    if short:
        table.notes.append(
            f"{len(short):,} rows have fewer values than the header (the first is row {short[0]}): the others count as "
            "empty"
        )
    return table


def _columns(line: str, mark: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=mark), []))
    except csv.Error:  # the row is read, and the mistake named, below
        return 0


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


def read_lists(folder: Path) -> Table:
    """Read a folder of lists, one for each class: ``cat.txt``, or ``cat_train.txt`` and ``cat_val.txt``, with an image
    a line. After the image may stand 1, or what it is not in the list for: 0 or -1, as in PASCAL VOC. The images in
    ``train.txt`` and ``val.txt`` may have no class; if there are no other lists, it is the last word of each line.

    Raises:
        ExciteError: there are no lists, or no line names a class.
    """
    rows: list[int | str] = []
    files = sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))
    if not files:
        raise ExciteError(f"data.root={folder} has neither .parquet files nor lists of images (CLASS.txt)")
    found: list[tuple[str, str | None, str | None]] = []
    left: list[str] = []
    stems = {path.stem for path in files}
    for path in files:
        label, _, end = path.stem.rpartition("_")
        part = part_named(path.stem) or (part_named(end) if label else None)
        if end == "trainval" or path.stem == "trainval":
            other = f"{label}_train" if label else "train"
            if other in stems:
                left.append(path.name)
                continue
        own = None if part_named(path.stem) or path.stem == "trainval" else label if part else path.stem
        for number, line in enumerate(_decoded(path).splitlines(), 1):
            image, has = _listed(path, number, line)
            if image is not None:
                found.append((image, own if has else None, part))
                rows.append(f"{number} of {path.name}")
    parts = {part for _, _, part in found}
    if None in parts and len(parts) > 1:
        raise ExciteError(f"{folder}: some lists are of parts (NAME_train.txt) and some are not: rename them")
    columns: dict[str, list[Any]] = {"image": [image for image, _, _ in found], "label": [k for _, k, _ in found]}
    if None not in parts:
        columns["part"] = [part for _, _, part in found]
    read = [path for path in files if path.name not in left]
    if all(part_named(path.stem) or path.stem == "trainval" for path in read):  # lines such as "images/1.jpg 3"
        columns["image"], columns["label"] = _labelled(read)
    elif not any(columns["label"]):
        raise ExciteError(f"{folder}: no list names a class: give lists CLASS.txt or CLASS_train.txt, or a .csv file")
    notes = [
        f"lists that are not used: {', '.join(left[:5])}" + (f" and {len(left) - 5} more" if len(left) > 5 else "")
    ]
    return Table(os.fspath(folder), columns, rows, notes=notes if left else [], listed=True)


def _labelled(files: Sequence[Path]) -> tuple[list[Any], list[Any]]:
    """The images and their classes in lists that have both in each line."""
    pairs: list[tuple[str, str]] = []
    for path in files:
        for number, line in enumerate(_decoded(path).splitlines(), 1):
            image, *label = line.strip().rsplit(maxsplit=1)[:2] if line.strip() else ("",)
            if image and (not label or is_image(label[0])):
                raise ExciteError(
                    f"{path}, row {number}: there is no class behind the image (write images/1.jpg cat), nor are there "
                    "lists of classes (CLASS.txt)"
                )
            pairs += [(image, label[0])] if image else []
    return [image for image, _ in pairs], [label for _, label in pairs]


def _listed(path: Path, number: int, line: str) -> tuple[str | None, bool]:
    """The image in a line of a list, and whether it has the class."""
    words = line.rsplit(maxsplit=1)
    if len(words) == 2 and words[1] in ("1", "0", "-1"):
        return words[0].strip(), words[1] == "1"
    return line.strip() or None, True
