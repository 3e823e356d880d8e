"""Says what is being waited for: a store may accept connections and never answer."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from excite.storage.address import without_secrets
from excite.text import tell

SAY_SECONDS = 60.0  # of waiting, then a line, and again after as long
_LOOK_SECONDS = 1.0

_lock = threading.Lock()
_since: dict[object, tuple[float, str]] = {}  # one entry per request in progress: its start and its address
_watcher: threading.Thread | None = None


@contextmanager
def waiting_for(url: str) -> Iterator[None]:
    """While the block lasts, print a line every 60 s that says what is waited for. Costs some microseconds."""
    global _watcher
    mine = object()
    with _lock:
        _since[mine] = time.monotonic(), without_secrets(url)
        if _watcher is None:
            _watcher = threading.Thread(target=_watch, name="excite-patience", daemon=True)
            _watcher.start()
    try:
        yield
    finally:
        with _lock:
            del _since[mine]


def _watch() -> None:
    """Ends when nothing has been waited for, for a moment."""
    global _watcher
    said: dict[str, float] = {}
    while True:
        time.sleep(min(_LOOK_SECONDS, SAY_SECONDS / 5))
        with _lock:
            if not _since:
                _watcher = None
                return
            begun: dict[str, float] = {}
            for start, url in _since.values():
                begun[url] = min(start, begun.get(url, start))
        now = time.monotonic()
        for url, start in begun.items():
            if now - max(start, said.get(url, start)) >= SAY_SECONDS:
                said[url] = now
                tell(f"still waiting for {url} to answer ({now - start:.0f} s so far)")
