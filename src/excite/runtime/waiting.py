"""Says what a process waits for, if it waits long: a thread looks at what the waiting threads have left here.

Silence is the worst fault: a dead network disk or a process that was stopped would look like a slow training.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

from excite.errors import ExciteError, shown
from excite.text import tell

Item = TypeVar("Item")
#: Seconds of waiting until the first line; each further one comes after twice the time.
FIRST_LINE = 60.0
#: Seconds between two looks.
LOOK = 1.0


@dataclass
class _Wait:
    """One wait: what for, since when, and when the next line is due (seconds of waiting)."""

    what: Callable[[], str]
    since: float
    look: Callable[[float, float], None] | None
    due: float


@dataclass
class Waits:
    """The waits of a process. ``clock`` gives seconds; ``say`` takes a line; ``first``: seconds until one is due."""

    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = tell
    first: float = FIRST_LINE
    passed: int = 0  # the waits that have ended: it grows while a process gets on
    _waits: dict[int, _Wait] = field(default_factory=dict)
    _told: dict[str, float] = field(default_factory=dict)
    _watching: threading.Thread | None = None

    @contextmanager
    def waiting(self, what: Callable[[], str], look: Callable[[float, float], None] | None = None) -> Iterator[None]:
        """A block that may wait.

        Args:
            what: called if it lasts, in another thread: "images: photos/a.jpg".
            look: called there at every look, with the beginning of the wait and the time.
        """
        self._watch()
        key = threading.get_ident()
        outer = self._waits.get(key)
        if outer is None:  # the outermost block knows best since when
            self._waits[key] = _Wait(what, self.clock(), look, self.first)
        try:
            yield
        finally:
            self.passed += 1
            if outer is None:
                del self._waits[key]

    def each(self, items: Iterable[Item], what: Callable[[], str]) -> Iterator[Item]:
        """The items; each may have to be waited for."""
        found, end = iter(items), object()
        while True:
            with self.waiting(what):
                item = next(found, end)
            if item is end:
                return
            yield cast(Item, item)

    def longest(self) -> tuple[float, str] | None:
        """Seconds and what for, of the wait that has lasted longest; None if nothing waits."""
        waits = list(self._waits.values())
        if not waits:
            return None
        first = min(waits, key=lambda wait: wait.since)
        return self.clock() - first.since, _described(first)

    def look(self) -> None:
        """Say a line for every wait that has one due; one for all threads that wait for the same."""
        for wait in list(self._waits.values()):
            now = self.clock()
            seconds = now - wait.since
            if wait.look is not None:
                wait.look(wait.since, now)
            if seconds >= wait.due:
                while wait.due <= seconds:
                    wait.due *= 2
                self._tell(_described(wait), seconds, now)

    def _tell(self, what: str, seconds: float, now: float) -> None:
        self._told = {said: when for said, when in self._told.items() if now - when < self.first}
        if what not in self._told:
            self._told[what] = now
            self.say(f"waiting for {seconds:.0f} s now, for {what}")

    def _watch(self) -> None:
        if self._watching is None or not self._watching.is_alive():  # also after a fork
            self._watching = threading.Thread(target=self._look_again, name="excite-waits", daemon=True)
            self._watching.start()

    def _look_again(self) -> None:
        while True:
            time.sleep(min(LOOK, self.first / 5))
            self.look()


def _described(wait: _Wait) -> str:
    try:
        return wait.what()
    except Exception as error:  # a description must not be what fails
        return f"something that cannot be described ({type(error).__name__})"


#: The waits of this process.
waits = Waits()


@contextmanager
def said_by(say: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, lines about long waits go to ``say`` instead of standard error."""
    before, waits.say = waits.say, say
    try:
        yield
    finally:
        waits.say = before


def patience() -> float:
    """Seconds without any progress after which a wait is given up, from EXCITE_PATIENCE; 900 by default.

    A network disk whose server starts again answers after some minutes.
    """
    text = os.environ.get("EXCITE_PATIENCE", "")
    try:
        seconds = float(text) if text else 900.0
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise ExciteError(f"EXCITE_PATIENCE is {shown(text)}, but must be a number of seconds above 0, such as 900")
    return seconds
