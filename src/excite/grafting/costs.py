"""What each gate adds to the latency of a network, so that the latency of every placement can be predicted.

The parts are measured by a weighing design (Hotelling, "Some improvements in weighing and other experimental
techniques", Annals of Mathematical Statistics 15, 1944): not one gate at a time, but placements that each have half of
the gates, chosen as rows of a Hadamard matrix and of its negative. Every timed pass then tells of every gate, so that
the same number of passes gives each cost about 2 / n of the variance, for n gates; and two gates that are cheaper or
dearer together do not distort the others.
"""

import copy
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from excite.gates import GateSpec
from excite.models.base import Classifier, placements
from excite.models.folding import FoldedClassifier, fold, folding_pays, form_of
from excite.models.grafting.core import Init, example_for, graft, wrappers_of
from excite.models.grafting.dataflow import Example
from excite.models.grafting.wrapper import Grafted
from excite.progress import Advance
from excite.runtime.device import count_devices, device_name
from excite.runtime.timing import Timed, in_turns, quartiles

#: A spread (see :class:`GateCosts`) above this is that of a busy machine. On 2 cores, resnet18 had 0.016 and
#: cifar_resnet20 0.036 alone; beside two trainings both had more than 0.6.
UNSTEADY = 0.15
#: Samples of the bootstrap, and its level.
SAMPLES, LEVEL = 400, 0.95


class CostValues(TypedDict):
    """:class:`GateCosts` in JSON: milliseconds, and for each place also the ends of its interval."""

    device: str
    form: str
    passes: int
    spread: float
    notes: list[str]
    base_ms: float
    places: dict[str, list[float]]
    placements: dict[str, float]


@dataclass(frozen=True)
class GateCosts:
    """Milliseconds that one image takes, and what the gate at each place adds.

    Attributes:
        base: of the network without the gates.
        gates: place -> [added, lower end, upper end] of its 95 % interval (bootstrap over rounds).
        passes: number of timed passes.
        device: its name.
        form: whether batch norms were folded, and the precision.
        spread: by how much the quartiles of the passes of one placement are apart, over their median; the median of
            all placements.
    """

    base: float
    gates: dict[str, tuple[float, float, float]]
    passes: int
    device: str
    form: str
    spread: float = 0.0

    def predict(self, places: Iterable[str]) -> float:
        """Milliseconds of the network with gates at ``places`` only. Raises KeyError if there is no such place."""
        return self.base + sum(self.gates[place][0] for place in places)

    def placements(self) -> dict[str, float]:
        """Name of a placement, see :func:`excite.models.base.placements` -> milliseconds."""
        return {name: self.predict(chosen) for name, chosen in placements(list(self.gates)).items()}

    def text(self, place: str) -> str:
        """What the gate at a place adds, with its interval; "-" for a place without a new gate."""
        if place not in self.gates:
            return "-"
        middle, low, high = self.gates[place]
        return f"{middle:.3f} [{low:.3f}, {high:.3f}]"

    def rows(self) -> list[dict[str, Any]]:
        """What one image takes without the gates and with each of :meth:`placements`, as rows of a table."""
        predicted = {"none": self.base, **self.placements()}
        return [
            {"where": name, "ms": ms, "more": f"{100 * (ms / self.base - 1):+.1f} %" if name != "none" else ""}
            for name, ms in predicted.items()
        ]

    @property
    def sentence(self) -> str:
        """How the times were found."""
        return (
            f"time of one image: {self.device}, {self.form}; {self.passes:,} passes with gates switched on and off, "
            "from which the time of any placement is predicted"
        )

    @property
    def notes(self) -> list[str]:
        """A sentence if the times are not to be trusted."""
        if self.spread <= UNSTEADY:
            return []
        return [
            f"the machine was not idle: half of the passes of one placement differ by {100 * self.spread:.0f} %, so "
            "these times mean little; measure again when nothing else runs"
        ]

    def to_dict(self) -> CostValues:
        """The costs as JSON-serialisable values."""
        return {
            "device": self.device,
            "form": self.form,
            "passes": self.passes,
            "spread": self.spread,
            "notes": self.notes,
            "base_ms": self.base,
            "places": {place: list(cost) for place, cost in self.gates.items()},
            "placements": self.placements(),
        }


def gate_costs(
    model: nn.Module,
    gate: GateSpec = "se",
    *,
    at: str | Sequence[str] = "auto",
    init: Init = "identity",
    example: Any = None,
    seconds: float = 20.0,
    device: str = "auto",
    progress: Advance = lambda done, total: None,
    **options: Any,
) -> GateCosts:
    """Measure what the gate at each place adds to the time of one image.

    The network runs in float32 as ``excite predict`` runs it: our own models with folded batch norms and channels-last
    maps on a CPU.

    Args:
        model: any network that takes images; it is not changed.
        gate, at, init, options: as for :func:`excite.grafting.graft`.
        example: an input; None: as for :func:`excite.grafting.graft`, one image.
        seconds: approximate time of the measurement.
        device: "auto", or a device's name.
        progress: called with (rounds done, rounds in all).

    Raises:
        ExciteError: as for ``graft``.
    """
    where = torch.device(count_devices(device)[0])
    switched = Switched(model, gate, at=at, init=init, example=example, device=where, **options)
    rows = weighing_rows(len(switched.places))
    designed = [[place for place, on in zip(switched.places, row[1:], strict=True) if on > 0] for row in rows]
    timed = switched.time(dict(enumerate(designed)), seconds=seconds, progress=progress)
    base, gates = solve([timed[i] for i in range(len(rows))], rows, switched.places)
    passes = sum(len(each.ms) for each in timed.values())
    return GateCosts(base, gates, passes, device_name(where), switched.form, spread_of(timed.values()))


