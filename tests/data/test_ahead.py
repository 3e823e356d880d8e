"""Decoding ahead of a network: order, bounds, and who decodes when."""

import threading
import time

import pytest

from excite.data.ahead import decoded_batches, decoding_threads


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 10])
def test_batches_come_in_order_whoever_is_ready_first(count, beside):
    def load(path):
        time.sleep(0.002 * (int(path) % 3))
        return int(path) ** 2

    paths = [str(number) for number in range(count)]
    batches = list(decoded_batches(iter(paths), load, 4, path_of=str, beside=beside))
    assert [len(batch) for batch in batches] == [4] * (count // 4) + ([count % 4] if count % 4 else [])
    assert [pair for batch in batches for pair in batch] == [(path, int(path) ** 2) for path in paths]


@pytest.mark.parametrize(("beside", "most"), [(False, 4), (True, 8)])
def test_no_more_is_decoded_than_what_is_worked_on_and_perhaps_the_next(beside, most):
    loaded, seen = [], 0
    lock = threading.Lock()

    def load(path):
        with lock:
            loaded.append(path)
        return path

    for batch in decoded_batches(map(str, range(40)), load, 4, path_of=str, beside=beside):
        assert len(loaded) - seen <= most
        seen += len(batch)
    assert sorted(loaded, key=int) == [str(number) for number in range(40)]


def test_who_has_had_enough_stops_the_decoding():
    loaded = []
    batches = decoded_batches(map(str, range(100)), loaded.append, 4, path_of=str, beside=True)
    next(batches)
    batches.close()
    assert len(loaded) <= 8


def test_what_ends_the_whole_ends_it():
    def load(path):
        raise OSError(path)

    with pytest.raises(OSError, match="0"):
        list(decoded_batches(["0", "1"], load, 4, path_of=str, beside=False))


def test_small_files_are_left_to_one_thread(tmp_path, monkeypatch):
    monkeypatch.setattr("excite.data.ahead.cores", lambda: 3)
    (tmp_path / "small").write_bytes(b"x" * 1000)
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    assert decoding_threads([str(tmp_path / "small")]) == 1
    assert decoding_threads([str(tmp_path / "large")]) == 3
