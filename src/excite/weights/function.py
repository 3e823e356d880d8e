"""Detects gates and blocks with the same tensor shapes that compute something else."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from excite.errors import ExciteError
from excite.gates import gate_defaults, gate_table
from excite.gates.registry import GateTable
from excite.models import Classifier, create_model
from excite.models.catalog import ModelArgs
from excite.models.selective_kernel import selective_kernel_settings

#: Options of gates that show in the names and shapes of their tensors.
_SHOWN = frozenset(("reduction", "rd_divisor", "bias", "min_width", "kernel_size", "gamma", "beta", "halve_from"))
#: cSE is SE under another name, with another default for an option that its tensors show.
_ALIKE = {"cse": "se"}

#: A gate's name and the options that its tensors do not show; None for no gate.
Function = GateTable | None


def function_of(spec: GateTable | None) -> Function:
    """What a gate's table says about its function that its tensors do not show, with defaults filled in."""
    if spec is None:
        return None
    table = gate_table(spec)
    name = table.pop("name")
    options = {"identity": False, **gate_defaults(name), **table}
    if options.get("extent") == "global":  # GE has two names for it
        options["extent"] = 0
    return {"name": _ALIKE.get(name, name), **{k: v for k, v in options.items() if k not in _SHOWN}}


def _gates(model: Classifier) -> dict[str, Function]:
    """Slot -> the function of the gate in it."""
    function = function_of(model.gate_spec)
    return {slot: None if block.gate is None else function for slot, block in model.gate_slots().items()}


def other_gates(model: Classifier, gate: GateTable | None) -> dict[str, tuple[Function, Function]]:
    """Slots of ``model`` whose gate computes a different function of the same tensors than the checkpoint's.

    Args:
        model: the network to load the weights into.
        gate: the table of the checkpoint's gates; None if it has none.

    Returns:
        Slot -> (the checkpoint's gate, this network's). Slots with a gate on only one side are not included: there,
        tensors are missing or unexpected, or the gate has none and cannot be detected.
    """
    theirs = function_of(gate)
    return {slot: (theirs, mine) for slot, mine in _gates(model).items() if mine and theirs and mine != theirs}


def other_gates_of_ours(model: Classifier, name: str, options: ModelArgs) -> dict[str, tuple[Function, Function]]:
    """:func:`other_gates` for a file of ours, which describes itself: ``create_model(name, **options)``.

    Gates on only one side are found, too, if they have no tensors that would show it.
    """
    with torch.device("meta"):
        written = create_model(name, **options)
    theirs = _gates(written)
    found = {slot: (theirs.get(slot), mine) for slot, mine in _gates(model).items() if mine != theirs.get(slot)}
    silent = {*_without_tensors(model), *_without_tensors(written)}
    return {slot: two for slot, two in found.items() if all(two) or slot in silent}


def other_gates_of_timms(model: nn.Module, args: ModelArgs) -> dict[str, tuple[Function, Function]]:
    """:func:`other_gates` for grafted timm models, both from ``create_model``; ``args`` are those of the file."""
    theirs, mine = function_of(args.get("gate")), function_of(getattr(model, "gate_spec", None))
    return {args["gate_at"][0]: (theirs, mine)} if theirs and mine and theirs != mine else {}


def _without_tensors(model: Classifier) -> list[str]:
    """Slots with a gate without tensors."""
    gates = {slot: block.gate for slot, block in model.gate_slots().items()}
    return [slot for slot, gate in gates.items() if isinstance(gate, nn.Module) and not gate.state_dict()]


def check_kernels(mine: Any, theirs: Any, source: str) -> None:
    """Raise ExciteError if selective kernels of the same shapes have different dilations."""
    found, wanted = selective_kernel_settings(mine), selective_kernel_settings(theirs)
    if found != wanted and None not in (found, wanted):
        raise ExciteError(f"{source} has block_conv {_said(wanted)}, but this network has {_said(found)}")


def refuse(source: str, different: Mapping[str, tuple[Function, Function]]) -> ExciteError:
    """The error for gates with the same shapes but a different function."""
    slot, (theirs, mine) = next(iter(different.items()))
    differing = {k for k in {**(theirs or {}), **(mine or {})} if (theirs or {}).get(k) != (mine or {}).get(k)}
    keep = differing | {"name"}
    shown = [None if f is None else {k: v for k, v in f.items() if k in keep} for f in (theirs, mine)]
    return ExciteError(
        f"{source} has the gate {_said(shown[0])} at {slot}, but this network has {_said(shown[1])}, a different "
        "function of the same tensors; create the network with the checkpoint's gate (or leave its gates out with "
        "allow_partial=True of load_weights)"
    )


def _said(table: Mapping[str, Any] | None) -> str:
    if table is None:
        return "none"
    return " ".join(str(v) if k == "name" else f"{k}={v}" for k, v in table.items())
