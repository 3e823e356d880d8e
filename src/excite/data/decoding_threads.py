"""Batches of image files decoded by threads of this process.

Decoders and kernels do not hold the interpreter's lock, so threads decode at the same time. They need no memory of
their own, start at once, and write the pixels straight into the batch, which is pinned for a GPU; nothing goes through
shared memory. But what each image costs in Python is done by one thread at a time. So they are used where kernels
decode (:mod:`excite.data.jpeg`) and few workers are wanted; see :func:`suit`.
"""

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import closing

import torch

from excite.data import jpeg
from excite.data.ahead import spread
from excite.data.crew import Crew, Job, ahead
from excite.data.decoder import Decoded, FileDecoder, Outcome, Request
from excite.data.images import FileImages
from excite.data.packed import whole_if
from excite.data.watched import Beats, Watch
from excite.runtime.waiting import waits

#: More workers than this are processes.
MOST = 4
#: Batches that are decoded ahead, at least.
AHEAD = 2


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


class _Batch(Job[Outcome]):
    """A batch of a loader."""

    def __init__(self, decoder: FileDecoder, request: Request, pinned: bool) -> None:
        self.pixels = pixels = decoder.room(request, pinned)
        super().__init__(len(request.indices), lambda positions: decoder.fill(request, positions, pixels))


class ThreadBatches:
    """Streams requests through threads that live as long as this object."""

    def __init__(self, decoder: FileDecoder, workers: int, device: torch.device) -> None:
        self.decoder, self.device, self.workers = decoder, device, workers
        decoder.beats = Beats(0, workers)
        self.watch = Watch(decoder.beats, workers, decoder.files.paths.__getitem__, decoder.batch_key, kind="threads")
        self._crew: Crew | None = None

    def run(self, requests: list[Request]) -> Iterator[Decoded]:
        """The answers, in order. Raises LoaderFailed if threads get nowhere."""
        if self._crew is None:
            self._crew = Crew(self.workers)
            weakref.finalize(self, self._crew.close).atexit = False
        return self._run(requests, self._crew)

    def _run(self, requests: list[Request], crew: Crew) -> Iterator[Decoded]:
        pinned = self.device.type == "cuda"
        batches = (_Batch(self.decoder, request, pinned) for request in requests)
        with closing(ahead(crew, batches, self._enough)) as taken:
            for batch in taken:
                outcomes = [outcome for outcome in batch.finished(lambda: self.watch.stuck) if outcome is not None]
                decoded = self.decoder.together(batch.pixels, outcomes)
                del batch
                yield decoded
                del decoded

    def _enough(self, running: "deque[_Batch]") -> bool:
        """Whether so many batches have been begun that threads find work while the first is taken."""
        return len(running) >= AHEAD and sum(map(len, running)) >= 2 * self.workers
