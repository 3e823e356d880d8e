"""Faults inside a real process: SIGKILL before its K-th file operation, step, evaluation, save ..."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

#: Python's audit events for operations on files. fsync has none and is patched.
_EVENTS = frozenset(("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link"))

#: Requests that change a store.
_CHANGES = frozenset(("put_object", "complete_multipart_upload", "delete_object", "delete_objects"))
#: Where ranks wait for each other. DistributedDataParallel's own, within the backward pass, are in C++.
_COLLECTIVES = (
    *("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "broadcast_object_list"),
    *("barrier", "gather", "gather_object", "reduce", "scatter"),
)


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


#: Environment variable: a file with the numbers of all processes of the job.
NODE = "EXCITE_TEST_NODE"


def lose_the_node() -> None:
    """All processes of the job are gone, at once."""
    with open(os.environ[NODE], encoding="utf-8") as file:
        others = {int(line) for line in file} - {os.getpid()}
    for pid in others:
        os.kill(pid, signal.SIGKILL)
    die()


def lose_a_worker() -> None:
    """The first decoding worker is gone, as after the system ran out of memory."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        if any("worker_server" in word or "forkserver" in word for word in child.cmdline()) and not child.children():
            child.kill()
            return
    raise AssertionError("there is no decoding worker")


def make_read_only() -> None:
    """The file system of the current run becomes read-only. The system refuses that while a file is open for writing,
    so what is open can only be read from now on; a checkpoint that is written meanwhile opens the next one, hence the
    tries."""
    import subprocess

    place = os.path.dirname(os.environ[NODE])
    for _ in range(1000):
        for name in os.listdir("/proc/self/fd"):
            try:
                path = os.readlink(f"/proc/self/fd/{name}")
                if path.startswith(f"{place}/"):
                    readable = os.open(path, os.O_RDONLY)
                    os.dup2(readable, int(name))
                    os.close(readable)
            except OSError:  # closed or renamed meanwhile
                continue
        done = subprocess.run(["mount", "-o", "remount,bind,ro", place], capture_output=True, text=True)
        if done.returncode == 0:
            return
    raise AssertionError(f"{place} did not become read-only: {done.stderr}")


#: Environment variable: the port at which the gate in front of the store takes orders (see ``tests.faults.gate``).
GATE = "EXCITE_TEST_GATE"
#: What the gate was last told by this process.
_told: list[str] = []


def turn_gate(mode: str) -> None:
    """From now on the store is "silent", "mute", "refused", "failing" or "open"."""
    with socket.create_connection(("127.0.0.1", int(os.environ[GATE]))) as line:
        line.sendall(f"{mode}\n".encode())
        assert line.recv(2) == b"ok"
    _told.append(mode)


def open_gate_after(requests: int) -> None:
    """The store comes back once so many requests have been tried since it went away."""
    import s3fs

    begun, left = s3fs.S3FileSystem._call_s3, [requests]

    async def counted(*args: Any, **kwargs: Any) -> Any:
        if _told and _told[-1] != "open":
            left[0] -= 1
            if left[0] == 0:
                turn_gate("open")
        return await begun(*args, **kwargs)

    s3fs.S3FileSystem._call_s3 = counted


def set_trap(kind: str, root: str, trap: Trap) -> None:
    """Count operations on files below ``root`` ("file"), requests to a store ("request") or those that change it
    ("upload"), talks with the other ranks ("collective"), or calls of a function of the training loop."""
    if kind == "file":
        _on_files(trap, root)
        return
    if kind in ("upload", "request"):
        _on_requests(trap, _CHANGES if kind == "upload" else None)
        return
    if kind == "collective":
        from torch import distributed

        for name in _COLLECTIVES:
            setattr(distributed, name, trap.around(getattr(distributed, name)))
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


def _on_requests(trap: Trap, methods: frozenset[str] | None) -> None:
    import s3fs

    genuine = s3fs.S3FileSystem._call_s3

    async def call(fs: Any, method: str, *words: Any, **options: Any) -> Any:
        if methods is None or method in methods:
            trap.tick()
        return await genuine(fs, method, *words, **options)

    s3fs.S3FileSystem._call_s3 = call