def spread_of(timed: Iterable[Timed]) -> float:
    """See :class:`GateCosts`."""
    ends = [quartiles(each.ms) for each in timed]
    return statistics.median((high - low) / middle for low, middle, high in ends)


def weighing_rows(count: int) -> list[list[int]]:
    """A column of ones, then ``count`` columns of Sylvester's Hadamard matrix above their negatives. The rows are
    placements, with a gate where they are 1; the first has all gates, and one has none."""
    square = [[1]]
    while len(square) <= count:
        square = [[*row, *row] for row in square] + [[*row, *(-value for value in row)] for row in square]
    halves = [row[1 : count + 1] for row in square]
    return [[1, *row] for row in halves] + [[1, *(-value for value in row)] for row in halves]


def solve(
    timed: Sequence[Timed], rows: Sequence[Sequence[int]], places: Sequence[str]
) -> tuple[float, dict[str, tuple[float, float, float]]]:
    """The time without gates, and for each place what its gate adds, with its interval; in milliseconds.

    Args:
        timed: of each row of ``rows``, in rounds.
        rows: see :func:`weighing_rows`; column i + 1 belongs to ``places[i]``.
        places: names.
    """
    signs = torch.tensor(rows, dtype=torch.float64)
    times = torch.tensor([each.ms for each in timed], dtype=torch.float64)  # (rows, passes)

    def parts(of: Tensor) -> Tensor:
        """(..., rows, passes) -> the columns' coefficients (..., columns), from medians: some passes are disturbed."""
        return of.median(dim=-1).values @ signs / len(rows)

    found = parts(times)
    draws = torch.randint(times.shape[1], (SAMPLES, times.shape[1]), generator=torch.Generator().manual_seed(0))
    spread = 2 * parts(times[:, draws].transpose(0, 1))  # (samples, columns)
    ends = torch.quantile(spread, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64), dim=0)
    costs = {
        place: (2 * float(found[i]), float(ends[0, i]), float(ends[1, i])) for i, place in enumerate(places, start=1)
    }
    return float(found[0] - found[1:].sum()), costs


class Switched:
    """A network for inference whose gates can be switched off and on, without a copy for each placement.

    Args:
        model: any network; it is copied.
        device: where it runs.
        gate, at, init, example, options: as for ``graft``.

    Attributes:
        places: the names of the gates.
        form: how it runs; see :func:`excite.models.folding.form_of`.
    """

    def __init__(
        self,
        model: nn.Module,
        gate: GateSpec,
        *,
        at: str | Sequence[str],
        init: Init,
        example: Any,
        device: torch.device,
        **options: Any,
    ) -> None:
        own = isinstance(model, Classifier)  # not timm's
        args, kwargs = _in_float(example_for(model, example))
        grafted: nn.Module = copy.deepcopy(model).float().eval()
        settings: Any = {"at": at, "init": init, "example": kwargs or args, **options}
        self.places = [place.name for place in graft(grafted, gate, dry_run=True, **settings).new]
        graft(grafted, gate, inplace=True, **settings)
        grafted.to(device)
        if folding_pays(grafted, device, "fp32"):
            grafted = fold(grafted)
        self.net, self.device = grafted, device
        body = grafted.net if isinstance(grafted, FoldedClassifier) else grafted
        if own:
            body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._switches: list[_Slot | _Wrapped] = (
            [_Slot(body.get_submodule(place)) for place in self.places]
            if own
            else [_Wrapped(body, wrappers_of(body)[place]) for place in self.places]
        )
        self.form = form_of(grafted, "fp32")
        self.example = _on(device, (args, kwargs), own)

    def time(
        self,
        gated: Mapping[Any, Sequence[str]],
        *,
        seconds: float,
        rounds: tuple[int, int] = (3, 1000),
        progress: Advance = lambda done, total: None,
    ) -> dict[Any, Timed]:
        """Time placements in turns: name -> places with a gate."""
        args, kwargs = self.example

        def step() -> Any:
            with torch.inference_mode():
                return self.net(*args, **kwargs)

        return in_turns(
            dict.fromkeys(gated, step),
            self.device,
            seconds=seconds,
            rounds=rounds,
            within=lambda name: self._only(gated[name]),
            progress=progress,
        )

    @contextmanager
    def _only(self, places: Sequence[str]) -> Iterator[None]:
        """Only the gates at ``places`` run."""
        for place, switch in zip(self.places, self._switches, strict=True):
            switch.set(place in places)
        yield


class _Slot:
    """A gate in a block of ours."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.gate = block.gate

    def set(self, on: bool) -> None:
        self.block.gate = self.gate if on else None


class _Wrapped:
    """A gate in a wrapper, which is taken out with it, under every name that it has."""

    def __init__(self, net: nn.Module, wrapper: Grafted) -> None:
        self.wrapper = wrapper
        self.holders = [
            (parent, name) for parent in net.modules() for name, child in parent._modules.items() if child is wrapper
        ]

    def set(self, on: bool) -> None:
        for parent, name in self.holders:
            parent._modules[name] = self.wrapper if on else self.wrapper.inner


def _in_float(example: Example) -> Example:
    """The example with its floating tensors as float32."""
    return _each(example, lambda value: value.float() if value.is_floating_point() else value)


def _on(device: torch.device, example: Example, channels_last: bool) -> Example:
    """The example with its tensors on the device."""

    def moved(value: Tensor) -> Tensor:
        value = value.to(device)
        return value.contiguous(memory_format=torch.channels_last) if channels_last and value.ndim == 4 else value

    return _each(example, moved)


def _each(example: Example, change: Callable[[Tensor], Tensor]) -> Example:
    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    args, kwargs = example
    return tuple(map(changed, args)), {name: changed(value) for name, value in kwargs.items()}
