"""Threads that decode batches, in pieces, ahead of whoever takes them: for the loaders, and for ``excite predict``.

Unlike those of an executor, they do not keep the interpreter from ending: one that reads from a dead disk never
returns.
"""

import atexit
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any, Generic, TypeVar

from excite.data.watched import LOOK, LoaderFailed

Result = TypeVar("Result")

#: Images that are worked on before a thread looks whether they are still wanted.
AT_ONCE = 16
#: Pieces that a batch is cut into for each thread: then all end at about the same time.
PIECES = 4
#: Seconds that threads may take for their last image when the program ends.
LAST = 5.0


class Crew:
    """Threads that do what is put into a queue, until the crew is closed or forgotten.

    Args:
        size: how many; fewer if the system starts no more.
    """

    def __init__(self, size: int) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        for number in range(size):
            thread = threading.Thread(target=_work, args=(self._tasks,), name=f"excite-decode-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system allows no more
                break
            self.threads.append(thread)
        _crews.add(self)

    def put(self, task: Callable[[], None]) -> None:
        """Have something done; at once, by the caller, if there are no threads."""
        if self.threads:
            self._tasks.put(task)
        else:
            task()

    def close(self) -> None:
        """Let the threads end once the queue is empty."""
        for _ in self.threads:
            self._tasks.put(None)


def _work(tasks: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # it holds a batch


#: Those with threads.
_crews: weakref.WeakSet[Crew] = weakref.WeakSet()
_ending = threading.Event()


@atexit.register
def _end() -> None:
    """Let all threads finish the images that they decode, and no others. The end of the interpreter breaks off daemon
    threads wherever they ask for its lock; in a function of torch's, that aborts the process."""
    _ending.set()
    crews = list(_crews)
    for crew in crews:
        crew.close()
    until = time.monotonic() + LAST
    for thread in (thread for crew in crews for thread in crew.threads):
        thread.join(max(0.0, until - time.monotonic()))


class Job(Generic[Result]):
    """A batch that threads work on, in pieces.

    Args:
        count: its images.
        do: called in several threads at once with some positions; returns a result for each, or for the first ones.
    """

    def __init__(self, count: int, do: Callable[[range], Iterable[Result]]) -> None:
        self._do = do
        self.results: list[Result | None] = [None] * count
        self._pieces: list[Future[None]] = []
        self.abandoned = False

    def __len__(self) -> int:
        return len(self.results)

    def start(self, crew: Crew) -> None:
        """Hand it to the threads."""
        count = len(self)
        size = max(1, -(-count // (PIECES * max(1, len(crew.threads)))))
        for first in range(0, count, size):
            piece: Future[None] = Future()
            self._pieces.append(piece)
            crew.put(lambda first=first, piece=piece: self._run(first, min(first + size, count), piece))  # type: ignore[misc]

    def _run(self, first: int, end: int, piece: "Future[None]") -> None:
        try:
            for some in range(first, end, AT_ONCE):
                if self.abandoned:
                    break
                if _ending.is_set():
                    raise LoaderFailed("images are no longer decoded, because the program ends")
                found = list(self._do(range(some, min(some + AT_ONCE, end))))
                self.results[some : some + len(found)] = found
            piece.set_result(None)
        except BaseException as error:
            piece.set_exception(error)

    def finished(self, stuck: Callable[[], str | None] = lambda: None) -> list[Result | None]:
        """The results, once all are there, or what a thread raised. ``stuck`` is asked again and again; if it gives a
        reason, that is raised as LoaderFailed."""
        while True:
            done, left = wait(self._pieces, timeout=LOOK, return_when=FIRST_EXCEPTION)
            for piece in self._pieces:  # in order: the first error is that of the first image
                if piece in done:
                    piece.result()
            if not left:
                return self.results
            if (reason := stuck()) is not None:
                raise LoaderFailed(reason)


AnyJob = TypeVar("AnyJob", bound="Job[Any]")


def ahead(
    crew: Crew, jobs: Iterable[AnyJob], enough: Callable[["deque[AnyJob]"], bool]
) -> Generator[AnyJob, None, None]:
    """Jobs in order, begun before they are taken. Whoever takes one waits for it (`Job.finished`).

    Args:
        crew: the threads.
        jobs: consumed as they are begun.
        enough: whether so many are under way, the first of which is taken next.
    """
    todo, running = iter(jobs), deque[AnyJob]()
    try:
        while True:
            while not enough(running) and (job := next(todo, None)) is not None:
                running.append(job)
                job.start(crew)
            if not running:
                return
            yield running[0]
            running.popleft()
    finally:  # whoever took them has stopped
        for job in running:
            job.abandoned = True
