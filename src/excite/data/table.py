"""Reads tables with the path of each image (or the image itself), its label and more.

Columns are found by their usual names (:data:`USUAL`), unless ``data.columns`` names them.
"""

import contextlib
import os
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from excite.data.catalog import TABLES
from excite.data.config import ColumnsConfig, DataConfig
from excite.data.contents import Contents, Part
from excite.data.folder import in_order, some
from excite.data.formats import EXTENSIONS
from excite.data.images import ArrayImages, FileImages
from excite.data.labels import hot
from excite.data.packed import Packed
from excite.data.parquet import read_hub, read_parquet
from excite.data.parts import PART_NAMES, part_named
from excite.data.root import HUB, is_hub
from excite.data.tabular import Table, read_csv, read_lines, read_lists
from excite.data.walk import File, is_image, look_at, look_at_all
from excite.errors import ExciteError, absence, expanded, nearest, shown, shown_text
from excite.storage import is_remote, stage

#: Endings of the files that are fetched from a folder at an address.
WANTED = TABLES
#: The usual names of columns, in order of preference; see :func:`_plain`.
USUAL: Mapping[str, tuple[str, ...]] = {
    role: tuple(names.split())
    for role, names in {
        "path": "path image file filename file_name filepath file_path image_path img_path image_file image_name img "
        "fname image_id image_index id_code id",
        "label": "label class class_name label_name category target species y labels fine_label finding_labels tags",
        "part": "part split subset set partition is_valid is_val is_train",
        "group": "group group_id patient patient_id subject subject_id",
        "weight": "weight weights sample_weight",
    }.items()
}
#: What to do with files that hold tables in other forms.
_SAVED_AS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save it in the spreadsheet program as CSV, a file"),
    ".json": "write an object for each image, one a line, into a file",
    ".txt": "if it is a list (images/1.jpg cat), give its folder with data.source=table; otherwise give a file",
}
#: What yes and no mean in columns like ``is_valid``, by the part that they are named after.
_YES_NO = {"train": ("train", "val"), "val": ("val", "train"), "test": ("test", "train")}
#: If a column that was found by its name has so many rows per value or fewer, it is hardly one of classes.
_FEWEST_PER_CLASS = 2.0
#: What may stand between several classes that are written as one.
_JOINING = ("|", ";", ",", "/", "+", "&", " and ", "_", "-", " ")
#: Rows that a message names.
_NAMED = 5


def read_table(path: Path) -> Table:
    """Read a table from a file, or from a folder of Parquet files.

    Raises:
        ExciteError: the file is damaged, has no header, or holds no rows; a row has another number of values than the
            header; or the library for its format is not installed.
    """
    if path.is_dir() and not any(path.rglob("*.parquet")):
        table = read_lists(path)
    elif path.is_dir() or path.suffix.lower() == ".parquet":
        table = read_parquet(path)
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        table = read_lines(path)
    elif path.suffix.lower() in TABLES:
        table = read_csv(path)
    else:
        mend = _SAVED_AS.get(path.suffix.lower(), "give a file")
        raise ExciteError(f"data.root={path} is not a table: {mend} that ends in {' '.join(sorted(TABLES))}")
    if not table.rows:
        raise ExciteError(f"{path} has no rows")
    return table


