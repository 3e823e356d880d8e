"""What :mod:`excite.gates.summary` finds for every gate, kept in a file: to count it takes PyTorch, to list it no time.

A test compares the file with the gates.
"""

import json
from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, TypedDict

from excite.errors import ExciteError, nearest, shown

if TYPE_CHECKING:
    from excite.gates.registry import GateTable

FILE = "sheets.json"


class GateRow(TypedDict):
    """A form of a gate, JSON-able; what a gate without a data sheet does not tell is None.

    Attributes:
        gate: a label as ``excite twins --gates`` takes it.
        options: what to give beside the name.
        squeeze, scales, formula, passes: see :class:`excite.gates.facts.Form`; parameters: a formula, too.
        macs: multiply-adds of convolutions, dense layers and products with kernels, for one image.
        fused: whether the gate runs inside of the fused operator.
        map: the [C, H, W] that params and macs are of.
    """

    gate: str
    name: str
    options: "GateTable"
    title: str | None
    paper: str | None
    squeeze: str | None
    scales: str | None
    formula: str | None
    parameters: str | None
    params: int
    macs: int
    passes: int | None
    fused: bool
    map: list[int]


class OptionRow(TypedDict):
    option: str
    default: object
    meaning: str | None


class GateSheet(TypedDict):
    """One gate with its forms and options; ``notes`` is the docstring of its class."""

    name: str
    title: str | None
    paper: str | None
    forms: list[GateRow]
    options: list[OptionRow]
    notes: str


def list_sheets() -> list[GateSheet]:
    """As ``[describe_gate(name) for name in list_gates()]``, of the gates that come with the package, without torch."""
    found: list[GateSheet] = json.loads(files("excite.gates").joinpath(FILE).read_text(encoding="utf-8"))
    return found


def list_rows() -> list[GateRow]:
    """A row for each form of each gate, sorted by name: as ``summarise()``, without torch."""
    return [row for sheet in list_sheets() for row in sheet["forms"]]


def find_sheet(label: str) -> GateSheet:
    """As ``describe_gate(label)``, without torch: by the gate's name or the label of one of its forms ("ge_theta").

    Raises:
        ExciteError: there is no such gate.
    """
    sheets = list_sheets()
    for sheet in sheets:
        if label in (sheet["name"], *(row["gate"] for row in sheet["forms"])):
            return sheet
    raise unknown_gate(label, [sheet["name"] for sheet in sheets])


def unknown_gate(name: str, known: Iterable[str]) -> ExciteError:
    """That there is no such gate."""
    known = sorted(known)
    return ExciteError(f"unknown gate {shown(name)}{nearest(name, known)} (known: {', '.join(known)})")
