"""Times the real training step, and the gradient all-reduce alone, without data and with any number of processes."""

import statistics
from functools import partial
from typing import TypedDict

import torch
from torch import distributed

from excite.console import Display
from excite.data import ArrayImages, DataSets, Preprocessing
from excite.data.count import count_data
from excite.recipe import Recipe
from excite.runtime import timing
from excite.runtime.device import device_name, make_accelerator
from excite.training.setup import Run, gradient_exchange, set_up
from excite.training.step import train_step

#: Sizes in bytes of the two messages whose times give latency and bandwidth.
SMALL, LARGE = 4 << 10, 16 << 20


class AllReduce(TypedDict, total=False):
    """An all-reduce over all processes: latency in microseconds, bandwidth in GB/s (message size / time)."""

    latency_us: float
    gb_per_second: float


class StepTimes(AllReduce, total=False):
    """Result of :func:`time_steps`: seconds of each step on the slowest process, and the all-reduce if any."""

    devices: int
    batch_size: int
    device: str
    precision: str
    seconds: list[float]


def time_steps(recipe: Recipe, *, steps: int, warm_up: int = 3, classes: int | None = None) -> StepTimes:
    """Time ``steps`` training steps on random images, using ``train_step`` itself: batch augmentation, forward and
    backward pass, gradient all-reduce and optimiser. Reading files is not included (``excite bench --data`` times it).

    Args:
        recipe: its ``train.batch_size`` counts the images of all processes together.
        steps: number of steps to time.
        warm_up: steps before those, in which gradient buckets are arranged and kernels chosen.
        classes: number of classes of the network; None: as in the recipe's data.

    Returns:
        The times on the first process, an empty dict on the others.

    Raises:
        ExciteError: the recipe cannot be carried out on this machine.
    """
    accelerator = make_accelerator(recipe.train.device, gradient_exchange(recipe))
    run = set_up(recipe, Display(quiet=True), accelerator, data=random_data(recipe, classes))
    run.net.train()
    images, labels = next(run.train_loader.epoch(0))
    seconds: list[float] = []
    for _ in range(warm_up + steps):
        accelerator.wait_for_everyone()
        seconds += timing.time_steps(partial(train_step, run, images, labels), run.device, 1)
        run.step = min(run.step + 1, run.total_steps - 1)  # the schedule ends where the recipe does
    slowest = accelerator.gather(torch.tensor([seconds], device=run.device)).amax(0).tolist()
    result: StepTimes = {
        "devices": accelerator.num_processes,
        "batch_size": recipe.train.batch_size,
        "device": device_name(run.device),
        "precision": run.precision,
        "seconds": slowest[warm_up:],
        **(_time_all_reduce(run) if accelerator.num_processes > 1 else AllReduce()),
    }
    return result if accelerator.is_main_process else {}


def random_data(recipe: Recipe, classes: int | None) -> DataSets:
    """One batch of random images, of the recipe's size."""
    data, count = recipe.data, recipe.train.batch_size
    classes = count_data(data, recipe.augment).classes if classes is None else classes
    generator = torch.Generator().manual_seed(0)
    shape = (count, data.in_chans, *data.training_size)
    images = ArrayImages(
        torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        torch.randint(0, classes, (count,), generator=generator),
    )
    half = (0.5,) * data.in_chans
    preprocessing = Preprocessing(data.training_size, data.crop_pct, data.interpolation, half, half, data.in_chans)
    return DataSets([str(k) for k in range(classes)], images, images, preprocessing, fingerprint="random")


def _time_all_reduce(run: Run, repeats: int = 9) -> AllReduce:
    """Latency (microseconds) and bandwidth (GB/s, message size / time) of an all-reduce over all processes."""
    taken = {}
    for size in (SMALL, LARGE):
        message, seconds = torch.zeros(size // 4, device=run.device), []
        for _ in range(repeats):
            run.accelerator.wait_for_everyone()
            seconds += timing.time_steps(partial(distributed.all_reduce, message), run.device, 1)
        taken[size] = statistics.median(seconds)
    rate = (LARGE - SMALL) / max(taken[LARGE] - taken[SMALL], 1e-9)
    return {"latency_us": 1e6 * taken[SMALL], "gb_per_second": rate / 1e9}