# --- columns ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The columns that are used, and those of them that the user named.

    Attributes:
        flags: columns of 0 and 1, one for each class; then ``label`` is "".
    """

    path: str
    label: str
    part: str | None
    group: str | None
    weight: str | None
    told: frozenset[str]
    flags: tuple[str, ...] = ()


def choose_columns(table: Table, data: DataConfig) -> Chosen:
    """The columns with paths (or images), labels, parts and groups.

    Raises:
        ExciteError: ``data.columns`` names one that is not there; or there is none with a usual name, or several.
    """
    given = data.columns or ColumnsConfig()
    told: dict[str, str] = {role: name for role in USUAL if isinstance(name := getattr(given, role), str)}
    there = [name for name in table.columns if name]
    flags = given.label if isinstance(given.label, list) else []
    for role, name in [*told.items(), *(("label", name) for name in flags)]:
        if name not in table.columns:
            raise ExciteError(
                f"data.columns.{role}={shown_text(name)}: {table.name} has no such column{nearest(name, there)}"
                f" (it has {', '.join(map(shown_text, there))})"
            )
    found = dict(told)
    for role, usual in USUAL.items():
        if role in found or getattr(given, role) is False or (role == "label" and flags):
            continue
        by_name = {_plain(name): name for name in reversed(there) if name not in told.values()}
        match = next((by_name[_plain(name)] for name in usual if _plain(name) in by_name), None)
        if role == "path" and table.images:
            match = next(iter(table.images))
        if match is not None:
            found[role] = match
    several = data.task == "multilabel"
    if "label" not in found and not flags:  # all that hold nothing but 0 and 1
        flags = [name for name in there if name not in found.values() and _is_flag(table.columns[name])]
        if not several and (len(flags) < 2 or any(len(row) != 1 for row in _flagged(table, flags))):
            flags = []
    for role, what in (("path", "paths of the images"), ("label", "labels")):
        if role not in found and not (role == "label" and len(flags) > 1):
            raise ExciteError(
                f"{table.name}: which column has the {what}? It has {', '.join(map(shown_text, there))}: "
                f"name it with data.columns.{role}=NAME"
            )
    label = "" if flags else found["label"]
    part, group, weight = (found.get(role) for role in ("part", "group", "weight"))
    return Chosen(found["path"], label, part, group, weight, frozenset(told), tuple(flags))


def _plain(column: str) -> str:
    """The name of a column without what only its writer cares about: "Patient ID", "patient_id" and "PatientId"."""
    return re.sub(r"[\s_.-]+", "", column).lower()


_YES, _NO = frozenset(("1", "true", "yes")), frozenset(("0", "-1", "false", "no"))


def _is_flag(values: Sequence[Any]) -> bool:
    """Whether a column says of each image whether it has a class."""
    texts = {text.lower() for value in values if (text := text_of(value)) is not None}
    return bool(texts) and texts <= _YES | _NO


def _flagged(table: Table, flags: Sequence[str]) -> list[set[str]]:
    """The classes of each row whose columns hold a yes."""
    columns = [[(text_of(v) or "").lower() in _YES for v in table.columns[name]] for name in flags]
    return [{name for name, has in zip(flags, row, strict=True) if has} for row in zip(*columns, strict=True)]


#: Names, as :func:`_plain` writes them, that say of an image with several labels that it has none.
_NO_CLASS = {
    *("nofinding", "nofindings", "nodefect", "nodefects", "nolabel", "nolabels", "none", "nothing", "normal"),
    *("healthy", "negative", "background", "clean", "empty"),
}


def _told_none(data: DataConfig) -> list[str]:
    given = (data.columns.none if data.columns else None) or []
    return [given] if isinstance(given, str) else given


def without_none(sets: Sequence[set[str] | None], data: DataConfig) -> list[str]:
    """Take ``data.columns.none``, the names that say that an image has no class, out of the classes of images that may
    have several; notes on what was taken out, and on classes that read like such names."""
    if data.task != "multilabel":
        return []
    told = _told_none(data)
    every = {name for found in sets for name in found or ()}
    notes = []
    for name in told:
        having = [found for found in sets if found and name in found]
        beside = sum(not found <= {*told} for found in having)
        for found in having:
            found.discard(name)
        said = f"{len(having):,} images have {shown(name)}, which is no class (data.columns.none)"
        said += f"; {beside:,} of them have classes, which count" if beside else ""
        notes.append(
            said if having else f"no image has {shown(name)} (data.columns.none){nearest(name, sorted(every))}"
        )
    for name in sorted(every - {*told}):
        if _plain(name) in _NO_CLASS:
            having = [found for found in sets if found and name in found]
            beside = sum(len(found) > 1 for found in having)
            notes.append(
                f"{shown(name)} is trained as a class: {len(having):,} images have it, {beside:,} of them beside "
                f"others; if it says that an image has none, say data.columns.none={shlex.quote(name)}"
            )
    return notes


def _label_sets(table: Table, chosen: Chosen, data: DataConfig) -> list[set[str] | None]:
    """The classes of each row; None where there is none to read, which only images that may have none can have."""
    sets = _sets_as_written(table, chosen, data)
    table.notes += without_none(sets, data)
    return sets


def _sets_as_written(table: Table, chosen: Chosen, data: DataConfig) -> list[set[str] | None]:
    if chosen.flags:
        for name in chosen.flags:
            if not _is_flag(table.columns[name]):
                other = next(v for v in table.columns[name] if v is not None and not _is_flag([v]))
                raise ExciteError(f"{table.name}: column {shown(name)} has {shown(str(other))}, not 0 or 1")
        every = [(text_of(v) or "").lower() for name in chosen.flags for v in table.columns[name]]
        for what, count in (("empty", every.count("")), ("-1", every.count("-1"))):
            if count:
                table.notes.append(f"{count:,} values of the {len(chosen.flags)} classes are {what}: they count as 0")
        found = _flagged(table, chosen.flags)
        for row, names in zip(table.rows, found, strict=True) if data.task == "classes" else ():
            if len(names) != 1:
                has = f"{len(names)} classes ({', '.join(map(shown_text, sorted(names)[:5]))})" if names else "no class"
                raise ExciteError(
                    f"{table.name}, row {row}: it has {has} in the columns of 0 and 1: if images may have several or "
                    "none, say task=multilabel"
                )
        return list(found)
    values = table.columns[chosen.label]
    if data.task == "classes" or table.listed:  # a list is named after one class, whatever is in its name
        values = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in values]
        if lists := [row for row, value in zip(table.rows, values, strict=True) if isinstance(value, list)]:
            raise ExciteError(
                f"{table.name}: column {shown(chosen.label)} has lists ({_some_rows(lists)}): with several classes an "
                "image, say task=multilabel"
            )
        split = [[value] for value in values]
    else:
        mark = (data.columns.separator if data.columns else None) or _separator(values)
        if any(isinstance(value, str) and mark in value.strip() for value in values):
            table.notes.append(f"labels of an image are separated by {shown(mark)} (data.columns.separator)")
        split = [sorted(split_labels(value, mark)) for value in values]
    texts = [[text_of(v) for v in row] for row in split]
    if chosen.label in table.names:
        texts = [[_named(table, chosen.label, n, v) for v in row] for n, row in zip(table.rows, texts, strict=True)]
    sets = [{text for text in row if text is not None} for row in texts]
    return [found or (None if data.task == "classes" else set()) for found in sets]


def split_labels(value: Any, mark: str | None) -> set[str]:
    """The classes that a list, or a text with marks between them, names; the usual marks if none is given."""
    pieces = (
        value if isinstance(value, list) else str("" if value is None else value).split(mark or _separator([value]))
    )
    texts = (text_of(piece.strip() if isinstance(piece, str) else piece) for piece in pieces)
    return {text for text in texts if text is not None}


def _separator(values: Sequence[Any]) -> str:
    """What stands between the classes: the first usual mark that is there."""
    return next((mark for mark in "|;, " if any(mark in value for value in values if isinstance(value, str))), "|")


def text_of(value: Any) -> str | None:
    """A value as the name of a class, a part or a group; None if it is missing. 3.0 is 3, as pandas writes it."""
    if value is None or value == "" or value != value:  # NaN
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and re.fullmatch(r"-?\d+\.0", value):
        return value[:-2]
    return str(value)


def _some_rows(numbers: Sequence[int | str]) -> str:
    """ "row 3", or "rows 3, 5, 9 and 4 more"."""
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_NAMED]))}{more}"


def _parts(table: Table, column: str | None) -> list[str]:
    """The part of each row; "all" for all if there are no parts."""
    if column is None:
        return table.parts or ["all"] * len(table.rows)
    values = [text_of(value) for value in table.columns[column]]
    named_after = part_named(_plain(column)[2:]) if _plain(column).startswith("is") else None
    yes_no = _YES_NO.get(named_after or "")

    def part_of(value: str) -> str | None:
        text = value.strip().lower()
        return (
            part_named(value) if yes_no is None else yes_no[0] if text in _YES else yes_no[1] if text in _NO else None
        )

    known = {v: part_of(v) for v in set(values) if v is not None}
    if not known:
        return ["all"] * len(table.rows)
    unknown = [value for value, part in known.items() if part is None]
    if unknown:
        where = [row for row, value in zip(table.rows, values, strict=True) if value == unknown[0]]
        usual = "true or false" if yes_no else ", ".join(names[0] for names in PART_NAMES.values())
        raise ExciteError(
            f"{table.name}: column {shown(column)} has {shown(unknown[0])} ({_some_rows(where)}), which is no part: "
            f"write {usual}, or leave the column out with data.columns.part=false"
        )
    lacking = [row for row, value in zip(table.rows, values, strict=True) if value is None]
    if lacking:
        raise ExciteError(
            f"{table.name}: column {shown(column)} (the part) is empty in {_some_rows(lacking)}: fill them, "
            "or leave the column out with data.columns.part=false"
        )
    return [str(known[str(value)]) for value in values]


# --- images -----------------------------------------------------------------------------------------------------------


def _place(data: DataConfig, table: Table) -> str:
    """The folder that relative paths start from."""
    if data.images is None:
        if data.root is not None and is_remote(data.root):
            raise ExciteError(
                f"data.root={data.root} is a table at an address: say where its images are, as in data.images=s3://..."
            )
        return os.path.dirname(os.path.abspath(table.name))
    if is_remote(data.images):
        staged = stage(data.images, EXTENSIONS)
        table.notes += [staged.note] if staged.note else []
        return os.fspath(staged.path)
    folder = expanded(data.images)
    if not folder.is_dir():
        raise ExciteError(f"data.images={data.images} is not a folder: {absence(folder)}")
    return os.fspath(folder)


@dataclass
class _Files:
    """The files of the rows: None and a reason for those that cannot be used.

    Attributes:
        whole: the path of each row's file, as it was found; two spellings of one file are equal here.
    """

    files: list[File | None]
    whole: list[str]
    reasons: dict[int, str]
    notes: list[str]


_GONE = "it has vanished"
#: Endings that paths are tried with before all others; the number of paths that are tried.
_USUAL_ENDINGS = (".jpg", ".png", ".jpeg", ".tif", ".bmp", ".webp")
_TRIED = 20


def _most_are_files(paths: Sequence[str], cased: "_Cased | None") -> bool:
    """Whether more than half are files. On a network disk each look takes a while, so it ends as soon as it can."""
    lacking = 0
    for path in paths:
        lacking += not os.path.isfile(path if cased is None else cased.find(path) or path)
        if 2 * lacking >= len(paths):
            return False
    return True


def _look(paths: Sequence[str], place: str) -> _Files:
    """Look for the files that the paths name, also as other systems, other machines and lists without endings write
    them."""
    whole = [os.path.join(place, path) for path in paths]
    looked = _looked_at(whole)
    notes: list[str] = []
    lost = [i for i, (_, reason) in enumerate(looked) if reason == _GONE]

    def other_ways(lost: list[int], cased: _Cased | None) -> list[int]:
        """Look for lost files in other ways; those that are still lost."""
        while lost and (way := _otherwise([paths[i] for i in lost], place, len(lost) == len(paths), cased)):
            other, said = way
            again = _looked_at(other)
            found = [k for k, (file, _) in enumerate(again) if file is not None]
            if not found:
                break
            for k in found:
                whole[lost[k]], looked[lost[k]] = other[k], again[k]
            said += "" if len(lost) == len(paths) else f" ({len(found):,} of {len(paths):,} rows)"
            notes.append(f"paths of the images: {said}")
            lost = [i for k, i in enumerate(lost) if again[k][0] is None]
        return lost

    lost = other_ways(lost, None)
    cased = _Cased()
    for i in lost:
        if (path := cased.find(os.path.join(place, paths[i].replace("\\", "/")))) is not None:
            whole[i], looked[i] = path, look_at(path)
    others = [i for i in lost if looked[i][0] is not None]
    as_written = [whole[i] == os.path.join(place, paths[i].replace("\\", "/")) for i in others]
    if turned := sum(as_written):
        notes.append(f"paths of the images: \\ read as / ({turned:,} of {len(paths):,} rows)")
    if others := [i for i, same in zip(others, as_written, strict=True) if not same]:
        notes.append(
            f"paths of the images: {len(others):,} differ from their files in upper and lower case (or in how accents "
            f"are stored); the first is {shown(paths[others[0]])}"
        )
    other_ways([i for i in lost if looked[i][0] is None], cased)
    reasons = {i: "there is no such file" if r == _GONE else str(r) for i, (_, r) in enumerate(looked) if r}
    files = [file for file, _ in looked]
    return _Files(files, _one_spelling([os.path.normpath(path) for path in whole], files), reasons, notes)


def _one_spelling(whole: list[str], files: Sequence[File | None]) -> list[str]:
    """The same paths, with one spelling for each file: where disks take upper and lower case for the same (Windows,
    macOS), a file is there under several."""
    first: dict[str, str] = {}
    for i, path in enumerate(whole):
        other = first.setdefault(_case_free(path), path)
        if other != path and files[i] is not None:
            with contextlib.suppress(OSError):
                whole[i] = other if os.path.samefile(other, path) else path
    return whole


def _case_free(name: str) -> str:
    """What is the same for names that only differ in upper and lower case, or in how accents are stored (macOS: as
    marks of their own)."""
    return unicodedata.normalize("NFC", name).casefold()


def _looked_at(whole: Sequence[str]) -> list[tuple[File | None, str | None]]:
    """The file at each path, or why there is none."""
    addresses = {i for i, path in enumerate(whole) if "://" in path}
    looked = iter(look_at_all([path for i, path in enumerate(whole) if i not in addresses]))
    refused = (None, "it is an address: download the images first")
    return [refused if i in addresses else next(looked) for i in range(len(whole))]


def _otherwise(paths: Sequence[str], place: str, every: bool, cased: "_Cased | None") -> tuple[list[str], str] | None:
    """Whole paths of files that are not there as written, in another way that finds most of the first of them; and
    what the way is. ``every``: none of the table's files is there as written, so that the way may also leave out
    folders of another machine, and endings that the files do not have. ``cased``: in upper or lower case."""
    usual = [*_USUAL_ENDINGS, *(end.upper() for end in _USUAL_ENDINGS)]
    all_endings = [*usual, *sorted(EXTENSIONS - {*usual})]
    for mark in ("/", "\\"):
        told = [path.replace(mark, "/") for path in paths]
        depth = max(path.count("/") for path in told[:_TRIED]) if every else 0
        for left in range(depth + 1):
            short = [path.split("/", left)[-1] for path in told]
            if left and len(set(short)) < len(set(told)):
                break  # two files would become one
            for swap in (False, True) if every else (False,):
                stems = [os.path.splitext(path)[0] for path in short] if swap else short
                for end in ["", *(usual if left or swap else all_endings)]:
                    as_written = not (left or end or mark != "/")
                    first = [os.path.join(place, path + end) for path in stems[:_TRIED]]
                    if not as_written and _most_are_files(first, cased):
                        gone = {path[: len(path) - len(rest)] for path, rest in zip(told, short, strict=True)}
                        folders = shown_text(gone.pop()) if len(gone) == 1 else f"the first {left} folders"
                        ways = [f"{mark} read as /"] * (mark != "/") + [f"{folders} left out"] * bool(left)
                        ways += [f"{end} {'instead of their endings' if swap else 'added to each'}"] * bool(end)
                        found = [os.path.join(place, path + end) for path in stems]
                        if cased is not None:
                            found = [cased.find(path) or path for path in found]
                            ways.append("upper and lower case as the files have it")
                        return found, " and ".join(ways)
    return None


class _Cased:
    """Looks for files whose names differ in upper and lower case or in how accents are stored, as tables from Windows
    and macOS name them."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, list[str]]] = {}

    def find(self, path: str) -> str | None:
        """The one file or folder that is there; None if there is none, or several."""
        if os.path.lexists(path):
            return path
        above, name = os.path.split(path)
        folder = None if above in ("", path) or not name else self.find(above)
        if folder is None:
            return None
        if folder not in self._folders:
            names: dict[str, list[str]] = {}
            with contextlib.suppress(OSError):
                for each in os.listdir(folder):
                    names.setdefault(_case_free(each), []).append(each)
            self._folders[folder] = names
        there = self._folders[folder].get(_case_free(name), [])
        return os.path.join(folder, there[0]) if len(there) == 1 else None


