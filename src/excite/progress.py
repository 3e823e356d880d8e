"""How long work tells what it is at, without knowing who shows it."""

import time
from collections.abc import Callable

#: Called with (what is being done, how much of it is done, how much there is of it; 0 where that is not known).
Progress = Callable[[str, int, int], object]
#: Called with the numbers alone, by work that does one thing: ``partial(progress, "predicting")``.
Advance = Callable[[int, int], object]


def silent(what: str, done: int, total: int) -> None:
    """Shows nothing."""


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
        if time.monotonic() - self._last >= self._seconds:
            self.tell(f"{what}: {done:,} of {total:,}" if total else what)

    def tell(self, line: str) -> None:
        """Tell now."""
        self._last = time.monotonic()
        self._say(line)


class Steps(Slowly):
    """The same, and a line at once when something else begins to be done: for work of several steps."""

    _what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Tell, if it is a new step or time to."""
        if what == self._what:
            super().__call__(what, done, total)
        else:
            self._what = what
            self.tell(what)
