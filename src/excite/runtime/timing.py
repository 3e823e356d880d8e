"""How long steps take; of several, in turns, so that a slow moment of the machine hits all of them alike.

Every "ms" of this package that compares is measured here.
"""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from excite.progress import Advance
from excite.runtime.device import DTYPES, synchronize

Step = Callable[[], Any]
Key = TypeVar("Key", bound=Hashable)


def inference_step(net: nn.Module, images: torch.Tensor, precision: str) -> Step:
    """A function that runs the network on (N, C, S, S) images as ``excite predict`` does."""
    kind = images.device.type
    net.eval()

    def step() -> torch.Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(kind, DTYPES[precision], enabled=precision != "fp32"),
        ):
            return net(images).float()

    return step


def time_steps(step: Step, device: torch.device, count: int, per_sample: int = 1) -> list[float]:
    """Seconds of ``count`` steps; with ``per_sample`` > 1 the means of so many at a time."""
    seconds = []
    for _ in range(max(1, count // per_sample)):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(per_sample):
            step()
        synchronize(device)
        seconds.append((time.perf_counter() - started) / per_sample)
    return seconds


@dataclass(frozen=True)
class Timed:
    """What one of several steps took.

    Attributes:
        rounds: seconds of its timed passes, one list a round.
    """

    rounds: list[list[float]]

    @property
    def ms(self) -> list[float]:
        """Milliseconds of every timed pass."""
        return [1000 * seconds for passes in self.rounds for seconds in passes]

    @property
    def best_ms(self) -> list[float]:
        """Milliseconds of each round's fastest pass: what one round says of two steps can be subtracted."""
        return [1000 * min(passes) for passes in self.rounds]

    @property
    def median_ms(self) -> float:
        """The median of all passes."""
        return statistics.median(self.ms)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, interpolated between the values; of one value that value."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def in_turns(
    steps: Mapping[Key, Step],
    device: torch.device,
    *,
    seconds: float = 0.0,
    rounds: tuple[int, int],
    passes: int = 1,
    cold: int = 0,
    within: Callable[[Key], AbstractContextManager[Any]] = lambda key: nullcontext(),
    progress: Advance = lambda done, total: None,
) -> dict[Key, Timed]:
    """Time several steps in turns, the order reversed every other round.

    A round before all others does not count: it meets lazy kernels and empty caches. It says how many rounds fit.

    Args:
        steps: what is timed, by name.
        device: where they run; it is waited for around every pass.
        seconds: about so long all rounds take together.
        rounds: but so many at least, and so many at most.
        passes: timed passes of a step in a turn.
        cold: passes before them that are not timed, since the others' turns emptied the caches.
        within: gives what is entered around a step's turn, and is not timed.
        progress: called with (rounds done, rounds in all).

    Returns:
        What each step took.
    """

    def turn(key: Key, count: int) -> list[float]:
        with within(key):
            return time_steps(steps[key], device, count)

    warm = sum(turn(key, max(2, cold + passes))[-1] for key in steps)
    least, most = rounds
    total = min(most, max(least, int(seconds / max(warm * (cold + passes), 1e-9))))
    found: dict[Key, list[list[float]]] = {key: [] for key in steps}
    for i in range(total):
        for key in list(steps)[:: -1 if i % 2 else 1]:
            found[key].append(turn(key, cold + passes)[cold:])
        progress(i + 1, total)
    return {key: Timed(taken) for key, taken in found.items()}
