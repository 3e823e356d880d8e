"""Measure a recipe's input pipeline alone, its training step alone, and both together."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from statistics import median
from typing import Any, TypedDict, final

import torch
from torch import Tensor

from excite.bench.report import Sheet, Speed, summarise
from excite.console import Display
from excite.data import FileImages
from excite.data.decoder import FileDecoder, Outcome, Request
from excite.data.loader import workers_of
from excite.data.packed import open_bytes
from excite.recipe import Recipe
from excite.runtime.device import device_name, make_accelerator, one_thread, synchronize
from excite.text import counted
from excite.training.compilation import compile_errors
from excite.training.setup import Run, set_up
from excite.training.step import train_step

#: The measured parts, in table order.
PARTS = ("input pipeline alone", "training step alone", "both together")


#: What one core does for one image of a file, and what follows, in table order.
STAGES = (
    "read the file",
    "decode, crop and resize it",
    "put it into the batch",
    "move it to the device",
    "train on it",
)


class PartRow(Speed):
    """One of :data:`PARTS`; img/s is over all devices."""

    part: str


@final
class Pipeline(TypedDict):
    """The parts of a recipe's training.

    Attributes:
        recipe: name of the recipe.
        rows: one row per part.
        waiting: percent of the time of both together in which training waited for data.
        batch: images per step.
        notes: notes on the recipe.
        stages: microseconds an image of each of :data:`STAGES`, on one core where they need one; empty if the images
            are in memory.
        workers: decoding workers of each process; 0: the main process decodes.
    """

    recipe: str
    rows: list[PartRow]
    waiting: float
    device: str
    processes: int
    precision: str
    batch: int
    notes: list[str]
    stages: dict[str, float]
    workers: int


def measure_pipeline(recipe: Recipe, *, rounds: int = 3, seconds: float = 5.0, warm_up: int = 3) -> Pipeline:
    """Time the parts of a recipe's training in turns.

    The pipeline is reading, decoding, cropping and transfer to the device. The step is that of `excite train`,
    including the augmentation of whole batches, on one batch that stays on the device.

    Args:
        recipe: the recipe.
        rounds: timings per part.
        seconds: approximate duration of each timing.
        warm_up: batches or steps before each timing.

    Raises:
        ExciteError: the recipe's data, device or precision are not available.
    """
    accelerator = make_accelerator(recipe.train.device)
    run = set_up(recipe, Display(quiet=True), accelerator)
    run.net.train()
    batches = _endless(run)
    resident = tuple(part.clone() for part in next(batches))
    samples: dict[str, list[float]] = {part: [] for part in PARTS}
    waits = []
    with compile_errors(recipe.train.compile):
        for _ in range(rounds):
            samples[PARTS[0]].append(_timed(run, batches, seconds, warm_up, train=False)[0])
            samples[PARTS[1]].append(_timed(run, itertools.repeat(resident), seconds, warm_up, train=True)[0])
            together, waited = _timed(run, batches, seconds, warm_up, train=True)
            samples[PARTS[2]].append(together)
            waits.append(waited)
    batch = recipe.train.batch_size
    step = 1e6 * median(samples[PARTS[1]]) / batch
    return {
        "recipe": recipe.name,
        "rows": [{"part": part, **summarise(samples[part], batch)} for part in PARTS],
        "waiting": 100 * sum(waits) / len(waits),
        "device": device_name(run.device),
        "processes": accelerator.num_processes,
        "precision": run.precision,
        "batch": batch,
        "notes": list(run.recipe.notes),
        "stages": _stages(run, seconds) | {STAGES[4]: step} if isinstance(run.data.train, FileImages) else {},
        "workers": workers_of(run.recipe.data),
    }


def _stages(run: Run, seconds: float) -> dict[str, float]:
    """Microseconds an image of all stages but the last, each by one thread; every one takes about ``seconds``."""
    files = run.data.train
    assert isinstance(files, FileImages)
    decoder = FileDecoder(files, run.recipe.data, run.recipe.augment, run.recipe.train.seed)
    size = min(len(files), run.recipe.train.batch_size)
    requests = [Request(0, list(range(first, first + size))) for first in range(0, max(1, len(files) - size + 1), size)]

    def read(request: Request) -> None:
        for index in request.indices:
            with suppress(OSError, ValueError), open_bytes(files.source(index)) as file:
                file.read()

    def decode(request: Request) -> list[Outcome]:
        return decoder.fill(request, range(len(request.indices)), decoder.room(request))

    def move(request: Request) -> None:
        pixels.to(run.device, non_blocking=True)
        synchronize(run.device)

    with one_thread():
        pixels = decoder[requests[0]].pixels
        timed = {}
        for name, work in (("read", read), ("decoded", decode), ("batch", decoder.__getitem__), ("move", move)):
            timed[name] = _each(work, requests, seconds) / size
    read_in, decoded, together = timed["read"], max(timed["decoded"], timed["read"]), timed["batch"]
    moved = 0.0 if run.device.type == "cpu" else timed["move"]
    return {
        name: 1e6 * value
        for name, value in zip(STAGES, (read_in, decoded - read_in, max(0.0, together - decoded), moved), strict=False)
    }


def _each(work: Callable[[Request], object], requests: list[Request], seconds: float) -> float:
    """Median seconds of a piece of work; the first call is not counted."""
    work(requests[0])
    found: list[float] = []
    began = time.perf_counter()
    for request in itertools.cycle(requests):
        started = time.perf_counter()
        work(request)
        found.append(time.perf_counter() - started)
        if time.perf_counter() - began > seconds and len(found) >= 3:
            return median(found)
    raise AssertionError


def _endless(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in itertools.count():
        yield from run.train_loader.epoch(epoch)


def _timed(run: Run, batches: Iterator[Any], seconds: float, warm_up: int, *, train: bool) -> tuple[float, float]:
    """(seconds per step over about ``seconds``, share of time spent waiting for the loader), after a warm-up."""
    # First use up the batches that workers decoded in advance while something else was timed.
    queued = 2 * workers_of(run.recipe.data) if isinstance(run.data.train, FileImages) else 0
    warm, _ = _go(run, batches, max(2, warm_up, queued), train)
    # Every process must run the same number of steps, or one would wait forever for gradients.
    slowest = run.accelerator.gather(torch.tensor([warm], device=run.device, dtype=torch.float32)).max()
    return _go(run, batches, min(1000, max(3, round(seconds / float(slowest)))), train)


def _go(run: Run, batches: Iterator[Any], steps: int, train: bool) -> tuple[float, float]:
    synchronize(run.device)
    started, waited = time.perf_counter(), run.train_loader.wait_seconds
    for images, labels in itertools.islice(batches, steps):
        if train:
            train_step(run, images, labels)
            run.step = (run.step + 1) % run.total_steps
    synchronize(run.device)
    spent = time.perf_counter() - started
    return spent / steps, (run.train_loader.wait_seconds - waited) / spent


def pipeline_lines(result: Pipeline) -> list[str]:
    """The notes, each followed by an empty line, and a line on what was measured."""
    what = f"{result['recipe']}, batch {result['batch']}, {result['precision']}, {result['device']}"
    what += f", {result['processes']} processes" if result["processes"] > 1 else ""
    return [line for note in result["notes"] for line in (note, "")] + [what]


def pipeline_sheet(result: Pipeline) -> Sheet:
    """The result of :func:`measure_pipeline` as a table."""
    heads = ["what", "img/s", "quartiles", "ms/step"]
    lines = [
        [
            row["part"],
            f"{row['images_per_second']:,.1f}",
            f"{row['lower_quartile']:,.1f} to {row['upper_quartile']:,.1f}",
            f"{row['ms_per_step']:,.2f}",
        ]
        for row in result["rows"]
    ]
    return Sheet(heads, lines, left=1)


def stage_lines(result: Pipeline) -> list[str]:
    """What an image costs, stage by stage, and how many cores keep this device busy; nothing if images are in
    memory."""
    stages = result["stages"]
    if not stages:
        return []
    lines = ["one image, by one core:"]
    lines += [f"  {name:<27}{stages[name]:8,.0f} us" for name in STAGES]
    prepared = sum(stages[name] for name in STAGES[:3])
    wanted = 1e6 / stages[STAGES[4]]
    workers = counted(result["workers"], "decoding worker") if result["workers"] else "no decoding workers"
    lines.append(
        f"To keep the device busy, {wanted:,.0f} images a second must be ready: {wanted * prepared / 1e6:.1f} cores at "
        f"{1e6 / prepared:,.0f} img/s a core. This recipe has {workers}."
    )
    return lines


def verdict(result: Pipeline) -> str:
    """A sentence on what limits the training speed."""
    pipeline, step, _ = (row["ms_per_step"] for row in result["rows"])
    waiting = f"Training waits for data {result['waiting']:.0f} % of the time"
    if pipeline > step:
        return (
            f"{waiting}: the input pipeline is slower than the step; more workers, or smaller or fewer files, may help."
        )
    return f"{waiting}: the step is the limit; the input pipeline alone is {step / pipeline:.1f} times as fast."
