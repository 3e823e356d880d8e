"""Class folders: `train/` with `val/`, `validation/` or `test/`, or one folder of class folders that is split."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Literal

import torch

from excite.data.decode import BadImageError
from excite.data.formats import EXTENSIONS
from excite.data.images import ArrayImages, FileImages
from excite.data.preprocessing import Preprocessing
from excite.errors import ExciteError

VALIDATION_NAMES = ("val", "validation", "test")


def scan(root: Path, classes: list[str] | None = None) -> tuple[list[str], FileImages]:
    """List the images of a folder of class folders, sorted by class and path; sub-folders of a class belong to it.

    With `classes` (those of the training part) given, class folders must be among them. Raises ExciteError for a
    folder without class folders, a class folder without images, and an unknown class.
    """
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise ExciteError(f"{root} has no class folders: put the images of each class into a folder named after it")
    names = found if classes is None else classes
    unknown = [name for name in found if name not in names]
    if unknown:
        raise ExciteError(f"{root} has classes that the training images lack: {_some(unknown)}; remove or rename them")
    paths: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for name in found:
        images = sorted(_walk(root / name))
        empty += [] if images else [name]
        paths += images
        labels += [names.index(name)] * len(images)
    if len(empty) == len(found):
        kinds = " ".join(sorted(EXTENSIONS))
        raise ExciteError(f"{root} has no images: looked in {_some(found)} for {kinds}")
    if empty:
        raise ExciteError(f"{root} has class folders without images: {_some(empty)}; fill or remove them")
    return names, FileImages(paths, labels)


def _walk(folder: Path) -> list[str]:
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(place, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def read_folder(root: Path) -> tuple[list[str], FileImages, FileImages | None]:
    """Class names, training files, and validation files or None where the folder has no such part."""
    if not (root / "train").is_dir():
        names, train = scan(root)
        if len(names) == 1 and names[0] in VALIDATION_NAMES:
            raise ExciteError(f"{root} has {names[0]}/ but no train/: put the training images into {root / 'train'}")
        val = None
    else:
        names, train = scan(root / "train")
        held_out = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
        val = None if held_out is None else scan(held_out, names)[1]
    if len(names) < 2:
        raise ExciteError(f"{root} has only one class, {names[0]!r}: a classifier needs at least two class folders")
    return names, train, val


def decode_all(
    files: FileImages, preprocessing: Preprocessing, max_pixels: int, on_bad: Literal["skip", "stop"]
) -> tuple[ArrayImages, list[tuple[str, str]]]:
    """Decode files into memory, in parallel: uint8 (N, C, S, S), and the (path, reason) of those left out.

    Raises BadImageError for the first broken image under "stop", ExciteError where no image is left.
    """

    def some(paths: list[str]) -> list[torch.Tensor | BadImageError]:
        results: list[torch.Tensor | BadImageError] = []
        for path in paths:
            try:
                results.append(preprocessing.load(path, max_pixels))
            except BadImageError as error:
                results.append(error)
        return results

    size = preprocessing.image_size
    pixels = torch.empty((len(files), preprocessing.in_chans, size, size), dtype=torch.uint8)
    good: list[int] = []  # positions
    bad: list[tuple[str, str]] = []
    chunks = [files.paths[i : i + 32] for i in range(0, len(files), 32)]
    # Threads, not processes: Pillow releases the GIL while it decodes and resizes, and the pixels stay where they are.
    with ThreadPoolExecutor(_threads(files.paths)) as pool:
        for position, result in enumerate(chain.from_iterable(pool.map(some, chunks))):
            if isinstance(result, torch.Tensor):
                pixels[len(good)] = result
                good.append(position)
            elif on_bad == "stop":
                pool.shutdown(cancel_futures=True)
                raise result
            else:
                bad.append((result.path, result.reason))
    if not good:
        raise ExciteError(f"none of {len(files)} images can be read; the first: {bad[0][0]}: {bad[0][1]}")
    labels = torch.tensor([files.labels[i] for i in good], dtype=torch.int64)
    names = files.names
    return ArrayImages(pixels[: len(good)].clone() if bad else pixels, labels, [names[i] for i in good]), bad


def _threads(paths: list[str]) -> int:
    """One thread a core, but a single one for small files: they spend their time in Python, where threads only get in
    each other's way (CIFAR as 1 KB JPEGs on two cores: 0.19 against 0.14 ms each; photographs: 2.0 against 3.9 ms)."""
    sample = paths[:: max(1, len(paths) // 32)]
    if sum(os.path.getsize(path) for path in sample if os.path.exists(path)) < 8192 * len(sample):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
