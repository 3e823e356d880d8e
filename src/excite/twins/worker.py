"""Tasks that an experiment runs in separate processes: ``python -m excite.twins.worker check|train|latency``.

Separate processes give every training its own peak memory and fresh thread pools.
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
    """Latencies of one image, with the networks timed in turns.

    Attributes:
        rounds: turns of each network.
        passes: timed passes per turn.
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
    """Run ``excite train WORDS``, and send it SIGTERM (save and stop) when the experiment's process ends.

    The experiment holds the other end of standard input, which closes whenever that process ends.
    """

    def wait_for_the_end() -> None:
        os.read(0, 1)  # not sys.stdin: a thread that holds its lock crashes the interpreter at exit
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    sys.argv = ["excite", "train", *words]
    runpy.run_module("excite", run_name="__main__")  # python -m excite train WORDS, in this process


def check() -> None:
    """Read {gate: recipe} from standard input; find the device, open the data and set up every run without training."""
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
    """Read {"runs": {gate: run folder}, "device", "precision"} from standard input; print a :class:`Latency`."""
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
        predictors: gate -> network.
        seconds: approximate time per network; there are at least 5 rounds.
        passes: timed passes per turn, after an untimed one, because the other networks have emptied the caches.
    """
    import torch

    from excite.models.folding import form_of
    from excite.runtime.timing import in_turns, quartiles

    def step(predictor: "Predictor") -> "Step":
        pre = predictor.preprocessing
        image = torch.randint(0, 256, (1, *pre.shape), dtype=torch.uint8)
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
    """Entry point; an error is one sentence on standard error, as in the command."""
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