# --- the source -------------------------------------------------------------------------------------------------------


def read_source(data: DataConfig, root: Path | None, least_classes: int) -> Contents:
    """List the images of a table; ``root`` is None for ``hf:``.

    Raises:
        ExciteError: see :func:`read_table` and :func:`choose_columns`; a row has no label or no image, or repeats
            another with another label or part; or there are too few classes.
    """
    table = read_hub(str(data.root).removeprefix(HUB)) if root is None else read_table(root)
    chosen = choose_columns(table, data)
    several = data.task == "multilabel"
    sets = _label_sets(table, chosen, data)
    notes = [_said(table, chosen), *table.notes]
    if table.listed and not several:  # a line that says that an image lacks a class says nothing else
        kept = np.array([i for i, found in enumerate(sets) if found], np.int64)
        table, sets = table.take(kept), [sets[i] for i in kept]
    parts = _parts(table, chosen.part)
    table, sets, parts, said = _without_blank_test(table, sets, parts)
    notes += said
    lacking = [row for row, found in zip(table.rows, sets, strict=True) if found is None]
    if lacking:
        raise ExciteError(
            f"{table.name}: column {shown(chosen.label)} (the label) is empty in {_some_rows(lacking)}: fill or remove "
            "them, or say task=multilabel if images may have several classes or none"
        )
    labels = [found or set() for found in sets]
    classes = _classes(table, chosen, data, labels, parts, least_classes)
    groups = None
    if chosen.group is not None and data.group_by is not None:
        notes.append(f"the groups in {shown(chosen.group)} have no effect: data.group_by={data.group_by} names others")
    elif chosen.group is not None:
        groups = [text_of(value) or "" for value in table.columns[chosen.group]]
        alone = groups.count("")
        notes += [f"{alone:,} rows without a group: each stands alone"] if alone else []
    weights = None
    if chosen.weight is not None and data.sampler == "weights":
        weights = _weights(table, chosen.weight)
    elif chosen.weight is not None:
        notes.append(f"the weights in {shown(chosen.weight)} have no effect: data.sampler=weights draws images by them")
    if chosen.path in table.images:
        if data.images is not None:
            notes.append(f"data.images={data.images} has no effect: the images are in the table")
        rows = list(range(len(table.rows)))
        names = _image_names(table, chosen.path)
        listed = _Listed(names, [f"{table.name}/{name}" for name in names], table.images[chosen.path], None)
        unusable: list[tuple[str, str]] = []
    else:
        rows, listed, unusable, said = _files_of(table, chosen, data, labels, parts)
        notes += said
    modified = os.stat(table.name).st_mtime_ns if os.path.exists(table.name) else 0
    numbers = {name: k for k, name in enumerate(classes)}
    out: dict[str, ArrayImages | Part] = {}
    for part in dict.fromkeys(parts[i] for i in rows):
        own = [at for at, i in enumerate(rows) if parts[i] == part]
        # By class and name: a run does not depend on the order of the rows.
        own.sort(key=lambda at: (-1 if several else _one(numbers, labels[rows[at]]), listed.names[at]))
        images = FileImages(
            [listed.paths[at] for at in own],
            hot([[numbers[name] for name in labels[rows[at]]] for at in own], len(classes))
            if several
            else [_one(numbers, labels[rows[at]]) for at in own],
            packed=None if listed.packed is None else listed.packed.take(np.array(own)),
            weights=None if weights is None else weights[[rows[at] for at in own]],
        )
        sizes = np.array([listed.size(at) for at in own], np.int64)
        dates = np.array([modified if listed.files is None else listed.files[at].modified for at in own], np.int64)
        own_groups = None if groups is None else [groups[rows[at]] or f"\0{listed.names[at]}" for at in own]
        out[part] = Part(images, sizes, dates, names=[listed.names[at] for at in own], groups=own_groups)
    if joined := _joined(classes):
        name, mark = joined[0]
        says = [] if several else ["task=multilabel"]
        says += [] if mark == _separator(classes) and not several else [f"data.columns.separator={shlex.quote(mark)}"]
        notes.append(
            f"{len(joined):,} of {len(classes):,} classes join others, such as {shown(name)}: if images have several "
            f"classes, say {' '.join(says)}"
        )
    named = [name for name in chosen.flags or table.names.get(chosen.label, ()) if name not in _told_none(data)]
    if unused := [name for name in named if name not in numbers]:
        notes.append(f"{len(unused):,} of {len(named):,} classes are left out, as no image has them: {some(unused)}")
    none = sum(not labels[i] for i in rows)
    notes += [f"{none:,} of {len(rows):,} images have none of the classes"] if none else []
    return Contents(classes, out, notes, unusable, table.name)


