"""Finds the folders of a data set's parts: training, validation, test.

    root/train root/val root/test    parts, under any of their usual names, in upper or lower case
    root/cat root/dog                no parts: class folders, of which some images are held out
    root/photos/...                  either of these one level down, as in an unpacked archive

Nothing here opens an image or imports torch.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from excite.data.walk import DISK, Tree
from excite.errors import ExciteError

#: The usual names of each part, in lower case.
PART_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
#: The name of a part in messages.
PART_TITLES: Mapping[str, str] = {"train": "training", "val": "validation", "test": "test", "all": "all"}

_KNOWN = {name: part for part, names in PART_NAMES.items() for name in names}
#: The usual names with common prefixes and suffixes: training_set, seg_train, val-images, 2_test.
_DRESSED = re.compile(
    rf"(?:[a-z0-9]+[ _.-])?({'|'.join(sorted(_KNOWN, key=len, reverse=True))})"
    r"(?:[ _.-]?(?:set|data|images?|imgs?|split|part))?"
)


@dataclass(frozen=True)
class Layout:
    """The folders of a data set's parts.

    Attributes:
        root: the folder that holds the parts, or the class folders.
        parts: "train", "val", "test" -> folder; empty if ``root`` holds class folders.
        unused: folders of ``root`` that are not a part and are ignored; empty if there are no parts.
        notes: sentences for the user.
        tree: where these folders are: on the disk, or in an archive.
    """

    root: Path
    parts: Mapping[str, Path]
    unused: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)
    tree: Tree = DISK

    @property
    def places(self) -> Mapping[str, Path]:
        """Part (or "all") -> the folder that holds its class folders."""
        return self.parts or {"all": self.root}


def part_named(name: str) -> str | None:
    """The part that has this folder name among its usual names; None for any other name."""
    return _KNOWN.get(name.strip().lower())


def part_of_file(path: Path, root: Path) -> str | None:
    """The part that a file below ``root`` is named after, as ``train-00000.tar``, ``imagenet1k-validation-00.tar`` and
    ``val/0.parquet`` are."""
    *folders, file = path.relative_to(root).parts
    words = re.split(r"[-_.]", file)
    found = [part_named(re.split(r"[-_]", name)[0]) for name in [*folders, words[0]]]
    inside = {part for word in words[1:] if (part := part_named(word)) is not None}
    found += inside if found[-1] is None and len(inside) == 1 else []
    return next((part for part in reversed(found) if part is not None), None)


def part_resembled(name: str) -> str | None:
    """The part that a name resembles, with a prefix or suffix (``training_set``, ``seg_test``); None for any other."""
    match = _DRESSED.fullmatch(name.strip().lower())
    return None if match is None else _KNOWN[match[1]]


def find_layout(root: Path, tree: Tree = DISK) -> Layout:
    """Find the parts of a data set, or its class folders, in ``root`` of ``tree``.

    Raises:
        ExciteError: a folder cannot be listed, two folders stand for the same part, the folder holds several data sets,
            class folders contain parts or are named like parts, or parts have no class folders.
    """
    found = _layout(root, tree)
    if found is not None:
        return found
    inner = _wrapped(root, tree)
    if inner is not None:
        deeper = _layout(inner, tree) or Layout(inner, {}, tree=tree)
        deeper.notes.insert(0, f"the data set is one level down, in {os.path.relpath(inner, root)}/")
        return deeper
    names = _listed(root, tree)
    _refuse_names_of_parts(root, names)
    _refuse_parts_in_classes(root, names, tree)
    return Layout(root, {}, tree=tree)


def _listed(place: Path, tree: Tree) -> list[str]:
    try:
        return tree.folders(place)
    except OSError as error:
        raise ExciteError(f"{place} cannot be read: {error.strerror or error}") from None


def _layout(root: Path, tree: Tree) -> Layout | None:
    """The parts in a folder; None if there are none."""
    names = _listed(root, tree)
    by_part: dict[str, list[str]] = {}
    for name in names:
        part = part_named(name)
        if part is not None and _listed(root / name, tree):  # without folders in it, it is a class, such as trains
            by_part.setdefault(part, []).append(name)
    if not by_part:
        return _dressed(root, names, tree)
    for part, several in by_part.items():
        if len(several) > 1:
            raise ExciteError(
                f"{root} has {len(several)} folders for the {PART_TITLES[part]} part: {_some(several)}; keep one and "
                "move or rename the others"
            )
    chosen = {part: root / several[0] for part, several in by_part.items()}
    parts = {part: _unwrapped(folder, tree) for part, folder in chosen.items()}
    unused = [name for name in names if root / name not in chosen.values()]
    notes = (
        [f"ignored, not {'parts' if len(unused) > 1 else 'a part'} of the data set: {_some(unused, '/')}"]
        if unused
        else []
    )
    for name in unused:
        if part_named(name) is not None:
            notes.append(f"{name}/ is ignored: it has no class folders, so its images have no labels")
    return Layout(root, parts, unused, notes, tree)


def _dressed(root: Path, names: Sequence[str], tree: Tree) -> Layout | None:
    """Parts with a prefix or suffix, such as ``training_set`` and ``test_set``, if all folders have such names."""
    resembled = {name: part_resembled(name) for name in names}
    parts = [part for part in resembled.values() if part is not None]
    if len(parts) < max(2, len(names)) or "train" not in parts or len(set(parts)) < len(parts):
        return None
    if not all(_listed(root / name, tree) for name in names):
        return None
    found = {str(part): _unwrapped(root / name, tree) for name, part in resembled.items()}
    return Layout(root, found, (), [f"parts recognised by name: {_some(names, '/')}"], tree)


def _unwrapped(part: Path, tree: Tree) -> Path:
    """A part's folder, or the only folder in it if that has the same name: ``seg_train/seg_train/CLASS``."""
    inside = _listed(part, tree)
    if len(inside) == 1 and (inside[0] == part.name or part_named(inside[0])) and _listed(part / inside[0], tree):
        return part / inside[0]
    return part


