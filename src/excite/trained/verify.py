"""Verifies a run: its files are what was written, and training a stretch of it again gives the same bits."""

import math
import shlex
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from excite import storage
from excite.choices import parse_duration
from excite.console import format_seconds
from excite.errors import ExciteError
from excite.files import told, write_text
from excite.owners import scratch_folder
from excite.recipe import Recipe
from excite.runtime.environment import read_environment
from excite.training import checkpoint as ckpt
from excite.training.loop import train
from excite.training.results import read_results
from excite.training.run_folder import read_metrics, usual_ms
from excite.training.stop import Interrupted
from excite.weights.locate import WEIGHTS, checkpoint_steps, step_folder
from excite.weights.own import read_own

#: How long the steps may have taken that are trained again without being asked for by a time.
LONGEST = "10m"


@dataclass(frozen=True)
class Stretch:
    """A stretch of a run that was trained again.

    Attributes:
        first, last: its steps; ``first`` is 0 for the start of the run.
        differing: names of the tensors that are not equal, bit for bit.
        largest: the largest difference, relative to the largest value of its tensor.
        seconds: how long it took.
    """

    first: int
    last: int
    differing: list[str]
    largest: float
    seconds: float


@dataclass
class Verified:
    """What was verified.

    Attributes:
        run: the run folder.
        checkpoints: step -> what is wrong with its checkpoint; "" for a good one.
        wrong: sentences about everything that is wrong besides.
        notes: sentences about what could not be verified, and about another machine.
        stretch: what was trained again; None if nothing was.
    """

    run: Path
    checkpoints: dict[int, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stretch: Stretch | None = None

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong and not any(self.checkpoints.values()) and not (self.stretch and self.stretch.differing)


def verify(
    run: str | Path,
    *,
    files_only: bool = False,
    time: str | float | None = LONGEST,
    say: Callable[[str], object] = lambda line: None,
) -> Verified:
    """Verify the files of a run, and that training a stretch of it again gives the same weights, bit for bit.

    The stretch is the shortest between two of its checkpoints; with one checkpoint, from the start of the run to it:
    only where a checkpoint is kept are there bits to compare. It is trained in a temporary folder: nothing in the run
    folder changes. How many steps that are, and how long they took when the run was trained, is said first. If they
    took longer than ``time``, they are not trained again, and a note says so.

    Args:
        run: a run folder, or its address.
        files_only: compare the files only; train nothing again.
        time: the longest that the steps may have taken: "20m", "1h30m" or seconds; None: however long.
        say: called with a line before the training.

    Raises:
        ExciteError: it is not a run folder, or its images cannot be opened.
    """
    limit = math.inf if time is None else parse_duration(time, "--time")
    folder = storage.local_run(run)
    storage.check_run_folder(folder)
    found = Verified(folder)
    good, identity = dict[int, ckpt.Saved](), ckpt.identity(folder)
    for step in checkpoint_steps(folder):
        found.checkpoints[step] = ""
        try:
            good[step] = ckpt.read_step(step_folder(folder, step), identity)
        except ckpt.Damaged as error:
            found.checkpoints[step] = str(error)
    _check_shipped(found, good)
    if files_only:
        return found
    if not good:
        found.notes.append("there is no good checkpoint, so nothing was trained again")
    else:
        found.stretch = _train_again(found, good, limit, say)
    return found


def _check_shipped(found: Verified, good: Mapping[int, ckpt.Saved]) -> None:
    """The shipped weights: their digest, the checkpoint that they are from, and the numbers in ``results.json``."""
    path = found.run / WEIGHTS
    if not path.is_file():
        found.notes.append(f"there is no {WEIGHTS} yet: no epoch has been evaluated")
        return
    try:
        shipped = read_own(path)
    except ExciteError as error:
        found.wrong.append(str(error))
        return
    if shipped.digest is None:
        found.notes.append(f"{WEIGHTS} has no digest: an older version of excite wrote it")
    step = shipped.meta["step"]
    if step in good and (source := good[step].ema or good[step].weights):
        if _differing(shipped.tensors, source.tensors):
            found.wrong.append(f"{path} says that it is of step {step}, but differs from {source.path}")
    else:
        why = "is not good" if step in found.checkpoints else "is not kept"
        found.notes.append(f"{WEIGHTS} is of step {step}, whose checkpoint {why}: only its digest was compared")
    _check_results(found, shipped.meta["metrics"])


def _check_results(found: Verified, metrics: Mapping[str, Any] | None) -> None:
    path = found.run / "results.json"
    if not path.is_file() or metrics is None:
        return
    try:
        results = read_results(path)
    except ExciteError as error:
        found.wrong.append(str(error))
        return
    for key in ("top1", "top5", "loss", "map", "threshold"):
        if key in results and results[key] != metrics.get(key):
            said = f"{results[key]}, but the header of {WEIGHTS} has {metrics.get(key)}"
            found.wrong.append(f"{path}: {key} is {said}")


def _train_again(
    found: Verified, good: Mapping[int, ckpt.Saved], limit: float, say: Callable[[str], object]
) -> Stretch | None:
    pairs = [(first, last) for first, last in zip([0, *good], good, strict=False) if _same_recipe(good, first, last)]
    known = [pair for pair in pairs if pair[0]] or pairs
    if not known:
        found.notes.append("the recipe has changed between all its checkpoints, so nothing was trained again")
        return None
    first, last = min(known, key=lambda pair: pair[1] - pair[0])
    took = _seconds_then(found.run, good, first, last)
    steps = f"steps {first + 1} to {last} ({last - first:,}), which took about {format_seconds(took)} then"
    if took > limit:
        line = f"excite verify {shlex.quote(str(found.run))} --time {math.ceil(took / 60)}m"
        found.notes.append(f"not trained again: {steps}, longer than {format_seconds(limit)}; to do it: {line}")
        return None
    say(f"training again {steps}, besides loading the images and evaluations")
    since = monotonic()
    with scratch_folder("verify") as scratch:
        copy = _begin(found.run, scratch / "run", good, first, last)
        remade = _to_step(copy, good[last], last)
    seconds = monotonic() - since
    stored, now = _tensors(good[last]), _tensors(remade)
    differing = _differing(stored, now)
    _note_machine(found)
    return Stretch(first, last, differing, _largest(stored, now, differing), seconds)


def _seconds_then(run: Path, good: Mapping[int, ckpt.Saved], first: int, last: int) -> float:
    """How long these steps took: by the clock of the checkpoints, which stands still between two lines of metrics, or
    by the usual time of a step, whichever is longer."""
    clock = good[last].seconds - (good[first].seconds if first else 0.0)
    ms = usual_ms(read_metrics(run / "metrics.jsonl"))
    return max(clock, 0.0 if ms is None else ms * (last - first) / 1000)


def _same_recipe(good: Mapping[int, ckpt.Saved], first: int, last: int) -> bool:
    return not first or good[first].weights.meta["recipe"] == good[last].weights.meta["recipe"]


def _begin(run: Path, copy: Path, good: Mapping[int, ckpt.Saved], first: int, last: int) -> Path:
    """A run folder that holds no more than its training from ``first`` on needs."""
    with told(copy, "TMPDIR"):
        copy.mkdir()
        write_text(copy / "recipe.yaml", Recipe.from_dict({**good[last].weights.meta["recipe"]}).to_yaml())
        for name in ("run.json", "metrics.jsonl", WEIGHTS):
            if first and (run / name).is_file():
                shutil.copyfile(run / name, copy / name)
        if first:
            shutil.copytree(good[first].folder, step_folder(copy, first))
    return copy


def _to_step(copy: Path, stored: ckpt.Saved, last: int) -> ckpt.Saved:
    recipe = Recipe.from_dict({**stored.weights.meta["recipe"]})
    resuming = (copy / "checkpoints").is_dir()
    with suppress(Interrupted):
        train(recipe, resume=copy if resuming else None, run_dir=None if resuming else copy, quiet=True, until=last)
    return ckpt.read_step(step_folder(copy, last))


def _tensors(saved: ckpt.Saved) -> dict[str, Tensor]:
    """Everything of a checkpoint that training changes."""
    found = {f"model {name}": tensor for name, tensor in saved.weights.tensors.items()}
    if saved.ema is not None:
        found |= {f"ema {name}": tensor for name, tensor in saved.ema.tensors.items()}
    names = saved.state.get("parameters", [])
    for index, kept in saved.state["optimizer"]["state"].items():
        where = names[index] if index < len(names) else index
        found |= {f"optimiser {key} {where}": value for key, value in kept.items() if isinstance(value, Tensor)}
    return found


def _differing(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[str]:
    names = [*before, *(name for name in now if name not in before)]
    return [name for name in names if name not in before or name not in now or not torch.equal(before[name], now[name])]


def _largest(before: Mapping[str, Tensor], now: Mapping[str, Tensor], names: list[str]) -> float:
    sizes = [0.0]
    for name in names:
        if name in before and name in now and before[name].shape == now[name].shape:
            scale = before[name].double().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            sizes.append(float((before[name].double() - now[name].double()).abs().max() / scale))
    return max(sizes)


def _note_machine(found: Verified) -> None:
    """Say what differs from where the run was trained: sums are rounded differently with other threads or kernels."""
    path = found.run / "environment.json"
    if not path.is_file():
        return
    then = read_environment(path)
    now = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for key, before in (("torch", then.get("versions", {}).get("torch")), ("threads", then.get("threads"))):
        if before is not None and before != now[key]:
            found.notes.append(f"the run was trained with {key} {before}, this process has {now[key]}")
