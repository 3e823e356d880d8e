"""What is known of a gate before one is built: where it comes from, what it sees and scales, what it costs.

Letters of the formulas: C channels, H x W positions, S the width of a bottleneck, k the side of a kernel, x the map.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Form:
    """One form of a gate: most gates have one, Gather-Excite has three.

    Attributes:
        squeeze: what the gate sees of a map.
        scales: "channels", "positions" or "both".
        formula: the scale.
        parameters: how many, a Python expression of C, H, W and ``letters``.
        letters: further letters of ``parameters``, each a Python expression of the ones before it.
        passes: reads and writes of a map of the block's size, forward and backward, that a training step makes more
            than without the gate, where the kernels run (see docs/free-excitation.md).
        options: what to give ``create_gate`` for this form, besides the name.
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
        title: the full name.
        paper: authors, title, venue, arXiv number.
        options: what each option of the constructor means.
        forms: see :class:`Form`.
    """

    title: str
    paper: str
    options: Mapping[str, str]
    forms: tuple[Form, ...]
