"""How much a training step slows down when other work runs on the same cores: python benchmarks/busy_neighbour.py

Each setting runs in a process of its own, alone and beside one and two processes that are always busy, in turns,
several rounds. Rows are appended to benchmarks/results/busy_neighbour.csv: median ms a step over the rounds.

    as it is        all cores, as `excite train` runs: each worker stays on its core
    free            all cores, PyTorch's defaults
    bound           OMP_PROC_BIND=true: each thread stays on its core, and so does all that the first one starts
    short turns     the scheduler is asked for turns of 0.1 ms (Linux 6.12; sched_setattr)
    one thread      OMP_NUM_THREADS=1
"""

import argparse
import ctypes
import os
import subprocess
import sys
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from statistics import median

import torch
from record import append_rows, commit

from excite.runtime.device import device_name

RESULTS = Path(__file__).parent / "results" / "busy_neighbour.csv"
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "free": {"FREE": "1"},
    "bound": {"OMP_PROC_BIND": "true"},
    "short turns": {"FREE": "1", "SHORT": "1"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
JOBS = {"cifar_seresnet20": (64, 32, 24), "seresnet50": (8, 96, 10)}


class SchedAttr(ctypes.Structure):
    """Linux's ``struct sched_attr``, in its first form."""

    _fields_ = (
        *(("size", ctypes.c_uint32), ("policy", ctypes.c_uint32), ("flags", ctypes.c_uint64)),
        *(("nice", ctypes.c_int32), ("priority", ctypes.c_uint32), ("runtime", ctypes.c_uint64)),
        *(("deadline", ctypes.c_uint64), ("period", ctypes.c_uint64)),
    )


def ask_for_short_turns() -> None:
    """Of all threads that this one starts, too. x86-64 only."""
    attributes = SchedAttr(size=ctypes.sizeof(SchedAttr), runtime=100_000)
    if ctypes.CDLL(None).syscall(314, 0, ctypes.byref(attributes), 0):
        sys.exit("the scheduler does not take it")


def steps(name: str) -> float:
    """Median ms of a training step."""
    from time import perf_counter

    from excite import create_model
    from excite.runtime.device import keep_freed_memory
    from excite.runtime.workers import spread_workers

    keep_freed_memory()
    if "FREE" not in os.environ:
        spread_workers()
    if "SHORT" in os.environ:
        ask_for_short_turns()
    batch, size, count = JOBS[name]
    model = create_model(name, num_classes=10, image_size=size).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    taken = []
    for _ in range(count + 3):
        begun = perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(1000 * (perf_counter() - begun))
    return median(taken[3:])


def measured(name: str, setting: str, neighbours: int) -> float:
    with ExitStack() as stack:
        for _ in range(neighbours):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.kill)
        words = [sys.executable, __file__, "--one", name]
        done = subprocess.run(
            words, env={**os.environ, **SETTINGS[setting]}, capture_output=True, text=True, check=True
        )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(steps(args.one))
        return
    tree, rows = commit(), []
    for name in args.jobs:
        found: dict[tuple[str, int], list[float]] = {}
        for _ in range(args.rounds):
            for setting in args.settings:
                for neighbours in (0, 1, 2):
                    found.setdefault((setting, neighbours), []).append(measured(name, setting, neighbours))
        for (setting, neighbours), ms in found.items():
            row = {"network": name, "setting": setting, "neighbours": neighbours, "rounds": args.rounds}
            about = {"date": date.today().isoformat(), "device": device_name(torch.device("cpu")), "excite": tree}
            alone = median(found[(args.settings[0], 0)])
            times = {"ms": f"{median(ms):.1f}", "lowest": f"{min(ms):.1f}", "highest": f"{max(ms):.1f}"}
            rows.append({**about, **row, **times, "over_alone": f"{median(ms) / alone:.2f}"})
            print(f"{name:18} {setting:13} {neighbours} busy: {median(ms):7.1f} ms ({min(ms):.1f} to {max(ms):.1f})")
    append_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
