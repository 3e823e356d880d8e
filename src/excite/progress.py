"""How long work tells what it is at, without knowing who shows it."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from excite.text import lenient, printable

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


def bar(*columns: Any) -> Any:
    """rich's progress bar on standard error, where that is a terminal; ``columns`` come after what is being done."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(file=lenient(sys.stderr))
    return Bar(description(), *columns, console=console, transient=True, disable=not sys.stderr.isatty())


def description() -> Any:
    """rich's column for what is being done. File names in it are shown as they are: they are no markup of rich's."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Description(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(printable(task.description))

    return Description()
