"""Training, from a recipe to a run folder."""

import json
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.files import write_json, write_text, written_aside
from excite.models import describe
from excite.recipe import Recipe, apply_overrides, load_recipe
from excite.training import checkpoint as ckpt
from excite.training.device import (
    DTYPES,
    device_name,
    make_accelerator,
    peak_memory_gb,
    seed_everything,
    synchronize,
)
from excite.training.display import Display, format_seconds, format_step
from excite.training.evaluation import Evaluation, evaluate
from excite.training.meter import Meter
from excite.training.run_folder import Metrics, draw_curves, environment, new_run_folder, read_metrics
from excite.training.schedule import learning_rate
from excite.training.setup import Run, restore, set_up
from excite.training.stop import Interrupted, StopSignals


class NonFiniteLoss(ExciteError):
    """The loss is no longer a number."""


@dataclass
class Clock:
    """Measures the steps between two reads, leaving out what lies between a read and the next ``start``."""

    ms_per_step: float = 0.0
    saved_at: float = field(default_factory=time.monotonic)
    _since: float = 0.0
    _waited: float = 0.0

    def start(self, waited: float) -> None:
        """Begin a window; ``waited`` is the loader's running total of seconds spent waiting for data."""
        self._since, self._waited = time.perf_counter(), waited

    def read(self, steps: int, waited: float) -> tuple[float, float]:
        """End a window of ``steps`` steps: (seconds, share of them spent waiting for data). The next one begins."""
        seconds = time.perf_counter() - self._since
        share = min(1.0, (waited - self._waited) / seconds)
        self.ms_per_step = 1000 * seconds / steps
        self.start(waited)
        return seconds, share


def train(
    recipe: Recipe | str | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: str | Path | None = None,
    out: str | Path = "runs",
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a network and leave a run folder behind.

    Args:
        recipe: a Recipe, the name of a shipped one, a YAML file or a run folder; None with ``resume``.
        overrides: ``section.key=value`` strings, as on the command line.
        resume: a run folder to go on with, by its own recipe where none is given.
        out: folder in which the new run folder is made.
        quiet: print nothing (``log.txt`` is written all the same).

    Returns:
        What ``results.json`` holds: accuracy, speed, size; ``run`` is the path of the run folder.

    Raises:
        ExciteError: one sentence: a wrong recipe, data that cannot be read, a non-finite loss, a full disk ...
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved first.
    """
    recipe = _resolve(recipe, overrides, resume)
    accelerator = make_accelerator(recipe.train.device)
    main = accelerator.is_main_process
    display = Display(quiet=quiet or not main)
    run = set_up(recipe, display, accelerator)
    # Only now, so that a mistake in the recipe leaves no empty folder behind.
    run.folder = Path(resume) if resume else _shared_folder(accelerator, Path(out), recipe.name)
    deterministic = torch.are_deterministic_algorithms_enabled()
    if recipe.train.deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        with StopSignals() as stop:
            return _train(run, stop, resuming=resume is not None)
    finally:
        display.close()
        torch.use_deterministic_algorithms(deterministic)


def _resolve(recipe: Recipe | str | None, overrides: Sequence[str], resume: str | Path | None) -> Recipe:
    if isinstance(recipe, Recipe):
        return Recipe.from_dict(apply_overrides(recipe.model_dump(mode="json"), list(overrides)))
    name = recipe if recipe is not None else resume
    if name is None:
        raise ExciteError("give a recipe to train, or a run folder to resume")
    return load_recipe(str(name), list(overrides))


def _shared_folder(accelerator: Accelerator, parent: Path, name: str) -> Path:
    """A new run folder, made by the first process and known to all."""
    names: list[Any] = [str(new_run_folder(parent, name)) if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(names)
    return Path(names[0])


def _train(run: Run, stop: StopSignals, resuming: bool) -> dict[str, Any]:
    """The loop: for every epoch its steps, then evaluation and a checkpoint."""
    recipe, main = run.recipe, run.accelerator.is_main_process
    if resuming:
        restore(run)
        done = run.folder / "results.json"
        if run.step == run.total_steps and done.is_file():
            run.display.message(f"{run.folder} is finished: nothing to resume")
            return json.loads(done.read_text(encoding="utf-8"))
    metrics = Metrics(run.folder, recipe.log.tensorboard) if main else None
    if main:
        _open_folder(run, metrics, resuming)
    meter, clock = Meter(recipe.log.every_steps, run.device), Clock()
    warm_up = True
    for epoch in range(run.step // run.steps_per_epoch, recipe.train.epochs):
        run.net.train()
        for norm in run.frozen_norms:
            norm.eval()
        clock.start(run.train_loader.wait_seconds)
        for images, labels in run.train_loader.epoch(epoch, run.step - epoch * run.steps_per_epoch):
            meter.add(*train_step(run, images, labels), len(labels))
            run.step += 1
            # The first step warms up (or compiles), and is a window of its own.
            if warm_up or run.step % recipe.log.every_steps == 0:
                record_steps(run, meter, clock, metrics, warm_up)
                warm_up = False
            if run.step % run.steps_per_epoch:  # at an epoch's end these come after its evaluation
                if _save_due(run, clock):
                    save(run, clock)
                if _asked_to_stop(run, stop):
                    _leave(run, stop, meter, clock, metrics)
        record_steps(run, meter, clock, metrics)
        last = epoch + 1 == recipe.train.epochs
        if last or (epoch + 1) % recipe.eval.every_epochs == 0:
            record_evaluation(run, clock, metrics)
        if last or (epoch + 1) % recipe.checkpoint.every_epochs == 0:
            save(run, clock)
        if _asked_to_stop(run, stop) and not last:
            _leave(run, stop, meter, clock, metrics)
    return _finish(run) if main else {}


def train_step(run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One optimiser step on this process's share of the batch; waits for nothing on the device.

    Args:
        images: (B, C, H, W) uint8. labels: (B,) int64.

    Returns:
        The mean loss and the number of images classified rightly while training, both 0-d on the device.
    """
    config = run.recipe.train
    rate = learning_rate(run.recipe.schedule, run.recipe.optimizer.lr, run.step, run.steps_per_epoch, config.epochs)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    seed_everything(config.seed, run.step + 1, run.accelerator.process_index)
    x, targets = run.augment(images, labels)
    total = torch.zeros((), device=run.device)
    correct = torch.zeros((), device=run.device)
    chunks = list(zip(*(t.chunk(config.grad_accumulation) for t in (x, targets, labels)), strict=True))
    for index, (inputs, wanted, true) in enumerate(chunks):
        with nullcontext() if index + 1 == len(chunks) else run.accelerator.no_sync(run.net):
            with torch.autocast(run.device.type, DTYPES[run.precision], enabled=run.precision != "fp32"):
                logits = run.net(inputs)
            # Parts may differ in size where the data set is smaller than a batch: weigh each by its images.
            loss = (
                F.cross_entropy(logits.float(), wanted, label_smoothing=config.label_smoothing)
                * len(true)
                / len(labels)
            )
            run.scaler.scale(loss).backward()
        total += loss.detach()
        correct += (logits.detach().argmax(1) == true).sum()
    if run.recipe.optimizer.clip_grad_norm is not None:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.optimizer.clip_grad_norm, foreach=True)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    if run.ema is not None:
        run.ema.update(run.model, run.step)
    return total, correct


