"""Listen to gates, fix them, take them away: for any network that holds a ``Gate``.

Letters: N images, C channels, H x W positions.

A residual block hands ``gate.excitation`` or ``gate.scale`` to the fused end of the block and never calls the gate
itself, so that forward hooks would miss it. Instead both methods are replaced on the instance, which every caller
sees, and which leaves the tree of modules, the state_dict and the choice of kernels as they are.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from excite.errors import ExciteError, nearest
from excite.gates import Gate
from excite.models.base import Classifier
from excite.models.timm_models import is_timm_model, modules_of_timm, timms_gates

#: Told (name of the gate, its scale (N, C) or broadcastable to (N, C, H, W)) each time a gate has spoken.
Listener = Callable[[str, Tensor], None]
#: Given the same, answers with the scale that is used instead.
Change = Callable[[str, Tensor], Tensor]
_METHODS = ("excitation", "scale")
_LIKE_A_GATE = re.compile("Gate|Excit|Squeeze|Attn|Attention")


def outer_gates(model: nn.Module) -> dict[str, Gate]:
    """Name -> gate, in the order of the modules; gates inside of gates (the two halves of scSE) are left out.

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
                f"{what} has no gates of excite's to explain (its library's own: {', '.join(others)}); "
                "`excite graft` puts some in"
            )
        raise ExciteError(f"{what} has no gates to explain; `excite graft` puts some in")
    return found


def foreign_gates(model: nn.Module) -> list[str]:
    """What timm itself built into a network by way of gates, which excite can neither explain nor measure.

    Returns:
        "timm's SEModule" and the like, each class once; "unknown" where modules are only named like gates (which the
        self-attention of a transformer is, too); nothing for networks of excite's, and where nothing looks like one.
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
    """Raises ExciteError where one of ``names`` is none of ``gates``."""
    for name in names:
        if name not in gates:
            raise ExciteError(f"there is no gate {name!r}{nearest(name, gates)} (there are {', '.join(gates)})")


@contextmanager
def listening(model: nn.Module, listener: Listener) -> Iterator[list[str]]:
    """Within the block ``listener`` is told every scale; what the network computes is the same to the last bit.

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
    """Within the block the network uses what ``change`` makes of each scale. Yields the names of the gates.

    Raises:
        ExciteError: the network has no gates.
    """
    gates = outer_gates(model)
    with _replaced(gates, lambda name, gate: _changing(name, gate, change)):
        yield list(gates)


@contextmanager
def fixed_gates(model: nn.Module, scales: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the gates named in ``scales`` say the same for all images and positions.

    Args:
        model: holds the gates.
        scales: name -> (C), or (1) for a gate that gives all channels the same scale.

    Raises:
        ExciteError: there is no such gate.
    """
    gates = outer_gates(model)
    check_gates(list(scales), list(gates))
    with _replaced({name: gates[name] for name in scales}, lambda name, gate: _constant(scales[name])):
        yield


@contextmanager
def without_gates(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Within the block the gates are not there and cost nothing: to time the network, not to use it.

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
    """Put other methods on instances. What was put there before (one may listen to a fixed gate) comes back."""
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
    inside = False  # ``scale`` may call ``excitation``: one answer, heard once

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
