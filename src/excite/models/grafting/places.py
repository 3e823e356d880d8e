"""Finds places for gates in any network. Notation: N images, C channels, H x W positions."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from excite.errors import ExciteError, nearest
from excite.gates import Gate
from excite.models.base import Classifier, by_order, match_slots
from excite.models.grafting.dataflow import DataFlow, Example, Step, evaluating, trace
from excite.models.grafting.wrapper import Grafted
from excite.text import counted


@dataclass(frozen=True)
class Place:
    """A place for a gate.

    Attributes:
        name: the module after which the gate goes; in our own models, the block with the slot.
        channels: C of the map there.
        size: (H, W) of the map, for the example that the network was traced with.
        channels_last: whether the map has the shape (N, H, W, C).
        slot: whether it is a block of ours, which runs its gate itself.
        gated: what already gates this branch; "" if nothing does.
    """

    name: str
    channels: int
    size: tuple[int, int]
    channels_last: bool = False
    slot: bool = False
    gated: str = ""


@dataclass(frozen=True)
class Found:
    """The places found, and a sentence on how."""

    places: list[Place]
    sentence: str


def find_places(model: nn.Module, at: str | Sequence[str], example: Example) -> Found:
    """The places for gates that ``at`` selects: "auto", or module names and shell patterns.

    With "auto", these are the slots in our own models. In others, they are the last layers of all residual branches,
    found by following operations rather than by class names: an addition of two maps of equal shape, one of which has
    passed more convolutions than the other since they diverged, and ends in a convolution, dense layer or norm whose
    result is used nowhere else. In a network without residual additions, they are the last layers before each change
    of the map's size.

    A pattern selects among those: by name, by a module that holds them (``layer4``), or by their order (``first``,
    ``last2``, ``every2``). If it matches none of them, it selects among all modules of the network; ``*`` then does not
    match a dot.

    Raises:
        ExciteError: there is no such place, or a module's result is not a map.
    """
    patterns = [at] if isinstance(at, str) else list(at)
    if not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise ExciteError(f"at must be 'auto', or one or more module names or patterns, not {at!r}")
    if isinstance(model, Classifier):
        return _pick_slots(model, patterns, example)
    if patterns == ["auto"]:
        return _found_by_tracing(model, example)
    try:
        automatic = _found_by_tracing(model, example)
    except ExciteError:
        automatic = Found([], "")
    chosen: dict[str, Place] = {}
    modules = dict(model.named_modules())
    for pattern in patterns:
        hits = [p for p in automatic.places if _names(pattern, p.name)]
        if not hits and pattern not in modules:
            ordered = by_order(pattern, [p.name for p in automatic.places])
            hits = [p for p in automatic.places if p.name in ordered]
        hits = hits or _by_module(model, pattern, example, automatic)
        chosen.update({p.name: p for p in hits})
    return Found(list(chosen.values()), f"{counted(len(chosen), 'place')} selected by {', '.join(patterns)}")


def _names(pattern: str, name: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


# --- our own models -------------------------------------------------------------------------------------------------


class _Probe(Gate):
    """Stands in a slot for one pass and records the map that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[int, ...] = ()

    def scale(self, x: Tensor) -> Tensor:
        self.seen = tuple(x.shape)
        return x.new_ones(x.shape[:2])


def _pick_slots(model: Classifier, patterns: list[str], example: Example) -> Found:
    slots = model.gate_slots()
    names = list(slots) if patterns == ["auto"] else []
    for pattern in patterns if not names else []:
        names += [n for n in match_slots(pattern, list(slots)) if n not in names]
    gates = {name: slots[name].gate for name in names}
    probes = {name: _Probe() for name in names}
    try:
        for name, probe in probes.items():
            slots[name].gate = probe
        run_once(model, example)
    finally:
        for name, gate in gates.items():
            slots[name].gate = gate
    places = []
    for name, probe in probes.items():
        _, c, h, w = probe.seen
        places.append(
            Place(name, c, (h, w), slot=True, gated="" if gates[name] is None else type(gates[name]).__name__)
        )
    return Found(places, f"{counted(len(places), 'block')} of {model.model_name} with a slot for a gate")


