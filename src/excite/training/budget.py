"""What a training will cost, told after a few steps, and how many epochs fit into a given time."""

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from excite.console import format_seconds
from excite.recipe import Recipe, load_recipe
from excite.runtime.device import synchronize
from excite.training.evaluation import logits_of
from excite.training.setup import Run

#: Steps that are measured, after one (the first) that is not.
MEASURED = 4
#: Share of the time that is planned with: steps were up to a tenth slower later on than the first few.
RESERVED = 0.9
#: A training that takes fewer seconds is over before its cost is read.
WORTH_TELLING = 5.0
#: A warm-up takes no more than this share of a training that was cut to a time.
WARM_UP = 0.25


class Forecast:
    """Says once, after a few steps, how long an epoch and the rest will take."""

    def __init__(self) -> None:
        self._steps, self._since, self._told = 0, 0.0, False

    def after_step(self, run: Run) -> None:
        """Call after each optimiser step; waits for the device at the first and the last that is measured."""
        if self._told or not run.accelerator.is_main_process:
            return
        self._steps += 1
        if self._steps == 1:
            synchronize(run.device)
            self._since = time.perf_counter()
        elif self._steps == 1 + MEASURED:
            synchronize(run.device)
            self._told = True
            seconds = (time.perf_counter() - self._since) / MEASURED
            if run.total_steps - run.step > MEASURED and seconds * (run.total_steps - run.step) >= WORTH_TELLING:
                run.display.message(_cost(run, seconds))


def _cost(run: Run, seconds: float) -> str:
    epoch, left = seconds * run.steps_per_epoch, seconds * (run.total_steps - run.step)
    return (
        f"cost: an epoch takes about {format_seconds(epoch)}, all that is left about {format_seconds(left)} (without "
        "evaluation)"
    )


def fit_epochs(run: Run, seconds: float, step: Callable[[Run, Tensor, Tensor], Any]) -> None:
    """Set the run's epochs to as many as fit into ``seconds`` from now, at least one; all processes call it.

    A few steps and one batch of an evaluation are timed on the run itself, which is then put back as it was.

    Args:
        run: not begun yet.
        seconds: for probe, epochs and evaluations.
        step: the training step.
    """
    begun = time.perf_counter()
    per_step = _time_steps(run, step)
    per_image = _time_evaluation(run)
    config, processes = run.recipe.train, run.accelerator.num_processes
    evaluation = per_image * len(run.data.val) / processes
    epoch = per_step * run.steps_per_epoch + evaluation / run.recipe.eval.every_epochs
    before = per_image * len(run.data.train) / processes + evaluation if config.probe else 0.0
    left = RESERVED * seconds - (time.perf_counter() - begun) - before
    agreed: list[Any] = [max(1, int(left / epoch)), left < epoch]
    if processes > 1:
        broadcast_object_list(agreed)
    epochs, short = agreed
    several = f"{epochs} epochs of about {format_seconds(epoch)} each fit" if epochs > 1 else "one epoch fits"
    note = f"time: {several} into what is left of it"
    if short:
        note = f"time: one epoch takes about {format_seconds(epoch)}, more than is left; one is trained all the same"
    run.recipe = _with_epochs(run.recipe, epochs)
    run.notes.append(note)


def keep_epochs(run: Run) -> None:
    """Of a run that is gone on with, such as a job that was started again: the epochs that fitted when it was begun.
    All processes call it."""
    begun: list[Any] = [None]
    if run.accelerator.is_main_process:
        begun = [load_recipe(str(run.folder)).train.epochs]
    if run.accelerator.num_processes > 1:
        broadcast_object_list(begun)
    run.recipe = _with_epochs(run.recipe, begun[0])


def _with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    values = recipe.model_dump(mode="json")
    values["train"]["epochs"] = epochs
    values["schedule"]["warmup_epochs"] = min(values["schedule"]["warmup_epochs"], WARM_UP * epochs)
    if values["train"]["freeze_epochs"] is not None:
        values["train"]["freeze_epochs"] = min(values["train"]["freeze_epochs"], epochs)
    return Recipe.from_dict(values).with_origin(**recipe.origin())


def _time_steps(run: Run, step: Callable[[Run, Tensor, Tensor], Any]) -> float:
    """Median seconds of a step with its data; weights, averages and optimiser are afterwards as they were."""
    networks = [run.model, *([] if run.ema is None else [run.ema.module])]
    kept = [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in networks]
    scaler = copy.deepcopy(run.scaler.state_dict()) if run.scaler.is_enabled() else None
    seconds: list[float] = []
    run.net.train()
    while len(seconds) < 1 + MEASURED:
        since = time.perf_counter()
        for images, labels in run.train_loader.epoch(0, 0):
            step(run, images, labels)
            synchronize(run.device)
            seconds.append(time.perf_counter() - since)
            if len(seconds) == 1 + MEASURED:
                break
            since = time.perf_counter()
    for network, state in zip(networks, kept, strict=True):
        network.load_state_dict(state)
    run.optimizer.state.clear()
    if scaler is not None:
        run.scaler.load_state_dict(scaler)
    return median(seconds[1:])


@torch.no_grad()
def _time_evaluation(run: Run) -> float:
    """Seconds of one image in an evaluation, by one batch, whose reading is counted in."""
    run.evaluated.eval()
    since = time.perf_counter()
    for images, _, _ in run.eval_loader:
        logits_of(run.evaluated, images, run.preprocessing, run.device, run.precision, run.recipe.train.channels_last)
        synchronize(run.device)
        return (time.perf_counter() - since) / len(images)
    return 0.0
