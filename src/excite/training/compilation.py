"""torch.compile, and a measurement of the time that it takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from excite.errors import ExciteError
from excite.runtime.device import compile_obstacle


class CompileTimer:
    """Time spent by torch.compile in this process: tracing, lowering, code generation and first autotuning.

    It counts what TorchDynamo reports: forward passes, backward passes (compiled when first run), recompilations and
    the recording of CUDA graphs. The rest of the step in which they happen is not counted.

    Attributes:
        seconds: running total.
        count: number of compilations.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.count = 0
        self._started = 0.0

    def watch(self) -> None:
        """Register the callbacks if they are not registered (``torch._dynamo.reset`` removes them)."""
        from torch._dynamo.callback import callback_handler  # takes 2 s to import: only for those who compile

        if self._begin not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(self._begin)
            callback_handler.register_end_callback(self._end)

    def _begin(self, _: Any) -> None:
        self._started = time.perf_counter()

    def _end(self, _: Any) -> None:
        self.seconds += time.perf_counter() - self._started
        self.count += 1


#: One per process, as Dynamo's callbacks are.
compile_timer = CompileTimer()


def compile_model(model: nn.Module, mode: str, device: torch.device) -> nn.Module:
    """``torch.compile`` in ``mode`` ("default", "reduce-overhead", "max-autotune"); with "off", the model itself.

    Raises:
        ExciteError: something that the compiler needs is missing on this machine.
    """
    if mode == "off":
        return model
    obstacle = compile_obstacle(device)
    if obstacle:
        raise ExciteError(f"compile is {mode!r}, but {obstacle}; use compile=off")
    compile_timer.watch()
    return torch.compile(model, mode=None if mode == "default" else mode)  # type: ignore[return-value]


@contextmanager
def compile_errors(mode: str) -> Iterator[None]:
    """Turn a failure of the compiler, which prints pages of traceback, into one sentence. Raises ExciteError."""
    if mode == "off":
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        inner = getattr(error, "inner_exception", error)  # the wrapper's own text begins with what wrapped it
        reason = next((line.strip() for line in str(inner).splitlines() if line.strip()), type(inner).__name__)
        raise ExciteError(f"compile is {mode!r}, and the compiler failed: {reason}; use compile=off") from error
