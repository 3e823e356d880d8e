"""Protobuf's wire format, as far as checkpoints use it.

Encoding: https://protobuf.dev/programming-guides/encoding/. The protobuf library needs generated classes, refuses
messages over 2 GB and copies what it parses. Here, a message is walked in place, and every length is checked against
the data before it is used.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from excite.untrusted.raw import Damaged, as_text

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


class Field(NamedTuple):
    """A field of a message; ``value`` is a number (VARINT) or a view of the bytes."""

    number: int
    wire: int
    value: int | memoryview

    def as_bytes(self) -> memoryview:
        """The bytes of a string, a message or a packed list. Raises Damaged if the field is something else."""
        if self.wire != BYTES or isinstance(self.value, int):
            raise Damaged(f"field {self.number} has the wire type {self.wire} instead of {BYTES}")
        return self.value

    def as_text(self) -> str:
        """A string. Raises Damaged if the field is something else."""
        return as_text(self.as_bytes(), f"field {self.number}")

    def as_int(self) -> int:
        """An int32, int64, bool or enum. Raises Damaged if the field is something else."""
        if not isinstance(self.value, int):
            raise Damaged(f"field {self.number} has the wire type {self.wire} instead of {VARINT}")
        return signed(self.value)

    def as_fixed(self, wire: int) -> memoryview:
        """One or more numbers of fixed size, little-endian. Raises Damaged if the field is something else."""
        if self.wire != wire or isinstance(self.value, int):
            raise Damaged(f"field {self.number} has the wire type {self.wire} instead of {wire}")
        return self.value


def read_varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """The unsigned number at ``at`` (7 bits per byte, low ones first) and where the next one begins.

    Raises:
        Damaged: it runs past the end or past 64 bits.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Damaged("it ends in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise Damaged("a number has more than 64 bits")


def signed(value: int) -> int:
    """A varint interpreted as protobuf's int32 or int64."""
    return value - (1 << 64) if value >= 1 << 63 else value


def packed_ints(data: memoryview) -> list[int]:
    """A packed ``repeated int64``. Raises Damaged if it ends in the middle of a number."""
    values, at = [], 0
    while at < len(data):
        value, at = read_varint(data, at)
        values.append(signed(value))
    return values


def fields(message: memoryview) -> Iterator[Field]:
    """Walk the fields of a message in order.

    Consecutive numbers of fixed size with the same field number below 16, as in an unpacked ``repeated float``, are
    combined into one field with a view of all of them: a file may hold millions.

    Raises:
        Damaged: a length points past the end of the message, or this is not a protobuf message.
    """
    at = 0
    while at < len(message):
        start = at
        key, at = read_varint(message, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise Damaged("a field has the number 0")
        if wire == VARINT:
            value, at = read_varint(message, at)
            yield Field(number, wire, value)
        elif wire == BYTES:
            length, at = read_varint(message, at)
            if length > len(message) - at:
                raise Damaged(f"a field claims to have {length} bytes, but {len(message) - at} are left")
            yield Field(number, wire, message[at : at + length])
            at += length
        elif wire in _FIXED_BYTES:
            values, at = _read_run(message, start, at - start, _FIXED_BYTES[wire])
            yield Field(number, wire, values)
        else:
            raise Damaged(f"a field has the wire type {wire}")


def _read_run(message: memoryview, start: int, key_bytes: int, value_bytes: int) -> tuple[memoryview, int]:
    """Numbers of fixed size from ``start`` on, as long as each has the same one-byte key; and their end."""
    at = start + key_bytes + value_bytes
    while key_bytes == 1 and at < len(message) and message[at] == message[start]:
        at += 1 + value_bytes
    if at > len(message):
        raise Damaged("it ends in the middle of a number")
    records = np.frombuffer(message[start:at], np.uint8).reshape(-1, key_bytes + value_bytes)
    return memoryview(records[:, key_bytes:].tobytes()), at