def _wrapped(root: Path, tree: Tree) -> Path | None:
    """The folder one level down that holds the data set: the only one there, or the only one with parts."""
    names = _listed(root, tree)
    with_parts = [name for name in names if _has_parts(root / name, tree)]
    if len(with_parts) == 1 and (
        len(names) == 1 or not _holds_images(root, [n for n in names if n != with_parts[0]], tree)
    ):
        return root / with_parts[0]
    if len(with_parts) > 1:
        if len(with_parts) == len(names):
            raise ExciteError(
                f"each folder of {root} has its own parts ({_some(with_parts, '/')} hold train/ and the like): "
                f"give one of them, as in data.root={root / with_parts[0]}; or, if they are the classes, put them "
                f"inside the parts: train/{with_parts[0]}/, train/{with_parts[1]}/ ..."
            )
        raise ExciteError(
            f"{root} holds several data sets with parts ({_some(with_parts, '/')}): give one of them, as in "
            f"data.root={root / with_parts[0]}"
        )
    if len(names) == 1 and len(_listed(root / names[0], tree)) > 1 and not tree.images(root / names[0]):
        return root / names[0]
    return None


def _has_parts(folder: Path, tree: Tree) -> bool:
    """Whether a folder has a training part or at least two parts: a single folder named "test" is weak evidence."""
    found = {
        part_named(name) for name in _listed(folder, tree) if part_named(name) and _listed(folder / name, tree)
    } - {None}
    return "train" in found or len(found) > 1


def _holds_images(root: Path, names: Sequence[str], tree: Tree) -> bool:
    return any(tree.images(root / name) for name in names)


def _refuse_names_of_parts(root: Path, names: Sequence[str]) -> None:
    """Class folders named like parts would train a network that tells "Testing" from "Training"."""
    resembled = [part_named(name) or part_resembled(name) for name in names]
    if len(names) >= 2 and all(resembled) and len(set(resembled)) > 1:
        raise ExciteError(
            f"{root} only has parts of a data set without class folders in them ({_some(names, '/')}): put "
            f"the images of each class into its own folder, as in {root / names[0]}/CLASS/"
        )
    if len(names) == 1 and resembled[0] is not None:
        raise ExciteError(
            f"{root} only has {names[0]}/, without class folders in it: put the images of each class into its own "
            f"folder, as in {root / names[0]}/CLASS/"
        )


def _refuse_parts_in_classes(root: Path, names: Sequence[str], tree: Tree) -> None:
    """Refuse ``cat/train/1.jpg``: mixing parts that were kept apart would train on the test images."""
    for name in names:
        inside = {part_named(each) for each in _listed(root / name, tree)} - {None}
        if "train" in inside and len(inside) > 1:
            parts = [each for each in _listed(root / name, tree) if part_named(each)]
            raise ExciteError(
                f"{root / name} has parts in it ({_some(parts, '/')}): "
                f"put the class folders inside the parts, as in {root / 'train' / name}/"
            )


def _some(names: Sequence[str], end: str = "") -> str:
    shown = ", ".join(f"{name}{end}" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def class_names(layout: Layout) -> tuple[dict[str, list[str]], str]:
    """The class folders of each part, and the part that defines the classes. Raises ExciteError if there are none."""
    places = layout.places
    first = next(part for part in ("train", "all", "val", "test") if part in places)
    names = {part: layout.tree.folders(place) for part, place in places.items()}
    if not names[first]:
        raise ExciteError(_no_classes(places[first], layout.tree))
    return names, first


def _no_classes(place: Path, tree: Tree) -> str:
    lying = len(tree.images(place))
    what = f", but {lying:,} images" if lying else ""
    return f"{place} has no class folders{what}: put the images of each class into a folder named after the class"
