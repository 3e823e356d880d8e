"""PyTorch's own format: an exported program."""

from pathlib import Path

import torch
from torch.export import ExportedProgram

from excite.export.formats.base import Format
from excite.export.origin import KEY, ArtefactMeta
from excite.export.sessions import quiet
from excite.files import to_json


def write(graph: ExportedProgram, path: Path, meta: ArtefactMeta, opset: int) -> None:
    """Write a ``.pt2`` file; ``opset`` is ignored."""
    with quiet():
        torch.export.save(graph, path, extra_files={f"{KEY}.json": to_json(meta)})


FORMAT = Format(name="pt2", suffix=".pt2", readers=("torch",), needs=(), write=write, int8=None)
