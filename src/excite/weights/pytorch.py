"""Reads PyTorch checkpoints (``.pth``, ``.pth.tar``, ``.pt``, ``.bin``) of any version since 0.4, without running code.

Both formats are read by ``torch.load(weights_only=True)``: the zip archive of PyTorch 1.6 and later, whose tensors stay
in the file until they are used (memory mapping), and the older stream of pickles. :mod:`excite.untrusted.pickles`
checks them first.
"""

import math
import mmap
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excite.errors import ExciteError, first_line, nearest
from excite.untrusted.pickles import STAND_INS, Inert, Namespace, inspect
from excite.untrusted.raw import Damaged, listed, map_file
from excite.weights.stored import Metadata, Stored

FORMAT = "PyTorch checkpoint"

#: torch.serialization.MAGIC_NUMBER as the first pickle of the older format
STREAM_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
ZIP_MAGIC = b"PK\x03\x04"

#: Keys under which training scripts put the weights; the first one found is used. The moving average comes before the
#: raw weights, because it is what such scripts evaluate and report.
WEIGHT_KEYS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
)
_DEEPEST_KEYS = 3
_MOST_VALUES, _LONGEST_TEXT = 20_000, 10_000


def read(path: Path, part: str | None = None) -> Stored:
    """Read the weights of a checkpoint.

    ``metadata`` says where they were: ``part`` is the key of the dictionary that was used ("" for the outermost),
    ``beside`` lists the alternatives, ``keys`` the other keys, and ``values`` holds the numbers and texts among them
    (epoch, arch, accuracy ...).

    Args:
        path: the file.
        part: the key to use, with dots between levels; None: choose by ``WEIGHT_KEYS``.

    Raises:
        ExciteError: it asks for code to be run, holds no weights, or is not a checkpoint (TorchScript, NumPy).
        Damaged: it is inconsistent.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if is_zip:
        check_zip(path)
    else:
        _check_stream(path)
    content = _load(path, is_zip)
    found = _state_dicts(content)
    if not found:
        keys = (
            f"; its keys are {listed([str(key) for key in content])}" if isinstance(content, dict) and content else ""
        )
        raise ExciteError(f"{path} holds no weights (no dictionary of tensors){keys}")
    chosen = _choose(path, found, part)
    tensors = {key: value.detach() for key, value in found[chosen].items() if isinstance(value, Tensor)}
    metadata: Metadata = {"part": chosen, "beside": [key for key in found if key != chosen]}
    others = sorted(str(key) for key, value in found[chosen].items() if not isinstance(value, Tensor))
    if others:
        metadata["not_tensors"] = others[:_MOST_VALUES]
    if chosen:
        outer = {str(key): value for key, value in content.items() if str(key) != chosen.split(".")[0]}
        metadata["keys"] = list(outer)
        metadata["values"] = _plain(outer)
    return Stored(FORMAT if is_zip else f"{FORMAT} (before 1.6)", path, tensors, metadata)


# --- before torch.load ----------------------------------------------------------------------------------------------


def check_zip(path: Path) -> None:
    """Refuse an archive not written by torch.save: compressed, overlapping, damaged, or not a checkpoint."""
    where, size = str(path), path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_kind(path, [entry.filename for entry in entries])
            _check_entries(entries, size)
            if map_file(path)[-22:-18] != b"PK\x05\x06":  # different readers might then see different archives
                raise Damaged("there is something after the archive's end")
            if any(entry.CRC for entry in entries):  # torch.serialization.set_crc32_options(False) leaves them 0
                bad = archive.testzip()
                if bad is not None:
                    raise Damaged(f"{bad!r} in it has a wrong checksum")
            else:
                for entry in entries:
                    entry.CRC = None  # type: ignore[assignment]  # otherwise they would still be compared
            pickled = next(entry for entry in entries if entry.filename.endswith("/data.pkl"))
            root = pickled.filename.removesuffix("data.pkl")
            storages: dict[str, int] = {}
            with archive.open(pickled) as file:
                inspect(file, pickled.file_size, where, storages)
            sizes = {entry.filename: entry.file_size for entry in entries}
    except (ExciteError, Damaged):
        raise
    except Exception as error:  # zipfile raises nearly anything on a damaged file
        raise Damaged(f"its archive cannot be read: {first_line(error)}") from None
    for key, nbytes in storages.items():
        if sizes.get(f"{root}data/{key}") != nbytes:
            raise Damaged(f"a tensor has {nbytes} bytes, but {root}data/{key} does not")


def _check_kind(path: Path, names: list[str]) -> None:
    if any(name.endswith(("/constants.pkl", "/models/model.json")) for name in names):
        raise ExciteError(
            f"{path} is a compiled program (TorchScript or torch.export), not a checkpoint; save model.state_dict()"
        )
    if sum(name.endswith("/data.pkl") for name in names) != 1:
        raise ExciteError(
            f"{path} is a zip archive, but not a PyTorch checkpoint (it holds {listed(names) or 'nothing'})"
        )


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    """torch.save does not compress, so an archive cannot hold more than its length; a zip bomb claims more."""
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise Damaged("its archive has two entries with the same name")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise Damaged(f"{entry.filename!r} in it is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > size or min(entry.header_offset for entry in entries):
        raise Damaged("the entries of its archive overlap, or do not begin at its start")


def _check_stream(path: Path) -> None:
    """Go through the five pickles of the older format and compare the storages with the bytes after them."""
    try:
        tarfile.open(path, "r:").close()
    except (tarfile.TarError, OSError, ValueError):
        pass
    else:  # torch.load would unpack it to disk
        raise ExciteError(
            f"{path} is a tar archive (as written before PyTorch 0.2): load it and save it again with PyTorch 1.x"
        )
    storages: dict[str, int] = {}
    # A memory map, because reading from a file would allocate whatever length the pickle claims.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for _ in range(4):  # magic number, protocol version, system, content
            inspect(mapped, len(mapped), str(path), storages)
        keys = inspect(mapped, len(mapped), str(path), {})
        left = len(mapped) - mapped.tell()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise Damaged("the storages in its list are not those of its tensors")
    if sum(storages.values()) + 8 * len(storages) > left:
        raise Damaged("it ends before its last tensor")


def _load(path: Path, is_zip: bool) -> Any:
    stand_ins: list[Any] = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown protocols: loading fails if one really is unknown
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged file can raise nearly anything
        raise Damaged(f"PyTorch cannot read it: {first_line(error)}") from None


# --- after it -------------------------------------------------------------------------------------------------------


def _state_dicts(content: Any) -> dict[str, Mapping[str, object]]:
    """All dictionaries of named tensors, outermost first, keyed by their path with dots."""
    found: dict[str, Mapping[str, object]] = {}
    seen: set[int] = set()  # the same dictionary may be in several places

    def walk(value: Any, at: str, depth: int) -> None:
        if not isinstance(value, dict) or id(value) in seen:
            return
        seen.add(id(value))
        if _is_state_dict(value):
            found[at] = value
        elif depth < _DEEPEST_KEYS:
            for key, inner in value.items():
                if isinstance(key, str):
                    walk(inner, f"{at}.{key}" if at else key, depth + 1)

    walk(content, "", 0)
    return found


def _is_state_dict(value: dict[Any, Any]) -> bool:
    """Named tensors, not all of them scalars, and no dictionaries, which only training scripts add."""
    if not all(isinstance(key, str) for key in value) or any(isinstance(v, dict) for v in value.values()):
        return False
    return any(isinstance(v, Tensor) and v.dim() > 0 for v in value.values())


def _choose(path: Path, found: dict[str, Mapping[str, object]], part: str | None) -> str:
    if part is not None:
        if part not in found:
            known = ", ".join(repr(key) for key in found)
            raise ExciteError(f"{path} holds no weights under {part!r}{nearest(part, found)} (only under {known})")
        return part
    for wanted in ("", *WEIGHT_KEYS):
        for key in found:
            if key == wanted or (key.startswith(f"{wanted}.") and wanted):
                return key
    return max(found, key=lambda key: sum(v.numel() for v in found[key].values() if isinstance(v, Tensor)))


def _plain(value: Any) -> Any:
    """The JSON-serialisable part of a checkpoint's content: numbers, texts, and lists and dictionaries of them."""
    left = [_MOST_VALUES]

    def walk(one: Any, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0:
            return None
        if isinstance(one, Namespace):
            one = getattr(one, "values", {})  # NEWOBJ leaves out __init__
        if isinstance(one, dict) and depth:
            kept = {str(key): walk(inner, depth - 1) for key, inner in one.items() if _is_plain(inner)}
            return {key: inner for key, inner in kept.items() if inner not in (None, {}, [])}
        if isinstance(one, list | tuple) and depth:
            return [walk(inner, depth - 1) for inner in one if _is_plain(inner)]
        if isinstance(one, str):
            return one[:_LONGEST_TEXT]
        return one if isinstance(one, int | bool) or (isinstance(one, float) and math.isfinite(one)) else None

    return walk(value, 4)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Namespace):
        return True
    return isinstance(value, dict | list | tuple | str | int | float) and not isinstance(value, Inert)
