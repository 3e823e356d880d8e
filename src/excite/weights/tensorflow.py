"""Reads TensorFlow checkpoints ("V2": ``.index`` and ``.data-00000-of-00001``), without TensorFlow.

Format: tensorflow/core/util/tensor_bundle and protobuf/tensor_bundle.proto. The index is a LevelDB table from names to
BundleEntryProto {dtype, shape, shard, offset, size, crc32c}; the shards hold the raw bytes. Optimiser slots and other
variables are kept, too: the key map decides what belongs to the network.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from excite.errors import ExciteError
from excite.untrusted.raw import Damaged, as_tensor, as_text, count_elements, map_file
from excite.weights.crc32c import crc32c, unmask
from excite.weights.leveldb import read_table
from excite.weights.stored import Metadata, Stored
from excite.weights.wire import FIXED32, Field, fields

FORMAT = "TensorFlow checkpoint"

#: tensorflow/core/framework/types.proto
DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    8: torch.complex64,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    17: torch.uint16,
    18: torch.complex128,
    19: torch.float16,
    22: torch.uint32,
    23: torch.uint64,
    24: torch.float8_e5m2,
    25: torch.float8_e4m3fn,
}
_NOT_TENSORS = {7: "string", 20: "resource", 21: "variant"}
_MOST_SHARDS = 10_000
_DATA_FILE = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class _Entry:
    """A BundleEntryProto."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


def find_prefix(path: Path) -> Path | None:
    """The prefix of a checkpoint's files, for ``path`` being the prefix, one of the files, or their folder.

    Returns:
        The prefix, or None if ``path`` is not a TensorFlow checkpoint.

    Raises:
        ExciteError: a folder's ``checkpoint`` file names a checkpoint that is not there.
    """
    if os.path.isdir(path) or (path.name == "checkpoint" and path.is_file()):
        return _latest(path / "checkpoint" if path.is_dir() else path)
    if path.suffix == ".index" and path.is_file():
        return path.with_suffix("")
    data_file = _DATA_FILE.fullmatch(path.name)
    prefix = path.with_name(data_file.group(1)) if data_file else path
    return prefix if os.path.isfile(_index_of(prefix)) else None


def _latest(state: Path) -> Path | None:
    """The checkpoint named by a CheckpointState as text (``model_checkpoint_path: "..."``), else the only index."""
    if state.is_file():
        with state.open("rb") as file:
            text = file.read(1 << 16).decode("utf-8", "replace")
        named = re.search(r'^\s*model_checkpoint_path:\s*"((?:[^"\\]|\\.)*)"', text, re.MULTILINE)
        if named:
            prefix = state.parent / named.group(1)
            moved = state.parent / Path(named.group(1)).name  # TensorFlow writes absolute paths, too
            for candidate in (prefix, moved):
                if _index_of(candidate).is_file():
                    return candidate
            raise ExciteError(f"{state} names the checkpoint {named.group(1)!r}, which is not in the same folder")
    found = sorted(state.parent.glob("*.index"))
    if len(found) > 1:
        names = ", ".join(index.stem for index in found[:5])
        raise ExciteError(f"{state.parent} holds {len(found)} TensorFlow checkpoints: name one of them ({names})")
    return found[0].with_suffix("") if found else None


