"""Recipes: the complete description of a run, as a strict YAML file and as a typed object.

Nothing heavy is imported, so that the command line can list, print, check and complete recipes instantly.
"""

import json
import math
import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from excite.data.catalog import SOURCES
from excite.data.config import AugmentConfig, DataConfig, ImageSize
from excite.errors import ExciteError, absence, nearest, no_path, shown, shown_text
from excite.hints import key_of
from excite.measures import MeasureName, usual_measure
from excite.options import NETWORK, NEUTRAL, Says
from excite.pages.inline import show_table
from excite.size import Size, as_size, plain_size, size_text
from excite.storage.address import is_remote

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, lt=1 << 31)]
Share = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[int, Field(ge=0, lt=1 << 31)]


#: A recipe or parts of one, as parsed from YAML; unchecked until :class:`Recipe` validates it.
Values = dict[str, Any]


class Origin(TypedDict):
    """Where a recipe comes from, as :meth:`Recipe.with_origin` takes it.

    Attributes:
        own: keys that the user set; None: all of them.
        notes: what was shortened or replaced, one sentence each.
        other_network: whether an override named another network than the recipe does.
    """

    own: list[str] | None
    notes: list[str]
    other_network: bool


class Section(BaseModel):
    """A section of a recipe: an unknown key or a wrong type is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The network."""

    name: Annotated[str, NETWORK] = Field(description="a name from `excite models`, or timm:NAME for a timm model")
    drop_rate: Share = Field(0.0, description="dropout probability before the classifier")
    drop_path_rate: Share = Field(
        0.0, description="stochastic depth: drop probability of the last block, rising linearly with depth"
    )
    zero_init_last_gamma: bool = Field(
        False, description="initialise the last norm of every residual branch with weight (gamma) zero"
    )
    fused: Annotated[Literal["auto", "on", "plain", "off"], NEUTRAL] = Field(
        "auto",
        description="norm, gate and activation in two passes: where faster, always, in plain PyTorch, or never",
    )
    options: Annotated[dict[str, Any], NETWORK] = Field(
        default_factory=dict, description="further arguments of create_model, such as gate options"
    )

    @field_validator("options")
    @classmethod
    def _not_said_elsewhere(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key, place in _SAID_ELSEWHERE.items():
            if key in options:
                raise ValueError(f"model.options: {key} does not belong there; {place}")
        return options


#: Arguments of create_model that have their own recipe keys.
_SAID_ELSEWHERE = {
    "num_classes": "the data determine it",
    "in_chans": "give data.in_chans",
    "image_size": "give data.image_size",
    **{key: f"give model.{key}" for key in ("drop_rate", "drop_path_rate", "zero_init_last_gamma", "fused")},
}


class OptimizerConfig(Section):
    """The optimiser and its parameter groups."""

    name: str = Field(
        "sgd",
        description="sgd, adamw, muon (convolutions by Muon, the rest by sgd), or an optimiser of the "
        "pytorch_optimizer library (lamb, lion, adan ...)",
    )
    lr: Positive = Field(0.1, description="peak learning rate, for the batch_size of this recipe")
    momentum: Share = Field(0.9, description="sgd, and the parameters that muon leaves to it")
    nesterov: bool = Field(False, description="sgd only; muon always has it")
    betas: list[Share] = Field(
        [0.9, 0.999], min_length=2, max_length=2, description="for optimisers of the Adam family"
    )
    weight_decay: NonNegative = Field(1e-4, description="L2 for sgd, decoupled for adamw")
    decay_norm_and_bias: bool = Field(True, description="false: no weight decay on norms and biases")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="layer-wise learning-rate decay: factor from each block to the one before it"
    )
    gate_lr_factor: Positive = Field(1.0, description="learning rate of the gates relative to the other layers")
    lr_factors: dict[str, Positive] = Field(
        default_factory=dict,
        description="learning rates relative to the others, by names or patterns of parameters, as in "
        "{'*.bias': 2, fc: 0.1}; the last that matches counts. How fast their weights decay stays the same",
    )
    clip_grad_norm: Positive | None = Field(None, description="maximum gradient norm; null: no clipping")
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of the optimiser")


class ScheduleConfig(Section):
    """The learning rate over time: warm-up from warmup_lr to the peak, then the named curve to end_lr."""

    name: Literal["cosine", "linear", "cosine_linear", "step", "multistep", "exponential", "polynomial", "constant"] = (
        Field("cosine", description="the curve after the warm-up")
    )
    unit: Literal["step", "epoch"] = Field("step", description="update the rate every step or every epoch")
    warmup_epochs: NonNegative = Field(0.0, description="length of the linear warm-up, in epochs")
    warmup_lr: NonNegative = Field(0.0, description="learning rate at the start of the warm-up")
    warmup_peak: Literal["last", "next"] = Field(
        "last", description="reach the peak in the last step (or epoch) of the warm-up, or in the next one after it"
    )
    end_lr: NonNegative = Field(0.0, description="learning rate at the end (cosine, linear, cosine_linear, polynomial)")
    milestones: list[Count] = Field(
        default_factory=list, description="multistep: numbers of epochs after which the rate is multiplied by gamma"
    )
    step_epochs: Count = Field(
        30, description="step, exponential: epochs in which the rate falls by a factor of gamma, at once or gradually"
    )
    gamma: Positive = Field(0.1, description="step, multistep, exponential: the decay factor")
    power: Positive = Field(2.0, description="polynomial: the exponent")


#: The gamma of the focal loss in its paper (Lin et al., arXiv 1708.02002).
FOCAL_GAMMA = 2.0


#: Temperature and share of the teacher's answers. Hinton et al. (arXiv 1503.02531, section 3) find temperatures of 2.5
#: to 4 best for small students.
DISTILL_TEMPERATURE, DISTILL_WEIGHT = 4.0, 0.5


class LookaheadConfig(Section):
    """Slow weights follow the trained ones, which then go on from them (Zhang et al., arXiv 1907.08610)."""

    every: Count = Field(5, description="steps from one average to the next")
    decay: Share = Field(0.8, description="share of the slow weights in each average, at the end of training")
    power: NonNegative = Field(
        0.0, description="over training, that share grows as (steps done / steps in all) to this power; 0: constant"
    )


