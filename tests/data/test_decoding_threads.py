"""Threads that decode: the same batches as other workers, and no wait without an end."""

import gc
import itertools
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from excite.data import FileImages, crew, decoding_threads, jpeg, loader
from excite.data.decoder import FileDecoder
from excite.data.decoding_processes import ProcessBatches
from excite.data.decoding_threads import ThreadBatches
from excite.data.watched import LoaderFailed
from excite.runtime import waiting
from excite.runtime.waiting import waits
from tests.data.test_loader import RESIZED, config, evaluation, failure, order, same, train

THREADS = {"worker_kind": "thread", "workers": 2}


@pytest.fixture
def photographs(tmp_path: Path) -> FileImages:
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{i:02d}.jpg") for i in range(23)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path)
    return FileImages(paths, list(range(23)))


def decoding() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("excite-decode")]


@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize("workers", [1, 3])
def test_who_decodes_does_not_change_the_batches(photographs, kind, workers):
    for broken in (3, 4, 20):
        Path(photographs.paths[broken]).write_bytes(b"broken")
    data = config(worker_kind=kind, workers=workers, on_bad_val="skip")
    own, other = train(photographs, RESIZED), train(photographs, RESIZED, data)
    for epoch in (0, 1):
        assert same(own.epoch(epoch), other.epoch(epoch))
    assert same(own.epoch(1, start_step=2), other.epoch(1, start_step=2))
    assert own.bad == other.bad
    assert isinstance(other._files, ThreadBatches if kind == "thread" else ProcessBatches)
    alone, together = (evaluation(photographs, each) for each in (config(on_bad_val="skip"), data))
    assert same(alone, together)
    assert alone.bad == together.bad
    stopping = [train(photographs, RESIZED, config(on_bad_train="stop", worker_kind=kind, workers=n)) for n in (0, 2)]
    assert failure(stopping[0].epoch(0)) == failure(stopping[1].epoch(0)) != "no error"


def test_threads_decode_jpegs_for_few_workers(photographs, tmp_path, monkeypatch):
    def chosen(files, workers, kind="auto"):
        decoder = FileDecoder(files, config(workers=workers, worker_kind=kind), RESIZED, 0)
        return type(loader.batches_of(decoder, loader.torch.device("cpu"), True))

    assert chosen(photographs, 2) is chosen(photographs, decoding_threads.MOST) is ThreadBatches
    assert chosen(photographs, 0) is chosen(photographs, decoding_threads.MOST + 1) is ProcessBatches
    assert chosen(photographs, 2, "process") is ProcessBatches
    assert chosen(photographs, 12, "thread") is ThreadBatches
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    mixed = FileImages([*photographs.paths[1:], str(tmp_path / "a.png")], photographs.labels)
    assert chosen(mixed, 2) is ProcessBatches
    assert chosen(FileImages([str(tmp_path / "none.jpg")], [0]), 2) is ProcessBatches
    monkeypatch.setattr(jpeg, "available", lambda: False)
    assert chosen(photographs, 2) is ProcessBatches


def test_a_dead_disk_is_named_while_a_kind_of_worker_is_chosen(photographs, monkeypatch):
    waited = []
    monkeypatch.setattr(decoding_threads, "whole_if", lambda *_: waited.append(waits.longest()[1]))
    assert not decoding_threads.suit(photographs, 2)
    assert waited == [f"images: reading {photographs.paths[0]}"]


def test_threads_end_with_their_loader(photographs):
    before = set(decoding())
    images = train(photographs, RESIZED, config(**THREADS))
    unfinished = images.epoch(0)
    next(unfinished)
    mine = set(decoding()) - before
    assert len(mine) == 2
    assert same(images.epoch(1), train(photographs, RESIZED).epoch(1)), "after an epoch that was left in the middle"
    assert set(decoding()) - before == mine, "they live on"
    gone = weakref.ref(images)
    del unfinished, images
    gc.collect()
    assert gone() is None
    for thread in mine:
        thread.join(20)
        assert not thread.is_alive()


