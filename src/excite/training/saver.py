"""Writes checkpoints while training goes on: what is to be saved is copied, then hashed and written in a thread."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from excite.threads import Threads

#: Writes that may wait: at the end of an epoch, the best weights and a checkpoint. More would need more memory.
WAITING = 2


class Saver:
    """Writes in order, in one thread. A write that fails raises its error at the next :meth:`submit` or :meth:`wait`.

    Args:
        background: write while training goes on; False: at once, as a baseline for measurements.

    Attributes:
        blocked: seconds that training has waited for copies and writes.
    """

    def __init__(self, background: bool = True) -> None:
        self.background, self.blocked = background, 0.0
        self._pool: Threads | None = None
        self._pending: deque[Future[None]] = deque()
        self._copied_at, self._copies = -1, dict[int, dict[str, Tensor]]()

    def submit(self, write: Callable[[], None]) -> None:
        """Write soon. Waits while too many writes wait already. Raises ExciteError if an earlier one failed."""
        if not self.background:
            write()
            return
        while self._pending and (len(self._pending) >= WAITING or self._pending[0].done()):
            self._pending.popleft().result()
        if self._pool is None:
            self._pool = Threads(1, "excite-checkpoint")
        self._pending.append(self._pool.submit(write))

    def wait(self) -> None:
        """Wait until everything is written. Raises ExciteError if a write failed."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread after what it still has to write. Errors of these writes are dropped."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, self._pending, self._copies = None, deque(), {}

    def copy(self, step: int, module: nn.Module) -> dict[str, Tensor]:
        """The state_dict of ``module`` after ``step``: contiguous copies on the CPU, made once for all writes."""
        if self._copied_at != step:
            self._copied_at, self._copies = step, {}
        if id(module) not in self._copies:
            self._copies[id(module)] = {
                name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
                for name, tensor in module.state_dict().items()
            }
        return self._copies[id(module)]

    def forget_copies(self) -> None:
        """Free the copies once they are written."""
        self._copied_at, self._copies = -1, {}

    @contextmanager
    def blocking(self) -> Iterator[None]:
        """Context whose time counts as ``blocked``."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.blocked += time.perf_counter() - since


def copied_values(value: Any) -> Any:
    """Nested dicts, lists and tuples with every tensor copied to the CPU, so that nothing changes it any more.

    Equal texts become one object: pickle writes an object once, so that otherwise the file would depend on whether the
    values come from a checkpoint or from this process.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) is str:
        return sys.intern(value)
    if isinstance(value, Mapping):
        return {copied_values(key): copied_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied_values(one) for one in value)
    return value
