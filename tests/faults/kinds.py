"""The kinds of faults. Each is planted into a job, which is then started again until it ends, and its result compared.

A job is a function of a module; started again with the same arguments it goes on, as a scheduler would have it.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from excite.recipe import Recipe
from tests.faults.harness import HUNG_STATUS, Fault, Outcome, result_of, run_job, was_killed
from tests.training.small import small

#: Most restarts: one more than a fault can need.
RESTARTS = 3


@dataclass
class Row:
    """A line of the table: how often a fault was planted and what became of it.

    Attributes:
        planted: how often; ``reached``: how often it struck before the job had ended.
        lost: jobs that could not be brought to their end; ``hung``; ``tracebacks``; ``wrong``: another result.
        examples: what was said in the cases that went wrong.
    """

    fault: str
    planted: int = 0
    reached: int = 0
    lost: int = 0
    hung: int = 0
    tracebacks: int = 0
    wrong: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        return self.reached > 0 and not (self.lost or self.hung or self.tracebacks or self.wrong)


def train_job(recipe: str, run: str) -> None:
    """Train in ``run``, or go on in it."""
    from excite.training import train

    train(Recipe.from_yaml(recipe), run_dir=run, quiet=True)


def in_memory() -> str:
    """A recipe whose checkpoints and evaluations come often."""
    return small("epochs=2", "checkpoint.every_steps=2", "limit_train=128").to_yaml()


def from_files(images: Path) -> str:
    """The same, with images that a worker decodes."""
    words = ("data.source=folder", f"data.root={images}", "data.mode=stream", "data.workers=1", "in_chans=3")
    more = ("data.image_size=8", "limit_train=null", "limit_val=null", "epochs=2", "checkpoint.every_steps=2")
    return small(*words, *more, "train.batch_size=16").to_yaml()


def make_images(folder: Path) -> Path:
    """96 training and 32 validation images of two classes."""
    from PIL import Image

    draw = random.Random(5)
    for part, count in (("train", 48), ("val", 16)):
        for name in ("dark", "light"):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                level = draw.randrange(100) + (0 if name == "dark" else 120)
                image = Image.new("RGB", (16, 16), (level, draw.randrange(256), level))
                image.save(place / f"{number:03}.png")
    return folder


def plant(row: Row, make: Callable[[Path], tuple[str, Path]], faults: Iterator[Fault], folder: Path, world: int) -> Row:
    """Plant faults into trainings.

    Args:
        row: where to count.
        make: folder -> the recipe (YAML) and the run folder.
        faults: what to plant.
        folder: for the runs; each is deleted once it has been compared.
        world: number of ranks.
    """
    recipe, run = make(folder / "undisturbed")
    calm = run_job(train_job, [recipe, str(run)], run, Fault(), world)
    assert calm.statuses == [0] * world, calm.said
    wanted = result_of(run)
    for number, fault in enumerate(faults):
        recipe, run = make(folder / f"run-{number}")
        row.planted += 1
        first = run_job(train_job, [recipe, str(run)], run, fault, world)
        row.reached += first.statuses != [0] * world
        _count(row, first, fault)
        last = first
        for _ in range(RESTARTS):
            if last.statuses == [0] * world:
                break
            last = run_job(train_job, [recipe, str(run)], run, Fault("step", 0), world)
            _count(row, last, fault)
        if last.statuses != [0] * world:
            row.lost += 1
            row.examples.append(f"{fault}: {last.said}")
        elif (got := result_of(run)) != wanted:
            row.wrong += 1
            row.examples.append(f"{fault}: {[name for name in wanted if got.get(name) != wanted[name]]}")
        shutil.rmtree(run.parent, ignore_errors=True)
    return row


def _count(row: Row, outcome: Outcome, fault: Fault) -> None:
    if outcome.hung:
        row.hung += 1
        row.examples.append(f"{fault}: hung: {outcome.said}")
    if outcome.tracebacks or any(s not in (0, 1, HUNG_STATUS) and not was_killed(s) for s in outcome.statuses):
        row.tracebacks += 1
        row.examples.append(f"{fault}: {outcome.statuses}: {outcome.said}")


def ticks_of(recipe: str, run: Path, kind: str, world: int = 1) -> int:
    """How often a job reaches a trap of this kind."""
    counted = run_job(train_job, [recipe, str(run)], run, Fault(kind), world)
    assert counted.statuses == [0] * world, counted.said
    return counted.ticks


def spread(total: int, times: int, seed: int) -> list[int]:
    """``times`` different numbers from 1 to ``total``, at random; all if there are fewer."""
    return sorted(random.Random(seed).sample(range(1, total + 1), min(times, total)))


# --- the kinds --------------------------------------------------------------------------------------------------------


def killed_at(kind: str, folder: Path, times: int, seed: int = 0) -> Row:
    """One process, killed before its K-th file operation, step, evaluation or save."""

    def make(place: Path) -> tuple[str, Path]:
        place.mkdir(parents=True, exist_ok=True)
        return in_memory(), place / "run"

    total = ticks_of(*make(folder / "counted"), kind)
    faults = (Fault(kind, at) for at in spread(total, times, seed))
    return plant(Row(f"killed before {kind} K of {total}"), make, faults, folder, 1)


def worker_killed(folder: Path, times: int, seed: int = 0) -> Row:
    """A decoding worker is killed before the K-th step: the run saves, ends with a sentence and is started again."""
    images = make_images(folder / "images")

    def make(place: Path) -> tuple[str, Path]:
        place.mkdir(parents=True, exist_ok=True)
        return from_files(images), place / "run"

    total = ticks_of(*make(folder / "counted"), "step")
    faults = (Fault("step", at, "worker") for at in spread(total, times, seed))
    return plant(Row("decoding worker killed"), make, faults, folder, 1)


def rank_killed(folder: Path, times: int, rank: int, action: str = "die", seed: int = 0) -> Row:
    """One of two ranks is killed before its K-th step, and the job started again."""

    def make(place: Path) -> tuple[str, Path]:
        place.mkdir(parents=True, exist_ok=True)
        return in_memory(), place / "run"

    total = ticks_of(*make(folder / "counted"), "step", 2)
    faults = (Fault("step", at, action, rank) for at in spread(total, times, seed))
    return plant(Row(f"rank {rank} of 2 killed"), make, faults, folder, 2)
