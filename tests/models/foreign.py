"""The least that reads a MindSpore and a TensorFlow checkpoint, for the parity tests (no check sums, no odd types)."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """A protobuf message as (field number, number or bytes)."""
    at, fields = 0, []
    while at < len(data):
        key, at = _varint(data, at)
        value: int | bytes
        match key & 7:
            case 0:
                value, at = _varint(data, at)
            case 2:
                length, at = _varint(data, at)
                value, at = data[at : at + length], at + length
            case 5:
                value, at = data[at : at + 4], at + 4
            case wire:
                raise ValueError(f"wire type {wire}")
        fields.append((key >> 3, value))
    return fields


def read_mindspore(path: Path) -> Arrays:
    arrays: Arrays = {}
    for _, value in _fields(path.read_bytes()):
        entry = dict(_fields(value))
        tensor = _fields(entry[2])
        shape = [v for number, v in tensor if number == 1]
        parts = dict(tensor)
        assert parts[2] == b"Float32"
        arrays[entry[1].decode()] = np.frombuffer(parts[3], "<f4").reshape(shape)
    return arrays


def _block(data: bytes, handle: bytes) -> list[tuple[bytes, bytes]]:
    """The (key, value) pairs of one uncompressed LevelDB table block; keys share prefixes with their predecessors."""
    offset, at = _varint(handle, 0)
    size, _ = _varint(handle, at)
    assert data[offset + size] == 0, "compressed block"
    (restarts,) = struct.unpack_from("<I", data, offset + size - 4)
    at, end, key, pairs = offset, offset + size - 4 - 4 * restarts, b"", []
    while at < end:
        shared, at = _varint(data, at)
        fresh, at = _varint(data, at)
        length, at = _varint(data, at)
        key = key[:shared] + data[at : at + fresh]
        pairs.append((key, data[at + fresh : at + fresh + length]))
        at += fresh + length
    return pairs


def read_tensorflow(prefix: Path) -> Arrays:
    """All float32 tensors of a one-shard TensorFlow-1 Saver checkpoint."""
    index = prefix.with_name(prefix.name + ".index").read_bytes()
    data = prefix.with_name(prefix.name + ".data-00000-of-00001").read_bytes()
    footer = index[-48:]  # two block handles, padded, and 8 bytes of magic
    _, at = _varint(footer, 0)
    _, at = _varint(footer, at)
    arrays: Arrays = {}
    for _, handle in _block(index, footer[at:]):
        for name, value in _block(index, handle):
            entry = dict(_fields(value))
            if not name or entry.get(1) != 1:  # the header, or not DT_FLOAT
                continue
            shape = [dict(_fields(dim)).get(1, 0) for number, dim in _fields(entry[2]) if number == 2]
            raw = data[entry.get(4, 0) :][: entry[5]]
            arrays[name.decode()] = np.frombuffer(raw, "<f4").reshape(shape)
    return arrays
