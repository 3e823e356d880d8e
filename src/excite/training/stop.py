"""Handling of SIGTERM, SIGHUP and Ctrl-C: the run saves after the current step, then ends."""

import signal
import threading
from types import FrameType
from typing import Any

from excite.errors import ExciteError
from excite.leaving import stop_signals


class Interrupted(ExciteError):
    """The run was asked to stop, and saved a checkpoint first. ``exit_status`` is 128 + the signal, as in shells."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


class StopSignals:
    """Context manager that records SIGTERM, SIGHUP and SIGINT in ``received`` (0: none), unless they are ignored.

    A second Ctrl-C ends at once.
    """

    def __init__(self) -> None:
        self.received = 0
        self.agree_at = 0  # the step at which the processes of a job next exchange what they received
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python handles signals in the main thread only
            for number in stop_signals():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
