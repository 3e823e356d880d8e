"""The contents of a checkpoint of any known system, read without its framework and without executing code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch

if TYPE_CHECKING:
    from excite.weights.caffe import Layer


class Metadata(TypedDict, total=False):
    """What a file says besides its tensors, JSON-serialisable. The keys are the reader's, never the file's own.

    Attributes:
        part, beside, keys, values: see :func:`excite.weights.pytorch.read`.
        not_tensors: names of other entries (with their types, for TensorFlow).
        crc: whether a checksum was verified (MindSpore).
        strings: texts among the tensors (MindSpore).
        shards: the files that hold the tensors (TensorFlow).
        name, layers: name and layers of the network (Caffe).
        texts: metadata of safetensors, by the file's keys; "excite" is the header of our weights files.
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
    """The tensors of a checkpoint, as they are in the file.

    Attributes:
        format: the format for display, such as "MindSpore checkpoint".
        path: the file that was read.
        tensors: name -> tensor on the CPU, with the file's own dtype and layout (HWIO stays HWIO). Tensors from
            PyTorch's zip archives are views of the memory-mapped file.
        metadata: what else the file says; see each reader.
    """

    format: str
    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: Metadata = field(default_factory=Metadata)

    def description(self) -> str:
        """The format and, if the file has several, which of a training script's dictionaries was used."""
        part, beside = self.metadata.get("part"), self.metadata.get("beside")
        if not part:
            return self.format
        others = f", not {' or '.join(map(repr, beside))}" if beside else ""
        return f"{self.format} (its {part!r}{others})"
