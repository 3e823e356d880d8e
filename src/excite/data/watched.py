"""Decoding workers that are watched: which file each one reads, whether it lives, and whether it gets on.

torch's loader waits for ever for a worker that hangs, and says "exited unexpectedly" of one that died.
"""

import itertools
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from excite.data.worker_context import FEEDER_FAILED
from excite.errors import ExciteError, first_line, shown_text
from excite.runtime.waiting import patience
from excite.text import counted

SHM = "/dev/shm"
#: Seconds that the exit status of a worker which broke off may take.
STATUS_SECONDS = 5.0
#: Seconds between two looks at the workers while the main process waits for them.
LOOK = 1.0


class LoaderFailed(ExciteError):
    """Images can no longer be loaded, for a reason that lies in the machine: the run can save what it has reached."""


class Beats:
    """What every worker is doing, in memory that it shares with the main process.

    Args:
        workers: the number of worker processes; with 0, the main process is the only one.
        threads: the number of its threads that decode.

    Raises:
        LoaderFailed: there is no shared memory left.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        # The image that is read, or -1; images begun.
        rows = torch.full((max(threads, workers), 2), -1, dtype=torch.int64)
        with sharing():
            self._rows = rows.share_memory_() if workers else rows
        self._own = threading.local()
        self._threads = itertools.count()

    @property
    def own(self) -> np.ndarray:
        """What this thread or process is doing: int64 (2,), the image that it reads, or -1, and how many it began."""
        row: np.ndarray | None = getattr(self._own, "row", None)
        if row is None:
            info = get_worker_info()
            number = next(self._threads) % len(self._rows) if info is None else info.id
            row = self._own.row = self._rows[number].numpy()
        return row

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Note that this process reads image number ``index``. After a crash the note remains."""
        row = self.own
        row[0] = index
        row[1] += 1
        try:
            yield
        finally:
            row[0] = -1

    def now(self) -> list[tuple[int, int]]:
        """(the image that is read, or -1; images begun) of every worker."""
        return [(row[0], row[1]) for row in self._rows.tolist()]

    def __getstate__(self) -> dict[str, Any]:
        return {"_rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._rows, self._own, self._threads = state["_rows"], threading.local(), itertools.count()


@contextmanager
def sharing(what: str = "decoded images could not be handed over in shared memory") -> Iterator[None]:
    """Turn a refusal of the system, of shared memory above all, into LoaderFailed: ``what``, and why."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = shown_text(first_line(error).rpartition(": ")[2])
        raise LoaderFailed(
            f"{what} ({reason}){_shm()}; make that larger (docker run --shm-size=8g), or decode without workers: "
            "data.workers=0"
        ) from None


def _shm() -> str:
    try:
        usage = shutil.disk_usage(SHM)
    except OSError:
        return ""
    return f"; {SHM} has {usage.free / 2**20:,.0f} MB free of {usage.total / 2**20:,.0f} MB"


@dataclass
class Watch:
    """What is known of the workers of one loader. Another thread looks, for the main one may hang itself: in the middle
    of a batch that a stopped worker was handing over.

    Attributes:
        beats: what they are doing.
        workers: their number.
        path_of: number of an image -> its path.
        batch_key: the recipe key for the size of the batches.
        kind: whether they are "processes" or "threads". Only processes can be killed; whoever waits for threads looks
            whether they are ``stuck``.
        patience: seconds without progress after which they are given up.
        processes: the workers.
        stuck: why they were given up.
    """

    beats: Beats
    workers: int
    path_of: Callable[[int], str]
    batch_key: str
    kind: Literal["processes", "threads"] = "processes"
    patience: float = field(default_factory=patience)
    processes: Sequence[Any] = ()
    stuck: str | None = None
    _seen: tuple[list[tuple[int, int]], float] = ([], 0.0)

    def look(self, began: float, now: float) -> None:
        """Kill the workers if they have got nowhere for too long.

        Args:
            began: when the main process began to wait, seconds.
            now: the time.
        """
        beats, (before, since) = self.beats.now(), self._seen
        if beats != before or since < began:
            self._seen = (beats, now)
        elif now - since >= self.patience and (self.processes or self.kind == "threads") and self.stuck is None:
            self.stuck = (
                f"the decoding workers have got nowhere for {now - since:.0f} s ({self.doing()}): is the disk dead, or "
                "the network that it is reached by? Look at that file; try again with data.workers=0, or wait longer "
                "with EXCITE_PATIENCE=SECONDS"
            )
            for process in self.processes:
                process.kill()

    def doing(self) -> str:
        """What the loader waits for: the files being read, and by which worker."""
        now = self.beats.now()
        reading = [(i, index) for i, (index, _) in enumerate(now) if index >= 0]
        if not self.workers:
            return f"images: reading {self.path_of(reading[0][1])}" if reading else "images"
        if not reading:
            begun = any(count >= 0 for _, count in now)
            workers = counted(self.workers, "decoding worker")
            return f"images from {workers}, which {'read no file' if begun else 'never began'}"
        listed = ", ".join(f"worker {i + 1} reads {self.path_of(index)}" for i, index in reading[:4])
        more = f", and {len(reading) - 4} more" if len(reading) > 4 else ""
        return f"images: {listed}{more}"


class WatchedLoader(DataLoader[Any]):
    """torch's loader, whose iterator raises LoaderFailed for workers that died, or that get nowhere."""

    def __init__(self, *args: Any, watch: Watch, **options: Any) -> None:
        super().__init__(*args, **options)
        self.watch = watch

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return _Iterator(self)


class _Iterator(_MultiProcessingDataLoaderIter):
    def __init__(self, loader: WatchedLoader) -> None:
        self._watch = loader.watch  # not the loader, which may hold this iterator: that would be a circle
        self._made = False
        super().__init__(loader)
        self._made = True
        self._watch.processes = self._workers

    def __del__(self) -> None:
        if self._made:
            super().__del__()
        else:  # it failed half-way, for which torch is not prepared
            _end(getattr(self, "_workers", []))

    def _try_get_data(self, timeout: float | None = None) -> tuple[bool, Any]:
        """torch calls this again and again while it waits."""
        try:
            found: tuple[bool, Any] = super()._try_get_data(LOOK if timeout is None else timeout)
            return found
        except (RuntimeError, OSError, EOFError) as error:  # or that it died while it handed over a batch
            why = self._watch.stuck or self._why_failed(first_line(error))
        _end(self._workers)
        raise LoaderFailed(why)

    def _why_failed(self, message: str) -> str:
        wait([w.sentinel for w in self._workers], STATUS_SECONDS)  # a lost connection is noticed before the status
        dead = [(i, w.exitcode) for i, w in enumerate(self._workers) if w.exitcode is not None]
        if dead:
            return _died(self._watch, *next((each for each in dead if each[1]), dead[0]))
        if "Too many open files" in message:
            return (
                "the images that workers decode need more open files than this process may have; allow more (`ulimit "
                "-n 65536`), use fewer workers (data.workers=2), or none (data.workers=0)"
            )
        return f"the decoding workers failed ({shown_text(message)}); try data.workers=0"


def _end(workers: Sequence[Any]) -> None:
    """Kill the workers: one that hangs does not listen, and the end of the program would wait for it."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(1.0)
        if worker.exitcode is None:  # in the middle of a call to a dead disk, which not even SIGKILL ends
            multiprocessing.process._children.discard(worker)  # type: ignore[attr-defined]


def _died(watch: Watch, number: int, status: int) -> str:
    """Why worker ``number`` ended, as far as its exit status says, and what helps."""
    index = watch.beats.now()[number][0]
    file = watch.path_of(index) if index >= 0 else ""
    reading = f" while it read {file}" if file else ""
    few = max(1, watch.workers // 2)
    who = f"decoding worker {number + 1} of {watch.workers}"
    if status == FEEDER_FAILED:
        return (
            f"{who} could not hand over the images that it had decoded{_shm()}; allow more open files (`ulimit -n "
            "65536`) or make the shared memory larger, or decode without workers: data.workers=0"
        )
    if status >= 0:
        return f"{who} ended with status {status}{reading}; to see why, decode without workers: data.workers=0"
    name = signal.Signals(-status).name
    if name == "SIGKILL":
        mend = f"data.workers={few}" if few < watch.workers else "data.workers=0"
        return (
            f"{who} was killed ({name}){reading}, most likely because the memory of this machine or job ran out; use "
            f"fewer workers ({mend}) or a smaller {watch.batch_key}"
        )
    if name == "SIGBUS":
        return (
            f"{who} was ended by {name}{reading}: the shared memory is too small, or the file was cut or its disk "
            f"failed meanwhile{_shm()}; make it larger (docker run --shm-size=8g), or use data.workers=0"
        )
    if name in ("SIGTERM", "SIGINT", "SIGHUP"):
        return f"{who} was ended by {name}{reading}, from outside; run the command again"
    aside = "move that file away" if file else "update Pillow"
    return f"{who} crashed ({name}){reading}: a fault in an image decoder; {aside}, or see why with data.workers=0"


def keep_quiet_at_crashes() -> None:
    """In a worker: torch's handlers print lines of their own at a crash, which the main process explains better."""
    for name in ("SIGBUS", "SIGSEGV", "SIGFPE"):
        if hasattr(signal, name) and os.name == "posix":
            signal.signal(getattr(signal, name), signal.SIG_DFL)
