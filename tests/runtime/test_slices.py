"""Short turns on the processor: asked for in every thread, priorities left alone, no error where it is not known."""

import ctypes
import os
import platform
import sys
import threading

import pytest

from excite.runtime import device
from excite.runtime.device import SLICE, ask_for_short_slices

linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in device._SCHED_SETATTR, reason="the scheduler is Linux's"
)


def slice_of(task: int) -> tuple[int, int]:
    """What the scheduler says of a thread: nanoseconds of a turn (0 before Linux 6.12), and niceness."""
    found = device._SchedAttr()
    number = {"x86_64": 315, "aarch64": 275}[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, task, ctypes.byref(found), ctypes.sizeof(found), 0) == 0
    return found.runtime, found.nice


@linux
def test_threads_that_exist_and_later_ones_get_short_turns():
    known = tuple(int(part) for part in platform.release().split(".")[:2]) >= (6, 12)
    go, found = threading.Event(), {}

    def note(name):
        go.wait(60)
        found[name] = slice_of(threading.get_native_id())

    before = threading.Thread(target=note, args=("before",))
    before.start()
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if not ask_for_short_slices():
        go.set()
        pytest.skip("this system refuses sched_setattr")
    after = threading.Thread(target=note, args=("after",))
    after.start()
    go.set()
    before.join()
    after.join()
    wanted = SLICE if known else 0
    assert found == {"before": (wanted, nice), "after": (wanted, nice)}


@linux
def test_other_policies_and_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: os.SCHED_BATCH)
    assert not ask_for_short_slices()
    monkeypatch.undo()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert not ask_for_short_slices()
    monkeypatch.undo()
    monkeypatch.setattr(device.os, "listdir", lambda _: (_ for _ in ()).throw(PermissionError("no /proc")))
    assert not ask_for_short_slices()
