"""Reads WebDataset shards: tar files in which files with the same name up to the first dot belong to one image.

    train-00000.tar    cat/001.jpg  cat/001.cls  cat/002.jpg  cat/002.cls ...
    index.json         what ``excite data pack`` knows about its shards: class names, sizes, check sums

Images are read where they are, in any order: the order of an epoch, and a resumed run, are those of any other source.
The format: https://github.com/webdataset/webdataset.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # the standard library's has no model in pydantic before Python 3.12

from excite.data.archive import Members, members
from excite.data.config import ColumnsConfig, DataConfig
from excite.data.contents import Contents, Part
from excite.data.folder import in_order
from excite.data.formats import EXTENSIONS
from excite.data.idx import read_names
from excite.data.images import ArrayImages, FileImages
from excite.data.labels import hot
from excite.data.packed import Container, Packed, read_at
from excite.data.parts import part_of_file
from excite.data.root import BETWEEN, is_pattern
from excite.data.table import USUAL, split_labels, text_of, weight_of, without_none
from excite.data.walk import is_litter
from excite.errors import ExciteError, shown, shown_text
from excite.files import LONGEST_JSON

#: Endings of the files that are fetched from a folder at an address.
WANTED = frozenset((".tar", ".json", ".txt"))
INDEX = "index.json"
#: Bytes of a label.
_LONGEST_LABEL = 1 << 16
_BRACES = re.compile(r"\{([^{}]*)\}")


def expand_braces(text: str) -> list[str]:
    """``train-{000..003}.tar`` and ``{train,val}-0.tar`` as all the names they stand for.

    Raises:
        ExciteError: it stands for more than 100,000 names.
    """
    match = _BRACES.search(text)
    if match is None:
        return [text]
    between = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if between:
        first, last = int(between[1]), int(between[2])
        if abs(last - first) >= 100_000:
            raise ExciteError(
                f"{shown_text(text)} stands for {abs(last - first) + 1:,} shards: give their folder instead"
            )
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        choices = [str(number).zfill(len(between[1])) for number in numbers]
    else:
        choices = match[1].split(",")
    found = [each for choice in choices for each in expand_braces(text[: match.start()] + choice + text[match.end() :])]
    return found


def expand(text: str) -> list[str]:
    """All names in ``data.root``. Raises ExciteError; see :func:`expand_braces`."""
    return [each for piece in text.split(BETWEEN) for each in expand_braces(piece)]


def beside(text: str) -> list[str]:
    """What may be beside shards at an address that are named one by one: their index."""
    first = expand(text)[0]
    return [f"{first.rpartition('/')[0]}/{INDEX}"] if first.lower().endswith(".tar") else []


class _Packed(TypedDict):
    """A shard in the index."""

    name: str
    bytes: int


class _Index(TypedDict):
    """What is read of an index."""

    made_by: str
    classes: list[str]
    shards: list[_Packed]


@dataclass(slots=True)
class _Sample:
    """The files of one image: what each is for -> its number in the shard.

    Attributes:
        own: files whose ending says what they are: ``1.jpg``, ``1.cls``, ``1.json``.
        named: files that have a name of their own before it, as in ``1.input.jpg`` and ``1.output.cls``.
    """

    own: dict[str, int] = field(default_factory=dict)
    named: dict[str, list[int]] = field(default_factory=dict)

    def get(self, what: str) -> int | None:
        """The number of its "image", "cls" or "json"; None if there is none, or if there are several to choose from."""
        several = self.named.get(what, ())
        return self.own.get(what, several[0] if len(several) == 1 else None)

    def endings(self, names: Sequence[str]) -> set[str]:
        """What the names of its files have behind their key."""
        numbers = [*self.own.values(), *(number for each in self.named.values() for number in each)]
        return {os.path.basename(names[number]).partition(".")[2] for number in numbers}


@dataclass
class _Found:
    """What the shards of a part hold."""

    names: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[set[str]] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    rows: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    dates: list[int] = field(default_factory=list)


def _shards(root: Path) -> tuple[list[Path], Path, Path]:
    """The shards, the folder that they are in, and their index."""
    text = os.fspath(root)
    if is_pattern(text):
        paths = [Path(each) for each in expand(text)]
        indices = [path for path in paths if path.name == INDEX]  # fetched from an address, it is not beside them
        paths = [path for path in paths if path not in indices]
        lacking = [path for path in paths if not path.is_file()]
        if lacking:
            raise ExciteError(
                f"data.root={text}: {len(lacking):,} of {len(paths):,} shards are not there; {lacking[0]} is one"
            )
        place = Path(os.path.commonpath([path.parent for path in paths]))
        return paths, place, indices[0] if indices else place / INDEX
    if root.is_file():
        return [root], root.parent, root.parent / INDEX
    paths = sorted(path for path in root.rglob("*.tar") if not is_litter(path.name))
    if not paths:
        raise ExciteError(f"data.root={root} has no shards (.tar files)")
    return paths, root, root / INDEX


def _index(path: Path) -> dict[str, Any]:
    """What ``excite data pack`` wrote; {} if it did not make these shards."""
    try:
        if path.stat().st_size > LONGEST_JSON:
            return {}
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or found.get("made_by") != "excite data pack":
        return {}
    try:
        return TypeAdapter(_Index).validate_python(found)  # type: ignore[return-value]
    except ValidationError:
        raise ExciteError(f"{path} is damaged: copy or pack the shards again") from None


def _check_shards(index: Mapping[str, Any], shards: Sequence[Path], place: Path, whole: bool) -> None:
    """Compare shards with the index: those that are missing, and those whose copy broke off."""
    known = {str(each["name"]): int(each["bytes"]) for each in index.get("shards", ())}
    there = {path.name: path.stat().st_size for path in shards}
    lacking = [name for name in known if name not in there] if whole else []
    if lacking:
        raise ExciteError(
            f"{place} lacks {len(lacking):,} of {len(known):,} shards that its {INDEX} lists; {lacking[0]} is one: "
            "copy or pack it again"
        )
    for name, size in there.items():
        if name in known and size != known[name]:
            raise ExciteError(
                f"{name} in {place} has {size:,} bytes, but {known[name]:,} when it was packed: copy or pack it again"
            )


def _samples(shard: Members) -> Iterator[_Sample]:
    """The images of a shard: members with one key. Mostly these follow each other, but not if tar packed a folder as
    its disk lists it. A key that comes again with files that it has already is another image."""
    found: list[_Sample] = []
    last: dict[tuple[str, str], _Sample] = {}
    key = None
    sample = _Sample()
    for number, name in enumerate(shard.names):
        folder, _, file = name.rpartition("/")
        if is_litter(file):
            continue
        stem, _, rest = file.partition(".")
        whole = rest.lower()
        end = whole.rpartition(".")[2]
        what = "image" if f".{end}" in EXTENSIONS else end
        if key != (folder, stem):
            key = (folder, stem)
            if key not in last or (end == whole and what in last[key].own):
                last[key] = _Sample()
                found.append(last[key])
            sample = last[key]
        if end == whole:
            sample.own.setdefault(what, number)
        else:
            sample.named.setdefault(what, []).append(number)
    yield from found


def _text(shard: Members, number: int) -> str:
    """The text of a small file in a shard."""
    offset, length = int(shard.rows[number, 0]), int(shard.rows[number, 1])
    return read_at(shard.file, offset, min(length, _LONGEST_LABEL)).decode("utf-8", "replace").strip()


@dataclass(slots=True)
class _Told:
    """What the files of an image say: its classes (None if there are none to read), group, weight; and why not."""

    labels: set[str] | None
    group: str | None = None
    weight: Any = None
    several: bool = False
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Keys:
    """The keys of .json files that hold the label, the group and the weight; ``named``: the user named the label's."""

    label: tuple[str, ...]
    group: tuple[str, ...]
    weight: tuple[str, ...]
    named: bool