def _joined(classes: Sequence[str]) -> list[tuple[str, str]]:
    """The classes that are others with a mark between them, and that mark."""
    known = {*classes}
    return [
        (name, mark)
        for name in classes
        if (mark := next((m for m in _JOINING if len(both := name.split(m)) > 1 and _stripped(both) <= known), None))
    ]


def _stripped(names: Sequence[str]) -> set[str]:
    return {name.strip() for name in names}


def _weights(table: Table, column: str) -> np.ndarray:
    """float64 (N,): the weight of each row."""
    given = zip(table.rows, table.columns[column], strict=True)
    return np.array([weight_of(value, f"{table.name}, row {row}", f" in {shown(column)}") for row, value in given])


def weight_of(value: Any, where: str, column: str = "") -> float:
    """A weight: a number of at least 0. Raises ExciteError for anything else, naming ``where`` it is."""
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = float("nan")
    if not 0 <= weight < np.inf:
        what = "is missing" if text_of(value) is None else f"is {shown(str(value))}"
        if isinstance(value, str) and re.fullmatch(r"\d*,\d+", value):
            what += f" (write {value.replace(',', '.')})"
        raise ExciteError(
            f"{where}: the weight{column} {what}, not a number of at least 0; correct it, or say that there are no "
            "weights: data.columns.weight=false"
        )
    return weight


