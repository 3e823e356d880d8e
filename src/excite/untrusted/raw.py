"""Common parts of the readers: memory-mapped files, and tensors from bytes after checking their sizes."""

import math
import mmap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

#: More elements than any machine can hold; below this, no product of sizes overflows torch's 64-bit strides.
_MAX_ELEMENTS = 1 << 48
_MAX_RANK = 32


class Damaged(ValueError):
    """A file is inconsistent. The message is a clause without the file's name, which ``read_weights`` adds."""


def map_file(path: Path) -> memoryview:
    """The bytes of a file, read-only and memory-mapped: they are loaded as they are used.

    Raises:
        OSError: the file cannot be read.
    """
    if path.stat().st_size == 0:
        return memoryview(b"")  # which mmap refuses
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def as_tensor(name: str, dtype: torch.dtype, shape: Sequence[int], content: memoryview | bytes) -> Tensor:
    """A tensor with its own memory from little-endian bytes in C order.

    Raises:
        Damaged: shape and bytes do not match; nothing is allocated.
    """
    expected = count_elements(name, shape) * dtype.itemsize
    if len(content) != expected:
        raise Damaged(f"{name!r} of shape {tuple(shape)} takes {expected} bytes, but has {len(content)}")
    if not expected:
        return torch.empty(tuple(shape), dtype=dtype)
    raw = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    if dtype is torch.bool and int(raw.max()) > 1:
        raise Damaged(f"{name!r} has a boolean that is neither 0 nor 1")
    return raw.view(dtype).view(tuple(shape))


def count_elements(name: str, shape: Sequence[int]) -> int:
    """The number of elements of a shape from a file. Raises Damaged if it is absurd or negative."""
    if len(shape) > _MAX_RANK:
        raise Damaged(f"{name!r} has {len(shape)} dimensions")
    if any(size < 0 for size in shape) or math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise Damaged(f"{name!r} has the impossible shape {tuple(shape)}")
    return math.prod(shape)


def as_text(raw: memoryview | bytes, what: str) -> str:
    """UTF-8 text from a file. Raises Damaged if it is not UTF-8."""
    try:
        return bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise Damaged(f"{what} is not text") from None


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