def _keys(data: DataConfig) -> _Keys:
    columns = data.columns or ColumnsConfig()

    def of(role: str, *others: str) -> tuple[str, ...]:
        own = getattr(columns, role)
        return (own,) if isinstance(own, str) else () if own is False else (*others, *USUAL[role])

    return _Keys(of("label", "cls"), of("group"), of("weight"), isinstance(columns.label, str))


def _told(shard: Members, sample: _Sample, data: DataConfig, keys: _Keys) -> _Told:
    """Read the ``.cls`` and ``.json`` files of an image."""
    cls, file = sample.get("cls"), sample.get("json")
    given: Any = None if cls is None or keys.named else _text(shard, cls)
    group = weight = None
    there: tuple[str, ...] = ()
    if file is not None:
        try:
            values = json.loads(_text(shard, file))
        except (ValueError, RecursionError):
            values = None
        label: Any = None if keys.named else values  # the file may be the label itself
        if isinstance(values, dict):
            there = tuple(values)
            label, group, weight = (
                next((values[name] for name in names if name in values), None)
                for names in (keys.label, keys.group, keys.weight)
            )
        given = label if given is None or isinstance(label, list) else given
    group = text_of(group)
    if given is None or isinstance(given, dict):
        return _Told(None, group, weight, keys=there)
    if data.task == "multilabel":
        return _Told(split_labels(given, None), group, weight)
    one = given[0] if isinstance(given, list) and len(given) == 1 else given
    label = None if isinstance(one, list) else text_of(one)
    return _Told(None if label is None else {label}, group, weight, isinstance(one, list), there)


