"""How long work tells what it is at, without knowing who shows it."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

#: Called with (what is done, of how much).
Advance = Callable[[int, int], object]
#: ``with progress("reading") as advance:`` around work that prints nothing; ``advance`` may never be called.
Progress = Callable[[str], AbstractContextManager[Advance]]


def silent(what: str) -> AbstractContextManager[Advance]:
    """Shows nothing."""
    return nullcontext(lambda done, total: None)


class Slowly:
    """Progress as plain lines, one now and then: for work that is usually over before anybody asks.

    Args:
        say: gets a line such as "checking training images: 40,960 of 1,281,167".
        seconds: between two lines, and before the first.
    """

    def __init__(self, say: Callable[[str], object], seconds: float = 3.0) -> None:
        self._say, self._seconds, self._last = say, seconds, time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Tell, if it is time to."""
        now = time.monotonic()
        if now - self._last >= self._seconds:
            self._last = now
            self._say(f"{what}: {done:,} of {total:,}")
