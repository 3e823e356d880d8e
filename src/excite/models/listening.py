"""Observe, fix or remove gates, in any network with ``Gate`` modules.

Notation: N images, C channels, H x W positions.

A residual block passes ``gate.excitation`` or ``gate.scale`` to the fused end of the block and never calls the gate
itself, so forward hooks would not run. Instead, both methods are replaced on the instance, which affects every caller
but not the module tree, the state_dict or the choice of kernels.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from excite.errors import ExciteError, nearest
from excite.gates import Gate
from excite.models.base import Classifier
from excite.models.timm_models import is_timm_model, modules_of_timm, timms_gates

#: Called with (name of the gate, its scale (N, C) or broadcastable to (N, C, H, W)) each time a gate has run.
Listener = Callable[[str, Tensor], None]
#: Called with the same arguments; returns the scale to use instead.
Change = Callable[[str, Tensor], Tensor]
_METHODS = ("excitation", "scale")
_LIKE_A_GATE = re.compile("Gate|Excit|Squeeze|Attn|Attention")


def outer_gates(model: nn.Module) -> dict[str, Gate]:
    """Name -> gate, in module order. Gates inside gates (the two halves of scSE) are left out.

    Raises:
        ExciteError: the network has no gates.
    """
    found: dict[str, Gate] = {}
    for name, module in model.named_modules():
        if isinstance(module, Gate) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    if not found:
        what = getattr(model, "model_name", type(model).__name__)
        others = foreign_gates(model)
        if others:
            raise ExciteError(
                f"{what} has no gates of excite's to explain (only those of its library: {', '.join(others)}); "
                "`excite graft` adds some"
            )
        raise ExciteError(f"{what} has no gates to explain; `excite graft` adds some")
    return found


def foreign_gates(model: nn.Module) -> list[str]:
    """Gates that timm itself built into a network, which excite can neither explain nor measure.

    Returns:
        "timm's SEModule" and the like, each class once; "unknown" if modules are only named like gates (as the
        self-attention of a transformer is, too); an empty list for excite's own networks, and if nothing looks like a
        gate.
    """
    if not is_timm_model(model):
        return []
    known = [f"timm's {type(module).__name__}" for module in timms_gates(model).values()]
    alike = any(
        _LIKE_A_GATE.search(type(module).__name__) or name.rpartition(".")[2] in ("se", "attn", "gate")
        for name, module in modules_of_timm(model).items()
    )
    return list(dict.fromkeys(known)) or (["unknown"] if alike else [])


def check_gates(names: Collection[str], gates: Collection[str]) -> None:
    """Raise ExciteError if one of ``names`` is not in ``gates``."""
    for name in names:
        if name not in gates:
            raise ExciteError(f"there is no gate {name!r}{nearest(name, gates)} (there are {', '.join(gates)})")


@contextmanager
def listening(model: nn.Module, listener: Listener) -> Iterator[list[str]]:
    """Context in which ``listener`` is called with every scale. The network's output is bitwise unchanged.

    Yields:
        The names of the gates.

    Raises:
        ExciteError: the network has no gates.
    """

    def tell(name: str, scale: Tensor) -> Tensor:
        listener(name, scale.detach())
        return scale

    with changed_scales(model, tell) as names:
        yield names


@contextmanager
def changed_scales(model: nn.Module, change: Change) -> Iterator[list[str]]:
    """Context in which each scale is replaced by the result of ``change``. Yields the names of the gates.

    Raises:
        ExciteError: the network has no gates.
    """
    gates = outer_gates(model)
    with _replaced(gates, lambda name, gate: _changing(name, gate, change)):
        yield list(gates)


@contextmanager
def fixed_gates(model: nn.Module, scales: Mapping[str, Tensor]) -> Iterator[None]:
    """Context in which the gates in ``scales`` have a constant scale for all images and positions.

    Args:
        model: the network with the gates.
        scales: name -> scale (C,), or (1,) for a gate that scales all channels equally.

    Raises:
        ExciteError: there is no such gate.
    """
    gates = outer_gates(model)
    check_gates(list(scales), list(gates))
    with _replaced({name: gates[name] for name in scales}, lambda name, gate: _constant(scales[name])):
        yield


@contextmanager
def without_gates(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Context without the gates and their cost, for timing the network rather than using it.

    Raises:
        ExciteError: there is no such gate.
    """
    gates = outer_gates(model)
    check_gates(names, list(gates))
    slots = model.gate_slots().values() if isinstance(model, Classifier) else []
    holders = {id(slot.gate): slot for slot in slots}
    emptied: list[tuple[nn.Module, Gate]] = []
    passing: list[Gate] = []
    try:
        for gate in (gates[name] for name in names):
            if id(gate) in holders:
                holders[id(gate)].gate = None  # type: ignore[assignment]
                emptied.append((holders[id(gate)], gate))
            else:
                gate.forward = _passed_on  # type: ignore[method-assign]
                passing.append(gate)
        yield
    finally:
        for holder, gate in emptied:
            holder.gate = gate
        for gate in passing:
            del gate.forward


def _passed_on(x: Tensor) -> Tensor:
    return x


Methods = Mapping[str, Callable[[Tensor], Tensor]]


@contextmanager
def _replaced(gates: Mapping[str, Gate], methods: Callable[[str, Gate], Methods]) -> Iterator[None]:
    """Replace methods on instances, and restore earlier replacements afterwards (one may listen to a fixed gate)."""
    before = {name: {m: vars(gate)[m] for m in _METHODS if m in vars(gate)} for name, gate in gates.items()}
    try:
        for name, gate in gates.items():
            vars(gate).update(methods(name, gate))
        yield
    finally:
        for name, gate in gates.items():
            for method in _METHODS:
                vars(gate).pop(method, None)
            vars(gate).update(before[name])


def _changing(name: str, gate: Gate, change: Change) -> Methods:
    inside = False  # ``scale`` may call ``excitation``: it is one result, to be reported once

    def heard(method: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def answer(x: Tensor) -> Tensor:
            nonlocal inside
            if inside:
                return method(x)
            inside = True
            try:
                scale = method(x)
            finally:
                inside = False
            return change(name, scale)

        return answer

    return {method: heard(getattr(gate, method)) for method in _METHODS}


def _constant(scale: Tensor) -> Methods:
    def answer(x: Tensor) -> Tensor:
        return scale.to(x.device, x.dtype).expand(x.shape[0], x.shape[1])

    return dict.fromkeys(_METHODS, answer)