def _no_labels(root: Path, without: Sequence[str], several: int, endings: Mapping[str, int], keys: set[str]) -> str:
    """What to do if most images have no label."""
    one = f"; {without[0]} is one" if without else ""
    if several > len(without) / 2:
        return f"{several:,} images in the shards of {root} have lists of labels{one}: say task=multilabel"
    there = ", ".join(f".{end}" for end in sorted(endings) if end) or "nothing"
    mend = "each needs a file of the same name that ends in .cls (with the class) or .json (with label)"
    if keys:
        some = ", ".join(map(shown_text, sorted(keys)[:12]))
        mend = f"their .json files have {some}: if one of these is the class, name it with data.columns.label=NAME"
    elif any("/" in path for path in (each.rpartition(".tar/")[2] for each in without[:1])):
        mend += "; for class folders in a tar file, give the file itself with data.source=folder"
    return f"{len(without):,} images in the shards of {root} have no label{one} (their files end in {there}): {mend}"


def read_source(data: DataConfig, root: Path, least_classes: int) -> Contents:
    """List the images of all shards.

    Raises:
        ExciteError: there are no shards, or they are damaged; images have no label; shards are missing; or there are
            too few classes.
    """
    shards, place, beside_them = _shards(root)
    index = _index(beside_them)
    _check_shards(index, shards, place, whole=root.is_dir())
    parts = [part_of_file(path, place) for path in shards]
    if any(parts) and None in parts:
        raise ExciteError(
            f"{shards[parts.index(None)]} is named after no part, but other shards of {place} are: rename it"
        )
    found: dict[str, _Found] = {}
    unusable: list[tuple[str, str]] = []
    named = _keys(data)
    left, endings = Counter[str](), Counter[str]()
    without: list[str] = []
    lists, weighted, keys = 0, 0, set[str]()
    seen: set[tuple[int, str]] = set()
    for number, (path, part) in enumerate(zip(shards, parts, strict=True)):
        shard = members(path)
        into = found.setdefault(part or "all", _Found())
        unusable += [(f"{path}/{name}", reason) for name, reason in shard.unusable]
        for sample in _samples(shard):
            at = sample.get("image")
            if at is None:
                left["without an image" if "image" not in sample.named else "with several images"] += 1
                continue
            name = shard.names[at]
            if (number, name) in seen:
                raise ExciteError(f"{path} has two images {shown(name)}: pack it again, with a name for each")
            seen.add((number, name))
            told = _told(shard, sample, data, named)
            if told.labels is None:
                without.append(f"{path}/{name}")
                lists += told.several
                keys.update(told.keys)
                endings.update(sample.endings(shard.names))
                continue
            into.names.append(unquote(name) if index else name)
            into.paths.append(f"{path}/{name}")
            into.labels.append(told.labels)
            into.groups.append(told.group)
            into.weights.append(told.weight if data.sampler == "weights" else None)
            weighted += told.weight is not None
            into.rows.append((number, *shard.rows[at].tolist()))
            into.dates.append(shard.file.modified)
    images = sum(len(each.names) for each in found.values())
    if not images and not without:
        several = f": each of {left['with several images']:,} samples has several" * bool(left["with several images"])
        raise ExciteError(f"the shards of {root} have no images{several or ': give others'}")
    if len(without) > images:
        raise ExciteError(_no_labels(root, without, lists, endings, keys))
    notes = [f"read from {len(shards):,} shards"] if len(shards) > 1 else []
    notes += [f"{len(without):,} images without a label are left out; the first is {without[0]}"] if without else []
    notes += [f"{n:,} samples {what} are left out" for what, n in left.items()]
    notes += without_none([labels for each in found.values() for labels in each.labels], data)
    if weighted and data.sampler != "weights":
        notes.append(f"the weights of {weighted:,} images have no effect: data.sampler=weights draws images by them")
    for each in found.values():
        if len(set(each.names)) < len(each.names):  # then only the shard tells them apart
            each.names = [f"{shards[row[0]].name}/{name}" for row, name in zip(each.rows, each.names, strict=True)]
    classes, names = _classes(data, index, found, place, least_classes)
    files = [Container.of(path) for path in shards]
    out: dict[str, ArrayImages | Part] = {}
    for part, each in found.items():
        if each.names:
            prefix = "" if part == "all" else f"{part}/"
            numbers = {text: classes.index(name) for text, name in names.items()}
            out[part] = _part(each, numbers, len(classes), files, prefix, data.task == "multilabel")
    return Contents(classes, out, notes, unusable, os.fspath(place))


