"""Reads class folders, with parts or without; see ``parts`` for the layouts and ``walk`` for which files count."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from excite.data.ahead import decoding_threads, spread
from excite.data.archive import tree_of
from excite.data.config import DataConfig
from excite.data.contents import Contents, Part
from excite.data.decode import BadImageError, BadImagesError
from excite.data.formats import EXTENSIONS
from excite.data.images import ArrayImages, FileImages, label_tensor
from excite.data.parts import PART_TITLES, Layout, class_names, find_layout
from excite.data.preprocessing import Preprocessing
from excite.data.room import room_for
from excite.data.walk import Found, ending
from excite.errors import ExciteError, nearest
from excite.threads import Threads

#: Endings of the files that are fetched from a folder at an address.
WANTED = EXTENSIONS


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts 2 before 10 and ignores case, as timm sorts class folders."""
    pieces = re.split(r"(\d+)", name.lower())
    return tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces)


def in_order(names: Sequence[str], order: Literal["string", "natural"] | None) -> list[str]:
    """Class names in label order: sorted as strings ("1", "10", "2"; the default) or naturally ("1", "2", "10")."""
    return sorted(names, key=(lambda name: (natural(name), name)) if order == "natural" else None)


def read_folder(root: Path, order: Literal["string", "natural"] | None = None, least: int = 2) -> Contents:
    """List the images of class folders, sorted by class and path. Sub-folders of a class belong to it.

    Args:
        root: a folder with parts, or with class folders; or an archive of such folders.
        order: the order of the classes; see :func:`in_order`.
        least: the least number of classes; for measuring, one is enough.

    Raises:
        ExciteError: there are no class folders, too few classes or no images; a class folder of the training part has
            no images, or the training part lacks a class; and see :func:`~excite.data.parts.find_layout`.
    """
    tree = tree_of(root)
    layout = find_layout(root, tree)
    names, first = class_names(layout)
    places = layout.places
    classes = in_order(
        names[first] if first in ("train", "all") else sorted({n for v in names.values() for n in v}), order
    )
    whole = tree.walk()
    found: dict[str, dict[str, Found]] = {}
    loose: dict[str, Found] = {}
    for part, place in places.items():
        unknown = [name for name in names[part] if name not in classes]
        if unknown:
            raise ExciteError(
                f"{place} has classes that the training images lack: {some(unknown)}"
                + nearest(unknown[0], classes, "remove or rename them")
            )
        found[part] = {name: whole.below(place / name) for name in names[part]}
        loose[part] = Found(other=Counter(ending(name) for name in tree.images(place)))
    whole.finish()
    notes = list(layout.notes)
    parts: dict[str, ArrayImages | Part] = {}
    for part, by_class in found.items():
        parts[part] = _part(layout, places[part], by_class, classes, part in ("train", "all"), notes)
        lying = loose[part].other.total()
        if lying:
            notes.append(f"{lying:,} images in {places[part]} are ignored, because they are not in a class folder")
    if len(classes) < least and first in ("train", "all"):
        raise ExciteError(f"{root} has only one class, {classes[0]!r}: a classifier needs at least two class folders")
    everything = Found()
    for by_class in found.values():
        for each in by_class.values():
            everything.add(each)
    if (left_out := everything.ignored()) is not None:
        notes.append(left_out)
    return Contents(classes, parts, notes, everything.unusable, os.fspath(layout.root))


def _part(
    layout: Layout, place: Path, by_class: Mapping[str, Found], classes: list[str], strict: bool, notes: list[str]
) -> Part:
    """Collect the files of a part. ``strict``: a class folder without images is an error rather than a note."""
    ordered = sorted(by_class, key=classes.index)
    empty = [name for name in ordered if not by_class[name].files]
    if len(empty) == len(by_class):
        everything = Found()
        for each in by_class.values():
            everything.add(each)
        left_out = everything.ignored()
        raise ExciteError(
            f"{place} has no images; searched {some(ordered)} for {' '.join(sorted(EXTENSIONS))}"
            + (f" ({left_out})" if left_out else "")
        )
    if empty and strict:
        raise ExciteError(f"{place} has class folders without images: {some(empty)}; fill or remove them")
    if empty:
        notes.append(f"class folders without images in {place}: {some(empty)}")
    files = [(file, classes.index(name)) for name in ordered for file in by_class[name].files]
    paths = [file.path for file, _ in files]
    images = FileImages(paths, [label for _, label in files], packed=layout.tree.packed(paths))
    sizes = np.array([file.size for file, _ in files], dtype=np.int64)
    modified = np.array([file.modified for file, _ in files], dtype=np.int64)
    return Part(images, sizes, modified, os.fspath(layout.root), os.fspath(place))


def some(names: Sequence[str]) -> str:
    """The first five names, and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def title(part: str) -> str:
    """The name of a part in messages: "validation" for "val"."""
    return PART_TITLES[part]


def decode_all(
    files: FileImages, preprocessing: Preprocessing, max_pixels: int
) -> tuple[ArrayImages, list[tuple[str, str]]]:
    """Decode files into memory, in parallel: uint8 (N, C, H, W), and (path, reason) of the unreadable ones.

    :func:`refuse_bad` handles the unreadable ones.
    """

    pixels = room_for((len(files), *preprocessing.shape))

    def some(positions: range) -> list[tuple[int, BadImageError]]:
        bad = []
        for position in positions:
            try:
                # Put in its place here: results that wait for the main thread would be all the pixels again.
                pixels[position] = preprocessing.load(files.source(position), max_pixels)
            except BadImageError as error:
                bad.append((position, error))
        return bad

    chunks = [range(i, min(i + 32, len(files))) for i in range(0, len(files), 32)]
    # Threads, not processes: Pillow releases the GIL while it decodes and resizes, and the pixels need not be copied.
    with Threads(decoding_threads([files.source(i) for i in spread(len(files))])) as pool:
        bad = dict(chain.from_iterable(pool.map(some, chunks)))
    good = [position for position in range(len(files)) if position not in bad]
    if bad:
        for place, position in enumerate(good):  # ascending, so that nothing is overwritten that is still needed
            if place < position:
                pixels[place] = pixels[position]
    labels = label_tensor(files.labels, good)
    names = files.names
    weights = None if files.weights is None else files.weights[good]
    images = ArrayImages(pixels[: len(good)], labels, [names[i] for i in good], weights)
    return images, [(error.path, error.reason) for error in bad.values()]


def refuse_bad(bad: Sequence[tuple[str, str]], on_bad: Literal["skip", "stop"], key: str, count: int) -> None:
    """Apply ``data.on_bad_train`` or ``data.on_bad_val`` to broken images.

    Args:
        bad: (path, reason) of each.
        on_bad: the rule.
        key: the key that sets it.
        count: number of images in all.

    Raises:
        BadImagesError: with "stop"; it names all of them.
        ExciteError: every image is broken.
    """
    if bad and on_bad == "stop":
        raise BadImagesError(bad, key)
    if bad and len(bad) == count:
        raise ExciteError(f"none of {count} images can be read; the first is {bad[0][0]}: {bad[0][1]}")


def read_source(data: DataConfig, root: Path, least_classes: int) -> Contents:
    """List class folders. Raises ExciteError; see :func:`read_folder`."""
    return read_folder(root, data.class_order, least_classes)
