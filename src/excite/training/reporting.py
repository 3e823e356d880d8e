"""What a run reports while it trains and when it ends: log lines, evaluations, results."""

import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

import excite.training.metrics  # noqa: F401  what is wrong with it is said now, not after the first epoch
from excite.console import format_seconds
from excite.data import EvalLoader, FileImages
from excite.data.loader import workers_of
from excite.errors import ExciteError
from excite.files import write_json, write_text, written_aside
from excite.logits import sentence
from excite.measures import MEASURES, MeasureName, rank, uneven, usual_measure
from excite.models import describe
from excite.pages.figures import dispensable
from excite.runtime.device import device_name, peak_memory_gb
from excite.runtime.environment import environment
from excite.runtime.job import cores, local_world_size
from excite.size import by_text
from excite.text import counted, printable
from excite.training.checkpoint import first_not_finite
from excite.training.compilation import compile_timer
from excite.training.evaluation import Evaluation, LabelEvaluation, evaluate, one_by_one
from excite.training.meter import Meter
from excite.training.rare import class_counts
from excite.training.results import EvalRecord, Results, TrainRecord
from excite.training.run_folder import Metrics, draw_curves, read_metrics, usual_ms
from excite.training.schedule import learning_rate
from excite.training.setup import Run, share_buffers
from excite.weights.header import Meta
from excite.weights.locate import WEIGHTS, saved_steps, step_folder
from excite.weights.own import load_into, read_own, save_weights

#: With fp16, the run stops after this many skipped steps in a row. By then a dynamic scale has fallen from 2^32 to
#: nothing, even if it takes two overflows to halve it, and a fixed scale will not recover.
MAX_SKIPPED_IN_A_ROW = 100


class NonFiniteLoss(ExciteError):
    """The loss or the weights are no longer finite."""


@dataclass
class Clock:
    """Measures the time of steps between two reads, without what lies between a read and the next ``start`` and
    without the time of torch.compile."""

    ms_per_step: float = 0.0
    saved_at: float = field(default_factory=time.monotonic)
    steps_seconds: float = 0.0
    steps_waited: float = 0.0
    told: bool = False
    _since: float = 0.0
    _waited: float = 0.0
    _compiled: float = 0.0

    def start(self, waited: float) -> None:
        """Begin a window; ``waited`` is the loader's running total of seconds spent waiting for data."""
        self._since, self._waited, self._compiled = time.perf_counter(), waited, compile_timer.seconds

    def read(self, steps: int, waited: float) -> tuple[float, float, float]:
        """End a window of ``steps`` steps and begin the next.

        Returns:
            Seconds of the steps, fraction of them spent waiting for data, and seconds of compiling (counted apart).
        """
        compiled = compile_timer.seconds - self._compiled
        seconds = time.perf_counter() - self._since - compiled
        share = min(1.0, (waited - self._waited) / seconds)
        self.ms_per_step = 1000 * seconds / steps
        self.start(waited)
        return seconds, share, compiled


def format_step(record: TrainRecord, epochs: int, steps: int, accuracy: str = "acc") -> tuple[str, str]:
    """One training record as text: how far the run is, and its measurements.

    ``accuracy`` names the share of images whose likeliest class is right: with several labels, is one of theirs.
    """
    place = f"epoch {math.ceil(record['epoch'])}/{epochs}  step {record['step']}/{steps}"
    parts = ["loss overflowed" if record["loss"] is None else f"loss {record['loss']:.4f}"]
    if record["accuracy"] is not None:
        parts.append(f"{accuracy} {record['accuracy']:.2f} %")
    parts += [
        f"lr {record['lr']:.4g}",
        f"{record['images_per_second']:,.0f} img/s",
        f"{record['ms_per_step']:.1f} ms/step",
        f"data wait {100 * record['data_wait']:.0f} %",
        f"{record['memory_gb']:.2f} GB",
    ]
    if record["loss_scale"] is not None:
        parts.append(f"loss scale {record['loss_scale']:g}, {record['skipped_steps']} skipped")
    return f"{place}  {format_seconds(record['seconds_left'])} left", "  ".join(parts)