class TrainConfig(Section):
    """How the network is trained."""

    epochs: Count = Field(description="passes over the training images")
    batch_size: Count = Field(128, description="images per optimiser step, over all devices and accumulated parts")
    grad_accumulation: Count = Field(1, description="split each batch into this many parts, run one after the other")
    scale_lr_to: Count | None = Field(
        None, description="train with this batch_size and scale the learning rates in proportion; null: as written"
    )
    loss: Literal["cross_entropy", "bce", "focal", "asymmetric"] = Field(
        "cross_entropy",
        description="bce: binary cross-entropy of each class on its own, averaged over the classes, which "
        "cross_entropy is, too, with several labels; focal: cross-entropy that counts images less the surer the "
        "network is of them; asymmetric: with several labels, for many classes that few images have",
    )
    focal_gamma: NonNegative = Field(
        FOCAL_GAMMA, description="loss=focal: the exponent of (1 - probability of the class); 0: cross-entropy"
    )
    class_weights: Literal["balanced"] | list[Positive] | None = Field(
        None,
        description="factors of the loss for each class, in the order of the classes, or balanced: all images / "
        "(classes x images of the class); they are scaled to a mean of 1 over the training images. With several labels "
        "they are those of images that have the class; balanced: images without it / images with it",
    )
    logit_adjustment: NonNegative = Field(
        0.0,
        description="cross_entropy: in training, add this times the logarithm of each class's share of the training "
        "images to its logit; 1: what theory says; 0: off",
    )
    progressive: list[tuple[NotNegative, ImageSize]] | None = Field(
        None,
        description="sizes of the training images over time, [epochs done, size] each, as in [[0,16],[4,24],[6,32]]; "
        "null: data.image_size. Augmentation works on whole images, which are then made smaller",
    )
    teacher: str | None = Field(
        None,
        description="run folder or checkpoint of a trained network with the same classes, whose answers the network "
        "learns, too (knowledge distillation); null: none",
    )
    distill_temperature: Positive = Field(
        DISTILL_TEMPERATURE,
        description="teacher: both networks' logits are divided by this, so that small probabilities count, too",
    )
    distill_weight: float = Field(
        DISTILL_WEIGHT, gt=0, le=1, description="teacher: share of its answers in the loss; the labels have the rest"
    )
    label_smoothing: Share = Field(0.0, description="fraction of the target spread evenly over all classes")
    ema_decay: Share = Field(
        0.0, description="decay of the moving average of the weights, which is evaluated and shipped; 0: none"
    )
    patience: Count | None = Field(
        None,
        description="end the run after this many evaluations in a row without a new best (eval.metric); null: never; "
        "the schedule is not shortened",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 if the device is fast at it, else fp32"
    )
    norm_precision: Literal["auto", "fp32", "same"] = Field(
        "auto", description="batch norm: float32 inside (auto), float32 output, too (fp32), or all in precision (same)"
    )
    loss_scale: Literal["dynamic"] | Positive = Field("dynamic", description="fp16: dynamic, or a fixed number")
    loss_scale_init: Positive = Field(65536.0, description="fp16, dynamic: initial loss scale")
    loss_scale_growth_interval: Count = Field(
        2000, description="fp16, dynamic: steps without overflow before the scale doubles"
    )
    loss_scale_hysteresis: Count = Field(
        1, description="fp16, dynamic: overflows since the last change before the scale is halved"
    )
    channels_last: Annotated[bool, NEUTRAL] = Field(
        True, description="NHWC memory layout: faster convolutions on CPU and GPU"
    )
    compile: Annotated[Literal["off", "default", "reduce-overhead", "max-autotune"], NEUTRAL] = Field(
        "off", description="torch.compile mode"
    )
    grad_checkpointing: Annotated[bool, NEUTRAL] = Field(
        False, description="recompute blocks in the backward pass: less memory, more time"
    )
    freeze: list[str] = Field(
        default_factory=list,
        description="parameters to freeze, names or patterns: [conv1, layer1*]; norms: all norms; !pattern: not these",
    )
    freeze_epochs: Count | None = Field(None, description="number of epochs to freeze them for; null: the whole run")
    freeze_from: dict[str, Count] = Field(
        default_factory=dict,
        description="parameters to freeze after so many epochs, by names or patterns, as in {conv1.bias: 3}",
    )
    lookahead: LookaheadConfig | None = Field(
        None, description="average the weights over time and go on from there {every, decay, power}; null: off"
    )
    init_from: str | None = Field(
        None, description="run folder or checkpoint to start from; with another number of classes, the head is new"
    )
    probe: bool = Field(
        False,
        description="if the head is new, start with a linear probe: the best head for init_from's unchanged features",
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = Field(
        0, description="seed of weights, image order, augmentation and dropout"
    )
    deterministic: bool = Field(
        False,
        description="the same bits each time: on a GPU with the same layout (slower), on a CPU with any number of "
        "threads and processes (see shards)",
    )
    shards: Count | None = Field(
        None,
        description="deterministic on a CPU: parts of a batch, a power of 2; null: 4, or fewer for odd batch sizes",
    )
    device: Annotated[str, NEUTRAL] = Field("auto", description="auto, cpu, cuda, npu, xpu or mps")
    devices: Annotated[Count | Literal["all"], NEUTRAL] = Field(
        1, description="processes to start on this machine, one per device, or all; torchrun starts its own"
    )
    sync_bn: bool = Field(False, description="batch-norm statistics over the images of all devices, not of each alone")
    bucket_mb: Annotated[Positive, NEUTRAL] = Field(
        25.0, description="size of the gradient buckets summed over the devices, in MB"
    )

    @field_validator("progressive", mode="before")
    @classmethod
    def _are_pairs(cls, given: Any) -> Any:
        if given is None:
            return None
        pairs = [tuple(pair) for pair in given if isinstance(pair, list | tuple)] if isinstance(given, list) else []
        if not pairs or len(pairs) != len(given) or any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                f"train.progressive is {shown(given)}, but must be a list of [epochs done, size], as in "
                "train.progressive=[[0,16],[4,24],[6,32]]"
            )
        return pairs

    @model_validator(mode="after")
    def _sizes_follow_each_other(self) -> "TrainConfig":
        begun = [epoch for epoch, _ in self.progressive or ()]
        if begun and (begun[0] != 0 or begun != sorted(set(begun))):
            raise ValueError(
                f"train.progressive begins at epochs {', '.join(map(str, begun))}, but must begin with 0 and count up"
            )
        if begun and begun[-1] >= self.epochs:
            raise ValueError(
                f"train.progressive has a size from epoch {begun[-1]} on, but there are train.epochs={self.epochs}; "
                "give smaller numbers"
            )
        return self

    def sizes(self) -> list[tuple[int, Size]]:
        """``progressive`` as (epochs done, (height, width)); [] if all images have the same size."""
        return [(begun, as_size(size)) for begun, size in self.progressive or ()]

    @field_validator("class_weights", mode="before")
    @classmethod
    def _are_weights(cls, weights: Any) -> Any:
        if weights is None or weights == "balanced":
            return weights
        if not isinstance(weights, list | tuple) or len(weights) < 2:
            raise ValueError(
                f"train.class_weights is {shown(weights)}, but must be balanced, null or a list of numbers, one for "
                "each class, as in train.class_weights=[1, 2.5]"
            )
        for weight in weights:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ValueError(f"every number of train.class_weights must be above 0, got {shown(weight)}")
        return list(weights)

    @field_validator("init_from", "teacher")
    @classmethod
    def _can_be_a_path(cls, source: str | None, info: ValidationInfo) -> str | None:
        if source is not None and not is_remote(source) and (why := no_path(source)) is not None:
            raise ValueError(f"train.{info.field_name}={shown_text(source)} {why}")
        return source

    @model_validator(mode="after")
    def _distillation_has_a_teacher(self) -> "TrainConfig":
        if self.teacher is None:
            for key, usual in (("distill_temperature", DISTILL_TEMPERATURE), ("distill_weight", DISTILL_WEIGHT)):
                if getattr(self, key) != usual:
                    raise ValueError(
                        f"train.{key}={getattr(self, key):g} needs a teacher: give train.teacher=RUN, or "
                        f"train.{key}={usual:g}"
                    )
        return self


