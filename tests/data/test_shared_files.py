"""Large sets are sent to worker processes as handles of shared memory."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from excite.data import FileImages, shared_files
from excite.data.packed import Container, Packed
from excite.data.shared_files import SharedPaths, shared
from excite.data.watched import LoaderFailed
from tests.data.test_loader import RESIZED, config, same, train

NAMES = ["a.png", "b/\udcff.png", "c é 猫.png", ""]


def test_paths_are_those_that_were_put_in():
    text = [name.encode("utf-8", "surrogateescape") for name in NAMES]
    paths = SharedPaths(np.frombuffer(b"".join(text), np.uint8), np.cumsum([len(each) for each in text]))
    assert list(paths) == NAMES
    assert paths[-2] == NAMES[2]
    assert paths[1:3] == NAMES[1:3]
    with pytest.raises(IndexError):
        paths[4]


@pytest.mark.parametrize("several", [False, True])
def test_what_a_worker_receives(monkeypatch, several):
    monkeypatch.setattr(shared_files, "LEAST", 1)
    labels = np.eye(4, dtype=np.uint8)[:, :3] if several else [3, 1, 0, 2]
    rows = [(0, 10 * i, 5, 6, i % 3, 2**32 - 1 - i) for i in range(4)]
    packed = Packed.of([Container("x.tar", 100, 5)], rows)
    files = FileImages(NAMES, labels, 4095, packed, np.ones(4))
    sent = shared(files)
    assert sent.paths is files.paths, "the main process has no second copy"
    received = pickle.loads(pickle.dumps(sent))
    assert list(received.paths) == NAMES
    assert np.array_equal(received.labels, labels)
    assert (received.white, received.weights) == (4095, None)
    for i in range(4):
        assert received.source(i) == files.source(i)
    assert shared(FileImages(NAMES, [0] * 4)).__reduce__()[1][0]["text"].is_shared()


def test_few_files_and_too_little_room_change_nothing(monkeypatch):
    files = FileImages(NAMES, [0, 0, 1, 1])
    assert shared(files) is files

    def refuses(*_):
        raise LoaderFailed("no room")

    monkeypatch.setattr(shared_files, "LEAST", 1)
    monkeypatch.setattr(torch.Tensor, "share_memory_", refuses)
    assert shared(files) is files


def test_workers_read_the_same_images(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files, "LEAST", 1)
    paths = [str(tmp_path / f"{i}.png") for i in range(9)]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    files = FileImages(paths, list(range(9)))
    assert same(train(files, RESIZED, config(workers=1)).epoch(0), train(files, RESIZED).epoch(0))