def _index_of(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def read(prefix: Path) -> Stored:
    """Read a checkpoint whose files start with ``prefix``; every checksum is verified.

    Strings and other entries that are not numbers are listed in ``metadata["not_tensors"]``.

    Raises:
        ExciteError: a file is missing, or a variable is stored in slices.
        Damaged: a checksum is wrong, or sizes are inconsistent.
    """
    index = map_file(_index_of(prefix))
    shards, big_endian, entries = _read_index(prefix, index)
    data = _open_shards(prefix, shards, entries)
    contents = [_content(entry, data) for entry in entries]
    if sum(map(len, contents)) > sum(map(len, data.values())):
        raise Damaged("its variables overlap each other")
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    for entry, content in zip(entries, contents, strict=True):
        if entry.dtype in DTYPES:
            tensors[entry.name] = _tensor(entry, content, big_endian)
        else:
            others[entry.name] = _NOT_TENSORS[entry.dtype]
    metadata: Metadata = {"shards": shards}
    if others:
        metadata["not_tensors"] = others
    return Stored(FORMAT, prefix, tensors, metadata)


def _read_index(prefix: Path, index: memoryview) -> tuple[int, bool, list[_Entry]]:
    """(number of shards, whether the data is big-endian, the entries)"""
    pairs = read_table(index)
    first = next(pairs, None)
    if first is None or first[0]:
        raise Damaged("its index does not begin with a header")
    header = {field.number: field for field in fields(first[1])}
    shards = header[1].as_int() if 1 in header else 0
    if not 1 <= shards <= _MOST_SHARDS:
        raise Damaged(f"its index lists {shards} data files")
    return shards, 2 in header and header[2].as_int() == 1, [_entry(prefix, *pair, shards) for pair in pairs]


def _entry(prefix: Path, key: bytes, value: memoryview, shards: int) -> _Entry:
    if key.startswith(b"\0"):  # the key of a slice is not text
        raise _in_slices(prefix, "a variable")
    name = as_text(key, "a name")
    found: dict[int, Field] = {}
    for field in fields(value):
        if field.number == 7:
            raise _in_slices(prefix, repr(name))
        found[field.number] = field
    numbers = {n: found[n].as_int() if n in found else 0 for n in (1, 3, 4, 5)}
    dtype, shard, offset, size = (numbers[n] for n in (1, 3, 4, 5))
    if dtype not in DTYPES and dtype not in _NOT_TENSORS:
        raise ExciteError(f"{prefix}: {name!r} has the unknown TensorFlow type {dtype}")
    if not 0 <= shard < shards or offset < 0 or size < 0:
        raise Damaged(f"{name!r} is said to lie in file {shard} of {shards}, {size} bytes from {offset} on")
    crc = int.from_bytes(found[6].as_fixed(FIXED32)[-4:], "little") if 6 in found else 0  # proto3 leaves zeros out
    return _Entry(name, dtype, _shape(name, found.get(2)), shard, offset, size, crc)


def _in_slices(prefix: Path, what: str) -> ExciteError:
    return ExciteError(
        f"{prefix} has {what} in slices (a partitioned variable), which cannot be read: save it without a partitioner"
    )


def _shape(name: str, field: Field | None) -> tuple[int, ...]:
    shape = []
    for dim in fields(field.as_bytes()) if field is not None else ():
        if dim.number == 3 and dim.as_int():
            raise Damaged(f"{name!r} has no shape")
        if dim.number == 2:
            sizes = [size.as_int() for size in fields(dim.as_bytes()) if size.number == 1]
            shape.append(sizes[-1] if sizes else 0)
    count_elements(name, shape)
    return tuple(shape)


def _open_shards(prefix: Path, shards: int, entries: list[_Entry]) -> dict[int, memoryview]:
    data = {}
    for shard in sorted({entry.shard for entry in entries}):
        file = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
        if not file.is_file():
            raise ExciteError(f"{prefix} is incomplete: {file.name} is missing beside its .index file")
        data[shard] = map_file(file)
    return data


def _content(entry: _Entry, data: dict[int, memoryview]) -> memoryview:
    shard = data[entry.shard]
    if entry.offset + entry.size > len(shard):
        raise Damaged(f"{entry.name!r} is said to lie past the end of its data file, which may be cut off")
    return shard[entry.offset : entry.offset + entry.size]


def _tensor(entry: _Entry, content: memoryview, big_endian: bool) -> Tensor:
    dtype = DTYPES[entry.dtype]
    if crc32c(content) != unmask(entry.crc):
        raise Damaged(f"{entry.name!r} has a wrong checksum")
    tensor = as_tensor(entry.name, dtype, entry.shape, content)
    if big_endian and tensor.numel():
        part = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
        raw = tensor.reshape(-1).view(torch.uint8).view(-1, part)
        tensor = raw.flip(1).reshape(-1).view(dtype).view(tensor.shape)
    return tensor