def chosen_by_test(patience: int) -> str:
    """The sentence for a run that would end by its results on the test part."""
    return (
        f"train.patience={patience} would let the test part choose when to stop; data.val_from=train holds out "
        "training images to validate on, and train.patience=null trains all epochs"
    )


class EvalConfig(Section):
    """Evaluation during training."""

    metric: MeasureName | None = Field(
        None,
        description="what chooses the best epoch (and ends the run, with train.patience): top1, balanced (accuracy), "
        "macro_f1, auroc (a class against the rest, mean over classes), map, loss, top5; null: top1, or map with "
        "several labels",
    )
    every_epochs: Count = Field(1, description="evaluate every so many epochs, and after the last")
    batch_size: Annotated[Count, NEUTRAL] = Field(256, description="images at a time; does not affect the result")


class CheckpointConfig(Section):
    """Checkpoints saved during training, for --resume."""

    every_epochs: Count = Field(1, description="save every so many epochs, and after the last")
    every_steps: Count | None = Field(None, description="also save every so many steps within an epoch; null: never")
    every_minutes: Positive | None = Field(
        10.0, description="also save every so many minutes within an epoch; null: never"
    )
    keep_last: Count = Field(2, description="number of latest checkpoints to keep (the best is always kept)")


class LogConfig(Section):
    """What is logged during training."""

    every_steps: Count = Field(50, description="steps between two lines of metrics.jsonl")
    tensorboard: bool = Field(False, description="also write TensorBoard events into the run folder")


class ReportConfig(Section):
    """The page that `excite train` writes at the end of a run, and `excite report` at any time."""

    write: bool = Field(True, description="write report.html after training; an error in it never fails the run")
    robustness_images: Annotated[int, Field(ge=0, lt=1 << 31)] = Field(
        1000, description="validation images to blur, darken ... and evaluate 26 times, class-balanced; 0: none"
    )
    gate_images: Annotated[int, Field(ge=0, lt=1 << 31)] = Field(
        1000, description="validation images for the gate statistics, class-balanced; 0: none"
    )
    mistakes: Annotated[int, Field(ge=0, lt=1 << 31)] = Field(
        24, description="number of the most confident mistakes to show as pictures"
    )


#: Most characters of a recipe's name; file systems allow 255 bytes, and a time stamp is appended.
LONGEST_NAME = 100


def is_plain_name(name: str) -> bool:
    """Whether a text is safe as a folder name on every system and in every terminal."""
    fits = 0 < len(name) <= LONGEST_NAME and len(name.encode("utf-8", "surrogatepass")) <= 200
    return fits and name.isprintable() and name == name.strip() and name[0] not in ".-" and not set(name) & set("/\\")


def plain_name(name: str) -> str:
    """The closest plain name, for runs of earlier versions, which allowed any name."""
    kept = "".join(c if c.isprintable() and c not in "/\\" else "-" for c in name).lstrip(".- ")[:LONGEST_NAME].strip()
    return kept if is_plain_name(kept) else "recipe"


