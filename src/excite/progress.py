"""How long work tells what it is at, without knowing who shows it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

#: Called with (what is done, of how much).
Advance = Callable[[int, int], object]
#: ``with progress("reading") as advance:`` around work that prints nothing; ``advance`` may never be called.
Progress = Callable[[str], AbstractContextManager[Advance]]


def silent(what: str) -> AbstractContextManager[Advance]:
    """Shows nothing."""
    return nullcontext(lambda done, total: None)