def open_folder(run: Run, metrics: Metrics | None, resuming: bool) -> None:
    """Write the recipe and the environment, start the log, and print what is about to run."""
    assert metrics is not None
    recipe_file = run.folder / "recipe.yaml"
    if resuming:
        if damaged := metrics.rewind(run.step, run.evaluated_at):
            run.notes.append(f"dropped {counted(damaged, 'damaged line')} of {metrics.path.name}")
        if run.changed_since:
            write_text(run.folder / f"recipe-until-step-{run.step}.yaml", run.changed_since)
        write_text(recipe_file, run.recipe.to_yaml())
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
    for line in f"data       {run.data.describe()}".split("\n"):
        display.message(line)
    display.message(
        f"device     {device_name(run.device)}, {counted(run.accelerator.num_processes, 'process')}, {run.precision}, "
        f"batch {run.recipe.train.batch_size}, {run.total_steps} steps"
    )
    for note in run.notes:
        display.message(note)
    if run.data.record is not None and not resuming:  # it starts with the data that train.init_from was trained on
        run.data.record.write(run.folder)
    _list_bad_images(run, list(run.bad_so_far().items()))


def record_steps(run: Run, meter: Meter, clock: Clock, metrics: Metrics | None, warm_up: bool = False) -> None:
    """Read the meter (the only wait for the device), check the losses, then write and show a line.

    ``warm_up`` marks the first step after a start, whose time (memory allocation, autotuning) says nothing about speed.
    """
    if not meter.count:
        return
    images = meter.images * run.accelerator.num_processes
    values = run.accelerator.reduce(meter.read(), reduction="sum").cpu()
    losses = (values[0] / run.accelerator.num_processes).tolist()
    seconds, waited, compiled = clock.read(len(losses), run.train_loader.wait_seconds)
    run.seconds += seconds + compiled
    if metrics is not None and not warm_up:
        _say_waiting(run, clock, seconds, waited)
    skipped = int(run.scaler.skipped.item())
    finite = [loss for loss in losses if math.isfinite(loss)]
    # With fp16, an overflow makes single losses infinite. Their steps were skipped and the weights are intact.
    if len(finite) < len(losses) and run.precision != "fp16":
        raise NonFiniteLoss(_non_finite(run, losses))
    if int(run.scaler.skipped_in_a_row.item()) >= MAX_SKIPPED_IN_A_ROW:
        raise NonFiniteLoss(_always_skipped(run))
    rate = run.optimizer.param_groups[-1]["lr"] / run.optimizer.param_groups[-1]["lr_scale"]
    ms = 1000 * seconds / len(losses)
    record: TrainRecord = {
        "kind": "train",
        "step": run.step,
        "epoch": run.step / run.steps_per_epoch,
        "loss": sum(finite) / len(finite) if finite else None,
        # Mixed images have no single correct class.
        "accuracy": None if run.recipe.augment.mixes else 100 * float(values[1].sum()) / images,
        "lr": rate,
        "images_per_second": images / seconds,
        "ms_per_step": ms,
        "data_wait": waited,
        "compile_seconds": compiled,
        "memory_gb": peak_memory_gb(run.device),
        "loss_scale": run.scaler.get_scale() if run.scaler.is_enabled() else None,
        "skipped_steps": skipped,
        "seconds": run.seconds,
        "seconds_left": (run.total_steps - run.step) * clock.ms_per_step / 1000,
        "warm_up": warm_up,
    }
    if metrics is not None:
        metrics.write(record)
        name = "acc" if run.recipe.data.task == "classes" else "hit@1"
        place, measured = format_step(record, run.recipe.train.epochs, run.total_steps, name)
        run.display.step(place, measured, run.step, record["loss"])


#: Share of its time that a training may wait for images before it is told what to do, and seconds after which.
MUCH, SOON = 0.05, 30.0