def _part(
    found: _Found, numbers: Mapping[str, int], classes: int, files: list[Container], prefix: str, several: bool
) -> Part:
    own = [[numbers[label] for label in labels] for labels in found.labels]
    # By class and name: a run does not depend on how the images are spread over shards.
    order = sorted(range(len(found.names)), key=lambda i: (-1 if several else own[i][0], found.names[i]))
    packed = Packed.of(files, [found.rows[i] for i in order])
    labels = hot([own[i] for i in order], classes) if several else [own[i][0] for i in order]
    images = FileImages([found.paths[i] for i in order], labels, packed=packed, weights=_weights(found, order))
    dates = np.array([found.dates[i] for i in order], np.int64)
    names = [found.names[i] for i in order]
    groups = None
    if any(group is not None for group in found.groups):
        groups = [found.groups[i] or f"\0{name}" for i, name in zip(order, names, strict=True)]
    return Part(images, packed.size, dates, names=names, prefix=prefix, groups=groups)


def _weights(found: _Found, order: Sequence[int]) -> np.ndarray | None:
    """float64 (N,): the weights of the images; None if none has one."""
    if all(weight is None for weight in found.weights):
        return None
    return np.array([weight_of(found.weights[i], found.paths[i]) for i in order])


def _classes(
    data: DataConfig, index: Mapping[str, Any], found: Mapping[str, _Found], place: Path, least: int
) -> tuple[list[str], dict[str, str]]:
    """The class names in the order of the labels, and the class that each text of a label stands for."""
    texts = {label for each in found.values() for labels in each.labels for label in labels}
    listed = index.get("classes")
    if listed is None and (place / "classes.txt").is_file():
        listed = read_names(place / "classes.txt")
    numbers = all(text.isdecimal() for text in texts)
    if listed is not None and numbers:
        beyond = [text for text in texts if int(text) >= len(listed)]
        if beyond:
            raise ExciteError(f"{place}: label {beyond[0]} is outside 0..{len(listed) - 1}, the classes that it lists")
        return list(listed), {text: listed[int(text)] for text in texts}
    first = next(part for part in ("train", "all", "val", "test") if part in found and found[part].labels)
    ours = {label for labels in found[first].labels for label in labels} if first in ("train", "all") else texts
    if not ours:
        raise ExciteError(f"{place}: no training image has any class")
    if unknown := sorted(texts - ours):
        raise ExciteError(f"{place}: {shown(unknown[0])} is a class of other images, but of no training image")
    if len(ours) < least:
        raise ExciteError(f"{place} has only one class, {shown(next(iter(ours)))}: a classifier needs at least two")
    if numbers and data.class_order is None:
        return sorted(ours, key=int), {text: text for text in texts}
    return in_order(list(ours), data.class_order), {text: text for text in texts}
