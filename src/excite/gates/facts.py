"""A gate's data sheet, known before one is built: its source, what it squeezes and scales, what it costs.

Notation in formulas: C channels, H x W positions, S width of a bottleneck, k side of a kernel, x the map.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Form:
    """One form of a gate. Most gates have one, Gather-Excite has three.

    Attributes:
        squeeze: what the gate computes from the map.
        scales: "channels", "positions" or "both".
        formula: formula of the scale.
        parameters: number of parameters, as a Python expression of C, H, W and ``letters``.
        letters: further variables in ``parameters``, each a Python expression of the ones before it.
        passes: additional reads and writes of a map of the block's size in a training step, forward and backward,
            compared with no gate, where the kernels run (see docs/free-excitation.md).
        options: options for ``create_gate`` that give this form, besides the name.
    """

    squeeze: str
    scales: str
    formula: str
    parameters: str
    letters: Mapping[str, str] = field(default_factory=dict)
    passes: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """A gate's data sheet.

    Attributes:
        title: full name of the gate.
        paper: authors, title, venue, arXiv number.
        options: option of the constructor -> its meaning.
        forms: its forms; see :class:`Form`.
    """

    title: str
    paper: str
    options: Mapping[str, str]
    forms: tuple[Form, ...]
