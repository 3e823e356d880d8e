"""Rows are kept in one array, in order, whatever the batches are."""

import numpy as np
import pytest

from excite.runtime.rows import Rows


@pytest.mark.parametrize("sizes", [[1], [3, 0, 5], [700] * 7, [5000, 1], [1] * 1025])
def test_rows_are_all_there_in_order(sizes):
    rows, wanted = Rows(), np.arange(sum(sizes) * 3, dtype=np.float32).reshape(-1, 3)
    done = 0
    for size in sizes:
        rows.add(wanted[done : done + size])
        done += size
        assert len(rows) == done
    assert np.array_equal(rows.all(), wanted)
    assert rows.all().dtype == np.float32


def test_what_is_added_and_what_is_given_are_copies():
    rows, given = Rows(), np.ones((2,), dtype=np.int64)
    rows.add(given)
    given[:] = 5
    first = rows.all()
    first[:] = 7
    assert rows.all().tolist() == [1, 1]


def test_a_batch_leaves_no_block_of_its_own():
    """The array grows by doubling: 1,000 batches are held in a handful of blocks, one after the other."""
    rows, held = Rows(), set()
    for _ in range(1000):
        rows.add(np.zeros((64, 2), np.float32))
        held.add(id(rows._held))
    assert len(held) <= 8


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match="no rows"):
        Rows().all()
