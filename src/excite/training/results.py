"""The JSON that training writes: the lines of ``metrics.jsonl`` and the values of ``results.json``.

Accuracies are in percent and losses in nats (mean cross-entropy); times have their unit in the key. Files of older
versions lack some keys: readers use ``get`` for keys added after 0.1.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NotRequired, cast

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # the standard library's has no model in pydantic before Python 3.12

from excite.files import read_typed
from excite.measures import MeasureName
from excite.weights.header import Summary

#: The accuracy of one class, see ``Evaluation.per_class``. ("class" is a keyword, hence this form.)
#: With several labels an image, "top1" is the recall, and F1 and average precision are there, too.
ClassRow = TypedDict(
    "ClassRow",
    {
        "class": str,
        "images": int,
        "top1": float | None,
        "precision": float | None,
        "f1": NotRequired[float | None],
        "ap": NotRequired[float | None],
    },
)


class EvalRecord(Summary):
    """A line of ``metrics.jsonl`` for an evaluation. Kind "test" is that of the test part, after the last step."""

    kind: Literal["eval", "test"]
    step: int
    epoch: float


class TrainRecord(TypedDict):
    """A line of ``metrics.jsonl`` for a window of training steps.

    Attributes:
        loss: mean of the finite losses in the window; None if there are none.
        accuracy: top-1 on the augmented training images, percent; None if images are mixed.
        lr: learning rate before the factors of the parameter groups.
        data_wait: fraction of the time spent waiting for images.
        compile_seconds: time of ``torch.compile``, not counted in ``ms_per_step``.
        memory_gb: peak memory of the device; on a CPU, of the process.
        loss_scale: the current loss scale; None except in fp16.
        skipped_steps: steps skipped so far because of fp16 overflows.
        seconds: training time so far, including the time before the run was resumed.
        seconds_left: estimated time to the end of the run.
        warm_up: whether this is the first step after a start, whose time says nothing about speed.
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
    """The measurements alone, without step and epoch."""
    return cast(Summary, {key: value for key, value in best.items() if key not in ("step", "epoch")})


@with_config(ConfigDict(strict=True, extra="allow"))
class Results(TypedDict, total=False):
    """The contents of ``results.json``.

    Unknown values are None, for example in the report of a checkpoint without its run.

    Attributes:
        run: path of the run folder.
        recipe, model: name of the recipe and of the model.
        params_m: parameters in millions.
        gmacs: multiply-accumulates per image, 1e9.
        devices, device, precision, batch_size: how it was trained; the batch size is that of all devices together.
        resolution: "HxW" of the training images.
        compile_seconds: total time of ``torch.compile``.
        ms_per_step, images_per_second: medians over the training, without warm-up and compiling.
        metric: the measure that chose the best epoch (``eval.metric``).
        top1, top5, loss, balanced, macro_f1, auroc, images, not_finite, best_epoch: evaluation of the weights that are
            kept; ``auroc`` only if it is the metric.
        last_top1, last_top5, last_balanced, last_not_finite: evaluation of the last epoch, which was not chosen by its
            accuracy; ``last_metric`` is its value of the metric.
        measured: which images these are: "validation" or "test".
        uneven: whether their classes differ so much in size that balanced accuracy is shown beside top-1.
        test_top1, test_top5, test_loss, test_balanced, test_images: results on the test part; None if there is none.
            ``test_metric`` is its value of the metric.
        epochs, train_seconds, memory_gb, skipped_steps: length, time, peak memory and fp16 overflows of the training.
        stopped_early, last_epoch: whether ``train.patience`` ended it, and after which epoch it ended.
        bad_images: number of images that could not be read.
        data_fingerprint: hexadecimal hash that identifies the training images.
        report: values of the report; see ``excite.report.contents.Numbers``.
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
    map: NotRequired[float | None]
    micro_f1: NotRequired[float]
    threshold: NotRequired[float]
    top1: float | None
    top5: float | None
    loss: float | None
    last_top1: float | None
    last_top5: float | None
    last_balanced: float | None
    last_metric: float | None
    metric: MeasureName
    balanced: float | None
    macro_f1: float | None
    auroc: float | None
    images: int | None
    measured: str | None
    uneven: bool
    test_top1: float | None
    test_top5: float | None
    test_loss: float | None
    test_balanced: float | None
    test_metric: float | None
    test_images: int | None
    stopped_early: bool
    last_epoch: float
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
    """Read a run's ``results.json``. Raises ExciteError if it is damaged, with the command that writes it again.

    Args:
        path: the file.
        run: the user's name for the run (an address), if it is not its folder.
    """
    remedy = f"delete it, and `excite train --resume {run or path.parent}` writes it again"
    return read_typed(path, Results, remedy)
