"""What a format is, and what those have in common that go through ONNX."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch.export import ExportedProgram

from excite.export.deployable import GATE_SCOPE
from excite.export.origin import ArtefactMeta

OPSET = 20
#: Gives the calibration images anew at each call, as the artefact takes them.
Batches = Callable[[], Iterator[np.ndarray]]
#: From how many operators of each kind take int8 inputs to what the artefact says of itself.
About = Callable[[Counter[str]], ArtefactMeta]


class Write(Protocol):
    """Write the artefact, with ``meta`` inside."""

    def __call__(self, graph: ExportedProgram, path: Path, meta: ArtefactMeta, opset: int) -> None: ...


class Quantise(Protocol):
    """Make an int8 artefact of a float32 one: convolutions and dense layers get int8 weights (one scale a channel) and
    int8 inputs, with ``with_gates`` the gates, too; preprocessing stays as it is."""

    def __call__(self, fp32: Path, out: Path, batches: Batches, with_gates: bool, about: About) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Int8:
    """How a format becomes int8.

    Attributes:
        quantiser: the package that does it.
        make: does it.
    """

    quantiser: str
    make: Quantise


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        name: what ``--format`` calls it.
        suffix: of its file.
        readers: the runtimes that can run it (see :mod:`excite.export.sessions`), its own first.
        needs: packages that writing and running it needs.
        write: writes it.
        int8: None where it has none.
        beside: suffixes of further files that lie beside its own.
    """

    name: str
    suffix: str
    readers: tuple[str, ...]
    needs: tuple[str, ...]
    write: Write
    int8: Int8 | None
    beside: tuple[str, ...] = ()

    @property
    def runtime(self) -> str:
        """Its own runtime."""
        return self.readers[0]

    def files(self, path: Path) -> list[Path]:
        """What an artefact consists of; its own file comes last."""
        return [*(path.with_suffix(suffix) for suffix in self.beside), path]


def quantised_scopes(with_gates: bool) -> tuple[str, ...]:
    """Beginnings of the names of the operators that are quantised."""
    return ("network/", f"{GATE_SCOPE}/") if with_gates else ("network/",)