def record_steps(run: Run, meter: Meter, clock: Clock, metrics: Metrics | None, warm_up: bool = False) -> None:
    """Read the meter (the only wait for the device), check the losses, write and show a line.

    ``warm_up`` marks the first step after a start, whose time (compilation, first touches) is no measure of speed.
    """
    if not meter.count:
        return
    images = meter.images * run.accelerator.num_processes
    values = run.accelerator.reduce(meter.read(), reduction="sum").cpu()
    losses = (values[0] / run.accelerator.num_processes).tolist()
    seconds, waited = clock.read(len(losses), run.train_loader.wait_seconds)
    run.seconds += seconds
    skipped = int(run.scaler.skipped.item())
    finite = [loss for loss in losses if math.isfinite(loss)]
    # Under fp16 an overflow makes single losses infinite; their steps were skipped and the weights are whole.
    if not finite or (len(finite) < len(losses) and run.precision != "fp16"):
        raise NonFiniteLoss(_non_finite(run, losses))
    rate = run.optimizer.param_groups[-1]["lr"] / run.optimizer.param_groups[-1]["lr_scale"]
    ms = 1000 * seconds / len(losses)
    record = {
        "kind": "train",
        "step": run.step,
        "epoch": run.step / run.steps_per_epoch,
        "loss": sum(finite) / len(finite),
        # Mixed images have no one right class.
        "accuracy": None if run.recipe.augment.mixes else 100 * float(values[1].sum()) / images,
        "lr": rate,
        "images_per_second": images / seconds,
        "ms_per_step": ms,
        "data_wait": waited,
        "memory_gb": peak_memory_gb(run.device),
        "loss_scale": run.scaler.get_scale() if run.scaler.is_enabled() else None,
        "skipped_steps": skipped,
        "seconds": run.seconds,
        "seconds_left": (run.total_steps - run.step) * clock.ms_per_step / 1000,
        "warm_up": warm_up,
    }
    if metrics is not None:
        metrics.write(record)
        run.display.step(*format_step(record, run.recipe.train.epochs, run.total_steps), run.step)


