"""Reads IDX files, plain or gzipped, with the file names of MNIST and Fashion-MNIST."""

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch

from excite.data.config import DataConfig
from excite.data.contents import Contents, Part
from excite.data.images import ArrayImages
from excite.errors import ExciteError

MAX_BYTES = 1 << 30  # EMNIST, the largest set in this format, has 614 MB; a gzip file of 1 MB can unpack to 1 GB
_PIECE = 1 << 20
UBYTE = 0x08  # the only element type of image and label files


def _read(file: IO[bytes]) -> bytes:
    """The file, or its first ``MAX_BYTES`` and some more. Piece by piece: a read allocates what it asks for."""
    parts, size = [], 0
    while size <= MAX_BYTES and (piece := file.read(_PIECE)):
        parts.append(piece)
        size += len(piece)
    return b"".join(parts)


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes: a uint8 array with the shape in its header. Raises ExciteError otherwise."""
    try:
        with cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
            data = _read(file)
    except (EOFError, OSError, zlib.error) as error:
        raise ExciteError(f"{path} cannot be read ({error}); download it again") from error
    if len(data) > MAX_BYTES:
        raise ExciteError(f"{path} is not an IDX file of images or labels: it holds more than {MAX_BYTES >> 20} MB")
    if len(data) < 4 or data[:3] != bytes((0, 0, UBYTE)) or data[3] not in (1, 3):
        raise ExciteError(f"{path} is not an IDX file of bytes: it starts with {data[:4].hex(' ') or 'nothing'}")
    dims = data[3]
    start = 4 + 4 * dims
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    if len(data) < start or len(data) - start != math.prod(shape):
        raise ExciteError(
            f"{path} is truncated or damaged: its header says {' x '.join(map(str, shape))}, "
            f"which is {math.prod(shape)} bytes, and {max(0, len(data) - start)} follow"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _find(root: Path, part: str, what: str, dims: int) -> Path | None:
    """Find `train-images-idx3-ubyte` or `train-images.idx3-ubyte`, each also with .gz; None if there is none."""
    for separator in "-.":
        for ending in ("", ".gz"):
            path = root / f"{part}-{what}{separator}idx{dims}-ubyte{ending}"
            if path.is_file():
                return path
    return None


def _read_part(root: Path, part: str, classes: int) -> ArrayImages | None:
    image_path, label_path = _find(root, part, "images", 3), _find(root, part, "labels", 1)
    if image_path is None and label_path is None:
        return None
    if image_path is None or label_path is None:
        lacking = "images-idx3" if image_path is None else "labels-idx1"
        raise ExciteError(f"{root} lacks {part}-{lacking}-ubyte, which belongs to {image_path or label_path}")
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or labels.ndim != 1 or not images.size:
        shapes = f"{image_path} has shape {images.shape}, {label_path} {labels.shape}"
        raise ExciteError(f"{shapes}: expected (N, H, W) and (N,), N at least 1")
    if len(images) != len(labels):
        raise ExciteError(f"{image_path} has {len(images)} images, but {label_path} has {len(labels)} labels")
    if labels.max() >= classes:
        position = int((labels >= classes).argmax())
        raise ExciteError(
            f"{label_path}: label {labels[position]} of image {position} is outside 0..{classes - 1}; "
            f"name every class in {root / 'classes.txt'}, one per line"
        )
    return ArrayImages(torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64)))


def read_names(path: Path) -> list[str]:
    """Class names, one per line. Raises ExciteError if the file cannot be read."""
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ExciteError(f"{path} is not a readable list of class names: {error}") from None


def read_idx_folder(root: Path, class_names: list[str] | None) -> tuple[list[str], ArrayImages, ArrayImages | None]:
    """Class names, training images, test images or None: uint8 (N, 1, H, W).

    Names come from `class_names`, else `classes.txt` in the folder, else "0".."9". Raises ExciteError if files are
    missing or damaged, or do not match each other.
    """
    names = class_names
    if names is None and (root / "classes.txt").is_file():
        names = read_names(root / "classes.txt")
    if names is None:
        names = [str(d) for d in range(10)]
    train = _read_part(root, "train", len(names))
    if train is None:
        raise ExciteError(f"{root} has no IDX data: train-images-idx3-ubyte (or .gz) is expected in it")
    return names, train, _read_part(root, "t10k", len(names))


def read_source(data: DataConfig, root: Path, least_classes: int) -> Contents:
    """Read the IDX files in a folder. Raises ExciteError; see :func:`read_idx_folder`."""
    classes, train, test = read_idx_folder(root, data.class_names)
    parts: dict[str, ArrayImages | Part] = {"train": train}
    if test is not None:
        parts["test"] = test
    return Contents(classes, parts)
