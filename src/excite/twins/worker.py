"""What an experiment does in processes of its own: ``python -m excite.twins.worker check|train|latency``.

A process each, so that every training has its own peak of memory and starts with fresh thread pools.
"""

import json
import os
import runpy
import signal
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, NotRequired, TypedDict

from excite.errors import ExciteError
from excite.files import to_json
from excite.leaving import leave_quickly
from excite.text import tell

if TYPE_CHECKING:
    from excite.runtime.timing import Step
    from excite.trained.predictor import Predictor


class Times(TypedDict):
    """Of one image through every network, in turns.

    Attributes:
        rounds, passes: turns of each network, and timed passes a turn.
        form: whether batch norms were folded, and the precision; files of older versions lack it.
        ms: gate -> [lower quartile, median, upper quartile], milliseconds.
    """

    rounds: int
    passes: int
    form: NotRequired[str]
    ms: dict[str, list[float]]


class Latency(Times):
    """``latency.json``"""

    device: str
    precision: str


def train(words: list[str]) -> None:
    """``excite train WORDS``, but SIGTERM, that is save and stop, once the experiment that started it is gone.

    The experiment holds the other end of standard input: it closes when that process ends, however it ends.
    """

    def wait_for_the_end() -> None:
        os.read(0, 1)  # not sys.stdin: a thread that holds its lock crashes the interpreter at exit
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    sys.argv = ["excite", "train", *words]
    runpy.run_module("excite", run_name="__main__")  # python -m excite train WORDS, in this process


def check() -> None:
    """Standard input: {gate: recipe}. Finds the device, opens the data and sets every run up, short of training."""
    from excite.console import Display
    from excite.data import open_data
    from excite.recipe import Recipe
    from excite.runtime.device import make_accelerator
    from excite.training.setup import set_up

    recipes = {gate: Recipe.from_dict(values) for gate, values in json.load(sys.stdin).items()}
    first = next(iter(recipes.values()))
    accelerator = make_accelerator(first.train.device)
    data = open_data(first.data, first.augment)
    for gate, recipe in recipes.items():
        try:
            set_up(recipe, Display(quiet=True), accelerator, data=data)
        except ExciteError as error:
            raise ExciteError(f"the gate {gate!r} does not fit this recipe: {error}") from None


def latency() -> None:
    """Standard input: {"runs": {gate: run folder}, "device", "precision"}. Prints a :class:`Latency`."""
    from excite.runtime.device import device_name
    from excite.trained.predictor import load

    task = json.load(sys.stdin)
    predictors = {gate: load(run, task["device"], task["precision"]) for gate, run in task["runs"].items()}
    some = next(iter(predictors.values()))
    found = measure_latency(predictors)
    latency: Latency = {**found, "device": device_name(some.device), "precision": some.precision}
    print(to_json(latency))


def measure_latency(predictors: "dict[str, Predictor]", seconds: float = 1.0, passes: int = 5) -> Times:
    """Time one image through every network, in turns.

    Args:
        predictors: by gate.
        seconds: about how long to measure each network for; at least 5 rounds are made.
        passes: timed passes a turn. An untimed one comes first, since the others' turns emptied the caches.
    """
    import torch

    from excite.models.folding import form_of
    from excite.runtime.timing import in_turns, quartiles

    def step(predictor: "Predictor") -> "Step":
        pre = predictor.preprocessing
        image = torch.randint(0, 256, (1, pre.in_chans, pre.image_size, pre.image_size), dtype=torch.uint8)
        return partial(predictor.logits, image.to(predictor.device))

    some = next(iter(predictors.values()))
    steps = {gate: step(predictor) for gate, predictor in predictors.items()}
    longest = seconds * len(predictors)
    timed = in_turns(steps, some.device, seconds=longest, rounds=(5, 1000), passes=passes, cold=1)
    return {
        "rounds": len(next(iter(timed.values())).rounds),
        "passes": passes,
        "form": form_of(some.model, some.precision),
        "ms": {gate: list(quartiles(taken.ms)) for gate, taken in timed.items()},
    }


def main() -> None:
    """Entry point; a mistake is one sentence on standard error, as from the command."""
    leave_quickly()
    task, *words = sys.argv[1:]
    if task == "train":
        train(words)
        return
    try:
        {"check": check, "latency": latency}[task]()
    except ExciteError as error:
        tell(f"error: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