def _say_waiting(run: Run, clock: Clock, seconds: float, waited: float) -> None:
    """Say once if the training waits for images."""
    clock.steps_seconds += seconds
    clock.steps_waited += waited * seconds
    if clock.told or clock.steps_seconds < SOON or not isinstance(run.data.train, FileImages):
        return
    clock.told = True
    share = clock.steps_waited / clock.steps_seconds
    if share > MUCH:
        run.display.message(
            f"training waited {100 * share:.0f} % of the last {clock.steps_seconds:.0f} s for images: {_sooner(run)}; "
            f"what takes how long: excite bench --data {shlex.quote(str(run.folder))}"
        )


def _sooner(run: Run) -> str:
    """What makes images ready sooner, as a clause."""
    data, each = run.recipe.data, cores() // local_world_size()
    workers, ways = workers_of(data), []
    if workers < each:
        ways.append(f"use more workers (data.workers={each}, now {workers})")
    if data.mode == "stream" and run.recipe.augment.crop != "random_resized":
        ways.append("decode them once (data.mode=memory)")
    side, root = math.ceil(max(data.training_size) / 0.875), shlex.quote(data.root or "DATA")
    ways.append(f"make the files smaller, once (excite data pack {root} SHARDS --size {side})")
    return " or ".join(ways)


def _non_finite(run: Run, losses: list[float]) -> str:
    index = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
    step = run.step - len(losses) + index
    rate = learning_rate(
        run.recipe.schedule, run.recipe.optimizer.lr, step, run.steps_per_epoch, run.recipe.train.epochs
    )
    return f"the loss is {losses[index]} at step {step + 1} (learning rate {rate:g}); {last_good(run)}"


def _always_skipped(run: Run) -> str:
    count, scale = int(run.scaler.skipped_in_a_row.item()), run.scaler.get_scale()
    mend = "train.precision=bf16 or fp32" if run.scaler.fixed is None else "train.loss_scale=dynamic or a smaller one"
    return (
        f"the last {count} steps up to step {run.step} overflowed in fp16 and were skipped; the loss scale is now "
        f"{scale:g}: use {mend}; {last_good(run)}"
    )


def check_finite(run: Run) -> None:
    """Raise NonFiniteLoss if weights, their moving average or the optimiser's state are not finite."""
    tensors = {f"the weights ({name})": tensor for name, tensor in run.model.state_dict().items()}
    if run.ema is not None:
        averages = run.ema.module.state_dict().items()
        tensors |= {f"the moving average of the weights ({name})": tensor for name, tensor in averages}
    if run.lookahead is not None:
        tensors |= {f"the slow weights ({name})": tensor for name, tensor in run.lookahead.slow.items()}
    for name in run.trained_names:
        for key, value in run.optimizer.state.get(run.model.get_parameter(name), {}).items():
            if isinstance(value, Tensor):
                tensors[f"the optimiser's state ({key} of {name})"] = value
    if what := first_not_finite(tensors):
        raise NonFiniteLoss(f"after step {run.step}, not all values in {what} are finite; {last_good(run)}")


def last_good(run: Run) -> str:
    run.saver.wait()
    steps = saved_steps(run.folder)
    if not steps:
        return "there is no earlier checkpoint; try a lower learning rate, a longer warm-up or train.precision=fp32"
    good = step_folder(run.folder, steps[-1])
    return f"the last good checkpoint is {good}; try a lower learning rate, clipping (optimizer.clip_grad_norm) or fp32"


