"""Training, from a recipe to a run folder."""

import time
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from excite import storage
from excite.console import Display
from excite.errors import ExciteError
from excite.leaving import signal_name
from excite.recipe import Overrides, Recipe, load_recipe
from excite.runtime.device import make_accelerator, synchronize
from excite.runtime.owner import owned
from excite.runtime.waiting import said_by
from excite.training import checkpoint as ckpt
from excite.training import launch
from excite.training.budget import Forecast, fit_epochs, keep_epochs
from excite.training.choose import recipe_for
from excite.training.compilation import compile_errors
from excite.training.meter import Meter
from excite.training.probe import start_from_probe
from excite.training.reporting import (
    Clock,
    bad_images,
    check_finite,
    finish,
    open_folder,
    record_evaluation,
    record_patience,
    record_steps,
    record_test,
)
from excite.training.rescue import Rescue
from excite.training.results import Results, read_results
from excite.training.resume import restore
from excite.training.run_folder import Metrics, choose_run_folder
from excite.training.setup import Run, gradient_exchange, set_up
from excite.training.start import as_begun
from excite.training.step import train_step
from excite.training.stop import Interrupted, StopSignals
from excite.weights.locate import checkpoint_steps, join_step, split_step

#: Well within the 30 s that torchrun and Slurm give a process to save after a SIGTERM.
AGREE_SECONDS = 2.0


def train(
    recipe: Recipe | str | Path | None = None,
    overrides: Overrides = (),
    *,
    resume: str | Path | None = None,
    out: str | Path = "runs",
    run_dir: str | Path | None = None,
    time_limit: float | None = None,
    quiet: bool = False,
    until: int | None = None,
) -> Results:
    """Train a network and write a run folder. With ``train.devices`` above 1, one process per device is started.

    ``resume``, ``out`` and ``run_dir`` may each be an address such as ``s3://...``: the run is then trained in a local
    folder, which is mirrored to that address.

    Args:
        recipe: a Recipe, the name of a shipped one, a YAML file or a run folder; or a folder of images, for which a
            recipe is chosen (:func:`excite.training.choose.choose_recipe`). May be None with ``resume``.
        overrides: ``section.key=value`` strings as on the command line, a single one, or a mapping of key to value.
        resume: a run folder to resume, with its own recipe if none is given. ``RUN@STEP``, or a checkpoint folder of
            it, resumes from that step; later checkpoints are kept aside.
        out: folder in which the new run folder is created.
        run_dir: the run folder itself: a new or empty one is started, an existing run is resumed.
        time_limit: seconds for a new run, from now to the end of its last epoch. The first steps are timed, and the
            run gets as many epochs as fit (at least one), recorded in its recipe. A resumed run keeps its epochs.
        quiet: print nothing (``log.txt`` is still written).
        until: save and stop after this step, as after a signal.

    Returns:
        The contents of ``results.json``: accuracy, speed and size; ``run`` is the path of the run folder. In a job of
        several processes, all but the first get an empty dict.

    Raises:
        ExciteError: a wrong recipe, unreadable data, a non-finite loss, a full disk and so on, in one sentence.
        Interrupted: stopped by SIGTERM or Ctrl-C, after saving a checkpoint.
    """
    begun = time.monotonic()
    if resume is not None and run_dir is not None:
        raise ExciteError("give either resume or run_dir, not both: a run is resumed in its own folder")
    at: int | None = None
    if resume is not None:
        where, at = split_step(str(resume))
        resume = storage.local_run(where)
    recipe = _resolve(recipe, overrides, resume, run_dir, quiet)
    if resume is not None and (resume / "recipe.yaml").is_file():
        recipe = as_begun(recipe, resume)
    asked = recipe
    recipe, note = recipe.scaled()
    processes = launch.processes_wanted(recipe)
    if processes > 1:
        order: launch.TrainOrder = {
            "resume": None if resume is None else join_step(resume, at),
            "out": str(out),
            "run_dir": None if run_dir is None else str(run_dir),
            "time_limit": time_limit,
            "quiet": quiet,
            "until": until,
        }
        job: launch.Job = {"recipe": asked.to_yaml(), "origin": asked.origin(), "train": order}
        results: Results = launch.run_on_this_machine(job, processes)
        return results
    launch.watch_for_failures()
    accelerator = make_accelerator(recipe.train.device, gradient_exchange(recipe))
    launch.watch_for_failures()  # without a launcher that provides the board, it exists only from here on
    main = accelerator.is_main_process
    display = Display(quiet=quiet or not main)
    if main and resume is None:
        storage.check_target(out, run_dir)  # before hours of staging and training, not after
    recipe = _as_begun(recipe, accelerator, resume, run_dir)
    run = set_up(recipe, display, accelerator, resuming=resume is not None)
    if note is not None:
        run.notes.insert(0, note)
    # Only now, so that a mistake in the recipe leaves no empty folder behind.
    run.folder, resuming = _agree_on_folder(run, resume, out, run_dir)
    if time_limit is not None and resuming:
        keep_epochs(run)
    elif time_limit is not None:
        fit_epochs(run, time_limit - (time.monotonic() - begun), train_step)
    return _train_as_owner(run, resuming, at, until)