class Recipe(Section):
    """All settings of a run."""

    name: Annotated[str, NEUTRAL] = Field(description="name of the recipe; names of run folders start with it")
    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    checkpoint: Annotated[CheckpointConfig, NEUTRAL] = CheckpointConfig()
    log: Annotated[LogConfig, NEUTRAL] = LogConfig()
    report: Annotated[ReportConfig, NEUTRAL] = ReportConfig()
    #: Keys that the user set; None: all, as in the user's own file.
    _own: frozenset[str] | None = PrivateAttr(None)
    _notes: tuple[str, ...] = PrivateAttr(())
    #: Whether an override named another network than the recipe itself does.
    _other_network: bool = PrivateAttr(False)

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not is_plain_name(name):
            raise ValueError(
                f"name is {shown(name)}, but it becomes a folder name: at most {LONGEST_NAME} printable characters, "
                "without / and \\, not starting with a dot, dash or space; give another name, as in name=my-recipe"
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.schedule.warmup_epochs >= self.train.epochs and self.schedule.warmup_epochs > 0:
            raise ValueError(
                f"schedule.warmup_epochs ({self.schedule.warmup_epochs:g}) must be below train.epochs "
                f"({self.train.epochs}); schedule.warmup_epochs=0 turns it off"
            )
        if self.train.batch_size % self.train.grad_accumulation:
            raise ValueError(
                f"train.batch_size ({self.train.batch_size}) must be a multiple of train.grad_accumulation "
                f"({self.train.grad_accumulation})"
            )
        if self.train.shards is not None:
            if self.train.shards & (self.train.shards - 1):
                raise ValueError(f"train.shards ({self.train.shards}) must be a power of 2: 1, 2, 4, 8 and so on")
            if self.train.batch_size % (self.train.shards * self.train.grad_accumulation):
                raise ValueError(
                    f"train.batch_size ({self.train.batch_size}) must be a multiple of train.shards "
                    f"({self.train.shards}) x train.grad_accumulation ({self.train.grad_accumulation})"
                )
        for key, off in (("color_jitter", "null"), ("rand_augment", "null"), ("trivial_augment", "false")):
            if self.data.in_chans not in (1, 3) and getattr(self.augment, key):
                raise ValueError(
                    f"augment.{key} changes colours, which images of {self.data.in_chans} channels do not have; give "
                    f"augment.{key}={off}"
                )
        if self.train.batch_size % self.augment.repeats:
            raise ValueError(
                f"train.batch_size ({self.train.batch_size}) must be a multiple of augment.repeats "
                f"({self.augment.repeats})"
            )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Recipe":
        whole = self.data.training_size
        for _, size in self.train.sizes():
            if size[0] > whole[0] or size[1] > whole[1]:
                raise ValueError(
                    f"train.progressive has {size_text(size)}, but images are made smaller, never larger: give "
                    f"data.image_size={as_yaml(plain_size(size))} or smaller sizes (now data.image_size="
                    f"{as_yaml(self.data.image_size)})"
                )
        return self

    def training_size(self, epoch: int) -> Size:
        """Height and width of the images that the network is trained on after ``epoch`` epochs, in pixels."""
        sizes = [size for begun, size in self.train.sizes() if begun <= epoch]
        return sizes[-1] if sizes else self.data.training_size

    @property
    def smallest_size(self) -> Size:
        """The smallest of those sizes."""
        return min((size for _, size in self.train.sizes()), key=math.prod, default=self.data.training_size)

    @model_validator(mode="after")
    def _rare_classes_fit(self) -> "Recipe":
        """Refuse what has no effect, and what corrects for rare classes twice."""
        train, sampler = self.train, self.data.sampler
        if train.focal_gamma != FOCAL_GAMMA and train.loss != "focal":
            raise ValueError(f"train.focal_gamma={train.focal_gamma:g} needs train.loss=focal (now {train.loss})")
        if train.logit_adjustment and train.loss != "cross_entropy":
            raise ValueError(
                f"train.logit_adjustment={train.logit_adjustment:g} is for train.loss=cross_entropy, not {train.loss}; "
                "train.logit_adjustment=0 turns it off"
            )
        corrections = {
            f"data.sampler={sampler}": sampler is not None,
            "train.class_weights=balanced": train.class_weights == "balanced",
            f"train.logit_adjustment={train.logit_adjustment:g}": train.logit_adjustment > 0,
        }
        given = [word for word, there in corrections.items() if there]
        if len(given) > 1:
            keys = " or ".join(f"{word.partition('=')[0]}={'0' if 'logit' in word else 'null'}" for word in given)
            raise ValueError(
                f"{' and '.join(given)} would correct for rare classes {len(given)} times; choose one and turn off "
                f"the other{'s' if len(given) > 2 else ''} ({keys})"
            )
        several = self.data.task == "multilabel"
        if train.loss == "asymmetric" and not several:
            raise ValueError("train.loss=asymmetric is for images with several labels: task=multilabel")
        if several and train.logit_adjustment:
            raise ValueError("train.logit_adjustment is for images with one class each, not for task=multilabel")
        if several and self.eval.metric == "balanced":
            raise ValueError(
                "eval.metric=balanced is for images with one class each; with several labels, say macro_f1"
            )
        if train.patience is not None and self.data.val_from == "test":
            raise ValueError(chosen_by_test(train.patience))
        return self

    def __eq__(self, other: object) -> bool:
        """Whether all values are equal, whatever their origin."""
        return isinstance(other, Recipe) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # like the lists in it

    @property
    def measure(self) -> MeasureName:
        """What chooses the best epoch."""
        return self.eval.metric or usual_measure(self.data.task)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about values that were shortened or replaced when this recipe was made."""
        return self._notes

    def is_own(self, key: str) -> bool:
        """Whether the user set ``section.key``, on the command line or in a file of their own."""
        return self._own is None or key in self._own

    def with_origin(self, own: Iterable[str] | None, notes: Iterable[str], other_network: bool = False) -> "Recipe":
        """A copy of this recipe with the keys that the user set (None: all), the notes, and whether the network is not
        the recipe's own."""
        recipe = self.model_copy()
        recipe._own, recipe._notes = None if own is None else frozenset(own), tuple(notes)
        recipe._other_network = other_network
        return recipe

    @property
    def run_name(self) -> str:
        """First part of the run folder's name: the recipe's, then the network's where an override named another one."""
        if not self._other_network:
            return self.name
        network = self.model.name.replace(":", "-").replace("/", "-")[: LONGEST_NAME // 2]
        return plain_name(f"{self.name[: LONGEST_NAME - len(network) - 1]}-{network}")

    def origin(self) -> Origin:
        """The arguments of :meth:`with_origin`, ready for JSON; the YAML text does not include them."""
        own = None if self._own is None else sorted(self._own)
        return {"own": own, "notes": list(self._notes), "other_network": self._other_network}

    def changed(self, overrides: "Overrides", where: str = "recipe") -> "Recipe":
        """This recipe with ``key=value`` overrides, see :func:`apply_overrides`. Raises ExciteError."""
        if not overrides:
            return self
        values = self.model_dump(mode="json")
        return _put_together(values, override_words(overrides), where, self.origin())

    def replaced(self, key: str, value: Any, note: str) -> "Recipe":
        """This recipe with another value of ``section.key`` that the user did not set, and a note that says why."""
        values = self.model_dump(mode="json")
        section, name = key.split(".")
        values[section][name] = value
        return type(self).from_dict(values).with_origin(**self.origin() | {"notes": [*self._notes, note]})

    def scaled(self) -> tuple["Recipe", str | None]:
        """Apply ``train.scale_lr_to``: set the batch size and scale the learning rates.

        The peak, the warm-up's start and the end rate are multiplied by (new batch / batch of the recipe): linear
        scaling, Goyal et al., arXiv 1706.02677.

        Returns:
            The recipe with the new numbers and the key at null, so that a run folder's recipe is not scaled again; and
            a line that says what changed, or None if the key was null.
        """
        new, old = self.train.scale_lr_to, self.train.batch_size
        if new is None:
            return self, None
        values = self.model_dump(mode="json")
        values["train"] |= {"batch_size": new, "scale_lr_to": None}
        rates = {("optimizer", "lr"): "", ("schedule", "warmup_lr"): "warm-up from ", ("schedule", "end_lr"): "end "}
        changes = []
        for (section, key), what in rates.items():
            before = values[section][key]
            values[section][key] = before * new / old
            if before:
                changes.append(f"{what}{before:g} -> {values[section][key]:g}")
        note = f"train.scale_lr_to: batch {old} -> {new}, learning rate {', '.join(changes)}"
        return type(self).from_dict(values).with_origin(**self.origin()), note

    def to_yaml(self, changes_only: bool = False) -> str:
        """The recipe as commented YAML; ``Recipe.from_yaml`` gives the same object back.

        Args:
            changes_only: leave out values that equal their default, as in the files of the package.
        """
        lines = [f"name: {as_yaml(self.name)}"]
        for name, field in type(self).model_fields.items():
            section = getattr(self, name)
            if not isinstance(section, BaseModel):
                continue
            doc = (type(section).__doc__ or field.description or "").strip().split("\n")[0]
            values, entries = section.model_dump(mode="json"), []
            for key, sub in type(section).model_fields.items():
                default = ... if sub.is_required() else sub.get_default(call_default_factory=True)
                if changes_only and getattr(section, key) == default:
                    continue
                entry = f"  {key}: {as_yaml(values[key])}"
                entries.append(f"{entry:<40}  # {sub.description}" if sub.description else entry)
            lines += ["", f"{name}:  # {doc}", *entries] if entries else []
        return "\n".join(lines) + "\n"

    def _repr_html_(self) -> str:
        """A table for notebooks with the values that differ from the defaults."""
        values = parse_yaml(self.to_yaml(changes_only=True), self.name)
        rows = [
            (key, "  ".join(f"{k}: {as_yaml(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value))
            for key, value in values.items()
            if key != "name"
        ]
        return show_table(("", ""), rows, title=self.name, notes=self.notes)

    @classmethod
    def from_yaml(cls, text: str, where: str = "recipe") -> "Recipe":
        """Parse and check YAML text; ``where`` names its origin in error messages. Raises ExciteError."""
        return cls.from_dict(parse_yaml(text, where), where)

    @classmethod
    def from_dict(cls, values: Any, where: str = "recipe") -> "Recipe":
        """Check a mapping of sections. Raises ExciteError that names the wrong keys and what is allowed."""
        if not isinstance(values, dict):
            raise ExciteError(f"{where}: a recipe is a mapping of sections, not {type(values).__name__}")
        if (place := _long_text(values)) is not None:
            raise ExciteError(f"{where}: {shown_text(place)} is a text of more than {LONGEST_TEXT:,} characters")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = error.errors()
            more = f"; and {len(found) - _MOST_ERRORS} more" if len(found) > _MOST_ERRORS else ""
            raise ExciteError(f"{where}: " + "; ".join(_explain(e) for e in found[:_MOST_ERRORS]) + more) from None


def json_schema() -> str:
    """The JSON schema of a recipe, for editors that complete keys."""
    return json.dumps(Recipe.model_json_schema(), indent=2) + "\n"


#: Most characters of a text in a recipe; a name of a class may have as many in a header, and a path 4095.
LONGEST_TEXT = 10_000


def _long_text(value: Any, place: str = "it", depth: int = 0) -> str | None:
    """Where in a recipe an endless text stands, which later messages would repeat; None if nowhere."""
    if isinstance(value, str):
        return place if len(value) > LONGEST_TEXT else None
    if depth > DEEPEST_YAML:  # what no file has, and no section takes
        return None
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = "" if place == "it" else f"{place}."
    return next(
        (found for key, each in parts if (found := _long_text(each, f"{inner}{key}", depth + 1)) is not None), None
    )


# --- YAML ---------------------------------------------------------------------------------------------------------


#: Bounds of YAML text. A recipe has 5 levels, and some hundred values; a list of class names may have 20,000.
LONGEST_YAML, DEEPEST_YAML, MOST_VALUES = 2 << 20, 20, 100_000
#: YAML tags that are not resolved: YAML 1.1's booleans, and dates.
_NO_VALUES = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers (1e-4) and booleans (``off`` is a string), and without dates.

    It rejects keys given twice, merge keys, and values that are too many or nested too deep.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the base class
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NO_VALUES]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    count, depth = 0, 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.count, self.depth = self.count + 1, self.depth + 1
        if self.depth > DEEPEST_YAML:
            raise _beyond(f"it is nested more than {DEEPEST_YAML} deep", self.peek_event().start_mark)
        if self.count > MOST_VALUES:
            raise _beyond(f"it has more than {MOST_VALUES:,} values", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        _check_nodes(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "<< is not supported: write the keys out", key_node.start_mark
                )
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | None):
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key is a {type(key).__name__}", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {shown(key)} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _beyond(why: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, why, mark)


def _check_nodes(root: yaml.Node | None) -> None:
    """Reject aliases that expand to too many values, or that contain themselves."""
    sizes: dict[int, int] = {}

    def inner(node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.MappingNode):
            return [each for pair in node.value for each in pair]
        return list(node.value) if isinstance(node, yaml.SequenceNode) else []

    def measure(node: yaml.Node, depth: int) -> int:
        if depth > DEEPEST_YAML:
            raise _beyond(f"it is nested more than {DEEPEST_YAML} deep", node.start_mark)
        if id(node) not in sizes:
            sizes[id(node)] = 1 + sum(measure(each, depth + 1) for each in inner(node))
        if sizes[id(node)] > MOST_VALUES:
            raise _beyond(f"with its aliases written out it has more than {MOST_VALUES:,} values", node.start_mark)
        return sizes[id(node)]

    if root is not None:
        measure(root, 0)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$|^[-+]?\d[\d_]*\.[\d_]*$|^[-+]?\.(?:inf|Inf|INF)$|^\.nan$"
    ),
    list("-+0123456789."),
)


class _Shipped(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A loader for shipped recipes, which need no checks: libyaml reads all of them in 10 ms instead of 0.1 s.

    It resolves scalars like :class:`_Loader`.
    """

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML into strings, numbers, booleans, None, and lists and dicts of them.

    Args:
        text: the YAML text.
        where: its origin, which begins the error message.

    Raises:
        ExciteError: a syntax error (with its line), or any other kind of YAML value.
    """

    def wrong(why: str) -> ExciteError:
        return ExciteError(f"{where}: not valid YAML: {why}")

    if len(text) > LONGEST_YAML:
        raise wrong(f"it has {len(text):,} characters, and at most {LONGEST_YAML:,} are read")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        raise wrong(f"it holds the character U+{ord(text[error.position]):04X}, which YAML does not allow") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = shown_text(str(getattr(error, "problem", None) or error))
        raise ExciteError(f"{where}{line}: not valid YAML: {reason}") from None
    except RecursionError:
        raise wrong("it is nested too deep") from None
    except Exception as error:  # !!int abc, !!bool maybe, an integer of 5000 digits: PyYAML does not check first
        raise wrong(f"a value does not match its tag ({shown_text(str(error) or type(error).__name__)})") from None
    if (odd := _odd_value(value)) is not None:
        raise wrong(f"{shown(odd)} is a {type(odd).__name__}; only strings, numbers, lists and mappings are allowed")
    return value


def _odd_value(value: Any) -> Any:
    """A value that JSON does not have (bytes, sets, dates) or an integer beyond 64 bits; None if there is none."""
    if isinstance(value, dict):
        return next((odd for each in value.values() if (odd := _odd_value(each)) is not None), None)
    if isinstance(value, list):
        return next((odd for each in value if (odd := _odd_value(each)) is not None), None)
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return value
    return None if isinstance(value, str | int | float | None) else value


def as_yaml(value: Any) -> str:
    """A value as YAML on one line, as in a recipe or after ``key=``."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000, sort_keys=False, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


# --- errors -------------------------------------------------------------------------------------------------------


#: The most errors that a message lists, and the most characters of a validator's message.
_MOST_ERRORS, _LONGEST_CLAUSE = 8, 600


def _fields_at(location: tuple[int | str, ...]) -> dict[str, FieldInfo]:
    """The fields of the section that ``location`` points into."""
    model: Any = Recipe
    for part in location:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            break
        model = inner
    return dict(model.model_fields)


#: What others call the values of ours, where these do not resemble each other.
_SYNONYMS = {
    "ce": "cross_entropy",
    "crossentropy": "cross_entropy",
    "asl": "asymmetric",
    "f1": "macro_f1",
    "acc": "top1",
    "accuracy": "top1",
    "balanced_accuracy": "balanced",
    "roc_auc": "auroc",
    "auc": "auroc",
    "pad": "letterbox",
    "squash": "stretch",
    "squish": "stretch",
    "multi_label": "multilabel",
    "weighted": "balanced",
}


def _explain(error: ErrorDetails) -> str:
    """One pydantic error as a clause: which key, what is wrong, what is allowed."""
    location = error["loc"]
    key = ".".join(
        str(p) for p in location if not (isinstance(p, str) and re.search(r"[\[\]()-]|^(str|int|float|none)$", p))
    )
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(location[:-1])
        return f"unknown key {shown(key)}{nearest(str(location[-1]), allowed)} (allowed: {', '.join(allowed)})"
    key = shown_text(key)
    if error["type"] == "missing":
        return f"the key {key!r} is missing"
    if error["type"] == "literal_error":
        expected = error["ctx"]["expected"]
        names = re.findall(r"'([^']*)'", expected)
        given = str(error["input"])
        meant = _SYNONYMS.get(given.lower())
        near = f"; did you mean {meant!r}?" if meant in names else nearest(given, names)
        return f"{key} is {shown(error['input'])}{near} (allowed: {expected})"
    if error["type"] == "value_error":
        said = str(error["ctx"]["error"])
        return said if len(said) <= _LONGEST_CLAUSE else f"{said[: _LONGEST_CLAUSE - 4]} ..."
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{key} is {shown(error['input'])}, but {message.removeprefix('input ')}"


def says(key: str) -> str:
    """What a dotted key affects: "network", "neutral" or "training"; see :class:`excite.options.Says`."""
    model: type[BaseModel] = Recipe
    for part in key.split("."):
        field = model.model_fields.get(part)
        if field is None:  # below a mapping without a model of its own
            break
        found = next((mark.what for mark in field.metadata if isinstance(mark, Says)), None)
        if found is not None:
            return found
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        model = field.annotation
    return "training"


# --- where recipes come from ----------------------------------------------------------------------------------------


def list_recipes() -> list[str]:
    """The names of the recipes that come with the package, sorted."""
    folder = resources.files("excite") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _shipped_text(name: str) -> str:
    """The file of a shipped recipe: a header, and the values that differ from the defaults."""
    return (resources.files("excite") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def _shipped(name: str) -> "Recipe":
    return Recipe.from_dict(yaml.load(_shipped_text(name), Loader=_Shipped), name)


def recipe_title(name: str) -> str:
    """The one-line title of a shipped recipe."""
    return _shipped_text(name).split("\n", 1)[0].lstrip("# ").removeprefix(f"{name}: ")


def recipe_text(name_or_file: str) -> tuple[str, str]:
    """The text of a recipe and its origin.

    Args:
        name_or_file: a shipped recipe, whose defaults are then written out; or a YAML file or a run folder, local or at
            an address.

    Raises:
        ExciteError: there is no such recipe, or it cannot be read.
    """
    names = list_recipes()
    if name_or_file in names:
        text = _shipped_text(name_or_file)
        header = text[: text.index("\n\n")]
        return f"{header}\n\n{_shipped(name_or_file).to_yaml()}", name_or_file
    path = Path(_at_address(name_or_file) if is_remote(name_or_file) else name_or_file)
    if os.path.isdir(path):
        path = path / "recipe.yaml"
    if not os.path.isfile(path):  # unlike Path.is_file, it takes any text
        hint = nearest(name_or_file, names) or f": {absence(path, '`excite recipes` lists the recipes')}"
        raise ExciteError(f"there is no recipe, file or run folder {shown(name_or_file)}{hint}")
    try:
        if path.stat().st_size > 4 * LONGEST_YAML:  # a UTF-8 character has at most 4 bytes
            raise ExciteError(f"{path} cannot be read as a recipe: it has {path.stat().st_size:,} bytes")
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ExciteError(f"{path} cannot be read as a recipe: {error}") from None


def _at_address(url: str) -> str:
    """The local copy of the recipe at an address: the file itself, or ``recipe.yaml`` of a run folder."""
    from excite.storage import local_file

    return local_file(url if url.endswith((".yaml", ".yml")) else f"{url.rstrip('/')}/recipe.yaml")


#: Changes to a recipe: one or several ``key=value`` strings, or a mapping such as {"train.epochs": 10} or
#: {"train": {"epochs": 10}}.
Overrides = str | Sequence[str] | Mapping[str, object]


def override_words(overrides: Overrides | None) -> list[str]:
    """Convert changes of any form to ``key=value`` strings. A single string is one change.

    Raises:
        ExciteError: a value that no recipe can hold.
    """
    if overrides is None:
        return []
    if isinstance(overrides, str):
        return [overrides]
    if isinstance(overrides, Mapping):
        flat: dict[str, object] = {}
        for key, value in overrides.items():
            inner = value if isinstance(value, Mapping) and key in Recipe.model_fields else None
            flat |= {key: value} if inner is None else {f"{key}.{name}": each for name, each in inner.items()}
        return [f"{key}={_written(key, value)}" for key, value in flat.items()]
    for word in overrides:
        if not isinstance(word, str):
            raise ExciteError(f"{shown(word)} is not a recipe override; write key=value (for example train.epochs=10)")
    return list(overrides)


def _written(key: str, value: object) -> str:
    """A Python value as text for ``key=value``."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    value = value.item() if hasattr(value, "item") else value  # NumPy numbers
    if isinstance(value, str):
        try:
            if parse_yaml(value, key) == value:
                return value
        except ExciteError:  # the bare text is not YAML
            pass
    try:
        return as_yaml(list(value) if isinstance(value, tuple) else value)
    except yaml.YAMLError:
        raise ExciteError(
            f"{shown_text(key)} cannot be {shown(value)}: a recipe holds strings, numbers and lists"
        ) from None


def as_recipe(recipe: Recipe | str | os.PathLike[str], overrides: Overrides = ()) -> Recipe:
    """A recipe, or anything :func:`load_recipe` accepts, with changes applied. Raises ExciteError."""
    if isinstance(recipe, Recipe):
        return recipe.changed(overrides)
    return load_recipe(os.fspath(recipe), overrides)


def load_recipe(name_or_file: str, overrides: Overrides | None = None) -> Recipe:
    """Load a recipe and apply ``key=value`` overrides.

    Args:
        name_or_file: name of a shipped recipe, YAML file or run folder; the latter two may be at an address (s3://).
        overrides: ``section.key=value`` strings (without the section if the key is unique) with YAML values; or a
            single string, or a mapping of keys to values.

    Raises:
        ExciteError: no such recipe, invalid YAML, an unknown key, or a value of the wrong type.
    """
    words = override_words(overrides)
    if name_or_file in list_recipes():
        shipped = _shipped(name_or_file).model_dump(mode="json")
        return _put_together(shipped, words, name_or_file, {"own": [], "notes": [], "other_network": False})
    text, where = recipe_text(name_or_file)
    return _put_together(parse_yaml(text, where), words, where, {"own": None, "notes": [], "other_network": False})


def _put_together(values: Any, overrides: Sequence[str], where: str, origin: Origin) -> Recipe:
    """The recipe of ``values`` with overrides, which add to its ``origin``."""
    if not overrides or not isinstance(values, dict):
        return Recipe.from_dict(values, where).with_origin(**origin)
    typed = overridden(overrides)
    after = apply_overrides(values, overrides)
    shortened = _shortened(values, after, typed)
    recipe = Recipe.from_dict(after, where)
    model = values.get("model")
    written = model.get("name") if isinstance(model, dict) else None
    return recipe.with_origin(
        None if origin["own"] is None else {*origin["own"], *typed},
        [*origin["notes"], *([shortened] if shortened else [])],
        origin["other_network"] or recipe.model.name != written,
    )


def apply_overrides(values: Mapping[str, Any], overrides: Overrides) -> Values:
    """A copy of ``values`` with ``key=value`` overrides applied; the caller checks the result.

    A warm-up that no longer fits into ``train.epochs`` is shortened in proportion, unless the overrides set it.
    """
    before, overrides = values, override_words(overrides)
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    written = _train_value(values, "batch_size")
    for override in overrides:
        key, text = _key_and_text(override)
        path = _full_key(key).split(".")
        node = values
        for depth, part in enumerate(path[:-1]):
            inner = node.get(part)
            if inner is not None and not isinstance(inner, dict):
                above = shown_text(".".join(path[: depth + 1]))
                remedy = f"give {above}=VALUE" if depth else f"write its keys below {above}: in the recipe"
                raise ExciteError(
                    f"{shown_text('.'.join(path))} cannot be set: {above} is {shown(inner)}, not a mapping; {remedy}"
                )
            node[part] = dict(inner or {})
            node = node[part]
        node[path[-1]] = _override_value(text, key) if text else None
    typed = overridden(overrides)
    if "train.batch_size" in typed:
        _keep_reference_batch(values, written)
    if "train.epochs" in typed and "schedule.warmup_epochs" not in typed:
        _shorten_warm_up(before, values)
    return values


def _override_value(text: str, key: str) -> Any:
    """Parse the text after ``key=`` as YAML; with characters that YAML does not allow, as in a path that is not UTF-8,
    return it as it is."""
    try:
        yaml.reader.Reader(text)
    except yaml.reader.ReaderError:
        return text
    return parse_yaml(text, f"the value of {shown_text(key)}")


def _value(values: Mapping[str, Any], section: str, key: str) -> Any:
    part = values.get(section)
    return part.get(key) if isinstance(part, dict) else None


def _train_value(values: Mapping[str, Any], key: str) -> Any:
    return _value(values, "train", key)


def _shorten_warm_up(before: Mapping[str, Any], values: Values) -> None:
    """Scale the warm-up with ``train.epochs`` if it no longer fits; ``values`` is changed in place.

    If the rate changes once per epoch, the warm-up is rounded down to whole epochs.
    """
    warm_up, was = _value(before, "schedule", "warmup_epochs"), _train_value(before, "epochs")
    epochs = _train_value(values, "epochs")
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in (warm_up, was, epochs)):
        return  # validating the recipe reports the error
    if 0 < epochs <= warm_up < was:
        share = float(f"{warm_up * epochs / was:.6g}")
        if _value(values, "schedule", "unit") == "epoch":
            share = float(math.floor(share))
        values["schedule"] = {**values["schedule"], "warmup_epochs": share}


def _shortened(before: Values, after: Values, typed: Iterable[str]) -> str | None:
    """A note about a warm-up that :func:`apply_overrides` has shortened; None if it has not."""
    was, now = (_value(values, "schedule", "warmup_epochs") for values in (before, after))
    if was == now or any(key in typed for key in ("schedule", "schedule.warmup_epochs")):
        return None
    of, epochs = _train_value(before, "epochs"), _train_value(after, "epochs")
    what = f"shortened from {was:g} of {of} epochs to {now:g} of {epochs}"
    if not now:
        what = f"left out: {was:g} of {of} epochs is less than one of {epochs}"
    return f"the warm-up is {what} (schedule.warmup_epochs=... sets it)"


def _keep_reference_batch(values: Values, written: Any) -> None:
    """``batch_size=256 scale_lr_to=256`` means: scale from the batch that the recipe was written with.

    Overwriting that batch first would leave nothing to scale from, and the rate would stay the same: the very mistake
    that the key is meant to prevent. Two different numbers are an error.
    """
    batch, target = _train_value(values, "batch_size"), _train_value(values, "scale_lr_to")
    if target is None or written is None:
        return
    if batch not in (target, written):
        raise ExciteError(
            f"train.batch_size={batch} and train.scale_lr_to={target} contradict each other: scale_lr_to is the batch "
            f"to train with, and the learning rate is scaled to it from the recipe's {written}; give it alone"
        )
    values["train"]["batch_size"] = written


def flatten(values: Mapping[str, Any], prefix: str = "") -> Values:
    """Flatten nested mappings to dotted keys; an empty mapping has no keys, a list is one value."""
    flat: Values = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def overridden(overrides: Overrides) -> set[str]:
    """The full keys that the overrides set. Raises ExciteError for an unknown key."""
    return {_full_key(_key_and_text(override)[0]) for override in override_words(overrides)}


def elsewhere(trained: DataConfig, overrides: Overrides) -> list[str]:
    """The overrides with which a trained network is measured, and before them what else changes with ``data.root`` and
    ``data.source``: the source, if the root shows that it is another one; and keys that only its own source has.

    Args:
        trained: the data section of the network's recipe.
        overrides: what the user gives.

    Raises:
        ExciteError: an override has an unknown key.
    """
    from excite.data.root import source_of  # it needs Pillow, which lists of recipes do not load

    words = override_words(overrides)
    given = {_full_key(key): text for key, text in map(_key_and_text, words)}
    source, more = given.get("data.source", trained.source), []
    if "data.root" in given and "data.source" not in given and SOURCES[source].files:
        found = source_of(given["data.root"])
        if found is not None and found != source:
            source, more = found, [f"data.source={found}"]
    if source != trained.source:
        own = [key for key in ("sampler", "images", "columns") if f"data.{key}" not in given]
        more += [f"data.{key}=null" for key in own]  # a sampler has no part in measuring
    return [*more, *words]


def _key_and_text(override: str) -> tuple[str, str]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ExciteError(f"{shown(override)} is not of the form key=value (for example train.epochs=10)")
    return key.strip(), text


def is_override(word: str) -> bool:
    """Whether a word of the command line is ``key=value``, and not a path that contains "="."""
    return "=" in word and "/" not in word.partition("=")[0] and not os.path.exists(word)


def override_keys() -> list[str]:
    """Every ``section.key`` of a recipe."""
    return [
        f"{section}.{key}"
        for section in Recipe.model_fields
        for key in _fields_at((section,))
        if _fields_at((section,)) is not Recipe.model_fields and section != "name"
    ]


def override_flags() -> list[str]:
    """The ``section.key`` names whose values are true or false."""
    return [
        key for key in override_keys() if _fields_at((key.partition(".")[0],))[key.partition(".")[2]].annotation is bool
    ]


def override_values(key: str) -> list[str]:
    """Values of ``section.key``, as typed: its choices, or its default; [] for free text such as a path."""
    section, _, name = key.partition(".")
    field = _fields_at((section,))[name]
    found: list[str] = []
    for kind in (field.annotation, *typing.get_args(field.annotation)):
        if typing.get_origin(kind) is Literal:
            found += map(str, typing.get_args(kind))
        elif kind is bool:
            found += ["true", "false"]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if not found and isinstance(default, int | float | str):
        found = [as_yaml(default)]
    return list(dict.fromkeys(found))


def _sections(section: str) -> list[str]:
    return [key for key in override_keys() if key.startswith(f"{section}.")]


def _full_key(key: str) -> str:
    """``epochs`` -> ``train.epochs``; a full key, or a key of an options mapping, is unchanged. Raises ExciteError."""
    keys = override_keys()
    if key == "name" or key in keys or any(key.startswith(f"{k}.") for k in keys):
        return key
    matches = [k for k in keys if k.split(".")[1] == key]
    if f"train.{key}" in matches:  # batch_size means train.batch_size
        return f"train.{key}"
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ExciteError(f"the key {shown(key)} is in several sections: write {' or '.join(matches)}")
    here = key_of(key, keys)
    if key in Recipe.model_fields:
        raise ExciteError(
            f"{key} is a section, not a key: give one of its keys, as in {here or next(iter(_sections(key)))}=VALUE"
        )
    if here is not None:
        raise ExciteError(f"unknown key {shown(key)} in an override; did you mean {here!r}?")
    raise ExciteError(
        f"unknown key {shown(key)} in an override{nearest(key, [*keys, *(k.split('.')[1] for k in keys)])}"
    )
