"""Faults inside a real process: SIGKILL before its K-th file operation, step, evaluation, save ..."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

#: Python's audit events for operations on files. fsync has none and is patched.
_EVENTS = frozenset(("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link"))


class Trap:
    """Counts; at the K-th count it acts. With ``at`` 0 it only counts."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.count, self._act = at, 0, act

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            self._act()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            return function(*args, **kwargs)

        return counted


def die() -> None:
    """This process is gone, at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def lose_the_node() -> None:
    """This process and all others of its group are gone, at once."""
    os.killpg(0, signal.SIGKILL)


def lose_a_worker() -> None:
    """The first decoding worker is gone, as after the system ran out of memory."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        if any("worker_server" in word or "forkserver" in word for word in child.cmdline()) and not child.children():
            child.kill()
            return
    raise AssertionError("there is no decoding worker")


def set_trap(kind: str, root: str, trap: Trap) -> None:
    """Count operations on files below ``root`` ("file"), or calls of a function of the training loop."""
    if kind == "file":
        _on_files(trap, root)
        return
    from excite.training import loop, reporting

    places: dict[str, tuple[Any, str]] = {
        "step": (loop, "train_step"),
        "evaluation": (reporting, "evaluate_run"),
        "save": (loop, "save"),
    }
    module, name = places[kind]
    setattr(module, name, trap.around(getattr(module, name)))


def _on_files(trap: Trap, root: str) -> None:
    def below(path: object) -> bool:
        try:
            return os.path.abspath(os.fsdecode(path)).startswith(root)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS and args and not isinstance(args[0], int) and below(args[0]):
            trap.tick()

    os.fsync = trap.around(os.fsync)
    sys.addaudithook(hook)
