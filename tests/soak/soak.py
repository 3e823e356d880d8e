"""One soak: a job is run and watched, and every measure judged."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.soak.flat import FEWEST, Verdict, judge
from tests.soak.jobs import make_images, recipe_for, run_of
from tests.soak.watch import MEASURES, Sample, run_watched

KINDS = ("train", "evaluate", "predict")


@dataclass
class Soaked:
    """What a soak found.

    Attributes:
        kind: the job.
        done: steps, evaluations or predictions after it was warm (steps: in all).
        said: the last line of the job.
        samples: those after it was warm.
        verdicts: one for each measure.
        wrong: sentences about everything that is wrong; [] if all is well.
    """

    kind: str
    done: int
    said: str
    samples: Sequence[Sample]
    verdicts: list[Verdict]
    wrong: list[str]


def prepare(folder: Path, kind: str) -> None:
    """The images, and the run that is evaluated or used for predictions."""
    if kind == "nothing":
        return
    make_images(folder / "images")
    if kind != "train":
        from excite.training import train

        train(recipe_for(folder / "images", 1), run_dir=run_of(folder), quiet=True)


def soak(
    kind: str, folder: Path, amount: float, every: float, leak: str | None = None, lenience: float = 1.0
) -> Soaked:
    """Run a job and judge what it holds.

    Args:
        kind: one of ``KINDS``, or "nothing".
        folder: an empty one.
        amount: minutes of training, or a number of evaluations or predictions.
        every: seconds between two samples.
        leak: one of ``jobs.LEAKS``, to be planted.
        lenience: see :func:`~tests.soak.flat.judge`.
    """
    prepare(folder, kind)
    words = [sys.executable, "-m", "tests.soak.jobs", kind, str(folder), f"{amount:g}", *([leak] if leak else [])]
    found = run_watched(words, folder / "scratch", run_of(folder), every)
    verdicts, wrong = [], []
    if found.status != 0 or found.done <= 0:
        wrong.append(f"it ended with status {found.status}: {found.said}")
    elif len(found.samples) < FEWEST:
        wrong.append(f"{len(found.samples)} samples say nothing: it was too short, or they were too far apart")
    else:
        verdicts = [judge(found.samples, measure, lenience) for measure in MEASURES]
        wrong += [f"{v.measure} grows from {v.start:g} to {v.end:g}" for v in verdicts if not v.flat]
        wrong += [f"left behind: {path}" for path in found.left]
    return Soaked(kind, found.done, found.said, found.samples, verdicts, wrong)
