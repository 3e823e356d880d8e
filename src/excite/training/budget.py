"""The expected duration of a training, reported after a few steps, and the number of epochs that fit into a time."""

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from excite.console import format_seconds
from excite.errors import ExciteError
from excite.recipe import Recipe, load_recipe
from excite.runtime.device import synchronize
from excite.training.evaluation import logits_of
from excite.training.setup import Run

#: Steps that are timed, after the first, which is not.
MEASURED = 4
#: Share of the time to plan with: later steps were up to 10 % slower than the first few.
RESERVED = 0.9
#: No message if less than this is left, in seconds.
WORTH_TELLING = 5.0
#: Largest share of the warm-up in a training with a time limit.
WARM_UP = 0.25


class Forecast:
    """Reports once, after a few steps, how long an epoch and the rest of the training will take."""

    def __init__(self) -> None:
        self._steps, self._since, self._told = 0, 0.0, False

    def after_step(self, run: Run) -> None:
        """Call after each optimiser step; synchronises with the device at the first and the last timed step."""
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
        f"cost: about {format_seconds(epoch)} per epoch, {format_seconds(left)} for the rest of the training (without "
        "evaluation)"
    )


def fit_epochs(run: Run, seconds: float, step: Callable[[Run, Tensor, Tensor], Any]) -> None:
    """Set the run's epochs to as many as fit into ``seconds`` from now, at least one; all processes call it.

    Times a few steps and one evaluation batch on the run itself, then restores its state.

    Args:
        run: a run before its first step.
        seconds: for the probe, all epochs and all evaluations.
        step: the training step.
    """
    if run.recipe.train.progressive is not None:
        raise ExciteError(
            "a time limit (--time) chooses the number of epochs, which train.progressive counts on: give train.epochs "
            "instead, or train.progressive=null"
        )
    begun = time.perf_counter()
    per_step = _time_steps(run, step)
    per_image = _time_evaluation(run)
    config, processes = run.recipe.train, run.accelerator.num_processes
    evaluation = per_image * len(run.data.val) / processes
    epoch = per_step * run.steps_per_epoch + evaluation / run.recipe.eval.every_epochs
    before = per_image * len(run.data.train) / processes if config.probe else 0.0
    before += evaluation if config.probe or run.keeps_head else 0.0
    left = RESERVED * seconds - (time.perf_counter() - begun) - before
    agreed: list[Any] = [max(1, int(left / epoch)), left < epoch]
    if processes > 1:
        broadcast_object_list(agreed)
    epochs, short = agreed
    several = f"{epochs} epochs of about {format_seconds(epoch)} each fit" if epochs > 1 else "one epoch fits"
    note = f"time: {several} into the remaining time"
    if short:
        takes = f"one epoch takes about {format_seconds(epoch)}, more than the remaining time"
        note = f"time: {takes}; training one epoch anyway"
    run.recipe = _with_epochs(run.recipe, epochs)
    run.notes.append(note)


def keep_epochs(run: Run) -> None:
    """Keep the number of epochs that was chosen when the run began, if it is resumed or its job restarted. All
    processes call it."""
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
    """Median seconds per step with its data; afterwards, weights, averages and optimiser are restored."""
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
    if run.lookahead is not None:
        run.lookahead.restart(run.model)
    run.optimizer.state.clear()
    if scaler is not None:
        run.scaler.load_state_dict(scaler)
    return median(seconds[1:])


@torch.no_grad()
def _time_evaluation(run: Run) -> float:
    """Seconds per image in an evaluation, from one batch, including data loading."""
    run.evaluated.eval()
    since = time.perf_counter()
    for images, _, _ in run.eval_loader:
        logits_of(run.evaluated, images, run.preprocessing, run.device, run.precision, run.recipe.train.channels_last)
        synchronize(run.device)
        return (time.perf_counter() - since) / len(images)
    return 0.0
