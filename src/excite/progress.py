"""Progress reports from long-running work, independent of how they are shown."""

import time
from collections.abc import Callable

#: Called with (the current step, units done, units in total; 0 if unknown).
Progress = Callable[[str, int, int], object]
#: Called with the two numbers only, by work with a single step: ``partial(progress, "predicting")``.
Advance = Callable[[int, int], object]


def silent(what: str, done: int, total: int) -> None:
    """Show nothing."""


class Slowly:
    """Progress as occasional plain lines, for work that usually takes little time.

    Args:
        say: called with a line such as "checking training images: 40,960 of 1,281,167".
        seconds: time between two lines, and before the first.
    """

    def __init__(self, say: Callable[[str], object], seconds: float = 3.0) -> None:
        self._say, self._seconds, self._last = say, seconds, time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print a line, if one is due."""
        if time.monotonic() - self._last >= self._seconds:
            self.tell(f"{what}: {done:,} of {total:,}" if total else what)

    def tell(self, line: str) -> None:
        """Print a line now."""
        self._last = time.monotonic()
        self._say(line)


class Steps(Slowly):
    """Like :class:`Slowly`, with an immediate line at the start of each step: for work of several steps."""

    _what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print a line, if this is a new step or one is due."""
        if what == self._what:
            super().__call__(what, done, total)
        else:
            self._what = what
            self.tell(what)
