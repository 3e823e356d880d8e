"""A fence around code that reads what nobody vouches for: little memory, little time."""

import ctypes
import gc
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def bounded(megabytes: int = 256, seconds: int = 60) -> Iterator[None]:
    """In this block the process gets so much memory beyond what it has, and so much time; then it is an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    gc.collect()
    gc.freeze()  # what is alive now the next collection leaves alone: it would take a second or so
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed would count as room
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = signal.signal(signal.SIGALRM, _hangs)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20), hard))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _hangs(*_: Any) -> None:
    raise TimeoutError("this takes too long")