def record_evaluation(run: Run, clock: Clock, metrics: Metrics | None) -> None:
    """Evaluate, write and show a line, and save the weights as ``model.safetensors`` if they are the best so far."""
    evaluation = evaluate_run(run)
    if metrics is None:
        run.evaluated_at = run.step
        return
    epoch, metric = run.step / run.steps_per_epoch, run.recipe.measure
    record: EvalRecord = {"kind": "eval", "step": run.step, "epoch": epoch, **evaluation.summary()}
    metrics.write(record)
    # A network without finite logits for any image is never kept, even if there is no other. Test images must not
    # choose the weights: if they are what is evaluated, the last epoch's weights are kept.
    best = evaluation.usable and (
        run.data.val_is_test or run.best is None or rank(evaluation.summary(), metric) > rank(run.best, metric)
    )
    run.measured_at, run.evaluated_at = (run.step, evaluation.summary()), run.step
    if best:
        with run.saver.blocking():
            check_finite(run)
            run.best = {"step": run.step, "epoch": epoch, **evaluation.summary()}
            run.saver.submit(_writing_best(run, run.meta(evaluation.summary())))
        clock.saved_at = time.monotonic()
    kind, said = "validation", "  best so far" if best else ""
    if run.data.val_is_test:
        kind, said = "test", ""
    run.display.evaluated(
        f"epoch {epoch:g}/{run.recipe.train.epochs}  {kind} loss {_loss(evaluation)}  "
        f"{_accuracies(evaluation, metric)}{said}",
        run.step,
        evaluation.value(metric),
        MEASURES[metric].heading,
    )
    if evaluation.warning is not None:
        run.display.message(f"warning: {evaluation.warning}")


def _writing_best(run: Run, meta: Meta) -> Callable[[], None]:
    """The write of ``model.safetensors``."""
    path, tensors = run.folder / WEIGHTS, run.saver.copy(run.step, run.evaluated)

    def write() -> None:
        with written_aside(path) as aside:
            save_weights(aside, tensors, meta)

    return write


def record_patience(run: Run) -> None:
    """Say that the run ends because of ``train.patience`` (first process only)."""
    assert run.recipe.train.patience is not None
    left = run.recipe.train.epochs - run.step // run.steps_per_epoch
    best = "none was good" if run.best is None else f"the best is that of epoch {run.best['epoch']:g}"
    if run.best is not None:
        best += f" ({_told(run.best, run.recipe.measure)})"
    run.display.message(
        f"stopping early: {counted(run.since_best, 'evaluation')} in a row without a new best "
        f"(train.patience={run.recipe.train.patience}); {best}; {left:,} of {run.recipe.train.epochs:,} epochs are left"
    )


def _loss(evaluation: Evaluation) -> str:
    return "none" if evaluation.loss is None else f"{evaluation.loss:.4f}"


def _accuracies(evaluation: Evaluation, metric: MeasureName) -> str:
    """Top-1 and top-5, balanced accuracy if the classes differ enough in size to make a difference, and what chooses
    the best epoch."""
    if isinstance(evaluation, LabelEvaluation):
        told = f"mAP {MEASURES['map'].text(evaluation.mean_precision)}  macro F1 {evaluation.macro_f1:.2f} %"
        more = "" if metric in ("map", "macro_f1", "loss") else f"  {_told(evaluation.summary(), metric)}"
        return f"{told}{more}  (threshold {evaluation.threshold:.2f}, {evaluation.images} images)"
    shown: list[MeasureName] = ["top1", "balanced"] if evaluation.uneven else ["top1"]
    shown += [metric] if not MEASURES[metric].usual and metric not in shown else []
    values = evaluation.summary()
    told = "  ".join(_told(values, name) for name in [*shown, "top5"])
    return f"{told}  ({evaluation.images} images)"


def _told(values: Mapping[str, Any], name: MeasureName) -> str:
    """A measure with its value: "top-1 87.50 %"."""
    short = "balanced" if name == "balanced" else MEASURES[name].label
    return f"{short} {MEASURES[name].text(values.get(name))}"


