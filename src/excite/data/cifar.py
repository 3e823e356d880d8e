"""Reads CIFAR-10 and CIFAR-100, "python version": the pickles in a folder, or in the .tar.gz as downloaded.

A pickle can run any code when it is loaded. The unpickler here has stand-ins for what these files hold (arrays, dtypes
and byte strings) and refuses everything else, so a file from an unknown source can do no harm. NumPy only ever gets
bytes, of the length that shape and dtype require: its own ``__setstate__`` trusts flags that make it treat bytes as
addresses.
"""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar, cast

import numpy as np
import torch

from excite.data.config import DataConfig
from excite.data.contents import Contents
from excite.data.images import ArrayImages
from excite.errors import ExciteError, first_line, shown, shown_text
from excite.untrusted.pickles import Inert, StandInUnpickler, check_depth, instructions, latin1
from excite.untrusted.raw import Damaged, count_elements

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
MAX_BYTES = 1 << 29  # the largest genuine file, CIFAR-100's `train`, has 155 MB; a whole set has 190 MB

#: The opcodes that Python 2 and 3 write for such a file in any protocol. None allocates more than the file can back.
_INSTRUCTIONS = """
    APPEND APPENDS BINBYTES BINBYTES8 BINFLOAT BINGET BININT BININT1 BININT2 BINPUT BINSTRING BINUNICODE BINUNICODE8
    BUILD BYTEARRAY8 DICT EMPTY_DICT EMPTY_LIST EMPTY_TUPLE FLOAT FRAME GET GLOBAL INT LIST LONG LONG1 LONG_BINGET
    LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE NONE PROTO PUT REDUCE SETITEM SETITEMS SHORT_BINBYTES SHORT_BINSTRING
    SHORT_BINUNICODE STACK_GLOBAL STOP STRING TUPLE TUPLE1 TUPLE2 TUPLE3 UNICODE
"""


#: NumPy's codes for numbers. Everything else is an object, text or a record, which no image data set holds.
_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class Refused(ExciteError):
    """A pickle that asks for more than arrays and strings."""


class _Type(Inert):
    """Stands for `numpy.dtype`: numbers of up to 8 bytes, and a name for everything else."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = _text(code) if isinstance(code, str | bytes) else shown(code), "|"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and _text(state[1]) in ("<", ">", "|", "="):
            self.order = _text(state[1])

    @property
    def numbers(self) -> np.dtype[Any] | None:
        return np.dtype(f"{self.order}{self.code}") if self.code in _NUMBERS else None


class _Array(Inert):
    """Stands for an array as NumPy's `_reconstruct` creates it: empty until its state fills it."""

    values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise Damaged("an array that is not built as NumPy builds it")
        shape, kind, fortran, raw = state[-4:]
        if not isinstance(kind, _Type) or not isinstance(shape, tuple) or any(type(n) is not int for n in shape):
            raise Damaged("an array without a shape or a type")
        if kind.numbers is None:
            raise Refused(f"an array of type {shown(kind.code)}, which is not a number")
        expected = count_elements("an array", shape) * kind.numbers.itemsize
        if not isinstance(raw, bytes) or len(raw) != expected:
            found = f"{len(raw)} bytes" if isinstance(raw, bytes) else "none"
            raise Damaged(f"an array of shape {shown(shape)} takes {expected} bytes, but there are {found}")
        self.values = np.frombuffer(raw, kind.numbers).reshape(shape, order="F" if fortran is True else "C")


def _reconstruct(kind: Any, shape: Any, *_: Any) -> _Array:
    """Stands for NumPy's `_reconstruct`: always an empty array, which the pickle's state then fills."""
    if kind is not _ndarray or shape != (0,):
        raise Damaged("an array that is not built as NumPy builds it")
    return _Array()


def _frombuffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """Stands for NumPy's `_frombuffer`, which protocol 5 (the default since Python 3.14) uses for arrays."""
    array = _Array()
    array.__setstate__((shape, kind, order == "F", raw))
    return array


def _no_bytes(*arguments: Any) -> bytes:
    """Stands for `bytes()`, written for b"" in Python 2's protocols; `bytes` itself could allocate any amount."""
    if arguments:
        raise Refused("builtins.bytes of a number or a list")
    return b""


def _ndarray(*_: Any) -> None:
    raise Refused("numpy.ndarray, other than as NumPy pickles it")


class _Unpickler(StandInUnpickler):
    dispatch: ClassVar[dict[int, Any]] = instructions(_INSTRUCTIONS, "pickle")
    names: ClassVar[Mapping[str, Any]] = {
        "numpy.core.multiarray._reconstruct": _reconstruct,  # NumPy 1 wrote the originals
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "numpy.core.numeric._frombuffer": _frombuffer,
        "numpy._core.numeric._frombuffer": _frombuffer,
        "numpy.ndarray": _ndarray,
        "numpy.dtype": _Type,
        "_codecs.encode": latin1,
        "builtins.bytes": _no_bytes,
    }

    def refused(self, full: str) -> ExciteError:
        return Refused(f"{full}, which could run code")