def _non_finite(run: Run, losses: list[float]) -> str:
    index = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
    step = run.step - len(losses) + index
    rate = learning_rate(
        run.recipe.schedule, run.recipe.optimizer.lr, step, run.steps_per_epoch, run.recipe.train.epochs
    )
    return f"the loss is {losses[index]} at step {step + 1} (learning rate {rate:g}); {_last_good(run)}"


def _last_good(run: Run) -> str:
    steps = ckpt.saved_steps(run.folder)
    if not steps:
        return (
            "there is no checkpoint from before it; try a lower learning rate, a longer warm-up or train.precision=fp32"
        )
    good = ckpt.step_folder(run.folder, steps[-1])
    return f"the last good checkpoint is {good}; try a lower learning rate, clipping (optimizer.clip_grad_norm) or fp32"


def record_evaluation(run: Run, clock: Clock, metrics: Metrics | None) -> None:
    """Evaluate, write and show a line, and keep the weights as the run's ``model.safetensors`` if they are the best."""
    evaluation = evaluate_run(run)
    if metrics is None:
        return
    epoch = run.step / run.steps_per_epoch
    record = {"kind": "eval", "step": run.step, "epoch": epoch, **evaluation.summary()}
    metrics.write(record)
    best = run.best is None or (evaluation.top1, -evaluation.loss) > (run.best["top1"], -run.best["loss"])
    if best:
        run.best = {"step": run.step, "epoch": epoch, **evaluation.summary()}
        with written_aside(run.folder / ckpt.WEIGHTS) as aside:
            ckpt.save_weights(aside, run.evaluated, run.meta(evaluation.summary()))
        clock.saved_at = time.monotonic()
    run.display.message(
        f"epoch {epoch:g}/{run.recipe.train.epochs}  validation loss {evaluation.loss:.4f}  "
        f"top-1 {evaluation.top1:.2f} %  top-5 {evaluation.top5:.2f} %  ({evaluation.images} images)"
        f"{'  best so far' if best else ''}"
    )


def evaluate_run(run: Run) -> Evaluation:
    """Evaluate the weights that the run would ship now."""
    return evaluate(
        run.evaluated,
        run.eval_loader,
        run.preprocessing,
        len(run.data.classes),
        run.device,
        run.precision,
        run.recipe.train.channels_last,
    )


def _save_due(run: Run, clock: Clock) -> bool:
    config = run.recipe.checkpoint
    if config.every_steps and run.step % config.every_steps == 0:
        return True
    return config.every_minutes is not None and time.monotonic() - clock.saved_at > 60 * config.every_minutes


def save(run: Run, clock: Clock) -> None:
    """Write a checkpoint (first process only) and delete those no longer wanted; non-finite weights stop the run."""
    if not run.accelerator.is_main_process:
        return
    if not all(bool(v.isfinite().all()) for v in run.model.state_dict().values() if v.is_floating_point()):
        raise NonFiniteLoss(f"the weights are no longer finite after step {run.step}; {_last_good(run)}")
    synchronize(run.device)
    metrics = None if run.best is None else {k: v for k, v in run.best.items() if k not in ("step", "epoch")}
    ema = None if run.ema is None else run.ema.module
    ckpt.save_step(run.folder, run.step, run.model, ema, run.state(), run.meta(metrics))
    ckpt.prune(run.folder, run.recipe.checkpoint.keep_last, None if run.best is None else int(run.best["step"]))
    clock.saved_at = time.monotonic()


def _asked_to_stop(run: Run, stop: StopSignals) -> bool:
    """Whether a signal came to any process; several processes agree on it only when a line is due, not at each step."""
    if run.accelerator.num_processes == 1:
        return bool(stop.received)
    if run.step % run.recipe.log.every_steps and run.step % run.steps_per_epoch:
        return False
    flag = torch.tensor(stop.received, device=run.device)
    stop.received = int(run.accelerator.gather(flag.reshape(1)).max())
    return bool(stop.received)


def _leave(run: Run, stop: StopSignals, meter: Meter, clock: Clock, metrics: Metrics | None) -> None:
    record_steps(run, meter, clock, metrics)
    save(run, clock)
    name = "Ctrl-C" if stop.received == 2 else "SIGTERM"
    raise Interrupted(
        f"stopped by {name} after step {run.step}, which is saved; go on with: excite train --resume {run.folder}",
        stop.received,
    )