def _train_as_owner(run: Run, resuming: bool, at: int | None, until: int | None) -> Results:
    """:func:`_train` as the owner of the run folder, mirrored, with signals and losses handled."""
    recipe, display, main = run.recipe, run.display, run.accelerator.is_main_process
    mirrored = storage.mirrored(run.folder, display.message) if main else nullcontext()
    mine = owned(run.folder) if main else nullcontext("")
    deterministic = torch.are_deterministic_algorithms_enabled()
    if recipe.train.deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        compiling, lines = compile_errors(recipe.train.compile), said_by(display.message)
        with (
            mine as unlocked,
            mirrored,
            closing(run.saver),
            nullcontext() if run.shards is None else closing(run.shards),
            StopSignals() as stop,
            compiling,
            lines,
            Rescue(run) as rescue,
        ):
            run.notes += [unlocked] if unlocked else []
            run.identity = ckpt.identity(run.folder) if main else ""
            return _train(run, stop, rescue, resuming, at, until)
    finally:
        display.close()
        torch.use_deterministic_algorithms(deterministic)


def _resolve(
    recipe: Recipe | str | Path | None,
    overrides: Overrides,
    resume: str | Path | None,
    run_dir: str | Path | None,
    quiet: bool,
) -> Recipe:
    if recipe is not None:
        return recipe_for(recipe, overrides, run_dir=run_dir, quiet=quiet)
    if resume is None:
        raise ExciteError("give a recipe to train, or a run folder to resume")
    return load_recipe(str(resume), overrides)


def _as_begun(recipe: Recipe, accelerator: Accelerator, resume: Path | None, run_dir: str | Path | None) -> Recipe:
    """Keep a resumed run in its precision unless the user now gives another one: what "auto" in a shipped recipe means
    depends on the machine."""
    key = "train.precision"
    if recipe.is_own(key) or (resume is None and run_dir is None):
        return recipe
    begun: list[str | None] = [None]
    if resume is None and run_dir is not None:
        resume = storage.open_run(run_dir)  # on every machine, as the folder is opened later
    if accelerator.is_main_process and resume is not None and (resume / "recipe.yaml").is_file():
        begun = [load_recipe(str(resume)).train.precision]
    if accelerator.num_processes > 1:
        broadcast_object_list(begun)
    if begun[0] is None:
        return recipe
    if begun[0] != recipe.train.precision:
        recipe = recipe.replaced(key, begun[0], f"{begun[0]}, the precision this run was started in")
    origin = recipe.origin()
    return recipe.with_origin(**origin | {"own": [*(origin["own"] or ()), key]})


