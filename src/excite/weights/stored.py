"""What a checkpoint of any known system holds, read without its framework and without executing any of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Stored:
    """The tensors of one checkpoint, as they lie in the file.

    Attributes:
        format: for people, e.g. "MindSpore checkpoint".
        path: what was read.
        tensors: name -> tensor on the CPU, with the file's own dtype and layout (HWIO stays HWIO). Those of PyTorch's
            zip archives are views of the file, mapped into memory.
        metadata: what else the file says, JSON-able; each reader tells what.
    """

    format: str
    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    def description(self) -> str:
        """The format, and which of a training script's dictionaries was taken where the file has some."""
        part, beside = self.metadata.get("part"), self.metadata.get("beside")
        if not part:
            return self.format
        others = f", not {' or '.join(map(repr, beside))}" if beside else ""
        return f"{self.format} (its {part!r}{others})"
