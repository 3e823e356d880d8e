"""The results of :mod:`excite.gates.summary` for every gate, kept in a file so that listing them does not need torch.

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
    """One form of a gate, JSON-serialisable. Values that only a data sheet gives are None for gates without one.

    Attributes:
        gate: a label that ``excite twins --gates`` accepts.
        name, options: name of the gate, and the options that give this form.
        title, paper: see :class:`excite.gates.facts.Facts`.
        squeeze, scales, formula, passes: see :class:`excite.gates.facts.Form`.
        parameters: formula of the number of parameters.
        params: number of parameters.
        macs: multiply-adds for one image, in convolutions, dense layers and products with kernels.
        fused: whether the gate runs inside the fused operator.
        map: the [C, H, W] for which params and macs are given.
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
    """One gate with its forms and options. ``notes`` is the docstring of its class."""

    name: str
    title: str | None
    paper: str | None
    forms: list[GateRow]
    options: list[OptionRow]
    notes: str


def list_sheets() -> list[GateSheet]:
    """The sheets of all gates of the package: ``[describe_gate(name) for name in list_gates()]``, without torch."""
    found: list[GateSheet] = json.loads(files("excite.gates").joinpath(FILE).read_text(encoding="utf-8"))
    return found


def list_rows() -> list[GateRow]:
    """A row for each form of each gate, sorted by name: ``summarise()``, without torch."""
    return [row for sheet in list_sheets() for row in sheet["forms"]]


def find_sheet(label: str) -> GateSheet:
    """``describe_gate(label)``, without torch: by a gate's name or the label of one of its forms ("ge_theta").

    Raises:
        ExciteError: there is no such gate.
    """
    sheets = list_sheets()
    for sheet in sheets:
        if label in (sheet["name"], *(row["gate"] for row in sheet["forms"])):
            return sheet
    raise unknown_gate(label, [sheet["name"] for sheet in sheets])


def unknown_gate(name: str, known: Iterable[str]) -> ExciteError:
    """The error for an unknown gate."""
    known = sorted(known)
    return ExciteError(f"unknown gate {shown(name)}{nearest(name, known)} (known: {', '.join(known)})")
