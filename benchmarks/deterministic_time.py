"""What it costs on a CPU that weights do not depend on the layout: steps with train.deterministic, in so many shards,
and without it, in turns in one process.

    python benchmarks/deterministic_time.py [--recipe cifar10-seresnet20] [--batch 128] [--shards 1 2 4 8] [--rounds 7]

Adds rows to benchmarks/results/deterministic_time.csv: milliseconds of a step (median of the rounds, lowest, highest),
and the ratio to the step without it.
"""

import argparse
import os
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch
from record import append_rows

from excite.console import Display
from excite.recipe import load_recipe
from excite.runtime.device import make_accelerator
from excite.runtime.environment import versions
from excite.training.setup import Run, set_up
from excite.training.step import train_step
from excite.training.steptime import random_data

RESULTS = Path(__file__).parent / "results" / "deterministic_time.csv"
HEADS = ["recipe", "network", "batch", "shards", "ms", "low", "high", "ratio", "threads", "cpu", "torch", "date"]


def make(name: str, batch: int, shards: int | None, words: list[str]) -> Run:
    """A run of a recipe on random images; ``shards`` None: not deterministic."""
    own = [f"train.batch_size={batch}", "train.device=cpu", *words]
    own += [] if shards is None else ["train.deterministic=true", f"train.shards={shards}"]
    recipe = load_recipe(name, own)
    run = set_up(recipe, Display(quiet=True), make_accelerator("cpu"), data=random_data(recipe, 10))
    run.net.train()
    return run


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar10-seresnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--changes", nargs="*", default=[], help="changes to the recipe, such as data.image_size=64")
    given = parser.parse_args()
    runs = {shards: make(given.recipe, given.batch, shards, given.changes) for shards in (None, *given.shards)}
    batches = {shards: next(run.train_loader.epoch(0)) for shards, run in runs.items()}
    taken: dict[int | None, list[float]] = {shards: [] for shards in runs}
    for turn in range(given.rounds + 1):  # the first one warms up
        for shards, run in runs.items():
            since = time.perf_counter()
            for _ in range(given.steps):
                train_step(run, *batches[shards])
            if turn:
                taken[shards].append(1000 * (time.perf_counter() - since) / given.steps)
    plain = statistics.median(taken[None])
    network, rows = runs[None].model.model_name, []
    for shards, ms in taken.items():
        middle, name = statistics.median(ms), "off" if shards is None else shards
        numbers = [f"{x:.1f}" for x in (middle, min(ms), max(ms))] + [f"{middle / plain:.2f}"]
        cpu = f"{platform.machine()}, {os.cpu_count()} cores"
        made_on = [torch.get_num_threads(), cpu, versions()["torch"], date.today().isoformat()]
        rows.append(dict(zip(HEADS, [given.recipe, network, given.batch, name, *numbers, *made_on], strict=True)))
        print(f"{network}  shards {name:>3}: {' '.join(numbers)}", flush=True)
    append_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
