"""What a training leaves as JSON: the lines of ``metrics.jsonl`` and the numbers of ``results.json``.

The keys are the field's: accuracies in percent, losses in nats (mean cross-entropy), times as their names say. Files of
older versions lack some keys: readers ask with ``get`` for what came later than 0.1.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # the standard library's has no model in pydantic before Python 3.12

from excite.files import read_typed
from excite.weights.header import Summary

#: A class's accuracy, see ``Evaluation.per_class``; "class" is a word of Python's.
ClassRow = TypedDict("ClassRow", {"class": str, "images": int, "top1": float | None, "precision": float | None})


class EvalRecord(Summary):
    """A line of ``metrics.jsonl`` after an evaluation; "test" is the one of the test part, after the last step."""

    kind: Literal["eval", "test"]
    step: int
    epoch: float


class TrainRecord(TypedDict):
    """A line of ``metrics.jsonl`` over a window of training steps.

    Attributes:
        loss: mean of the window's finite losses; None where there are none.
        accuracy: of the training images as they were augmented, percent; None where images are mixed.
        lr: learning rate before the factors of groups of parameters.
        data_wait: share of the time in which the device waited for images.
        compile_seconds: of ``torch.compile``, not counted in ``ms_per_step``.
        memory_gb: peak of the device's memory; on a CPU, of the process's.
        loss_scale: None but in fp16.
        skipped_steps: so far, by overflows of fp16.
        seconds, seconds_left: since the start of the run, all its processes' lives added; estimated to its end.
        warm_up: whether this is the first step after a start, whose time is no measure of speed.
    """

    kind: Literal["train"]
    step: int
    epoch: float
    loss: float | None
    accuracy: float | None
    lr: float
    images_per_second: float
    ms_per_step: float
    data_wait: float
    compile_seconds: float
    memory_gb: float
    loss_scale: float | None
    skipped_steps: int
    seconds: float
    seconds_left: float
    warm_up: bool


Record = TrainRecord | EvalRecord


class Best(Summary):
    """The evaluation whose weights are kept."""

    step: int
    epoch: float


def summary_of(best: Best) -> Summary:
    """What was measured, without the step at which it was."""
    return cast(Summary, {key: value for key, value in best.items() if key not in ("step", "epoch")})


@with_config(ConfigDict(strict=True, extra="allow"))
class Results(TypedDict, total=False):
    """The columns of the reference systems' tables, and what else identifies a result: ``results.json``.

    What is not known is None: of a checkpoint without its run, a report knows less.

    Attributes:
        run: the run folder; recipe, model: their names.
        params_m, gmacs: parameters, 1e6; multiply-accumulates of an image, 1e9.
        devices, device, precision, batch_size: of the training; the batch is that of all devices together.
        resolution: "HxW" of the training images.
        compile_seconds, ms_per_step, images_per_second: see :class:`TrainRecord`; medians over the whole training.
        top1, top5, loss, balanced, images, not_finite, best_epoch: of the weights that are kept.
        last_top1, last_top5, last_not_finite: of the last epoch, which was not chosen by its accuracy.
        measured: which images these are.
        test_top1, test_top5, test_loss, test_balanced, test_images: on the test part; None where there is none.
        epochs, train_seconds, memory_gb, skipped_steps: of the training.
        bad_images: how many could not be read.
        data_fingerprint: of the training images, hexadecimal.
        report: numbers of the report, see ``excite.report.contents.Numbers``.
    """

    run: str
    recipe: str | None
    model: str | None
    params_m: float | None
    gmacs: float | None
    devices: int | None
    device: str | None
    precision: str | None
    batch_size: int | None
    resolution: str | None
    compile_seconds: float | None
    ms_per_step: float | None
    images_per_second: float | None
    top1: float | None
    top5: float | None
    loss: float | None
    last_top1: float | None
    last_top5: float | None
    balanced: float | None
    images: int | None
    measured: str | None
    test_top1: float | None
    test_top5: float | None
    test_loss: float | None
    test_balanced: float | None
    test_images: int | None
    best_epoch: float | None
    epochs: int | None
    train_seconds: float | None
    memory_gb: float | None
    skipped_steps: int | None
    not_finite: int
    last_not_finite: int
    bad_images: int | None
    data_fingerprint: str | None
    report: Mapping[str, object]


def read_results(path: Path, run: str | Path | None = None) -> Results:
    """A run's ``results.json``. Raises ExciteError where it is damaged, with what to do about it.

    Args:
        path: the file.
        run: what the user calls the run, where that is not its folder: an address.
    """
    remedy = f"delete it, and `excite train --resume {run or path.parent}` writes it again"
    return read_typed(path, Results, remedy)