def _one(numbers: Mapping[str, int], label: set[str]) -> int:
    return numbers[next(iter(label))]


def _without_blank_test(
    table: Table, labels: list[set[str] | None], parts: list[str]
) -> tuple[Table, list[set[str] | None], list[str], list[str]]:
    """Without a test part that has no labels at all, as competitions publish it; and a note on it."""
    test = [label for label, part in zip(labels, parts, strict=True) if part == "test"]
    if not test or any(test) or len(test) == len(parts):
        return table, labels, parts, []
    kept = np.array([i for i, part in enumerate(parts) if part != "test"])
    note = f"the test part is not used: none of its {len(test):,} rows has a label"
    return table.take(kept), [labels[i] for i in kept], [parts[i] for i in kept], [note]


@dataclass
class _Listed:
    """The images that are there: a name that is the same everywhere, the path, and where each is."""

    names: list[str]
    paths: list[str]
    packed: Packed | None
    files: list[File] | None

    def size(self, at: int) -> int:
        if self.files is not None:
            return self.files[at].size
        assert self.packed is not None
        return int(self.packed.size[at])


def _said(table: Table, chosen: Chosen) -> str:
    roles = {"images": chosen.path, "labels": chosen.label or None, "parts": chosen.part, "groups": chosen.group}
    roles["weights"] = chosen.weight
    used = [f"{role} from {shown_text(name)}" for role, name in roles.items() if name is not None]
    if chosen.flags:
        used.append(f"{len(chosen.flags)} classes from columns of 0 and 1")
    unused = [shown_text(n) for n in table.columns if n and n not in roles.values() and n not in chosen.flags]
    more = f" and {len(unused) - 8} more" if len(unused) > 8 else ""
    rest = f"; not used: {', '.join(unused[:8])}{more}" if unused else ""
    name = table.name if is_hub(table.name) else os.path.basename(table.name)
    return f"table {name}: {len(table.rows):,} rows; {', '.join(used)}{rest}"


