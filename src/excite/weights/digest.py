"""Writes safetensors files with a digest of their content, and checks it when they are read.

The digest is SHA-256 over the tensors (names, dtypes, shapes, bytes) and the texts of the header, so that no flipped
bit, exchanged tensor or edited class name goes unnoticed. It does not depend on the order in which they are stored.
Equal content gives equal files.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from excite.errors import ExciteError, first_line

#: Key of the header.
DIGEST = "excite_digest"


def content_digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """``sha256:`` and the hexadecimal digest of tensors on the CPU and texts, each in the order of their names."""
    digest = hashlib.sha256()

    def add(*parts: str) -> None:
        for part in parts:
            raw = part.encode("utf-8", "surrogatepass")
            digest.update(f"{len(raw)}:".encode() + raw)

    for key in sorted(texts):
        add(key, texts[key])
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        add(name, str(tensor.dtype), str(tuple(tensor.shape)))
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write contiguous tensors and the texts of the header, in place (see ``written_aside`` for safe replacement).

    Raises:
        SafetensorError, OSError: the disk is full or the place cannot be written.
    """
    texts = {"format": "pt", **texts}
    path.touch()
    mode = path.stat().st_mode  # as the user's umask says; the library's own file is for this user alone
    save_file(dict(tensors), path, metadata={**texts, DIGEST: content_digest(tensors, texts)})
    path.chmod(mode)
    _sort_header(path)


def _sort_header(path: Path) -> None:
    """Put the header's texts in order: the library writes them in a random one."""
    with path.open("r+b") as file:
        raw = file.read(int.from_bytes(file.read(8), "little")).decode("utf-8")
        start = at = raw.index('"__metadata__":{') + len('"__metadata__":{')
        entries, parse = list[str](), json.JSONDecoder().raw_decode
        while raw[at - 1] != "}":  # each entry is "key":"text", followed by a comma or the closing brace
            _, colon = parse(raw, at)
            _, end = parse(raw, colon + 1)
            entries.append(raw[at:end])
            at = end + 1
        file.seek(8)
        file.write((raw[:start] + ",".join(sorted(entries)) + raw[at - 1 :]).encode("utf-8"))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and the texts of its header, after checking the digest if it has one.

    Raises:
        ExciteError: it is not a safetensors file, or its content is not what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ExciteError(f"{path} is not a readable safetensors file: {first_line(error)}") from None
    if not is_whole(tensors, texts):
        raise ExciteError(
            f"{path} is damaged: its content is not what was written (its SHA-256 differs from the one in its header); "
            "get or write the file again"
        )
    return tensors, texts


def is_whole(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> bool:
    """Whether the content is what was written; true for files without a digest (of others, or of older versions)."""
    stored = texts.get(DIGEST)
    return stored is None or stored == content_digest(tensors, {k: v for k, v in texts.items() if k != DIGEST})
