"""Times steps. Several steps are timed in turns, so that a slow moment of the machine affects all of them alike.

All comparisons of times in this package are measured here.
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
    """A function that runs the network on images (N, C, H, W) as ``excite predict`` does."""
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
    """Seconds of ``count`` steps; with ``per_sample`` > 1, each is the mean over that many steps."""
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
    """The times of one of several steps.

    Attributes:
        rounds: seconds of its timed passes, one list per round.
    """

    rounds: list[list[float]]

    @property
    def ms(self) -> list[float]:
        """Milliseconds of every timed pass."""
        return [1000 * seconds for passes in self.rounds for seconds in passes]

    @property
    def best_ms(self) -> list[float]:
        """Milliseconds of each round's fastest pass; those of two steps in the same round can be subtracted."""
        return [1000 * min(passes) for passes in self.rounds]

    @property
    def median_ms(self) -> float:
        """The median of all passes."""
        return statistics.median(self.ms)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, interpolated between the values; for a single value, that value."""
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
    """Time several steps in turns, reversing the order every other round.

    A first round does not count, because of lazy kernels and cold caches. It determines how many rounds fit.

    Args:
        steps: name -> step to time.
        device: where they run; it is synchronised around every pass.
        seconds: approximate time of all rounds together.
        rounds: minimum and maximum number of rounds.
        passes: timed passes of a step per turn.
        cold: untimed passes before them, because the other steps have evicted the caches.
        within: name -> context entered around a step's turn, which is not timed.
        progress: called with (rounds done, rounds in all).

    Returns:
        The times of each step.
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
