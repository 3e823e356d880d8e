"""How long training waits for its checkpoints: written while it goes on, and, beside it in one run, written at once.

    python benchmarks/checkpoint_time.py [--model seresnet50] [--rounds 5] [--steps 12] [--every 4]

Each round trains the same few steps with both, in turns, in this process. "blocked" is the time that the training loop
spends in a save: copying, and waiting for writes. Adds rows to benchmarks/results/checkpoint_time.csv.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from record import append_rows

from excite.recipe import Recipe, apply_overrides
from excite.runtime.environment import versions
from excite.training import loop
from excite.training.saver import Saver

RESULTS = Path(__file__).parent / "results" / "checkpoint_time.csv"
HEADS = ["model", "written", "blocked_ms", "blocked_low", "blocked_high", "seconds", "mb", "cpu", "torch", "date"]


def recipe(model: str, steps: int, every: int) -> Recipe:
    """A short training on random digits, large enough that its weights and optimiser state are a real checkpoint."""
    words = [
        f"model.name={model}",
        "data.source=digits",
        "data.image_size=32",
        "data.in_chans=3",
        f"data.limit_train={8 * steps}",
        "data.limit_val=8",
        "train.batch_size=8",
        "train.epochs=1",
        "train.ema_decay=0.9",
        "train.precision=fp32",
        "schedule.warmup_epochs=0",
        f"checkpoint.every_steps={every}",
        "checkpoint.every_minutes=null",
    ]
    return Recipe.from_dict(apply_overrides({"name": "checkpoint-time"}, words))


def measure(made: Recipe, background: bool) -> tuple[float, float, int, float]:
    """Train once: milliseconds blocked for each save, seconds in all, number of saves, megabytes of a checkpoint."""
    savers: list[Saver] = []
    real = Saver.__init__

    def noted(self: Saver, *_: object) -> None:
        real(self, background)
        savers.append(self)

    Saver.__init__ = noted  # type: ignore[method-assign, assignment]
    saves = 0
    save = loop.save

    def counted(run: object, clock: object) -> None:
        nonlocal saves
        saves += 1
        save(run, clock)  # type: ignore[arg-type]

    loop.save = counted  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory(dir=os.environ.get("EXCITE_BENCH_DISK")) as folder:
            since = time.perf_counter()
            run = Path(loop.train(made, out=folder, quiet=True)["run"])
            seconds = time.perf_counter() - since
            newest = max((run / "checkpoints").iterdir())
            size = sum(file.stat().st_size for file in newest.iterdir()) / 1e6
    finally:
        Saver.__init__, loop.save = real, save  # type: ignore[method-assign]
    return 1000 * savers[-1].blocked / (saves + 1), seconds, saves + 1, size  # and the best weights


def main() -> None:
    """Entry point."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--model", default="seresnet50")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--steps", type=int, default=12)
    words.add_argument("--every", type=int, default=4)
    asked = words.parse_args()
    made = recipe(asked.model, asked.steps, asked.every)
    measure(made, True)  # warms up
    found: dict[bool, list[tuple[float, float, int, float]]] = {True: [], False: []}
    for _ in range(asked.rounds):
        for background in found:
            found[background].append(measure(made, background))
    lines = []
    for background, rows in found.items():
        blocked = sorted(row[0] for row in rows)
        middle, seconds = statistics.median(blocked), statistics.median(row[1] for row in rows)
        low, high = blocked[0], blocked[-1]
        written = "while training goes on" if background else "at once"
        print(f"{written:<24} blocked {middle:7.1f} ms a save ({low:.1f} to {high:.1f}), {seconds:.1f} s in all")
        cpu = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        numbers = [f"{value:.1f}" for value in (middle, low, high, seconds, rows[0][3])]
        values = [asked.model, written, *numbers, cpu, versions()["torch"], date.today().isoformat()]
        lines.append(dict(zip(HEADS, values, strict=True)))
    append_rows(RESULTS, lines)
    before, after = (statistics.median(row[0] for row in found[key]) for key in (False, True))
    print(f"{100 * (1 - after / before):.0f} % less time blocked; a checkpoint has {found[True][0][3]:.0f} MB")


if __name__ == "__main__":
    main()
