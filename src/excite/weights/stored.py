"""What a checkpoint of any known system holds, read without its framework and without executing any of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch

if TYPE_CHECKING:
    from excite.weights.caffe import Layer


class Metadata(TypedDict, total=False):
    """What a file says beside its tensors, JSON-able, by the reader's keys: a file's own never stand among them.

    Attributes:
        part, beside, keys, values: see :func:`excite.weights.pytorch.read`.
        not_tensors: names of other entries; TensorFlow's with their types.
        crc: whether a check sum was met; strings: texts among the tensors (MindSpore).
        shards: files that the tensors are in (TensorFlow).
        name, layers: of the network (Caffe).
        texts: of safetensors, by the file's keys; "excite" is the header of a weights file of ours.
        config: the ``config.json`` beside the file.
    """

    part: str
    beside: list[str]
    keys: list[str]
    values: Mapping[str, object]
    not_tensors: list[str] | dict[str, str]
    crc: bool
    strings: dict[str, str]
    shards: int
    name: str
    layers: list[Layer]
    texts: dict[str, str]
    config: Mapping[str, object]


@dataclass(frozen=True)
class Stored:
    """The tensors of one checkpoint, as they lie in the file.

    Attributes:
        format: for people, e.g. "MindSpore checkpoint".
        path: what was read.
        tensors: name -> tensor on the CPU, with the file's own dtype and layout (HWIO stays HWIO). Those of PyTorch's
            zip archives are views of the file, mapped into memory.
        metadata: what else the file says; each reader tells what.
    """

    format: str
    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: Metadata = field(default_factory=Metadata)

    def description(self) -> str:
        """The format, and which of a training script's dictionaries was taken where the file has some."""
        part, beside = self.metadata.get("part"), self.metadata.get("beside")
        if not part:
            return self.format
        others = f", not {' or '.join(map(repr, beside))}" if beside else ""
        return f"{self.format} (its {part!r}{others})"