def record_test(run: Run, metrics: Metrics | None) -> None:
    """Measure the shipped weights on the test part, once, at the end. All processes call this."""
    if run.test_loader is None:
        return
    # One process reads for all: the others may be on machines that do not see the folder. There may be no best weights.
    main = run.accelerator.is_main_process and run.best is not None
    weights = [read_own(run.folder / WEIGHTS) if main else None]
    if run.accelerator.num_processes > 1:
        broadcast_object_list(weights)
    if weights[0] is None:
        return
    load_into(run.evaluated, weights[0])
    known = [None if run.best is None else run.best.get("threshold")]  # chosen on the validation images
    if run.accelerator.num_processes > 1:
        broadcast_object_list(known)
    evaluation = evaluate_run(run, run.test_loader, known[0])
    if metrics is None:
        return
    run.test = evaluation.summary()
    metrics.write({"kind": "test", "step": run.step, "epoch": run.step / run.steps_per_epoch, **run.test})
    assert run.best is not None
    metric = run.recipe.measure
    usual = usual_measure(run.recipe.data.task)
    first = [usual] if metric == usual else [usual, metric]
    run.display.message(
        f"test images (measured once, with the weights of epoch {run.best['epoch']:g}): loss {_loss(evaluation)}  "
        f"{_accuracies(evaluation, metric)}; validation {', '.join(_told(run.best, name) for name in first)}"
    )


def evaluate_run(run: Run, loader: EvalLoader | None = None, threshold: float | None = None) -> Evaluation:
    """Evaluate the weights that the run would ship now, on the validation images or on those of ``loader``; with
    several labels an image, at ``threshold`` (None: the best one)."""
    share_buffers(run)
    loader = loader or run.eval_loader
    names = loader.images.names
    with run.computing():
        return evaluate(
            run.evaluated,
            loader,
            run.preprocessing,
            len(run.data.classes),
            run.device,
            run.precision,
            run.recipe.train.channels_last,
            names.__getitem__,
            one_by_one if run.shards is None else run.shards.map,
            run.recipe.measure,
            several=run.recipe.data.task == "multilabel",
            threshold=threshold,
        )


def _list_bad_images(run: Run, bad: Sequence[tuple[str, str]]) -> None:
    """List the skipped images and the reasons in ``bad_images.txt``, and print how many there are."""
    listed = [*run.data.unusable, *bad]
    path = run.folder / "bad_images.txt"
    if listed:
        write_text(path, "".join(f"{printable(name)}\t{printable(reason)}\n" for name, reason in listed))
    if bad:
        run.display.message(
            f"skipped {counted(len(bad), 'image')} that could not be read; see {path} (to stop instead: "
            "data.on_bad_train=stop data.on_bad_val=stop)"
        )


def bad_images(run: Run) -> dict[str, str]:
    """Path -> reason of every image that some process could not read, before the run was resumed, too. All processes
    must call this together."""
    met = list(run.bad_so_far().items())
    return dict(met if run.accelerator.num_processes == 1 else gather_object(met))


def finish(run: Run, seen: dict[str, str]) -> Results:
    """Write the results and curves, and print the closing lines. ``seen`` are the images that could not be read.

    Raises:
        NonFiniteLoss: no evaluation had finite logits for any image, so there are no best weights and no results.
    """
    if len(seen) > len(run.data.bad):
        _list_bad_images(run, list(seen.items()))
    if run.best is None:
        raise NonFiniteLoss(
            "no validation image had finite logits in any evaluation, so there are no weights to keep and no results; "
            f"{last_good(run)}"
        )
    results = _results(run, len(seen))
    write_json(run.folder / "results.json", results)
    if results["not_finite"]:
        told = sentence(results["not_finite"], run.best["images"], run.best.get("first_not_finite"))
        run.display.message(f"warning: with the weights that are kept, {told}")
    with dispensable("curves.png", run.display.message):
        draw_curves(run.folder, f"{run.recipe.name}: {run.model.model_name}", run.recipe.measure)
    _compare_with_start(run)
    run.display.message(f"finished {run.step} steps in {format_seconds(run.seconds)}")
    return results


def _compare_with_start(run: Run) -> None:
    """If the weights were evaluated before the first step, say whether fine-tuning improved on them."""
    evals = [r for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "eval"]
    if run.best is None or not evals or evals[0]["epoch"] != 0:
        return
    start = "the linear probe" if run.recipe.train.probe else "the network it started from"
    metric = run.recipe.measure
    measure, best, first = MEASURES[metric], run.best, cast(Mapping[str, Any], evals[0])
    before, last = (measure.text(cast(Mapping[str, Any], record).get(metric)) for record in (first, evals[-1]))
    if best["epoch"] == 0:
        kept = "the probe's weights" if run.recipe.train.probe else "those weights"
        told = f"({_told(first, metric)}; last epoch {last})"
        run.display.message(f"fine-tuning did not beat {start} {told}: {kept} are kept")
    elif cast(Mapping[str, Any], best).get(metric) == first.get(metric):
        run.display.message(f"fine-tuning matches {start} ({_told(first, metric)}), with a smaller loss")
    else:
        way = "up" if measure.larger else "down"
        run.display.message(f"fine-tuning: {_told(best, metric)}, {way} from {before} with {start}")