def _open_folder(run: Run, metrics: Metrics | None, resuming: bool) -> None:
    """Write the recipe and the environment, start the log, and say what is about to happen."""
    assert metrics is not None
    recipe_file = run.folder / "recipe.yaml"
    if resuming:
        metrics.rewind(run.step)
        if load_recipe(str(recipe_file)) != run.recipe:
            kept = run.folder / f"recipe-until-step-{run.step}.yaml"
            write_text(kept, recipe_file.read_text(encoding="utf-8"))
            write_text(recipe_file, run.recipe.to_yaml())
            run.notes.append(
                f"the recipe was changed on resuming, so this is another run from here; before: {kept.name}"
            )
    else:
        write_text(recipe_file, run.recipe.to_yaml())
        write_text(metrics.path, "")
    name = "environment.json" if not resuming else f"environment-resumed-at-{run.step}.json"
    write_json(run.folder / name, environment(device_name(run.device), run.precision, run.accelerator.num_processes))
    display = run.display
    display.open(run.folder / "log.txt", run.total_steps, run.step)
    parameters = sum(p.numel() for p in run.model.parameters())
    display.message(f"run folder {run.folder}" + (f", going on after step {run.step}" if resuming else ""))
    display.message(f"model      {run.model.model_name}, {parameters / 1e6:.2f} M parameters")
    display.message(f"data       {run.data.describe()}")
    display.message(
        f"device     {device_name(run.device)}, {run.accelerator.num_processes} process(es), {run.precision}, "
        f"batch {run.recipe.train.batch_size}, {run.total_steps} steps"
    )
    for note in run.notes:
        display.message(note)
    list_bad_images(run, run.data.bad)


def list_bad_images(run: Run, bad: Sequence[tuple[str, str]]) -> None:
    """Write the images that were skipped, and why, to ``bad_images.txt``, and say how many."""
    if bad:
        path = run.folder / "bad_images.txt"
        write_text(path, "".join(f"{name}\t{reason}\n" for name, reason in bad))
        run.display.message(f"{len(bad)} image(s) could not be read and were skipped: {path}")


def _finish(run: Run) -> dict[str, Any]:
    """Curves, results, and the last words."""
    seen = dict([*run.data.bad, *run.train_loader.bad, *run.eval_loader.bad])
    if len(seen) > len(run.data.bad):
        list_bad_images(run, list(seen.items()))
    draw_curves(run.folder, f"{run.recipe.name}: {run.model.model_name}")
    results = _results(run, len(seen))
    write_json(run.folder / "results.json", results)
    run.display.message(f"finished {run.total_steps} steps in {format_seconds(run.seconds)}")
    return results


def _speed(run: Run) -> tuple[float | None, float]:
    """Median milliseconds a step over all records but warm-ups (None without any); what the first step took beyond."""
    records = [r for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "train"]
    usual = [r["ms_per_step"] for r in records if not r["warm_up"]]
    if not usual:
        return None, 0.0
    ms = statistics.median(usual)
    return ms, max(0.0, max(r["ms_per_step"] - ms for r in records if r["warm_up"]) / 1000)


def _results(run: Run, bad: int) -> dict[str, Any]:
    """The columns of the reference systems' tables, and what else identifies the result."""
    assert run.best is not None
    last = [r for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "eval"][-1]
    size = describe(run.model.model_name, **run.model.model_args)
    ms, first_step = _speed(run)
    batch = run.recipe.train.batch_size
    return {
        "run": str(run.folder),
        "recipe": run.recipe.name,
        "model": run.model.model_name,
        "params_m": size["params"] / 1e6,
        "gmacs": size["gmacs"],
        "devices": run.accelerator.num_processes,
        "device": device_name(run.device),
        "precision": run.precision,
        "batch_size": batch,
        "resolution": f"{run.preprocessing.image_size}x{run.preprocessing.image_size}",
        "compile_seconds": first_step if run.recipe.train.compile != "off" else 0.0,
        "ms_per_step": ms,
        "images_per_second": None if ms is None else 1000 * batch / ms,
        "top1": run.best["top1"],
        "top5": run.best["top5"],
        "loss": run.best["loss"],
        # Choosing the best epoch by these very images flatters it; the last epoch was not chosen.
        "last_top1": last["top1"],
        "last_top5": last["top5"],
        "images": run.best["images"],
        "best_epoch": run.best["epoch"],
        "epochs": run.recipe.train.epochs,
        "train_seconds": run.seconds,
        "memory_gb": peak_memory_gb(run.device),
        "skipped_steps": int(run.scaler.skipped.item()),
        "bad_images": bad,
        "data_fingerprint": run.data.fingerprint,
    }
