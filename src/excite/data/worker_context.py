"""Starts decoding workers from a clean process, without importing the user's program.

multiprocessing makes a child import the parent's main module first, because pickled objects may come from there.
Decoding does not need it. In a script that trains at its top level, without ``if __name__ == "__main__"``, every worker
would start by training, too; and a program read from standard input has no file to import.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, queues, resource_tracker, spawn
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from excite.children import safe_children

if sys.platform != "win32":
    from multiprocessing import forkserver

#: The exit status of a worker that cannot hand over what it has decoded.
FEEDER_FAILED = 97

_starting = threading.Lock()


def worker_context() -> context.BaseContext:
    """The multiprocessing context for our DataLoaders.

    fork is not safe here, because torch's thread pools, CUDA and progress displays are running threads. forkserver
    forks from a clean process that has imported torch once (0.1 s per worker). On Windows, which has no forkserver,
    spawn imports torch in every worker (1.5 s each).
    """
    if sys.platform == "win32" or "forkserver" not in multiprocessing.get_all_start_methods():
        return _Spawn()
    server = _ForkServer()
    server.set_forkserver_preload(["excite.data.worker_server"])
    with _without_main():  # start multiprocessing's two helpers now: a queue would start one before any process
        resource_tracker.ensure_running()
        forkserver.ensure_running()
    return server


@contextmanager
def _without_main() -> Iterator[None]:
    """Context in which this thread starts processes that do not import the main module, and that find Python's own
    modules before those in the folder of the user's program (which may have a ``random.py``)."""
    with _starting:
        prepare, thread = spawn.get_preparation_data, threading.get_ident()

        def prepare_without_main(name: str) -> dict[str, Any]:
            data = prepare(name)
            if threading.get_ident() != thread:  # processes of the user's own, started at the same time
                return data
            data = {key: value for key, value in data.items() if not key.startswith("init_main_from")}
            return {**data, "sys_path": _programs_folder_last(data["sys_path"])}

        spawn.get_preparation_data = prepare_without_main
        try:
            with safe_children():  # multiprocessing's helpers are `python -c ...`
                yield
        finally:
            spawn.get_preparation_data = prepare


def _programs_folder_last(path: list[str]) -> list[str]:
    """``sys.path`` for a worker; unchanged if this package itself is in the program's folder."""
    if sys.flags.safe_path:
        return path
    file = getattr(sys.modules["__main__"], "__file__", None)
    folder = os.path.dirname(os.path.abspath(file)) if file and os.path.isfile(file) else os.getcwd()
    own = str(Path(__file__).parents[2])
    if folder not in path or os.path.realpath(folder) == os.path.realpath(own):
        return path
    return [*(place for place in path if place != folder), folder]


class _Queue(queues.Queue):
    """A queue that joins its feeder thread when it is closed.

    torch's loader does not wait for that thread. At the end of a program, the thread then holds the last reference to a
    semaphore, and the interpreter may stop it between removing the semaphore and reporting that, which prints a warning
    about a leak.
    """

    def _on_queue_feeder_error(self, error: Exception, item: Any) -> None:
        """Called in the feeder thread, for what cannot be sent. The default drops it, and the main process then waits
        for it for ever; the end of a worker is noticed."""
        from torch.utils.data import get_worker_info

        if get_worker_info() is None:  # the main process
            super()._on_queue_feeder_error(error, item)  # type: ignore[misc]
        else:
            os._exit(FEEDER_FAILED)

    def close(self) -> None:
        super().close()
        thread = getattr(self, "_thread", None)
        if thread is not None:
            thread.join(timeout=5)  # returns at once, unless its worker was killed with a full pipe


class _OwnQueues:
    """Mixin for contexts that use our queues."""

    def Queue(self, maxsize: int = 0) -> _Queue:
        return _Queue(maxsize, ctx=self.get_context())  # type: ignore[attr-defined]


if sys.platform != "win32":

    class _ServedProcess(context.ForkServerProcess):
        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:
            with _without_main():
                return context.ForkServerProcess._Popen(process_obj)

    class _ForkServer(_OwnQueues, context.ForkServerContext):
        Process = _ServedProcess


class _SpawnedProcess(context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        with _without_main():
            return context.SpawnProcess._Popen(process_obj)


class _Spawn(_OwnQueues, context.SpawnContext):
    Process = _SpawnedProcess
