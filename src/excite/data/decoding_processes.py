"""Batches of image files decoded by worker processes, through torch's loader."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from excite.children import safe_children
from excite.data.decoder import Decoded, FileDecoder, Request
from excite.data.shared_files import shared
from excite.data.watched import Beats, Watch, WatchedLoader, keep_quiet_at_crashes, sharing
from excite.data.worker_context import worker_context
from excite.runtime.waiting import waits


class _Plan(Sampler[Request]):
    """The requests of the next iteration. Persistent workers keep their copy of the dataset, so whatever changes from
    epoch to epoch must be part of the requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


def _start_worker(_: int) -> None:
    """Make a worker end if, and only if, the main process asks it to or has ended.

    Ctrl-C reaches the whole process group, but the main process saves first and then ends its workers itself. If the
    main process is killed, torch's workers would live forever: they watch their parent, but with forkserver that is the
    server, which in turn waits for the workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_quiet_at_crashes()
    threading.Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os._exit(1)


def _unchanged(decoded: Any) -> Any:
    """With batch_size=None, the DataLoader would otherwise convert what the decoder returns."""
    return decoded


class ProcessBatches:
    """Streams requests through worker processes that live as long as this object (if `persistent`)."""

    def __init__(self, decoder: FileDecoder, workers: int, device: torch.device, persistent: bool) -> None:
        self.decoder, self.plan = decoder, _Plan()
        decoder.beats = Beats(workers)
        if workers:
            decoder.files = shared(decoder.files)
        self.watch = Watch(decoder.beats, workers, decoder.files.paths.__getitem__, decoder.batch_key)
        self.loader = WatchedLoader(
            decoder,
            watch=self.watch,
            batch_size=None,
            sampler=self.plan,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            multiprocessing_context=worker_context() if workers else None,
            persistent_workers=persistent and workers > 0,
            generator=torch.Generator(),  # otherwise every epoch would draw a number from the global generator
        )

    def run(self, requests: list[Request]) -> Iterator[Decoded]:
        """The answers, in order. Raises LoaderFailed if a worker dies or gets nowhere."""
        self.plan.requests = requests
        # The workers, and the server that they are forked from, start here.
        starting = sharing("the decoding workers could not be started")
        with safe_children(), waits.waiting(self.watch.doing, self.watch.look), starting:
            return iter(self.loader)