END = """
import sys, threading, time
import numpy as np
from excite.data.decoder import Outcome
from excite.data.decoding_threads import ThreadBatches

class Decoder:  # asks for the interpreter's lock all the time, in functions of torch's
    files = type("Files", (), {"paths": []})
    batch_key, begun = "", 0

    def room(self, request, pinned):
        return torch.zeros(len(request.indices), 4)

    def fill(self, request, positions, pixels):
        for position in positions:
            Decoder.begun += 1
            if sys.argv[1] == "dead" and position == 2:
                time.sleep(1000)
            for _ in range(20):
                pixels[position].add_(1).numpy()
        return [Outcome(position) for position in positions]

    def together(self, pixels, outcomes):
        return pixels

import torch
from excite.data import crew
from excite.data.decoder import Request
crew.LAST = 0.3 if sys.argv[1] == "dead" else 60
batches = ThreadBatches(Decoder(), 8, torch.device("cpu")).run([Request(0, [0])] + [Request(0, list(range(50000)))] * 3)
next(batches)
while Decoder.begun < 200:
    time.sleep(0.001)
"""


@pytest.mark.parametrize("disk", ["good", "dead"])
def test_the_program_ends_while_threads_decode(disk):
    """The interpreter aborts where torch's functions in daemon threads get its lock no more; a dead disk is left."""
    done = subprocess.run([sys.executable, "-c", END, disk], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_batches_are_begun_ahead_and_no_more(photographs, monkeypatch):
    begun = []
    monkeypatch.setattr(FileDecoder, "fill", lambda self, request, positions, pixels, own=FileDecoder.fill: (
        begun.extend(request.indices[i] for i in positions), own(self, request, positions, pixels))[1])  # fmt: skip
    batches = train(photographs, RESIZED, config(**THREADS), batch_size=4).epoch(0)
    next(batches)
    assert 4 <= len(begun) <= 4 * (1 + decoding_threads.AHEAD)
    assert len(order(batches)) == 16
    assert len(begun) == 20


def test_an_error_of_ours_is_raised(photographs, monkeypatch):
    def fails(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(FileDecoder, "_decode", fails)
    for path in photographs.paths:
        Image.open(path).convert("L").save(Path(path).with_suffix(".png"))
    photographs.paths[5] = photographs.paths[5].replace(".jpg", ".png")  # not for the kernels
    for workers in (0, 2):
        with pytest.raises(ZeroDivisionError, match="ours"):
            list(train(photographs, RESIZED, config(worker_kind="thread", workers=workers)).epoch(0))


@pytest.mark.parametrize("kernels", [True, False])
def test_a_thread_that_gets_nowhere_is_given_up(photographs, kernels, monkeypatch):
    met, goes_on = threading.Event(), threading.Event()
    own = FileDecoder._decode

    def hangs(self, index, *args):
        if index == 7:
            met.set()
            goes_on.wait()
        return own(self, index, *args)

    def all_hang(self, sources, seed, own, out, beat, numbers):
        beat[0] = 7
        beat[1] += 1
        met.set()
        goes_on.wait()
        return np.ones(len(sources), bool)

    ticks = itertools.count(0, 300)
    monkeypatch.setattr(FileDecoder, "_decode", hangs)
    monkeypatch.setattr(jpeg.RandomCrops, "read", all_hang)
    monkeypatch.setattr(jpeg, "available", lambda: kernels)
    monkeypatch.setattr(crew, "LOOK", 0.05)
    monkeypatch.setattr(waiting, "LOOK", 0.05)
    monkeypatch.setattr(waits, "clock", lambda: next(ticks) if met.is_set() else 0)
    try:
        with pytest.raises(LoaderFailed, match=r"got nowhere for \d+ s \(images: worker \d reads .*07.jpg\)"):
            list(train(photographs, RESIZED, config(**THREADS)).epoch(0))
    finally:
        goes_on.set()


def test_without_any_thread_the_main_one_decodes(photographs, monkeypatch):
    def refuses(self):
        raise RuntimeError("can't start new thread")

    expected = list(train(photographs, RESIZED).epoch(0))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuses)
        patched.setattr(waits, "_watch", lambda: None)
        assert same(train(photographs, RESIZED, config(**THREADS)).epoch(0), expected)
