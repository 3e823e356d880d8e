"""PyTorch's worker threads, each on a core of its own. In fresh processes, whose pools do not exist yet."""

import json
import os
import subprocess
import sys

import pytest

from excite.runtime import workers

BOUND = """
import json, os, sys, threading
from excite.runtime import workers
before = workers._tasks()
bound = workers.spread_workers()
import subprocess, torch
cores = {task: sorted(os.sched_getaffinity(task)) for task in workers._tasks() - before}
child = subprocess.run([sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"], capture_output=True)
seen = []
thread = threading.Thread(target=lambda: seen.append(len(os.sched_getaffinity(0))))
thread.start(), thread.join()
print(json.dumps({"bound": bound, "cores": list(cores.values()), "main": len(os.sched_getaffinity(0)),
                  "child": int(child.stdout), "thread": seen[0], "again": workers.spread_workers()}))
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux binds threads to cores")


def run(**changes):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", BOUND], env=environment | changes, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@linux
def test_workers_have_a_core_each_and_nothing_else_is_bound():
    count = len(os.sched_getaffinity(0))
    if count < 2 or len(workers._physical_cores(os.sched_getaffinity(0))) not in (1, count):
        pytest.skip(f"{count} logical processors of other cores: PyTorch's threads need not be as many")
    told = run(OMP_NUM_THREADS=str(count))
    assert told["bound"] == len(told["cores"]) == count - 1
    assert all(len(cores) == 1 for cores in told["cores"])
    assert len({tuple(cores) for cores in told["cores"]}) == count - 1, "no two on one core"
    assert told["main"] == told["child"] == told["thread"] == count
    assert told["again"] == 0, "the pool exists"


@linux
@pytest.mark.heavy
def test_a_training_binds_them(tmp_path):
    """In its own process, before anything uses the pool."""
    count = len(os.sched_getaffinity(0))
    if count < 2 or len(workers._physical_cores(os.sched_getaffinity(0))) not in (1, count):
        pytest.skip(f"{count} logical processors of other cores: PyTorch's threads need not be as many")
    script = (
        "import os\nfrom excite.training import train\nfrom tests.training.small import small\n"
        f"train(small('epochs=1'), out={str(tmp_path)!r}, quiet=True)\n"
        "print(sum(len(os.sched_getaffinity(int(task))) == 1 for task in os.listdir('/proc/self/task')))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment["OMP_NUM_THREADS"] = str(count)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) == count - 1


@linux
@pytest.mark.parametrize("decided", [{"OMP_PROC_BIND": "false"}, {"OMP_NUM_THREADS": "1"}, {"GOMP_CPU_AFFINITY": "0"}])
def test_nothing_is_bound_where_somebody_decided_or_threads_do_not_take_all_cores(decided):
    assert run(**decided)["bound"] == 0


def test_processors_of_one_core_are_one(monkeypatch, tmp_path):
    siblings = {0: "0,4", 1: "1,5", 2: "2-3", 3: "2-3", 4: "0,4", 5: "1,5"}
    for cpu, text in siblings.items():
        (tmp_path / f"cpu{cpu}").mkdir()
        (tmp_path / f"cpu{cpu}" / "list").write_text(text + "\n")
    real = workers.Path
    monkeypatch.setattr(workers, "Path", lambda name: real(tmp_path / name.split("/")[5] / "list"))
    assert workers._physical_cores({0, 1, 2, 3, 4, 5}) == [{0, 4}, {1, 5}, {2, 3}]
    assert workers._physical_cores({0, 1, 3}) == [{0}, {1}, {3}], "of those allowed"
    assert workers._physical_cores({7, 8}) == [{7}, {8}], "the system does not say"