# --- other people's -------------------------------------------------------------------------------------------------


def _found_by_tracing(model: nn.Module, example: Example) -> Found:
    flow = trace(model, example)
    places, nowhere, additions = _branch_ends(flow)
    how = f"found by {flow.traced_by}"
    if additions:
        sentence = f"{counted(len(places), 'residual branch')} {how}"
        if nowhere:
            sentence += f"; {len(nowhere)} more do not end in a layer that takes a gate ({', '.join(nowhere[:3])})"
    else:
        tokens = any(s.kind == "add" and len(s.inputs) == 2 and len(s.shape or ()) == 3 for s in flow.steps)
        places = [] if tokens else _stage_ends(flow)
        sentence = (
            f"its additions are of sequences (N, L, C), {how}"
            if tokens
            else f"no residual additions of maps: the last layer of each of {counted(len(places), 'map size')}, {how}"
        )
    if not places:
        first = next((s.module for s in flow.steps if s.convolution and s.module and len(s.shape or ()) == 4), None)
        name = "" if first is None else f"; name modules yourself, such as at=[{first!r}]"
        raise ExciteError(
            f"no place for a gate was found in {type(model).__name__} ({sentence}): gates scale the channels of maps "
            f"(N, C, H, W), after a convolution or norm{name}"
        )
    return Found(_with_layout(model, places), sentence)


def _branch_ends(flow: DataFlow) -> tuple[list[tuple[Step, str]], list[str], int]:
    """Branch ends with what gates them, labels of branches without a usable end, number of residual additions."""
    ancestors = _ancestors(flow.steps)
    ends: dict[str, tuple[Step, str]] = {}
    nowhere, additions = [], 0
    for index, step in enumerate(flow.steps):
        sides = _sides(flow.steps, ancestors, index)
        if sides is None:
            continue
        additions += 1
        branch, own = sides
        end = _walk_back(flow.steps, branch)
        gates = [flow.steps[i] for i in own if flow.steps[i].kind == "gate"]
        if end is None or end.module is None:
            nowhere.append(step.label or f"addition {index}")
        else:
            ends.setdefault(end.module, (end, gates[-1].label or "a product of maps" if gates else ""))
    return list(ends.values()), nowhere, additions


def _ancestors(steps: list[Step]) -> list[int]:
    """For each step, the set of all steps that it is computed from, including itself, as a bit mask."""
    sets: list[int] = []
    for index, step in enumerate(steps):
        bits = 1 << index
        for source in step.inputs:
            bits |= sets[source]
        sets.append(bits)
    return sets


def _sides(steps: list[Step], ancestors: list[int], index: int) -> tuple[int, list[int]] | None:
    """For a residual addition: the branch, and the steps that only belong to the branch. None for other additions."""
    step = steps[index]
    if step.kind != "add" or len(step.inputs) != 2:
        return None
    a, b = step.inputs
    if steps[a].shape != steps[b].shape or steps[a].shape is None or len(steps[a].shape or ()) != 4:
        return None
    alone = {a: _members(ancestors[a] & ~ancestors[b]), b: _members(ancestors[b] & ~ancestors[a])}
    convolutions = {side: sum(steps[i].convolution for i in own) for side, own in alone.items()}
    if convolutions[a] == convolutions[b] or not ancestors[a] & ancestors[b]:
        return None
    branch = max(convolutions, key=convolutions.__getitem__)
    return branch, alone[branch]


def _members(bits: int) -> list[int]:
    found = []
    while bits:
        low = bits & -bits
        found.append(low.bit_length() - 1)
        bits ^= low
    return found


def _walk_back(steps: list[Step], index: int) -> Step | None:
    """The layer that ``index`` comes from, ignoring elementwise operations, permutations and a gate; None if none."""
    gated = False
    while gated or len(steps[index].users) == 1:
        step = steps[index]
        if step.kind == "layer" or (step.kind == "gate" and step.module is not None):  # the latter is one of our gates
            return step if step.module is not None and step.shape is not None and len(step.shape) == 4 else None
        if step.kind not in ("same", "gate"):
            return None
        gated = gated or step.kind == "gate"  # the gate reads the map, too, so the map has more users
        sources = [i for i in step.inputs if steps[i].shape is not None]
        index = next((i for i in sources if steps[i].shape == step.shape), sources[0])
    return None


