"""PyTorch's own format: an exported program."""

import io
from pathlib import Path

import torch
from torch.export import ExportedProgram

from excite.export.formats.base import Format
from excite.export.origin import KEY, ArtefactMeta
from excite.export.sessions import quiet
from excite.files import to_json


def write(graph: ExportedProgram, path: Path, meta: ArtefactMeta, opset: int) -> None:
    """Write a ``.pt2`` file; ``opset`` is ignored."""
    # In memory first: torch's C++ writer meets a full disk once more in its destructor, and ends the process.
    archive = io.BytesIO()
    with quiet():
        torch.export.save(graph, archive, extra_files={f"{KEY}.json": to_json(meta)})
    path.write_bytes(archive.getbuffer())


FORMAT = Format(name="pt2", suffix=".pt2", readers=("torch",), needs=(), write=write, int8=None)