def _agree_on_folder(run: Run, resume: Path | None, out: str | Path, run_dir: str | Path | None) -> tuple[Path, bool]:
    """The run folder, chosen by the first process and sent to all, and whether to resume from a checkpoint in it."""
    if resume is not None:
        return resume, True
    agreed: list[Any] = [None]
    local = None if run_dir is None else storage.open_run(run_dir)  # every machine needs a copy to resume from
    if run.accelerator.is_main_process:
        folder = choose_run_folder(run.recipe.run_name, storage.local_parent(out), local)
        storage.keep_at(folder, out, run_dir)
        agreed = [(str(folder), bool(checkpoint_steps(folder)))]
    if run.accelerator.num_processes > 1:
        broadcast_object_list(agreed)
    return Path(agreed[0][0]), agreed[0][1]


def _results_of_finished(run: Run) -> Results | None:
    """The results of a run that has no steps left and has written them, else None; the same on all processes."""
    path, found = run.folder / "results.json", list[Results | None]([None])
    ended = run.step == run.total_steps or _out_of_patience(run)
    if run.accelerator.is_main_process and ended and path.is_file():
        with suppress(ExciteError):  # damaged: written again, like everything that follows the last step
            found = [{**read_results(path), "run": str(run.folder)}]  # it may have ended on another machine
    if run.accelerator.num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def _train(run: Run, stop: StopSignals, rescue: Rescue, resuming: bool, at: int | None, until: int | None) -> Results:
    """The training loop: the steps of each epoch, then an evaluation and a checkpoint."""
    recipe, main = run.recipe, run.accelerator.is_main_process
    if resuming:
        restore(run, at)
        done = _results_of_finished(run)
        if done is not None:
            told = f"{run.folder} is finished: nothing to resume"
            if run.changed_keys:
                told += (
                    f"; changes of the recipe have no effect ({run.changed_keys}): for a new run, name another folder"
                )
            run.display.message(told)
            return done if main else {}
    metrics = Metrics(run.folder, recipe.log.tensorboard) if main else None
    if main:
        open_folder(run, metrics, resuming)
    meter, clock = Meter(recipe.log.every_steps, run.device), Clock()
    rescue.ready(partial(record_steps, run, meter, clock, metrics), partial(_save_now, run, clock))
    if (recipe.train.probe or run.keeps_head) and not resuming:
        if recipe.train.probe:
            with rescue.nothing_yet(), run.computing():
                start_from_probe(run)
        else:
            run.display.message(f"no linear probe: {recipe.train.init_from} has the same classes, so its head is kept")
        run.evaluated_at = -1
    if run.owes_evaluation:  # of the start, or one that failed
        if resuming:
            run.display.message(f"step {run.step} was saved without its evaluation, which comes first")
        record_evaluation(run, clock, metrics)
        save(run, clock)
        if _asked_to_stop(run, stop, clock) and run.step < run.total_steps:
            _leave(run, stop, meter, clock, metrics)
    warm_up, forecast = True, Forecast()
    epochs = () if _out_of_patience(run) else range(run.step // run.steps_per_epoch, recipe.train.epochs)
    for epoch in epochs:
        run.net.train()
        if epoch < (recipe.train.freeze_epochs or recipe.train.epochs):
            for norm in run.frozen_norms:
                norm.eval()
        run.spare_gradients(epoch)
        clock.start(run.train_loader.wait_seconds)
        for images, labels in run.train_loader.epoch(epoch, run.step - epoch * run.steps_per_epoch):
            meter.add(*train_step(run, images, labels), len(labels))
            run.step += 1
            forecast.after_step(run)
            # The first step warms up (or compiles), and is a window of its own.
            if warm_up or run.step % recipe.log.every_steps == 0:
                record_steps(run, meter, clock, metrics, warm_up)
                warm_up = False
            if run.step % run.steps_per_epoch:  # at an epoch's end these come after its evaluation
                if _save_due(run, clock):
                    save(run, clock)
                if _asked_to_stop(run, stop, clock) or run.step == until:
                    _leave(run, stop, meter, clock, metrics)
        record_steps(run, meter, clock, metrics)
        last = epoch + 1 == recipe.train.epochs
        if run.owes_evaluation:
            record_evaluation(run, clock, metrics)
        ends = last or _out_of_patience(run)
        if ends or (epoch + 1) % recipe.checkpoint.every_epochs == 0:
            save(run, clock)
        if ends:
            break
        if _asked_to_stop(run, stop, clock) or run.step == until:
            _leave(run, stop, meter, clock, metrics)
    if main and run.step < run.total_steps:
        record_patience(run)
    if _best_lost(run):  # no steps were left, and the last weights are not lost
        record_evaluation(run, clock, metrics)
    run.saver.wait()
    record_test(run, metrics)
    bad = bad_images(run)
    return finish(run, bad) if main else {}


def _save_due(run: Run, clock: Clock) -> bool:
    config = run.recipe.checkpoint
    if config.every_steps and run.step % config.every_steps == 0:
        return True
    return config.every_minutes is not None and time.monotonic() - clock.saved_at > 60 * config.every_minutes


def _best_lost(run: Run) -> bool:
    """Whether the best weights were lost, and none were evaluated since, the same on all processes."""
    return _agreed(run, run.best_lost and run.measured_at is None)


def _out_of_patience(run: Run) -> bool:
    """Whether the run ends at this step because of ``train.patience``, the same on all processes. Only an evaluation
    can end it, so a resumed run ends where it would have."""
    patience = run.recipe.train.patience
    if patience is None or run.evaluated_at != run.step:
        return False
    return _agreed(run, run.since_best >= patience and not run.best_lost)


def _agreed(run: Run, mine: bool) -> bool:
    """The first process's answer."""
    found = [mine]
    if run.accelerator.num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def save(run: Run, clock: Clock) -> None:
    """Have a checkpoint written, and old ones deleted, while training goes on (first process only). Non-finite weights
    stop the run."""
    if not run.accelerator.is_main_process:
        return
    synchronize(run.device)
    with run.saver.blocking():
        check_finite(run)
        snapshot, keep = run.snapshot(), run.recipe.checkpoint.keep_last
        best = None if run.best is None else int(run.best["step"])

        def write() -> None:
            ckpt.save_step(run.folder, snapshot)
            for line in ckpt.prune(run.folder, keep, best, run.identity):
                run.display.message(line)

        run.saver.submit(write)
        run.saver.forget_copies()
    clock.saved_at = time.monotonic()


def _save_now(run: Run, clock: Clock) -> None:
    """:func:`save`, and wait until it is written: the run ends."""
    save(run, clock)
    run.saver.wait()


def _asked_to_stop(run: Run, stop: StopSignals, clock: Clock) -> bool:
    """Whether any process received a signal. Several processes agree on it, which waits for the device, every
    ``AGREE_SECONDS`` of the slowest one and at the end of each epoch."""
    if run.accelerator.num_processes == 1:
        return bool(stop.received)
    if run.step < stop.agree_at and run.step % run.steps_per_epoch:
        return False
    mine = torch.tensor([[float(stop.received), clock.ms_per_step]], device=run.device)
    received, ms = run.accelerator.gather(mine).amax(0).tolist()
    if received:  # otherwise keep a signal that this process received while it waited for the others
        stop.received = int(received)
    # From numbers that all processes share, so that all come here again at the same step.
    stop.agree_at = run.step + max(1, int(1000 * AGREE_SECONDS / max(ms, 1e-3)))
    return bool(received)


def _leave(run: Run, stop: StopSignals, meter: Meter, clock: Clock, metrics: Metrics | None) -> None:
    record_steps(run, meter, clock, metrics)
    _save_now(run, clock)
    asked = signal_name(stop.received) if stop.received else "request"
    raise Interrupted(
        f"stopped by {asked} after step {run.step}, which is saved; resume with: excite train --resume {run.folder}",
        stop.received,
    )