def _named(table: Table, column: str, row: int | str, value: str | None) -> str | None:
    names = table.names[column]
    if value is None or not value.lstrip("-").isdecimal() or not 0 <= int(value) < len(names):
        if value in (None, "-1"):  # how test parts without labels are published
            return None
        raise ExciteError(f"{table.name}, row {row}: label {shown(value)} is outside 0..{len(names) - 1}")
    return names[int(value)]


def _classes(
    table: Table, chosen: Chosen, data: DataConfig, labels: Sequence[set[str]], parts: Sequence[str], least: int
) -> list[str]:
    """The class names in the order of the labels: that of the file, by number if all are numbers, else by name."""
    first = next(part for part in ("train", "all", "val", "test") if part in parts)
    every = first not in ("train", "all")
    ours = {each for label, part in zip(labels, parts, strict=True) for each in label if every or part == first}
    for row, label, part in zip(table.rows, labels, parts, strict=True):
        if other := label - ours:
            name = min(other)
            raise ExciteError(
                f"{table.name}, row {row}: the {part} image has class {shown(name)}, which no training image has"
                f"{nearest(name, sorted(ours), 'correct or remove it')}"
            )
    if not ours:
        raise ExciteError(f"{table.name}: no training image has any class")
    if len(ours) < least:
        only = shown(next(iter(ours)))
        raise ExciteError(f"{table.name} has only one class, {only}: a classifier needs at least two")
    if "label" not in chosen.told and len(ours) > 20 and len(labels) < _FEWEST_PER_CLASS * len(ours):
        raise ExciteError(
            f"{table.name}: column {shown(chosen.label)} has {len(ours):,} different values in {len(labels):,} rows; "
            "is it the class? Name the right column with data.columns.label=NAME"
        )
    if chosen.flags and data.class_order is None:
        return [name for name in chosen.flags if name in ours]
    if chosen.label in table.names and data.class_order is None:
        return [name for name in table.names[chosen.label] if name in ours]
    numbers = all(label.lstrip("-").isdecimal() for label in ours)
    return sorted(ours, key=int) if numbers and data.class_order is None else in_order(list(ours), data.class_order)