def _speed(run: Run) -> tuple[float | None, float]:
    """Median milliseconds per step over all records except warm-ups (None if there are none); total compile seconds."""
    records = [r for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "train"]
    # Added up from the records, so that a resumed run counts the time before it was stopped, too.
    return usual_ms(records), sum(r.get("compile_seconds") or 0.0 for r in records)


def _results(run: Run, bad: int) -> Results:
    """The contents of ``results.json``."""
    assert run.best is not None
    evals = [r for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "eval"]
    if not evals or evals[-1]["step"] != run.step:  # the last epoch is always evaluated
        raise ExciteError(
            f"{run.folder / 'metrics.jsonl'} no longer has the last evaluation (was it deleted or changed?), so there "
            f"are no results; the weights are as they were: excite validate {run.folder}"
        )
    last, metric = cast(Mapping[str, Any], evals[-1]), run.recipe.measure
    size = describe(run.model.model_name, **run.model.model_args)
    ms, compiled = _speed(run)
    batch = run.recipe.train.batch_size
    results: Results = {
        "run": str(run.folder),
        "recipe": run.recipe.name,
        "model": run.model.model_name,
        "params_m": size["params"] / 1e6,
        "gmacs": size["gmacs"],
        "devices": run.accelerator.num_processes,
        "device": device_name(run.device),
        "precision": run.precision,
        "batch_size": batch,
        "resolution": by_text(run.preprocessing.size),
        "compile_seconds": compiled,
        "ms_per_step": ms,
        "images_per_second": None if ms is None else 1000 * batch / ms,
        "top1": run.best["top1"],
        "top5": run.best["top5"],
        "loss": run.best["loss"],
        # The best epoch was chosen on these images, which flatters it; the last epoch was not chosen.
        "last_top1": last["top1"],
        "last_top5": last["top5"],
        "last_balanced": last.get("balanced"),
        "last_metric": last.get(metric),
        "metric": metric,
        "balanced": run.best.get("balanced"),
        "macro_f1": run.best.get("macro_f1"),
        "images": run.best["images"],
        "measured": "test" if run.data.val_is_test else "validation",
        "uneven": uneven(class_counts(run.data.val, len(run.data.classes)).tolist()),
        "test_top1": None if run.test is None else run.test["top1"],
        "test_top5": None if run.test is None else run.test["top5"],
        "test_loss": None if run.test is None else run.test["loss"],
        "test_balanced": None if run.test is None else run.test.get("balanced"),
        "test_metric": None if run.test is None else cast(Mapping[str, Any], run.test).get(metric),
        "test_images": None if run.test is None else run.test["images"],
        "stopped_early": run.step < run.total_steps,
        "last_epoch": run.step / run.steps_per_epoch,
        "best_epoch": run.best["epoch"],
        "epochs": run.recipe.train.epochs,
        "train_seconds": run.seconds,
        "memory_gb": peak_memory_gb(run.device),
        "skipped_steps": int(run.scaler.skipped.item()),
        # Images without finite logits count as wrong: see excite.logits. Runs of old versions did not record them.
        "not_finite": run.best.get("not_finite", 0),
        "last_not_finite": last.get("not_finite", 0),
        "bad_images": bad,
        "data_fingerprint": run.data.fingerprint,
    }
    best = cast(Mapping[str, Any], run.best)
    several = {key: best[key] for key in ("map", "micro_f1", "threshold") if key in best}
    return cast(Results, {**results, **several, metric: best.get(metric)})
