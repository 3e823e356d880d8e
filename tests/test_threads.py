"""Where the system starts no more threads, the work is done by those that there are, or by nobody else."""

import threading

import pytest

from excite.threads import Threads


@pytest.fixture
def most_threads(monkeypatch):
    """Set how many more threads can be started."""
    genuine, left = threading.Thread.start, [0]

    def start(thread: threading.Thread) -> None:
        if left[0] == 0:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        genuine(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    return lambda count: left.__setitem__(0, count)


@pytest.mark.parametrize("count", [0, 1, 3, 99])
def test_all_work_is_done_in_order_whatever_the_system_allows(most_threads, count):
    most_threads(count)
    here, used = threading.get_ident(), set[int]()

    def work(x: int) -> int:
        used.add(threading.get_ident())
        return x * x

    with Threads(8) as pool:
        assert list(pool.map(work, range(100))) == [x * x for x in range(100)]
    assert (here in used) == (count == 0)
    assert len(used) <= max(count, 1)


@pytest.mark.parametrize("count", [0, 1])
def test_an_error_comes_where_its_result_is_asked_for(most_threads, count):
    most_threads(count)
    with Threads(2) as pool:
        asked = pool.submit(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            asked.result()


def test_work_is_really_done_at_a_time():
    meeting = threading.Barrier(4, timeout=60)
    with Threads(4, "some") as pool:
        assert len({f.result() for f in [pool.submit(meeting.wait) for _ in range(4)]}) == 4
