"""Ending a process: quickly, and when a signal asks for it."""

import atexit
import gc
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def leave_quickly() -> None:
    """Skip Python's final garbage collection, which takes 1 to 2 s once PyTorch is loaded.

    Whatever is closed explicitly or by ``atexit`` still is.
    """
    atexit.register(gc.freeze)


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end. As with Ctrl-C, no ``except Exception`` holds it up."""

    def __init__(self, number: int) -> None:
        super().__init__(signal_name(number))
        self.number = number


def signal_name(number: int) -> str:
    """A signal as users know it: "Ctrl-C", "SIGTERM"."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def stop_signals() -> tuple[int, ...]:
    """The signals that ask a process to end and that this one does not ignore, as under ``nohup`` or in a script's
    background."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return tuple(number for number in numbers if signal.getsignal(number) != signal.SIG_IGN)


_deep = 0  # how many blocks must not be broken off
_waiting = 0  # the signal that came meanwhile
_stopping = False


def stop_on_signals() -> None:
    """From now on SIGTERM, SIGHUP and Ctrl-C raise :class:`Stopped` in the main thread, so that every ``with`` block
    removes its temporary files and ends its children. Commands that save first have handlers of their own meanwhile.
    """
    global _stopping, _waiting
    _stopping, _waiting = False, 0
    if threading.current_thread() is threading.main_thread():
        for number in stop_signals():
            signal.signal(number, _stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    global _waiting, _stopping
    if _deep:
        _waiting = _waiting or number
    elif not _stopping:
        _stopping = True
        raise Stopped(number)
    elif number == signal.SIGINT:  # a second Ctrl-C: the user does not want to wait for the cleaning up
        raise KeyboardInterrupt


@contextmanager
def unbroken() -> Iterator[None]:
    """A short block that a signal does not break off: it takes effect at the end of it. Only the main thread matters:
    Python handles signals there."""
    global _deep
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _deep += 1
    try:
        yield
    except BaseException as error:
        _deep -= 1
        _stop_if_asked(error)
        raise
    _deep -= 1
    _stop_if_asked(None)


def _stop_if_asked(error: BaseException | None) -> None:
    global _waiting, _stopping
    if _waiting and not _deep:
        number, _waiting = _waiting, 0
        if not _stopping:
            _stopping = True
            raise Stopped(number) from error


def ending() -> None:
    """From now on only a second Ctrl-C has an effect: what has been asked to end, or has failed, is ending."""
    global _stopping
    _stopping = True
