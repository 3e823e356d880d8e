"""Reads MindSpore ``.ckpt`` files, without MindSpore.

Format: ``mindspore/ccsrc/utils/checkpoint.proto``, a Checkpoint of Values {tag, tensor}, with TensorProto {dims,
tensor_type, tensor_content}. Optimiser state (``moments.*``, ``global_step``, ``learning_rate``) is kept, too: the key
map decides what belongs to the network.
"""

import zlib
from pathlib import Path

import torch
from torch import Tensor

from excite.errors import ExciteError
from excite.untrusted.raw import Damaged, as_tensor, count_elements
from excite.weights.stored import Metadata, Stored
from excite.weights.wire import Field, fields

FORMAT = "MindSpore checkpoint"

DTYPES = {
    "Bool": torch.bool,
    "Int8": torch.int8,
    "Int16": torch.int16,
    "Int32": torch.int32,
    "Int64": torch.int64,
    "UInt8": torch.uint8,
    "UInt16": torch.uint16,
    "UInt32": torch.uint32,
    "UInt64": torch.uint64,
    "Float16": torch.float16,
    "Float32": torch.float32,
    "Float64": torch.float64,
    "BFloat16": torch.bfloat16,
    "Complex64": torch.complex64,
    "Complex128": torch.complex128,
}
#: First four bytes, little-endian, of an encrypted file.
ENCRYPTED = {0x7F3A5ED8: "AES-GCM", 0x7F3A5ED9: "AES-CBC", 0x7F3A5EDA: "SM4-CBC"}
_CRC_MARK, _CRC_BYTES = b"crc_num", 10


def is_encrypted(head: bytes) -> bool:
    """Whether a file that starts with ``head`` was written with an ``enc_key``."""
    return int.from_bytes(head[:4], "little") in ENCRYPTED


def looks_like(data: memoryview) -> bool:
    """Whether the first field of a protobuf message is a Value {tag, tensor}."""
    try:
        first = next(fields(data))
        inner = [field.number for field in fields(first.as_bytes())]
    except (Damaged, StopIteration):
        return False
    return first.number == 1 and inner[:1] == [1] and set(inner) <= {1, 2, 3}


def read(path: Path, data: memoryview) -> Stored:
    """Read a checkpoint. Texts go to ``metadata["strings"]``; ``metadata["crc"]`` says whether a checksum was verified.

    Raises:
        ExciteError: it is encrypted, or has content that is not a tensor.
        Damaged: the checksum is wrong, or sizes are inconsistent.
    """
    if is_encrypted(bytes(data[:4])):
        cipher = ENCRYPTED[int.from_bytes(data[:4], "little")]
        raise ExciteError(
            f"{path} is an encrypted MindSpore checkpoint ({cipher}): decrypt it with MindSpore first, using "
            "load_checkpoint(..., dec_key=..., dec_mode=...) and save_checkpoint"
        )
    data, checked = _without_crc(data)
    tensors: dict[str, Tensor] = {}
    strings: dict[str, str] = {}
    unfinished: _Entry | None = None
    for field in fields(data):
        entry = _entry(path, field)
        if unfinished is not None:
            entry = unfinished.joined(entry)
        if entry.missing() > 0:  # MindSpore splits at 512 MiB and repeats tag, dims and type
            unfinished = entry
            continue
        unfinished = None
        if entry.tag in tensors or entry.tag in strings:
            raise Damaged(f"{entry.tag!r} is there twice")
        if entry.type == "str":
            strings[entry.tag] = entry.text()
        else:
            tensors[entry.tag] = as_tensor(entry.tag, DTYPES[entry.type], entry.shape, b"".join(entry.parts))
    if unfinished is not None:
        raise Damaged(f"{unfinished.tag!r} ends {unfinished.missing()} bytes early")
    metadata: Metadata = {"crc": checked}
    if strings:
        metadata["strings"] = strings
    return Stored(FORMAT, path, tensors, metadata)


class _Entry:
    """One Value: a tensor, or the first pieces of one."""

    def __init__(self, tag: str, type_: str, shape: tuple[int, ...], content: memoryview) -> None:
        self.tag, self.type, self.shape, self.parts = tag, type_, shape, [content]
        self.size = None if type_ == "str" else count_elements(tag, shape) * DTYPES[type_].itemsize

    def missing(self) -> int:
        return 0 if self.size is None else self.size - sum(map(len, self.parts))

    def joined(self, piece: "_Entry") -> "_Entry":
        if (piece.tag, piece.type, piece.shape) != (self.tag, self.type, self.shape):
            raise Damaged(f"{self.tag!r} ends {self.missing()} bytes early")
        self.parts += piece.parts
        return self

    def text(self) -> str:
        try:
            return b"".join(self.parts).decode("utf-32-le")
        except UnicodeDecodeError:
            raise Damaged(f"the text {self.tag!r} is not UTF-32") from None


def _entry(path: Path, field: Field) -> _Entry:
    if field.number != 1:
        raise Damaged(f"there is a field {field.number} where only entries are")
    parts = _once(field, {1: "tag", 2: "tensor", 3: "map tensor"})
    if 3 in parts:
        raise ExciteError(f"{path} holds a map tensor (a hash table of embeddings), which no image classifier has")
    if set(parts) != {1, 2}:
        raise Damaged("an entry has no tag or no tensor")
    tag = parts[1].as_text()
    tensor = _once(parts[2], {2: "tensor_type", 3: "tensor_content"}, repeated=1)
    if 2 not in tensor:
        raise Damaged(f"{tag!r} has no type")
    kind = tensor[2].as_text()
    if kind != "str" and kind not in DTYPES:
        raise ExciteError(f"{path}: {tag!r} is of type {kind!r}, which is not known (known: {', '.join(DTYPES)}, str)")
    shape = tuple(dim.as_int() for dim in fields(parts[2].as_bytes()) if dim.number == 1)
    return _Entry(tag, kind, shape, tensor[3].as_bytes() if 3 in tensor else memoryview(b""))


def _once(message: Field, names: dict[int, str], repeated: int | None = None) -> dict[int, Field]:
    """The fields of a message by number. MindSpore writes no unknown or repeated ones, so these mean damage."""
    found: dict[int, Field] = {}
    for field in fields(message.as_bytes()):
        if field.number == repeated:
            continue
        if field.number not in names:
            raise Damaged(f"an entry has an unknown field {field.number}")
        if field.number in found:
            raise Damaged(f"an entry has two of {names[field.number]}")
        found[field.number] = field
    return found


def _without_crc(data: memoryview) -> tuple[memoryview, bool]:
    """The messages only, and whether a CRC-32 followed them. Raises Damaged if it is wrong."""
    end = len(data) - len(_CRC_MARK) - _CRC_BYTES
    if end < 0 or data[end : end + len(_CRC_MARK)] != _CRC_MARK:
        return data, False
    if zlib.crc32(data[:end]) != int.from_bytes(data[-_CRC_BYTES:], "big"):
        raise Damaged("its checksum does not match its content")
    return data[:end], True
