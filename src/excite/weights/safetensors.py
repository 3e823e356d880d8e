"""Reads safetensors files, including MindSpore's."""

import zlib
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from excite.errors import first_line
from excite.untrusted.raw import Damaged
from excite.weights.digest import DIGEST, is_whole
from excite.weights.stored import Stored

_LONGEST_HEADER = 100_000_000  # the library's own limit


def looks_like(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that starts with ``head`` is one: the header's length, then JSON."""
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and length <= min(_LONGEST_HEADER, size)


def read(path: Path) -> Stored:
    """Read a file; its ``__metadata__`` becomes ``texts``. Our digest and
    MindSpore's checksum (``crc_num``) are verified if present.

    Raises:
        Damaged: the library refuses it, or the checksum is wrong.
    """
    try:
        with safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # the library's own errors, and those of dtypes that PyTorch lacks
        raise Damaged(first_line(error)) from None
    if not is_whole(tensors, texts):
        raise Damaged("its content is not what was written: its SHA-256 differs from the one in its header")
    texts.pop(DIGEST, None)
    if texts.get("format") != "ms":
        return Stored("safetensors", path, tensors, {"texts": texts})
    crc = texts.pop("crc_num", None)
    if crc is not None and crc not in (str(_crc(tensors, sorted(tensors))), str(_crc(tensors, list(tensors)))):
        raise Damaged("its checksum does not match its content")
    return Stored("MindSpore safetensors", path, tensors, {"texts": texts, "crc": crc is not None})


def _crc(tensors: dict[str, Tensor], names: list[str]) -> int:
    """CRC-32 over each name and its bytes, as MindSpore 2.10 computes it."""
    value = 0
    for name in names:
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data, value)
    return value
