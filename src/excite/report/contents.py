"""What a report is made of, between the study that finds it and the page that shows it."""

from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from excite.data.stored import PreprocessingValues
from excite.explain.rows import GateColumns
from excite.explain.run import Explanation
from excite.report.study import Answers, Curves
from excite.runtime.environment import Environment
from excite.training.results import Results

#: The key in results.json.
KEY = "report"


class About(TypedDict):
    """Where the numbers come from.

    Attributes:
        is_run: whether there are metrics of a training; finished: whether it has results, None where it is no run.
        gated: whether there are gates of excite's; gates_of_timm: what timm built in, which excite cannot explain.
        weights_sha256: of the weights file.
        epoch, step: how long these weights were trained; epochs: how long the recipe trains.
        data_fingerprint: of the images measured; data_of_training: of the training, None where no run tells.
        measured: which part of the data; notes: what to know about it, a sentence each.
        warning: of images without finite logits; None where there are none.
        classes: how many.
        command: trains the network again; None where nothing does.
        trained_as: what the network was before a change that keeps its answers.
        converted_from: the file of weights from elsewhere.
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


#: What a report takes from results.json, in the order of its own JSON: the columns of the reference systems' tables,
#: and what goes with them.
SUMMARY = (
    *("recipe", "model", "params_m", "gmacs", "devices", "device", "precision", "batch_size", "resolution"),
    *("compile_seconds", "ms_per_step", "images_per_second", "top1", "top5", "loss", "last_top1", "last_top5"),
    *("test_top1", "test_top5", "test_images", "measured", "images", "best_epoch", "epochs", "train_seconds"),
    *("memory_gb", "skipped_steps", "bad_images", "data_fingerprint"),
)


class RobustnessRow(TypedDict):
    """One corruption at one severity: its strength in ``unit``, top-1 in percent, and how much of it is lost."""

    corruption: str
    severity: int
    strength: float
    unit: str
    top1: float
    lost: float
    not_finite: int


class Robustness(TypedDict):
    """Top-1 under corruptions, percent.

    Attributes:
        images: how many; seed: of their choice and of the noise.
        strengths_of: whose: "CIFAR-10-C" or "ImageNet-C".
        clean_top1, not_finite: on the same images as they are.
        mean_top1: over corruptions and severities.
    """

    images: int
    seed: int
    strengths_of: str
    clean_top1: float
    not_finite: int
    mean_top1: float
    rows: list[RobustnessRow]


class GateNumbers(GateColumns):
    """The scalar columns of ``excite explain``, and how many channels say the same for all images."""

    constant: int


class Gates(TypedDict):
    """What the gates do, over so many images."""

    images: int
    rows: list[GateNumbers]


class SpeedRow(TypedDict):
    """A pass over ``batch`` images: median and quartiles of ``steps`` passes."""

    batch: int
    ms: float
    ms_low: float
    ms_high: float
    steps: int
    images_per_second: float


class Speed(TypedDict):
    """How fast the network alone is, and where; ``form``: folded or not, and the precision."""

    device: str
    threads: int
    form: str
    rows: list[SpeedRow]


class Numbers(Answers):
    """All numbers of a report, see docs/report.md; None for what there is not, or what was not asked for."""

    about: About
    summary: Results
    curves: Curves | None
    robustness: Robustness | None
    gates: Gates | None
    speed: Speed


@dataclass
class Study:
    """All that a page is made of: ``numbers`` (JSON-able; see docs/report.md), and what is no number.

    Attributes:
        photographs: of the mistakes, uint8 (S, S, C), in their order.
        explanation: what the gates do; None without gates, or where it was not asked for.
        recipe: YAML.
    """

    numbers: Numbers
    photographs: list[np.ndarray] = field(default_factory=list)
    explanation: Explanation | None = None
    recipe: str = ""
