"""The contents of a report: the types that pass from the study to the page."""

from dataclasses import dataclass, field
from typing import Literal, NotRequired, TypedDict, final

import numpy as np

from excite.data.stored import PreprocessingValues
from excite.explain.rows import GateColumns
from excite.explain.run import Explanation
from excite.report.labels import LabelAnswers, LabelMistake
from excite.report.study import Answers, Curves
from excite.runtime.environment import Environment
from excite.training.results import Results

#: The key of the report in results.json.
KEY = "report"


class About(TypedDict):
    """The origin of the numbers.

    Attributes:
        is_run: whether the source has training metrics.
        finished: whether the run has results; None if the source is not a run.
        gated: whether the network has gates of excite.
        gates_of_timm: gates built by timm, which excite cannot explain.
        weights_sha256: hash of the weights file.
        epoch, step: how long these weights were trained.
        epochs: how long the recipe trains.
        data_fingerprint: fingerprint of the images measured.
        data_of_training: fingerprint of the validation images of the training; None if unknown.
        measured: the part of the data that was measured.
        notes: notes on the data, one sentence each.
        warning: warning about images without finite logits; None if there are none.
        classes: number of classes.
        command: the command that trains the network again; None if there is none.
        trained_as: the model's name in training, if its gates were changed afterwards.
        converted_from: the file that the weights were converted from, if any.
    """

    source: str
    is_run: bool
    finished: bool | None
    gated: bool
    gates_of_timm: list[str]
    weights_sha256: str
    epoch: float | None
    epochs: int
    step: int | None
    data_fingerprint: str
    data_of_training: str | None
    data_source: str
    training_images: int
    measured: str
    notes: list[str]
    validation_images: int
    warning: str | None
    unreadable_images: int
    classes: int
    preprocessing: PreprocessingValues
    precision: str
    device: str
    versions: dict[str, str]
    environment: Environment | None
    command: str | None
    trained_as: str | None
    converted_from: str | None


#: Keys that a report copies from results.json, in the order of its own JSON.
SUMMARY = (
    *("recipe", "model", "params_m", "gmacs", "devices", "device", "precision", "batch_size", "resolution"),
    *("compile_seconds", "ms_per_step", "images_per_second", "top1", "top5", "loss", "last_top1", "last_top5"),
    *("test_top1", "test_top5", "test_images", "measured", "images", "best_epoch", "epochs", "train_seconds"),
    *("metric", "balanced", "last_balanced", "last_metric", "uneven", "stopped_early", "last_epoch"),
    *("memory_gb", "skipped_steps", "bad_images", "data_fingerprint"),
)


#: The same with several labels an image: measures of these instead of accuracies.
LABEL_SUMMARY = (
    *(key for key in SUMMARY if "top1" not in key and "top5" not in key and "balanced" not in key and key != "uneven"),
    *("map", "macro_f1", "micro_f1", "threshold", "test_metric"),
)

#: What the robustness is of: top-1, or with several labels an image mAP.
RobustMeasure = Literal["top1", "map"]


class RobustnessRow(TypedDict):
    """One corruption at one severity: its strength in ``unit``, top-1 (or mAP) in percent, and the points of it
    lost."""

    corruption: str
    severity: int
    strength: float
    unit: str
    top1: NotRequired[float]
    map: NotRequired[float]
    lost: float
    not_finite: int


class Robustness(TypedDict):
    """Top-1 under corruptions, percent; with several labels an image, mAP, in ``clean_map`` and ``mean_map``.

    Attributes:
        images: number of images.
        seed: seed of their choice and of the noise.
        strengths_of: the source of the strengths: "CIFAR-10-C" or "ImageNet-C".
        clean_top1: top-1 on the same images without corruption.
        not_finite: number of these images without finite logits.
        mean_top1: mean top-1 over corruptions and severities.
    """

    images: int
    seed: int
    strengths_of: str
    clean_top1: NotRequired[float]
    clean_map: NotRequired[float]
    not_finite: int
    mean_top1: NotRequired[float]
    mean_map: NotRequired[float]
    rows: list[RobustnessRow]


def robust_measure(found: Robustness) -> RobustMeasure:
    """What it is of."""
    return "map" if "clean_map" in found else "top1"


def clean_of(found: Robustness) -> float:
    """The measure without corruption."""
    return found["clean_map"] if "clean_map" in found else found["clean_top1"]


def mean_of(found: Robustness) -> float:
    """The mean of the measure over corruptions and severities."""
    return found["mean_map"] if "mean_map" in found else found["mean_top1"]


class GateNumbers(GateColumns):
    """The scalar columns of ``excite explain``, and the number of channels that are the same for all images."""

    constant: int


class Gates(TypedDict):
    """Statistics of the gates over ``images`` images."""

    images: int
    rows: list[GateNumbers]


class SpeedRow(TypedDict):
    """Time of a pass over ``batch`` images: median and quartiles of ``steps`` passes, in milliseconds."""

    batch: int
    ms: float
    ms_low: float
    ms_high: float
    steps: int
    images_per_second: float


class Speed(TypedDict):
    """Speed of the network alone, and the device; ``form``: whether it is folded, and the precision."""

    device: str
    threads: int
    form: str
    rows: list[SpeedRow]


class Common(TypedDict):
    """What a report has on any task; None for parts that do not exist or were not requested."""

    about: About
    summary: Results
    curves: Curves | None
    robustness: Robustness | None
    gates: Gates | None
    speed: Speed


@final
class Numbers(Answers, Common):
    """All numbers of a report, see docs/report.md."""


@final
class LabelNumbers(Common):
    """All numbers of a report on images that may have several labels each, see docs/report.md."""

    labels: LabelAnswers
    mistakes: list[LabelMistake]


def not_finite_of(numbers: Numbers | LabelNumbers) -> int:
    """The number of images without finite logits."""
    if "labels" in numbers:
        return numbers["labels"]["accuracy"]["not_finite"]
    return numbers["accuracy"]["not_finite"]


@dataclass
class Study:
    """The contents of a page.

    Attributes:
        numbers: all numbers, ready for JSON; see docs/report.md.
        photographs: images of the mistakes, uint8 (H, W, C), in the same order.
        explanation: the study of the gates; None without gates, or if not requested.
        recipe: the recipe as YAML.
    """

    numbers: Numbers | LabelNumbers
    photographs: list[np.ndarray] = field(default_factory=list)
    explanation: Explanation | None = None
    recipe: str = ""