def _image_names(table: Table, column: str) -> list[str]:
    """A name for each image that the table holds: its own path if no two have the same, else the number of its row."""
    own = [text_of(value) for value in table.columns[column]]
    if None not in own and len(set(own)) == len(own):
        return [str(name) for name in own]
    return [f"row-{row}" for row in table.rows]


def _files_of(
    table: Table, chosen: Chosen, data: DataConfig, labels: Sequence[set[str]], parts: Sequence[str]
) -> tuple[list[int], _Listed, list[tuple[str, str]], list[str]]:
    """The rows that are used, their files, what is left out, and notes."""
    place = _place(data, table)
    written = [text_of(value) for value in table.columns[chosen.path]]
    empty = [row for row, value in zip(table.rows, written, strict=True) if value is None]
    if empty:
        raise ExciteError(
            f"{table.name}: column {shown(chosen.path)} (the image) is empty in {_some_rows(empty)}: fill or remove "
            "them"
        )
    paths = [str(value) for value in written]
    looked = _look(paths, place)
    notes = list(looked.notes)
    first: dict[str, int] = {}
    rows, repeated, added = list[int](), list[int | str](), list[int | str]()
    for i, path in enumerate(paths):
        other = first.setdefault(looked.whole[i], i)
        if other == i:
            rows.append(i)
        elif parts[other] != parts[i] or (labels[other] != labels[i] and data.task == "classes"):
            what, *two = ("parts", parts[other], parts[i])
            if parts[other] == parts[i]:
                what, *two = ("labels", *labels[other], *labels[i])
            raise ExciteError(
                f"{table.name}, rows {table.rows[other]} and {table.rows[i]}: {shown(path)} has two {what}, "
                f"{shown(two[0])} and {shown(two[1])}; keep one"
                + (", or say task=multilabel" if what == "labels" else "")
            )
        elif not labels[i] <= labels[other]:
            labels[other].update(labels[i])
            added.append(table.rows[i])
        else:
            repeated.append(table.rows[i])
    if added:
        notes.append(f"{len(added):,} rows add classes to the image of an earlier row: {_some_rows(added)}")
    if repeated:
        notes.append(f"{len(repeated):,} rows repeat others and are used once: {_some_rows(repeated)}")
    unusable = _missing(
        table, data, [i for i in rows if i in looked.reasons], paths, parts, looked.reasons, len(rows), place
    )
    if unusable:
        notes.append(f"{len(unusable):,} rows without a file are left out; the first is {unusable[0][0]}")
        rows = [i for i in rows if i not in looked.reasons]
    files = [file for i in rows if (file := looked.files[i]) is not None]
    return rows, _Listed([paths[i] for i in rows], [file.path for file in files], None, files), unusable, notes


