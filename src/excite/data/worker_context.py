"""How decoding workers are started: by a clean process, and with nothing of the user's program in them.

multiprocessing lets a child import the parent's main module first, for what may be pickled from there. Decoding needs
nothing of it, and in a script that trains at its top level, without ``if __name__ == "__main__"``, every worker would
begin by training, too; a program read from standard input has no file that could be imported at all.
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

_starting = threading.Lock()


def worker_context() -> context.BaseContext:
    """The context for a DataLoader of ours.

    fork is not safe here: torch's thread pools, CUDA and progress displays run threads by now. forkserver forks from a
    clean process that has imported torch once (0.1 s a worker); spawn, where there is no forkserver (Windows), imports
    it in every worker (1.5 s each).
    """
    if sys.platform == "win32" or "forkserver" not in multiprocessing.get_all_start_methods():
        return _Spawn()
    server = _ForkServer()
    server.set_forkserver_preload(["excite.data.worker_server"])
    with _without_main():  # multiprocessing's two helpers, now: a queue would start one of them before any process
        resource_tracker.ensure_running()
        forkserver.ensure_running()
    return server


@contextmanager
def _without_main() -> Iterator[None]:
    """In which this thread starts processes that import no main module, and find modules of Python's own before those
    in the folder of the user's program: a ``random.py`` there is his affair and not the workers'."""
    with _starting:
        prepare, thread = spawn.get_preparation_data, threading.get_ident()

        def prepare_without_main(name: str) -> dict[str, Any]:
            data = prepare(name)
            if threading.get_ident() != thread:  # the user's own processes, started at the same moment
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
    """``sys.path`` for a worker; unchanged where this package itself lies in the program's folder."""
    if sys.flags.safe_path:
        return path
    file = getattr(sys.modules["__main__"], "__file__", None)
    folder = os.path.dirname(os.path.abspath(file)) if file and os.path.isfile(file) else os.getcwd()
    own = str(Path(__file__).parents[2])
    if folder not in path or os.path.realpath(folder) == os.path.realpath(own):
        return path
    return [*(place for place in path if place != folder), folder]


class _Queue(queues.Queue):
    """A queue whose feeding thread has ended when it is closed.

    torch's loader lets go of that thread. At the end of a program it then holds the last reference to a semaphore, and
    the interpreter may stop it between removing that semaphore and reporting so: a warning about a leak.
    """

    def close(self) -> None:
        super().close()
        thread = getattr(self, "_thread", None)
        if thread is not None:
            thread.join(timeout=5)  # at once, unless its worker was killed with a full pipe


class _OwnQueues:
    """For contexts: queues of ours."""

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
