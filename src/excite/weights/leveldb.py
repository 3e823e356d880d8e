"""Reads sorted tables of LevelDB, the format of TensorFlow's ``.index`` files.

Format: leveldb/doc/table_format.md. A footer points to the index block, which points to the data blocks. In a block, a
key only stores its difference from the previous one. Each block is followed by its compression type and CRC-32C.
"""

import struct
from collections.abc import Iterator

from excite.untrusted.raw import Damaged
from excite.weights.crc32c import crc32c, unmask
from excite.weights.wire import read_varint

MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER, _TRAILER = 48, 5
_PLAIN, _SNAPPY = 0, 1
_LONGEST_KEY = 4096  # keys share prefixes, so without a limit a small file could expand into a huge one


def is_table(data: memoryview) -> bool:
    """Whether a file ends like a table."""
    return len(data) >= _FOOTER and data[-len(MAGIC) :] == MAGIC


def read_table(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The (key, value) pairs of a table, in order.

    Raises:
        Damaged: a checksum is wrong, a block is outside the file, or keys are not in order.
    """
    footer = data[-_FOOTER:]
    _, at = _handle(footer, 0)  # the meta index, which we do not need
    index, _ = _handle(footer, at)
    last: bytes | None = None
    total = 0
    for _, handle in _pairs(_block(data, index)):
        block = _block(data, _handle(handle, 0)[0])
        total += len(block)
        if total > len(data) * _SNAPPY_RATIO:
            raise Damaged("its blocks overlap")
        for key, value in _pairs(block):
            if last is not None and key <= last:
                raise Damaged("its names are not in order")
            last = key
            yield key, value


def _handle(data: memoryview, at: int) -> tuple[tuple[int, int], int]:
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return (offset, size), at


def _block(data: memoryview, handle: tuple[int, int]) -> memoryview:
    offset, size = handle
    end = offset + size
    if end + _TRAILER > len(data) - _FOOTER:
        raise Damaged(f"a block is said to lie at {offset} to {end} of {len(data)} bytes")
    (stored,) = struct.unpack_from("<I", data, end + 1)
    if crc32c(data[offset : end + 1]) != unmask(stored):
        raise Damaged(f"the block at byte {offset} has a wrong checksum")
    content, compression = data[offset:end], data[end]
    if compression == _SNAPPY:
        return memoryview(_uncompressed(content))
    if compression != _PLAIN:
        raise Damaged(f"the block at byte {offset} has the unknown compression {compression}")
    return content


def _pairs(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    if len(block) < 4:
        raise Damaged("a block is too short")
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise Damaged("a block is too short")
    at, key = 0, b""
    while at < end:
        shared, at = read_varint(block, at)
        fresh, at = read_varint(block, at)
        length, at = read_varint(block, at)
        if shared > len(key) or shared + fresh > _LONGEST_KEY or at + fresh + length > end:
            raise Damaged("an entry does not fit its block")
        key = key[:shared] + bytes(block[at : at + fresh])
        yield key, block[at + fresh : at + fresh + length]
        at += fresh + length


# --- Snappy, which TensorFlow 1.1 could write: a handful of small blocks, no reason for a dependency ----------------

_SNAPPY_RATIO = 32  # three bytes stand for 64 at most


def _uncompressed(data: memoryview) -> bytearray:
    """The content of a snappy block (google/snappy, format_description.txt). Raises Damaged."""
    size, at = read_varint(data, 0)
    if size > _SNAPPY_RATIO * len(data):
        raise Damaged(f"a compressed block of {len(data)} bytes claims to expand to {size}")
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            length, at = _literal_length(data, tag >> 2, at)
            if length > len(data) - at:
                raise Damaged("a compressed block ends early")
            out += data[at : at + length]
            at += length
        else:
            length, offset, at = _copy(data, tag, at)
            if not 0 < offset <= len(out):
                raise Damaged("a compressed block refers to data that is not there")
            start = len(out) - offset
            chunk = out[start : start + length]
            out += (chunk * -(-length // len(chunk)))[:length]  # a copy may overlap its own output
        if len(out) > size:
            break
    if len(out) != size:
        raise Damaged("a compressed block has a wrong length")
    return out


def _literal_length(data: memoryview, length: int, at: int) -> tuple[int, int]:
    if length < 60:
        return length + 1, at
    count = length - 59
    return _little_endian(data, at, count) + 1, at + count


def _copy(data: memoryview, tag: int, at: int) -> tuple[int, int, int]:
    """(length, offset backwards, where the next element begins)"""
    if tag & 3 == 1:
        return 4 + ((tag >> 2) & 7), (tag >> 5) << 8 | _little_endian(data, at, 1), at + 1
    count = 2 if tag & 3 == 2 else 4
    return 1 + (tag >> 2), _little_endian(data, at, count), at + count


def _little_endian(data: memoryview, at: int, count: int) -> int:
    if at + count > len(data):
        raise Damaged("a compressed block ends early")
    return int.from_bytes(data[at : at + count], "little")