def _missing(
    table: Table,
    data: DataConfig,
    missing: Sequence[int],
    paths: Sequence[str],
    parts: Sequence[str],
    reasons: Mapping[int, str],
    count: int,
    place: str,
) -> list[tuple[str, str]]:
    """(path and row, reason) of files that are not there. Raises ExciteError where the recipe says to stop."""
    told = [(f"{paths[i]} (row {table.rows[i]})", reasons[i]) for i in missing]
    rules = {"train": data.on_bad_train, "all": data.on_bad_val}  # of all, some will be for validation
    stop = [i for i in missing if rules.get(parts[i], data.on_bad_val) == "stop"]
    if stop or len(missing) == count:
        named = missing if len(missing) == count else stop
        shown_rows = "; ".join(f"row {table.rows[i]}: {shown(paths[i])}: {reasons[i]}" for i in named[:_NAMED])
        key = "data.on_bad_train" if stop and parts[stop[0]] == "train" else "data.on_bad_val"
        mend = (
            "correct the paths, name the folder that they start from with data.images=FOLDER, or leave them out with "
            f"{key}=skip"
        )
        if len(missing) == count:
            mend = f"name the folder that the paths start from with data.images=FOLDER ({_holds(place)})"
        raise ExciteError(f"{table.name}: {len(named):,} of {count:,} images are not there ({shown_rows}): {mend}")
    return told


def _holds(place: str) -> str:
    """What the folder that paths start from holds, so that a user sees how its files are named."""
    try:
        with os.scandir(place) as entries:
            names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
    except OSError as error:
        return f"now it is {place}, which cannot be read: {error.strerror or error}"
    of_images = [name for name in names if is_image(name)] or names
    more = f" and {len(of_images) - 3:,} more" if len(of_images) > 3 else ""
    return f"now it is {place}, which has {', '.join(map(shown_text, of_images[:3])) or 'nothing'}{more}"
