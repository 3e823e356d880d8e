"""All gates as a table: their source, what they squeeze and scale, and their cost, counted on the gates themselves.

``python -m excite.gates.summary`` writes the table to ``sheets.json``, which ``excite gates`` reads. Notation: C
channels, H x W positions.
"""

import json
from collections.abc import Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from excite.gates.facts import Form
from excite.gates.known import create_gate, gate_defaults, gate_facts, list_gates
from excite.gates.registry import GateTable, gate_class
from excite.gates.sheets import FILE, GateRow, GateSheet, OptionRow

#: (channels, height, width) of the map for which costs are given: the first stage of ResNet-50 at 224x224 pixels.
MAP = (256, 56, 56)


def summarise(size: tuple[int, int, int] = MAP) -> list[GateRow]:
    """A row for each form of each gate, sorted by name; see :func:`summarise_gate`."""
    return [row for name in list_gates() for row in summarise_gate(name, size)]


def summarise_gate(name: str, size: tuple[int, int, int] = MAP) -> list[GateRow]:
    """The forms of one gate. Raises ExciteError if there is no such gate."""
    facts = gate_facts(name)
    return [_row(name, form, size) for form in (facts.forms if facts else (None,))]


def _row(name: str, form: Form | None, size: tuple[int, int, int]) -> GateRow:
    facts = gate_facts(name)
    options: GateTable = dict(form.options) if form else {}
    params, macs, fused = count_cost({"name": name, **options}, size)
    return {
        "gate": _label(name, options),
        "name": name,
        "options": options,
        "title": facts.title if facts else None,
        "paper": facts.paper if facts else None,
        "squeeze": form.squeeze if form else None,
        "scales": form.scales if form else None,
        "formula": form.formula if form else None,
        "parameters": count_formula(form) if form else None,
        "params": params,
        "macs": macs,
        "passes": form.passes if form else None,
        "fused": fused,
        "map": list(size),
    }


def _label(name: str, options: Mapping[str, Any]) -> str:
    variant = options.get("variant")
    rest = [f"{option}={str(value).lower()}" for option, value in options.items() if option != "variant"]
    return ":".join([name if variant is None else f"{name}_{variant}", *rest])


def _labels() -> dict[str, str]:
    """Label of each form -> name of the gate."""
    sheets = {name: gate_facts(name) for name in list_gates()}
    return {_label(name, form.options): name for name, facts in sheets.items() if facts for form in facts.forms}


def count_formula(form: Form) -> str:
    """The number of parameters as a formula, such as ``2*C*S + S + C, S = C // 16``."""
    return ", ".join([form.parameters, *(f"{letter} = {value}" for letter, value in form.letters.items())])


def count_cost(spec: GateTable, size: tuple[int, int, int]) -> tuple[int, int, bool]:
    """(parameters, multiply-adds for one image, whether it is a function of the channel means only) of a gate."""
    channels, height, width = size
    with torch.device("meta"):
        gate = create_gate(spec, channels, feature_size=(height, width)).eval()
        image = torch.empty(1, channels, height, width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        gate.scale(image)
    return sum(p.numel() for p in gate.parameters()), counter.get_total_flops() // 2, gate.channelwise


def describe_gate(label: str) -> GateSheet:
    """One gate with its options, by name or by the label of one of its forms ("ge_theta").

    Raises:
        ExciteError: there is no such gate.
    """
    name = _labels().get(label, label)
    forms, facts = summarise_gate(name), gate_facts(name)
    meanings = facts.options if facts else {}
    options: list[OptionRow] = [
        {"option": o, "default": d, "meaning": meanings.get(o)} for o, d in gate_defaults(name).items()
    ]
    return {
        "name": name,
        "title": facts.title if facts else None,
        "paper": facts.paper if facts else None,
        "forms": forms,
        "options": options,
        "notes": cleandoc(gate_class(name).__doc__ or ""),
    }


if __name__ == "__main__":
    lines = [f"  {json.dumps(describe_gate(name))}" for name in list_gates()]
    Path(__file__).with_name(FILE).write_text("[\n" + ",\n".join(lines) + "\n]\n")