def _stage_ends(flow: DataFlow) -> list[tuple[Step, str]]:
    """The last layer with a map of each size, if a convolution or dense layer follows and nothing runs in parallel."""
    last = max((i for i, s in enumerate(flow.steps) if s.convolution), default=0)
    ancestors = _ancestors(flow.steps)
    used = _members(ancestors[last]) if flow.steps else []
    ends: dict[tuple[int, ...], Step] = {}
    for i in used[:-1]:
        step = flow.steps[i]
        usable = step.kind == "layer" and step.module is not None and step.shape is not None and len(step.shape) == 4
        alone = usable and all(ancestors[j] >> i & 1 or ancestors[i] >> j & 1 for j in used)
        if alone and step.shape and max(step.shape[2:]) > 1:
            ends[step.shape[2:]] = step
    gates = [s for s in flow.steps if s.kind == "gate"]
    gated = {s.shape: s.label or "a product of maps" for s in gates}
    return [(step, gated.get(step.shape, "")) for step in ends.values()]


def _with_layout(model: nn.Module, ends: list[tuple[Step, str]]) -> list[Place]:
    places = []
    for step, gated in ends:
        assert step.module is not None
        assert step.shape is not None
        places.append(replace(_place(model, step.module, step.shape), gated=gated))
    return places


def _place(model: nn.Module, name: str, shape: Sequence[int]) -> Place:
    """A place with maps (N, C, H, W), or (N, H, W, C) after dense layers and layer norms over the last dimension."""
    module = model.get_submodule(name)
    last = isinstance(module, nn.Linear) or type(module) is nn.LayerNorm
    if last and shape[3] == shape[1] and isinstance(module, nn.LayerNorm):
        last = tuple(module.normalized_shape) == (shape[3],)
    c, h, w = (shape[3], shape[1], shape[2]) if last else (shape[1], shape[2], shape[3])
    return Place(name, c, (h, w), channels_last=last)


def _by_module(model: nn.Module, pattern: str, example: Example, automatic: Found) -> list[Place]:
    """Modules of any kind, by name; their results are examined in one pass."""
    glob = re.compile("".join("[^.]*" if c == "*" else "[^.]" if c == "?" else re.escape(c) for c in pattern))
    modules = {name: module for name, module in model.named_modules() if name and glob.fullmatch(name)}
    if not modules:
        names = [p.name for p in automatic.places] or [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        known = f" (found: {', '.join(names[:3])} ...)" if names else ""
        close = nearest(pattern, [n for n, _ in model.named_modules() if n])
        raise ExciteError(f"at: no module of {type(model).__name__} matches {pattern!r}{close}{known}")
    results: dict[str, list[Any]] = {name: [] for name in modules}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: results[name].append(out))
        for name, module in modules.items()
    ]
    try:
        run_once(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    places = []
    for name, module in modules.items():
        problem = _problem(results[name])
        if problem:
            raise ExciteError(f"at: the module {name!r} {problem}, but a gate needs a map (N, C, H, W)")
        out = results[name][0]
        gated = type(module).__name__ if isinstance(module, Grafted | Gate) else ""
        places.append(replace(_place(model, name, out.shape), gated=gated))
    return places


def _problem(results: list[Any]) -> str:
    """Why a gate cannot go after a module with these results, one per call; "" if it can."""
    if not results:
        return "is never called"
    odd = next((r for r in results if not isinstance(r, Tensor) or r.ndim != 4 or not r.is_floating_point()), None)
    if odd is not None:
        return f"returns {_described(odd)}"
    if len({r.shape for r in results}) > 1:
        return f"is called {len(results)} times with maps of several sizes"
    return ""


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def run_once(model: nn.Module, example: Example) -> Any:
    """One pass in evaluation mode, without gradients."""
    with evaluating(model), torch.no_grad():
        return model(*example[0], **example[1])
