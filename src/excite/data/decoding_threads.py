"""Batches of image files decoded by threads of this process.

Decoders and kernels do not hold the interpreter's lock, so threads decode at the same time. They need no memory of
their own, start at once, and write the pixels straight into the batch, which is pinned for a GPU; nothing goes through
shared memory. But what each image costs in Python is done by one thread at a time. So they are used where kernels
decode (:mod:`excite.data.jpeg`) and few workers are wanted; see :func:`suit`.
"""

import atexit
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait

import torch

from excite.data import jpeg
from excite.data.ahead import spread
from excite.data.decoder import Decoded, FileDecoder, Outcome, Request
from excite.data.images import FileImages
from excite.data.packed import whole_if
from excite.data.watched import LOOK, Beats, LoaderFailed, Watch
from excite.runtime.waiting import waits

#: More workers than this are processes.
MOST = 4
#: Batches that are decoded ahead, at least.
AHEAD = 2
#: Pieces that a batch is cut into for each thread: then all end at about the same time.
PIECES = 4
#: Seconds that threads may take for their last image when the program ends.
LAST = 5.0


def suit(files: FileImages, workers: int) -> bool:
    """Whether threads are better than processes: few workers, and kernels decode every image of a sample."""
    if not 0 < workers <= MOST or not jpeg.available():
        return False
    try:
        return all(_by_kernel(files, i) for i in spread(len(files)))
    except (OSError, ValueError):
        return False


def _by_kernel(files: FileImages, i: int) -> bool:
    with waits.waiting(lambda: f"images: reading {files.paths[i]}"):
        data = whole_if(files.source(i), jpeg.START)
    return data is not None and jpeg.header(data) is not None


class _Crew:
    """Threads that do what is put into a queue. Unlike those of an executor, they do not keep the interpreter from
    ending: one that reads from a dead disk never returns. The others must have ended before (see `_end`)."""

    def __init__(self, size: int) -> None:
        self.tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        for number in range(size):
            thread = threading.Thread(target=self._work, name=f"excite-decode-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system allows no more
                break
            self.threads.append(thread)
        _crews.add(self)

    def _work(self) -> None:
        while (task := self.tasks.get()) is not None:
            task()
            del task  # it holds a batch

    def close(self) -> None:
        for _ in self.threads:
            self.tasks.put(None)


#: Those with threads, which hold them.
_crews: weakref.WeakSet[_Crew] = weakref.WeakSet()
_ending = threading.Event()


@atexit.register
def _end() -> None:
    """Let all threads finish the image that they decode, and no other. The end of the interpreter breaks off daemon
    threads wherever they ask for its lock; in a function of torch's, that aborts the process."""
    _ending.set()
    crews = list(_crews)
    for crew in crews:
        crew.close()
    until = time.monotonic() + LAST
    for thread in (thread for crew in crews for thread in crew.threads):
        thread.join(max(0.0, until - time.monotonic()))


class _Batch:
    """A batch that is being decoded, in pieces."""

    def __init__(self, decoder: FileDecoder, request: Request, pinned: bool) -> None:
        self.decoder, self.request = decoder, request
        self.pixels = decoder.room(request, pinned)
        self.outcomes: list[Outcome | None] = [None] * len(request.indices)
        self.pieces: list[Future[None]] = []
        self.abandoned = False

    def start(self, put: Callable[[Callable[[], None]], None], pieces: int) -> None:
        count = len(self.outcomes)
        size = max(1, -(-count // pieces))
        for first in range(0, count, size):
            piece: Future[None] = Future()
            self.pieces.append(piece)
            put(lambda first=first, piece=piece: self._decode(first, min(first + size, count), piece))  # type: ignore[misc]

    def _decode(self, first: int, end: int, piece: "Future[None]") -> None:
        try:
            for position in range(first, end):
                if self.abandoned:
                    break
                if _ending.is_set():
                    raise LoaderFailed("images are no longer decoded, because the program ends")
                self.outcomes[position] = self.decoder.fill(self.request, position, self.pixels)
            piece.set_result(None)
        except BaseException as error:
            piece.set_exception(error)

    def decoded(self, watch: Watch) -> Decoded:
        """The batch, once all of it is there. Raises LoaderFailed if it gets nowhere."""
        while True:
            done, left = wait(self.pieces, timeout=LOOK, return_when=FIRST_EXCEPTION)
            for piece in done:
                piece.result()
            if not left:
                break
            if watch.stuck:
                raise LoaderFailed(watch.stuck)
        outcomes = [outcome for outcome in self.outcomes if outcome is not None]
        return self.decoder.together(self.pixels, outcomes)


class ThreadBatches:
    """Streams requests through threads that live as long as this object."""

    def __init__(self, decoder: FileDecoder, workers: int, device: torch.device) -> None:
        self.decoder, self.device, self.workers = decoder, device, workers
        decoder.beats = Beats(0, workers)
        self.watch = Watch(decoder.beats, workers, decoder.files.paths.__getitem__, decoder.batch_key, kind="threads")
        self._crew: _Crew | None = None

    def run(self, requests: list[Request]) -> Iterator[Decoded]:
        """The answers, in order. Raises LoaderFailed if threads get nowhere."""
        if self._crew is None:
            self._crew = _Crew(self.workers)
            weakref.finalize(self, self._crew.close).atexit = False
        return self._run(requests, self._crew)

    def _run(self, requests: list[Request], crew: _Crew) -> Iterator[Decoded]:
        todo, running = iter(requests), deque[_Batch]()
        pinned = self.device.type == "cuda"
        put: Callable[[Callable[[], None]], None] = crew.tasks.put if crew.threads else lambda task: task()
        try:
            while True:
                while _lacks(running, self.workers) and (request := next(todo, None)) is not None:
                    running.append(_Batch(self.decoder, request, pinned))
                    running[-1].start(put, PIECES * self.workers)
                if not running:
                    return
                decoded = running[0].decoded(self.watch)
                running.popleft()
                yield decoded
                del decoded
        finally:  # whoever took the batches has stopped
            for batch in running:
                batch.abandoned = True


def _lacks(running: "deque[_Batch]", workers: int) -> bool:
    """Whether another batch should be begun: threads must find work while the first batch is taken."""
    return len(running) < AHEAD or sum(len(batch.outcomes) for batch in running) < 2 * workers
