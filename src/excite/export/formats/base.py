"""The interface of an export format, and parts shared by formats that go through ONNX."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch.export import ExportedProgram

from excite.export.deployable import GATE_SCOPE
from excite.export.origin import ArtefactMeta
from excite.files import flush_entries

OPSET = 20
#: Each call starts a new pass over the calibration images, in the form of the artefact's input.
Batches = Callable[[], Iterator[np.ndarray]]
#: Number of operators with int8 inputs, by kind -> the metadata of the artefact.
About = Callable[[Counter[str]], ArtefactMeta]


class Write(Protocol):
    """Write the artefact, including ``meta``."""

    def __call__(self, graph: ExportedProgram, path: Path, meta: ArtefactMeta, opset: int) -> None: ...


class Quantise(Protocol):
    """Make an int8 artefact from a float32 one.

    Convolutions and linear layers get int8 weights (one scale per output channel) and int8 inputs; with ``with_gates``,
    so do the gates. Preprocessing is not changed.
    """

    def __call__(self, fp32: Path, out: Path, batches: Batches, with_gates: bool, about: About) -> None: ...


class Replace(Protocol):
    """Move the artefact ``final`` to ``target``, both on one disk. After a kill at any moment ``target`` can be read,
    and is the old artefact or the new one. Raises OSError."""

    def __call__(self, final: Path, target: Path) -> None: ...


def replace_file(final: Path, target: Path) -> None:
    """Move one file over another, and flush its folder."""
    os.replace(final, target)
    flush_entries(target.parent)


@dataclass(frozen=True, kw_only=True)
class Int8:
    """int8 quantisation in a format.

    Attributes:
        quantiser: the package that quantises.
        make: the function that makes the int8 artefact.
    """

    quantiser: str
    make: Quantise


@dataclass(frozen=True, kw_only=True)
class Format:
    """An export format.

    Attributes:
        name: its name for ``--format``.
        suffix: suffix of its file.
        readers: the runtimes that can run it (see :mod:`excite.export.sessions`), its own first.
        needs: packages required to write and run it.
        write: the function that writes it.
        int8: its int8 quantisation; None if it has none.
        beside: suffixes of additional files next to the main one.
        replace: the function that moves a complete artefact, flushed to disk, over another one.
    """

    name: str
    suffix: str
    readers: tuple[str, ...]
    needs: tuple[str, ...]
    write: Write
    int8: Int8 | None
    beside: tuple[str, ...] = ()
    replace: Replace = replace_file

    @property
    def runtime(self) -> str:
        """Its own runtime."""
        return self.readers[0]

    def files(self, path: Path) -> list[Path]:
        """All files of an artefact; the main file comes last."""
        return [*(path.with_suffix(suffix) for suffix in self.beside), path]


def quantised_scopes(with_gates: bool) -> tuple[str, ...]:
    """Name prefixes of the operators to quantise."""
    return ("network/", f"{GATE_SCOPE}/") if with_gates else ("network/",)
