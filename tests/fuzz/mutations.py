"""Changes of inputs: of their bytes, and of what they hold."""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

# --- bytes ------------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _range(rng: random.Random, data: bytes) -> tuple[int, int]:
    at = rng.randrange(len(data))
    return at, min(len(data), at + rng.choice((1, 2, 4, 8, 30, 200, 4096)))


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def flip_bit(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def set_byte(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF))]) + data[at + 1 :]


def huge_number(rng: random.Random, data: bytes) -> bytes:
    """A number that says more than there is memory, in one of the usual forms."""
    at, big = rng.randrange(len(data)), 1 << rng.randrange(30, 64)
    number = rng.choice(
        (varint(big), big.to_bytes(8, "little"), big.to_bytes(8, "big"), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff")
    )
    return data[:at] + number + data[at + rng.choice((0, 1, len(number), len(number))) :]


def huge_digits(rng: random.Random, data: bytes) -> bytes:
    """Likewise where numbers are texts."""
    at = rng.randrange(len(data))
    return data[:at] + rng.choice((b"9" * 12, b"-1", b"1e400", b"9" * 400, b"NaN")) + data[at + rng.choice((0, 1)) :]


def repeat(rng: random.Random, data: bytes) -> bytes:
    start, end = _range(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 3)) + data[end:]


def remove(rng: random.Random, data: bytes) -> bytes:
    start, end = _range(rng, data)
    return data[:start] + data[end:]


def insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 3, 16))) + data[at:]


def move(rng: random.Random, data: bytes) -> bytes:
    start, end = _range(rng, data)
    rest = data[:start] + data[end:]
    at = rng.randrange(len(rest) + 1)
    return rest[:at] + data[start:end] + rest[at:]


def blank(rng: random.Random, data: bytes) -> bytes:
    start, end = _range(rng, data)
    return data[:start] + bytes(end - start) + data[end:]


BYTES: tuple[Mutation, ...] = (
    truncate,
    flip_bit,
    flip_bit,
    set_byte,
    huge_number,
    huge_digits,
    repeat,
    remove,
    insert,
    move,
    blank,
)


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes] = (), head: int | None = None) -> bytes:
    """One or a few changes of bytes, never none.

    Args:
        rng: random numbers.
        data: the input.
        others: what its beginning may be joined with.
        head: change only so many bytes at the beginning, where the input has its structure.
    """
    if head is not None and head < len(data) and rng.random() < 0.7:
        return mutated(rng, data[:head]) + data[head:]
    if others and rng.random() < 0.05:
        other = rng.choice(others)
        return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
    out = data
    while out == data:
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            out = rng.choice(BYTES)(rng, out) if out else out
    return out


# --- values -----------------------------------------------------------------------------------------------------------

LONG = "y" * 100_000
#: What a number, a text or a list may be replaced by.
BOUNDARIES: tuple[Any, ...] = (
    0, -0.0, 1, -1, 2, 3, 7, 255, 256, 1 << 15, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, -(1 << 63), 1 << 63,
    10**400, 0.5, 1.0, 1e-300, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), True, False, None,
    "", " ", "0", "-1", "1e400", "nan", "null", "true", "auto", "x", "../..", "/", "/dev/zero", "~", "\0", "\n",
    "\x1b[31m", "\u202e", "\ud800", "é", "数据", "%s%n", "{}", "'", "a" * 300, LONG,
    [], [0], [None], [[]], [1, 2], [1.5, -1], ["x"], [float("nan")] * 3, [0] * 1000, {}, {"": 0},
    {"x": {"y": []}}, [{}],
)  # fmt: skip


def boundary(rng: random.Random) -> Any:
    """A value at which code tends to break."""
    return copy.deepcopy(rng.choice(BOUNDARIES))


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in nested lists and dictionaries."""
    found = [at]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        found += _places(each, (*at, key))
    return found


def _near(rng: random.Random, value: Any) -> Any:
    """A value like this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        if abs(value) > 1 << 70:
            return -value
        return rng.choice((value + 1, value - 1, -value, value * 2, value << 20, float(value), str(value)))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e30, value / 1e30, int(value) if abs(value) < 1e18 else 0, str(value)))
    if isinstance(value, str):
        return rng.choice((value + "x", value[:-1], value.upper(), value * 2, [value], value.replace("e", "\u0435")))
    if isinstance(value, list):
        return rng.choice(
            (value[:-1], value + value[:1], value[::-1], value * 2, [value], dict(enumerate(map(str, value))))
        )
    return value


def changed(rng: random.Random, value: Any, times: int | None = None) -> Any:
    """A copy of nested lists and dictionaries with one or a few values replaced, removed, added, copied or swapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4)) if times is None else times):
        places = _places(value)
        at = rng.choice(places)
        if not at:
            at = rng.choice(places)
        if not at:
            return boundary(rng)
        node = value
        for key in at[:-1]:
            node = node[key]
        _change(rng, value, node, at[-1], places)
    return value


def _change(rng: random.Random, whole: Any, node: Any, key: Any, places: list[tuple[Any, ...]]) -> None:
    kind = rng.randrange(10)
    if kind < 4:
        node[key] = boundary(rng)
    elif kind < 6:
        node[key] = _near(rng, node[key])
    elif kind == 6:
        del node[key]
    elif kind == 7 and isinstance(node, dict):
        node[rng.choice(("x", "", LONG[:300], "__class__", str(key) * 2, str(key).upper()))] = copy.deepcopy(node[key])
    elif kind == 8:
        other: Any = whole
        for part in rng.choice(places):
            other = other[part] if isinstance(other, dict) and part in other else other
        node[key] = copy.deepcopy(other)
    else:
        node[key] = rng.choice(([node[key]], {"x": node[key]}, {str(key): node[key]}))
