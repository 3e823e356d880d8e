"""Gives each of PyTorch's worker threads a core of its own, so that other programs slow a training down less.

The threads of an operation wait for each other, thousands of times a step. Beside a busy program, Linux often puts two
of them on one core, where each waits for the other's turn to end; on two cores, a step then takes 3.8 times as long.
Workers that stay on their cores make it 2.2 (docs/performance.md). The thread that hands out the work stays free: what
it starts (loaders, processes) would inherit its core, as it does with ``OMP_PROC_BIND=true``.
"""

import os
import sys
from pathlib import Path

import torch

#: Whoever sets one of these has decided where threads run.
_DECIDED = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
#: Enough numbers for an operation to use all threads.
_MANY = 1 << 20


def spread_workers() -> int:
    """Bind the worker threads of this thread's OpenMP pool to one core each, if they take all the cores there are.

    Call it before PyTorch first uses several threads. It does nothing where that is not Linux, where environment
    variables say where threads run, where there are fewer threads than cores (several trainings would choose the same
    cores), or where the pool exists already.

    Returns:
        The number of threads that were bound.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _DECIDED):
        return 0
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    cores = _physical_cores(allowed)
    if threads == len(allowed):
        cores = [{cpu} for cpu in sorted(allowed)]
    if threads < 2 or threads != len(cores):
        return 0
    before = _tasks()
    torch.ones(_MANY).exp_()
    workers = sorted(_tasks() - before)
    if len(workers) != threads - 1:  # the pool was there, or somebody else started a thread
        return 0
    try:
        for worker, core in zip(workers, cores[1:], strict=True):
            os.sched_setaffinity(worker, core)
    except OSError:  # a sandbox that does not allow it
        return 0
    return len(workers)


def _tasks() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def _physical_cores(allowed: set[int]) -> list[set[int]]:
    """The allowed logical processors, those of one physical core together; each alone if the system does not say."""
    cores: dict[frozenset[int], None] = {}
    for cpu in sorted(allowed):
        try:
            text = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
            siblings = {i for part in text.strip().split(",") for i in _range(part)}
        except (OSError, ValueError):
            siblings = {cpu}
        cores[frozenset(siblings & allowed) or frozenset({cpu})] = None
    return [set(core) for core in cores]


def _range(part: str) -> range:
    """ "4" or "4-7" -> the numbers."""
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)