def load_pickle(data: bytes, name: str) -> dict[str, Any]:
    """Unpickle the bytes of a CIFAR file; `name` is for messages. Keys become str.

    Raises ExciteError if the pickle asks for anything but arrays of numbers and strings, or is damaged.
    """
    try:
        record = _Unpickler(io.BytesIO(data), len(data), name, "bytes").load()
        check_depth(record)
    except Refused as error:
        raise Refused(
            f"{name} is not a CIFAR file and was not loaded: its pickle asks for {error}; get the file from the "
            "original source"
        ) from None
    except Exception as error:  # a damaged pickle raises nearly anything: EOFError, KeyError, MemoryError ...
        reason = shown_text(str(error) or type(error).__name__)
        raise ExciteError(f"{name} is damaged or truncated ({reason}); download it again") from None
    if not isinstance(record, dict):
        kind = "array" if isinstance(record, _Array) else type(record).__name__
        raise ExciteError(f"{name} is not a CIFAR file: it holds a {kind}, not a dictionary")
    return {_text(key): value.values if isinstance(value, _Array) else value for key, value in record.items()}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else shown(value)


def read_cifar(kind: str, root: Path) -> tuple[list[str], ArrayImages, ArrayImages]:
    """Class names, training and test images: uint8 (N, 3, 32, 32), from a folder or an archive. `kind` as in LAYOUTS.

    Raises ExciteError if files are missing, damaged or of another kind, or labels are out of range.
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
            raise ExciteError(f"{where}: label {shown(label)} of image {position} is outside 0..{classes - 1}")
    pixels = torch.from_numpy(np.ascontiguousarray(data).reshape(-1, 3, 32, 32).copy())
    return ArrayImages(pixels, torch.tensor(labels, dtype=torch.int64))


def _from_folder(kind: str, root: Path, folder: str, wanted: list[str]) -> dict[str, tuple[bytes, str]]:
    place = next((p for p in (root, root / folder) if (p / wanted[-1]).is_file()), None)
    if place is None:
        archive = root / ARCHIVES[kind]
        if archive.is_file():
            return _from_archive(archive, folder, wanted)
        raise ExciteError(
            f"{root} has no {kind} data: {folder}/{wanted[-1]} is expected in it; or set data.root to {ARCHIVES[kind]}"
        )
    missing = [name for name in wanted if not (place / name).is_file()]
    if missing:
        raise ExciteError(f"{place} lacks {', '.join(missing)} of {kind}: the download or extraction is incomplete")
    for name in wanted:
        if (place / name).stat().st_size > MAX_BYTES:
            raise ExciteError(f"{place / name} is not a {kind} file: it has more than {MAX_BYTES >> 20} MB")
    try:
        return {name: ((place / name).read_bytes(), str(place / name)) for name in wanted}
    except OSError as error:
        raise ExciteError(f"{error.filename} cannot be read: {error.strerror or error}") from None


class _Measured(io.RawIOBase):
    """A stream that raises an error after `MAX_BYTES`: a few kilobytes can unpack to more than a disk holds."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.count = stream, 0

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.count += len(data)
        if self.count > MAX_BYTES:
            raise Damaged(f"it unpacks to more than {MAX_BYTES >> 20} MB")
        return data


def _unpacked(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        head = file.read(6)
    for module, magic in ((gzip, b"\x1f\x8b"), (bz2, b"BZh"), (lzma, b"\xfd7zXZ")):
        if head.startswith(magic):
            return cast(IO[bytes], module.open(path))
    return path.open("rb")


def _from_archive(path: Path, folder: str, wanted: list[str]) -> dict[str, tuple[bytes, str]]:
    """Read the wanted members without extracting anything to disk.

    Only regular files count, in any folder. Links are ignored and never followed.
    """
    found: dict[str, tuple[bytes, str]] = {}
    try:
        with _unpacked(path) as stream, tarfile.open(fileobj=_Measured(stream), mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in wanted and member.isfile() and not member.issparse():
                    handle = archive.extractfile(member)
                    assert handle is not None  # isfile() above
                    found[name] = (handle.read(), f"{path}:{shown_text(member.name)}")
                if len(found) == len(wanted):
                    break
    except Exception as error:  # tarfile, gzip, bz2 and lzma raise nearly anything on a damaged file
        reason = shown_text(first_line(error).rstrip(":- "))
        raise ExciteError(f"{path} is not a complete tar archive ({reason}); download it again") from None
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ExciteError(f"{path} lacks {', '.join(missing)}: it must be the archive with {folder}/ in it")
    return found


def read_source(data: DataConfig, root: Path, least_classes: int) -> Contents:
    """Read CIFAR's Python version from a folder or its archive. Raises ExciteError; see :func:`read_cifar`."""
    classes, train, test = read_cifar(data.source, root)
    return Contents(classes, {"train": train, "test": test})
