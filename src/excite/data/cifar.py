"""CIFAR-10 and CIFAR-100, "python version": the pickles in a folder, or inside the .tar.gz as downloaded.

A pickle may run any code when loaded. The unpickler here admits only what these files hold (arrays, their dtypes and
byte strings) and refuses everything else by name, so a file from an unknown place cannot do harm.
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from excite.data.images import ArrayImages
from excite.errors import ExciteError

#: folder inside the archive, training files, test file, file of names, key of labels, key of names, classes
LAYOUTS: dict[str, tuple[str, list[str], str, str, str, str, int]] = {
    "cifar10": (
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)],
        "test_batch",
        "batches.meta",
        "labels",
        "label_names",
        10,
    ),
    "cifar100": ("cifar-100-python", ["train"], "test", "meta", "fine_labels", "fine_label_names", 100),
}
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
MAX_BYTES = 1 << 29  # the largest genuine file, CIFAR-100's `train`, has 155 MB


class Refused(ExciteError):
    """A pickle that asks for more than arrays and strings."""


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """Stands in for numpy's `_reconstruct`: always an empty array, which the pickle's state then fills."""
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise ValueError("an array that is not built as NumPy builds it")
    return np.ndarray((0,), dtype=np.int8)


def _latin1(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise ValueError(f"bytes in codec {codec!r}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {  # noqa: RUF012 - a constant table
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,  # NumPy 1 wrote the originals
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }

    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(file, encoding="bytes")
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ADMITTED[module, name]
        except KeyError:
            raise Refused(
                f"{self._name} is not a CIFAR file and was not loaded: its pickle asks for {module}.{name}, "
                "which could run code; get the file from the original source"
            ) from None


def load_pickle(data: bytes, name: str) -> dict[str, Any]:
    """Unpickle a CIFAR file's bytes; `name` is for messages. Keys become str.

    Raises ExciteError where the pickle asks for anything but arrays and strings, or is damaged.
    """
    try:
        record = _Unpickler(io.BytesIO(data), name).load()
    except Refused:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything: EOFError, KeyError, MemoryError ...
        reason = str(error) or type(error).__name__
        raise ExciteError(f"{name} is damaged or truncated, download it again ({reason})") from error
    if not isinstance(record, dict):
        raise ExciteError(f"{name} is not a CIFAR file: it holds a {type(record).__name__}, not a dictionary")
    return {_text(key): value for key, value in record.items()}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_cifar(kind: str, root: Path) -> tuple[list[str], ArrayImages, ArrayImages]:
    """Class names, training and test images: uint8 (N, 3, 32, 32), from a folder or an archive. `kind` as in LAYOUTS.

    Raises ExciteError for missing, damaged or foreign files and labels out of range.
    """
    folder, train_names, test_name, meta_name, label_key, names_key, classes = LAYOUTS[kind]
    wanted = [*train_names, test_name, meta_name]
    files = _from_archive(root, folder, wanted) if root.is_file() else _from_folder(kind, root, folder, wanted)
    records = {name: load_pickle(data, where) for name, (data, where) in files.items()}
    where_of = {name: where for name, (_, where) in files.items()}
    names = records[meta_name].get(names_key)
    if not isinstance(names, list) or len(names) != classes:
        raise ExciteError(f"{where_of[meta_name]} does not hold {classes} names under {names_key!r}: is it {kind}?")
    parts = [_images(records[name], where_of[name], label_key, classes) for name in train_names]
    train = ArrayImages(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
    return [_text(n) for n in names], train, _images(records[test_name], where_of[test_name], label_key, classes)


def _images(record: dict[str, Any], where: str, label_key: str, classes: int) -> ArrayImages:
    data, labels = record.get("data"), record.get(label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ExciteError(f"{where}: 'data' should be uint8 of shape (N, 3072), found {found}")
    if not isinstance(labels, list) or len(labels) != len(data):
        found = f"{len(labels)}" if isinstance(labels, list) else "none"
        raise ExciteError(f"{where}: {len(data)} images need as many labels under {label_key!r}, found {found}")
    for position, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise ExciteError(f"{where}: label {label!r} of image {position} is outside 0..{classes - 1}")
    pixels = torch.from_numpy(np.ascontiguousarray(data).reshape(-1, 3, 32, 32).copy())
    return ArrayImages(pixels, torch.tensor(labels, dtype=torch.int64))


def _from_folder(kind: str, root: Path, folder: str, wanted: list[str]) -> dict[str, tuple[bytes, str]]:
    place = next((p for p in (root, root / folder) if (p / wanted[-1]).is_file()), None)
    if place is None:
        archive = root / ARCHIVES[kind]
        if archive.is_file():
            return _from_archive(archive, folder, wanted)
        raise ExciteError(
            f"{root} holds no {kind} data: expected {folder}/{wanted[-1]} in it, or point data.root at {ARCHIVES[kind]}"
        )
    missing = [name for name in wanted if not (place / name).is_file()]
    if missing:
        raise ExciteError(f"{place} lacks {', '.join(missing)} of {kind}: the download or extraction is incomplete")
    return {name: ((place / name).read_bytes(), str(place / name)) for name in wanted}


def _from_archive(path: Path, folder: str, wanted: list[str]) -> dict[str, tuple[bytes, str]]:
    """Read the wanted members without extracting anything to disk."""
    found: dict[str, tuple[bytes, str]] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in wanted and member.isfile() and member.size <= MAX_BYTES:
                    handle = archive.extractfile(member)
                    assert handle is not None  # isfile() above
                    found[name] = (handle.read(), f"{path}:{member.name}")
                if len(found) == len(wanted):
                    break
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = str(error).split("\n")[0].rstrip(":- ")  # tarfile lists every method it tried, a line each
        raise ExciteError(f"{path} is not a whole tar archive, download it again ({reason})") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ExciteError(f"{path} lacks {', '.join(missing)}: expected the archive with {folder}/ in it")
    return found
