"""Reads Parquet files and data sets of the Hugging Face Hub: columns of values, and images that are inside.

Images inside are copied once into the cache folder (:mod:`excite.data.unpacked`): a compressed column has to be read as
a whole, and training reads images in any order.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from excite.data.parts import part_named, part_of_file
from excite.data.root import HUB
from excite.data.tabular import Table
from excite.data.unpacked import unpacked
from excite.errors import ExciteError, first_line, install_line, shown
from excite.text import tell


def _pyarrow(path: str) -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ExciteError(f"{path}: reading Parquet needs pyarrow; type: {install_line('tables')}") from None
    return pyarrow.parquet


def read_parquet(path: Path) -> Table:
    """Read a Parquet file, or all of a folder. Each file whose name begins with a part's belongs to that part.

    Raises:
        ExciteError: a file is damaged; two files have other columns; some files are named after parts and some are not;
            or pyarrow is not installed.
    """
    parquet = _pyarrow(os.fspath(path))
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ExciteError(f"data.root={path} has no .parquet files")
    try:
        opened = [parquet.ParquetFile(file) for file in files]
        schema = opened[0].schema_arrow
        for file, each in zip(files, opened, strict=True):
            if each.schema_arrow.names != schema.names:
                raise ExciteError(f"{file} has other columns than {files[0]}: give one of them, or put them apart")
        images = [name for name in schema.names if _holds_images(schema.field(name).type)]
        plain = [name for name in schema.names if name not in images]
        read = [each.read(columns=plain, use_threads=False).to_pydict() for each in opened]
        counts = [each.metadata.num_rows for each in opened]
        table = Table(os.fspath(path), {name: [v for one in read for v in one[name]] for name in plain}, [])
        table.rows = list(range(1, sum(counts) + 1))
        table.names = _class_names(schema.metadata or {})
        parts = [part_of_file(file, path) if path.is_dir() else None for file in files]
        if any(parts):
            if None in parts:
                raise ExciteError(
                    f"{files[parts.index(None)]} is named after no part, but others of {path} are: rename it"
                )
            table.parts = [str(part) for part, n in zip(parts, counts, strict=True) for _ in range(n)]
        for name in images:
            table.columns[name] = [value for each in opened for value in _values(each, name, "path")]
            if table.columns[name] and all(each is None for each in _head(opened, name)):
                continue  # paths only: the images are files
            key = _key(
                name, [(os.fspath(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            )
            _copy(table, name, key, (value for each in opened for value in _values(each, name, "bytes")))
    except ExciteError:
        raise
    except Exception as error:  # pyarrow raises its own kinds, OSError, and nearly anything on damaged bytes
        raise ExciteError(f"{path} cannot be read as Parquet: {first_line(error)}") from None
    return table


def _holds_images(kind: Any) -> bool:
    """Whether a column holds images: bytes, or bytes and a path, as Hugging Face's data sets do."""
    from pyarrow import types

    if types.is_binary(kind) or types.is_large_binary(kind):
        return True
    return types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}


def _values(file: Any, column: str, what: str) -> Iterator[Any]:
    """The bytes or the paths of a column of images, a batch at a time."""
    for batch in file.iter_batches(batch_size=256, columns=[column], use_threads=False):
        values = batch.column(0)
        if hasattr(values, "field"):
            values = values.field(what)
        elif what == "path":
            yield from [None] * len(values)
            continue
        yield from values.to_pylist()


def _head(files: Sequence[Any], column: str) -> list[Any]:
    """The bytes of the first images."""
    return [value for _, value in zip(range(16), _values(files[0], column, "bytes"), strict=False)]


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Class names of the columns that have them, from what Hugging Face's library writes into a file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    found = {}
    for name, given in features.items() if isinstance(features, dict) else ():
        feature = given if isinstance(given, dict) else {}
        inner = feature.get("feature")
        feature = inner if isinstance(inner, dict) else feature  # of a list, as of several labels: what is in it
        if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
            found[name] = [str(each) for each in feature["names"]]
    return found


def _key(column: str, what: Sequence[Any]) -> str:
    return hashlib.sha256(repr([column, *what]).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _copy(table: Table, column: str, key: str, images: Iterator[bytes | None]) -> None:
    def present() -> Iterator[bytes]:
        for row, image in zip(table.rows, images, strict=True):
            if not image:
                raise ExciteError(f"{table.name}, row {row}: column {shown(column)} has no image")
            yield image

    table.images[column], size = unpacked(key, present(), len(table.rows), f"images of {table.name}", None)
    table.notes.append(f"its images are copied into the cache folder (EXCITE_CACHE), {size / 1e6:,.0f} MB")


def read_hub(name: str) -> Table:
    """Read a data set of the Hugging Face Hub, or a local folder that their ``datasets`` library can load.

    Args:
        name: ``owner/name``, or ``owner/name:configuration``.

    Raises:
        ExciteError: there is no such data set, it cannot be reached, it has no column of images, or ``datasets`` is not
            installed.
    """
    try:
        import datasets
    except ImportError:
        raise ExciteError(f"{HUB}{name} needs the library datasets; type: {install_line('tables')}") from None
    owner, _, configuration = name.partition(":")
    tell(f"loading {HUB}{name} with the library datasets {datasets.__version__} ...")
    try:
        loaded = datasets.load_dataset(owner, configuration or None)
    except Exception as error:  # of many kinds, also of the libraries below
        raise ExciteError(f"{HUB}{name} cannot be loaded: {first_line(error)}") from None
    sets = loaded if isinstance(loaded, dict) else {"all": loaded}
    features = next(iter(sets.values())).features
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise ExciteError(f"{HUB}{name} has no column of images; it has {', '.join(features)}")
    known = {split: "all" if split == "all" else part_named(split) for split in sets}
    used = {split: one for split, one in sets.items() if known[split] is not None}
    left = [split for split in sets if known[split] is None]
    if not used:
        used, known = sets, dict.fromkeys(sets, "all")
        left = []
    plain = [column for column in features if column not in images]
    table = Table(f"{HUB}{name}", {column: [] for column in [*plain, images[0]]}, [])
    kinds = {c: getattr(kind, "feature", kind) for c, kind in features.items()}  # of lists, what is in them
    table.names = {c: list(kind.names) for c, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)}
    parts: list[str] = []
    for split, one in used.items():
        for column in plain:
            table.columns[column] += one.with_format(None)[column][:]
        parts += [str(known[split])] * len(one)
    table.rows = list(range(1, len(parts) + 1))
    table.parts = parts
    if left:
        table.notes.append(f"not used, because they are no parts: {', '.join(left)}")
    raw = [
        one.select_columns([images[0]]).cast_column(images[0], datasets.Image(decode=False)) for one in used.values()
    ]
    table.columns[images[0]] = [value["path"] for one in raw for value in one[images[0]]]

    def all_bytes() -> Iterator[bytes | None]:
        for one in raw:
            for row in one:
                value = row[images[0]]
                yield value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()

    _copy(table, images[0], _key(images[0], [one._fingerprint for one in used.values()]), all_bytes())
    return table
