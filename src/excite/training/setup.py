"""Builds everything the training loop needs from a recipe."""

import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from excite.console import Display
from excite.data import (
    ArrayImages,
    BatchAugment,
    DataSets,
    EvalLoader,
    FileImages,
    Preprocessing,
    TrainLoader,
    jpeg,
    open_data,
)
from excite.data.config import check_fit
from excite.data.formats import endings_of
from excite.data.pixels import FULL_WHITE
from excite.data.record import inherit
from excite.errors import ExciteError, first_line
from excite.gates import Gate
from excite.measures import MEASURES, superlative
from excite.models import Classifier, create_model
from excite.models.fastnet import FastNet
from excite.models.timm_models import PREFIX, check_plain_norms, images_of_timm, is_timm_model
from excite.ops import native
from excite.ops.sync_norm import convert_sync_batchnorm
from excite.progress import Slowly
from excite.recipe import Recipe, chosen_by_test
from excite.runtime.device import (
    Precision,
    choose_precision,
    has_sync_batchnorm,
    keep_freed_memory,
    one_thread,
    precision_note,
    prepared,
    seed_everything,
)
from excite.runtime.environment import versions
from excite.runtime.workers import spread_workers
from excite.size import Size, as_size, by_text, size_text
from excite.training import checkpoint as ckpt
from excite.training.batch_parts import check_batch_norms
from excite.training.compilation import compile_model
from excite.training.ema import Ema
from excite.training.lookahead import Lookahead
from excite.training.loss import ALIKE, ByClass
from excite.training.optimizer import THAWS_AT, LossScaler, freeze, freeze_from, make_optimizer
from excite.training.precision import BufferGuard, set_norm_precision, settle_precision
from excite.training.rare import by_class
from excite.training.rare import notes as rare_notes
from excite.training.results import Best, Summary
from excite.training.saver import Saver, copied_values
from excite.training.schedule import beyond_the_end
from excite.training.shards import Shards, count_shards, draws, obstacle
from excite.training.start import Taken, fit_freeze, fit_images, resolved, take_weights, with_images
from excite.training.teacher import Teacher, open_teacher
from excite.weights.header import Meta, RecipeMeta


@dataclass
class Run:
    """All parts of one training run. ``step`` counts the optimiser steps done so far; the rest follows from it."""

    recipe: Recipe
    accelerator: Accelerator
    precision: Precision
    data: DataSets
    preprocessing: Preprocessing
    train_loader: TrainLoader
    eval_loader: EvalLoader
    test_loader: EvalLoader | None
    augment: BatchAugment
    model: Classifier
    net: nn.Module
    ema: Ema | None
    frozen_norms: list[nn.Module]
    optimizer: torch.optim.Optimizer
    scaler: LossScaler
    buffers: BufferGuard | None
    display: Display
    by_class: ByClass = ALIKE
    teacher: Teacher | None = None
    folder: Path = Path()
    identity: str = ""
    step: int = 0
    best: Best | None = None
    test: Summary | None = None
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    keeps_head: bool = False
    lookahead: Lookahead | None = None
    shards: Shards | None = None  # how steps are computed if the weights must not depend on the layout
    saver: Saver = field(default_factory=Saver)
    measured_at: tuple[int, Summary] | None = None  # the last evaluation of this process, and its step
    evaluated_at: int = 0  # the last step whose evaluation is done; -1: not even that of the start, which is due
    bad_before: dict[str, str] = field(default_factory=dict)  # broken images met before the run was resumed
    best_lost: bool = False  # whether its best weights were not found when it was resumed
    changed_since: str = ""  # the recipe (YAML) of the checkpoint it was resumed from, if it was another one
    changed_keys: str = ""  # what differs from it and affects the weights, in words

    @property
    def device(self) -> torch.device:
        """The device that this process trains on."""
        return self.accelerator.device

    def computing(self) -> AbstractContextManager[None]:
        """Context of everything that the weights depend on."""
        return nullcontext() if self.shards is None else one_thread()

    def spare_gradients(self, epoch: int) -> None:
        """Compute no gradients of parameters that are frozen from this epoch on (``train.freeze_from``). DDP, compiled
        graphs and shards expect them nevertheless; a step then ignores them."""
        if self.accelerator.num_processes > 1 or self.shards is not None or self.recipe.train.compile != "off":
            return
        for group in self.optimizer.param_groups:
            if epoch >= group.get("freezes_at", math.inf):
                for parameter in group["params"]:
                    parameter.requires_grad_(False)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return self.train_loader.steps_per_epoch

    @property
    def training_size(self) -> Size:
        """Height and width of the images of the next step; a function of its epoch (``train.progressive``)."""
        return self.recipe.training_size(self.step // self.steps_per_epoch)

    @property
    def total_steps(self) -> int:
        """Optimiser steps in the whole run."""
        return self.recipe.train.epochs * self.steps_per_epoch

    @property
    def owes_evaluation(self) -> bool:
        """Whether an evaluation is due at this step and not done yet."""
        epoch, inside = divmod(self.step, self.steps_per_epoch)
        due = epoch in (0, self.recipe.train.epochs) or epoch % self.recipe.eval.every_epochs == 0
        return not inside and due and self.evaluated_at != self.step

    @property
    def since_best(self) -> int:
        """How many evaluations have been made since the best one, or since the start if none was good. It follows from
        steps that checkpoints hold; only the first process knows the best."""
        epoch = 0 if self.best is None else int(self.best["epoch"])
        every = self.recipe.eval.every_epochs
        return self.step // self.steps_per_epoch // every - epoch // every

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and shipped: the moving average (EMA) if there is one."""
        return self.model if self.ema is None else self.ema.module

    def meta(self, metrics: Summary | None) -> Meta:
        """The metadata that makes a weights file self-contained."""
        return {
            "model": {"name": self.model.model_name, "args": self.model.model_args},
            "classes": self.data.classes,
            "preprocessing": self.preprocessing.to_dict(),
            "recipe": self.recipe_values(),
            "metrics": metrics,
            "versions": versions(),
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "precision": self.precision,
        }

    def recipe_values(self) -> RecipeMeta:
        """The recipe with detected values filled in, so that the data is always read in the same way."""
        values = cast(RecipeMeta, self.recipe.model_dump(mode="json"))
        if self.preprocessing.white != FULL_WHITE:
            values["data"]["white"] = self.preprocessing.white
        return values

    def metrics(self) -> Summary | None:
        """The evaluation of the present weights; None if they have not been evaluated."""
        return self.measured_at[1] if self.measured_at is not None and self.measured_at[0] == self.step else None

    @property
    def trained_names(self) -> list[str]:
        """Names of the optimiser's parameters, in its order."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]

    def bad_so_far(self) -> dict[str, str]:
        """Path -> reason of the images that could not be read, as far as this process knows."""
        loaders = [self.train_loader, self.eval_loader, *([self.test_loader] if self.test_loader else [])]
        return {**self.bad_before, **dict(self.data.bad), **{k: v for one in loaders for k, v in one.bad}}

    def snapshot(self) -> ckpt.Snapshot:
        """A copy of everything that a checkpoint holds."""
        metrics = self.metrics()
        state: ckpt.State = {
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "optimizer": self.optimizer.state_dict(),
            "parameters": self.trained_names,
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else {},
            "best": self.best,
            "fingerprint": self.data.fingerprint,
            "parts": self.data.parts,
            "bad": self.bad_so_far(),
            "evaluated": self.evaluated_at,
        }
        if self.teacher is not None:
            state["teacher"] = self.teacher.digest
        if self.lookahead is not None:
            state["lookahead"] = self.lookahead.slow
        ema = None if self.ema is None else self.saver.copy(self.step, self.ema.module)
        return ckpt.Snapshot(
            state=copied_values(state),
            model=self.saver.copy(self.step, self.model),
            meta=self.meta(metrics if ema is None else None),  # with a moving average, that is what was evaluated
            ema=ema,
            ema_meta=self.meta(metrics),
            seconds=self.seconds,
            run_id=self.identity,
        )


def set_up(
    recipe: Recipe, display: Display, accelerator: Accelerator, resuming: bool = False, data: DataSets | None = None
) -> Run:
    """Build the data, model, optimiser and the rest. The run folder, and the weights of a resumed run, come later.

    Args:
        recipe: the recipe of the run.
        display: where messages go.
        accelerator: device and processes.
        resuming: whether the weights will come from a checkpoint.
        data: used instead of the recipe's data, for timing steps.

    Raises:
        ExciteError: the recipe cannot be carried out on this machine or with this data.
    """
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    recipe = settle_precision(recipe, device)
    config = recipe.train
    check_fit(recipe.data, recipe.augment)
    if config.batch_size % (world * config.grad_accumulation):
        raise ExciteError(
            f"train.batch_size ({config.batch_size}) must be a multiple of processes ({world}) x "
            f"train.grad_accumulation ({config.grad_accumulation})"
        )
    if device.type == "cpu":
        keep_freed_memory()
        spread_workers()
    choose_precision(config.precision, device)  # report an impossible precision before opening the images
    data = _open_images(recipe, display) if data is None else data
    terms = by_class(recipe, data, device)
    chosen_by = _measures_note(recipe, data)
    model, taken, notes = _make_model(recipe, data, resuming)
    if data.record is not None and recipe.train.init_from and (note := inherit(data.record, recipe.train.init_from)):
        notes.append(note)
    precision = choose_precision(config.precision, device, model)
    use, told = fit_images(recipe, data.preprocessing, taken)
    data = replace(data, preprocessing=with_images(data.preprocessing, use))
    asked_for_probe = recipe.train.probe
    recipe = resolved(recipe, taken, use)
    teacher = None if recipe.train.teacher is None else open_teacher(recipe, data, device)
    patterns, adapted = fit_freeze(model, config.freeze)
    notes += [*told, *([adapted] if adapted and not resuming else [])]
    count, note = _fixed_shards(recipe, model, accelerator)
    notes += [note] if note else []
    _share_norms(model, count, config.sync_bn and world > 1, device)  # before anything else refers to the norms
    frozen_norms = freeze(model, patterns, config.freeze_epochs)
    notes += _frozen_at_random(model, recipe, resuming)
    freeze_from(model, config.freeze_from)
    train_loader = TrainLoader(
        data.train,
        batch_size=config.batch_size // world,
        seed=config.seed,
        device=device,
        augment=recipe.augment,
        data_config=recipe.data,
        rank=rank,
        world=world,
        shards=None if count is None else count // world,
    )
    check_batch_norms(model, recipe, train_loader, frozen_norms)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    set_norm_precision(model, config.norm_precision, precision)
    ema = Ema(model, config.ema_decay) if config.ema_decay else None
    net = _compiled(accelerator, model, config.compile) if count is None else model

    evaluating = partial(_eval_loader, recipe, accelerator, count is not None)
    before = [*_recipe_notes(recipe), *rare_notes(recipe, data, terms), *(teacher.notes if teacher else []), *chosen_by]
    about = (precision_note(precision, device), kernels_note(recipe, device), jpeg_note(data.train))
    notes = [*before, *notes, *(note for note in about if note)]
    return Run(
        recipe=recipe,
        accelerator=accelerator,
        precision=precision,
        data=data,
        preprocessing=data.preprocessing,
        train_loader=train_loader,
        eval_loader=evaluating(data.val),
        test_loader=None if data.test is None else evaluating(data.test),
        augment=BatchAugment(recipe.augment, data.mean, data.std, len(data.classes), memory_format=layout),
        model=model,
        net=net,
        ema=ema,
        frozen_norms=frozen_norms,
        optimizer=make_optimizer(model, recipe.optimizer),
        scaler=LossScaler(device.type, config, enabled=precision == "fp16"),
        buffers=BufferGuard(model) if precision == "fp16" else None,
        display=display,
        by_class=terms,
        teacher=teacher,
        lookahead=None if config.lookahead is None else Lookahead(model, config.lookahead),
        notes=notes,
        keeps_head=asked_for_probe and not recipe.train.probe,
        shards=None if count is None else Shards(model, count, accelerator, draws(model, _image(recipe))),
    )


def _share_norms(model: nn.Module, count: int | None, over_processes: bool, device: torch.device) -> None:
    """Have batch norms see the whole batch, if it is computed in several shards, or in several processes that share
    their norms (``train.sync_bn``)."""
    if count is not None and count > 1:
        convert_sync_batchnorm(model, native=False)
    elif over_processes:
        if is_timm_model(model):
            check_plain_norms(model)
        convert_sync_batchnorm(model, native=has_sync_batchnorm(device))


def _eval_loader(
    recipe: Recipe, accelerator: Accelerator, by_batch: bool, images: ArrayImages | FileImages
) -> EvalLoader:
    return EvalLoader(
        images,
        batch_size=recipe.eval.batch_size,
        device=accelerator.device,
        data_config=recipe.data,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        by_batch=by_batch,
    )


def _compiled(accelerator: Accelerator, model: nn.Module, mode: str) -> nn.Module:
    """The network as the training calls it: for all processes, and compiled."""
    with warnings.catch_warnings():  # the new name of broadcast_buffers is not in the oldest torch that we support
        warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
        return compile_model(prepared(accelerator, model), mode, accelerator.device)


def _measures_note(recipe: Recipe, data: DataSets) -> list[str]:
    """What chooses the best epoch and the end of the run, if it is not the usual: a sentence, or none.

    Raises:
        ExciteError: the test part would choose the end.
    """
    metric, patience = recipe.measure, recipe.train.patience
    if data.val_is_test:
        if patience is not None:
            raise ExciteError(chosen_by_test(patience))
        label = MEASURES[metric].label
        return [] if metric == "top1" else [f"eval.metric={metric}: {label} is shown, but nothing is chosen by it"]
    told = [] if metric == "top1" else [f"the best epoch is that of the {superlative(metric)} (eval.metric={metric})"]
    if patience is not None:
        times = f"after {patience:,} evaluations in a row" if patience > 1 else "after an evaluation"
        told.append(f"the run ends {times} without a new best (train.patience={patience})")
    return told


def _fixed_shards(recipe: Recipe, model: nn.Module, accelerator: Accelerator) -> tuple[int | None, str | None]:
    """The number of shards that steps are computed in, or None; and a sentence about what ``train.deterministic``
    promises here."""
    if not recipe.train.deterministic or accelerator.device.type != "cpu":
        return None, None
    world = accelerator.num_processes
    if why := obstacle(recipe, model, world, _image(recipe)):
        return None, f"deterministic: other numbers of processes or threads may give other weights, because {why}"
    count = count_shards(recipe)
    processes = ", ".join(str(1 << k) for k in range(count.bit_length()))
    many = f"{processes} processes (steps in {count} shards)" if count > 1 else "one process (steps in one shard)"
    return count, f"deterministic: the same weights with any number of threads and workers, and {many}"


def _check_sizes(model: Classifier, recipe: Recipe) -> None:
    """Raise ExciteError if the network cannot take the images of ``train.progressive``. It does not change."""
    model.eval()
    for _, size in recipe.train.sizes():
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                model(torch.zeros(1, recipe.data.in_chans, *size))
        except Exception as error:  # of any kind, from inside the network
            raise ExciteError(
                f"{recipe.model.name} cannot take images of {size_text(size)} (train.progressive): {first_line(error)}"
            ) from None
    model.train()


def _sizes_note(recipe: Recipe) -> list[str]:
    """What ``train.progressive`` does: a sentence, or none."""
    sizes = recipe.train.sizes()
    if not sizes:
        return []
    told = ", ".join(f"{by_text(size)} from epoch {begun + 1} on" for begun, size in sizes)
    height, width = as_size(recipe.data.image_size)
    other = [s for _, s in sizes if abs(s[0] * width - s[1] * height) >= max(height, width)]  # more than a pixel off
    distorts = (
        f". {by_text(other[0])} has another shape than data.image_size=[{height},{width}], so images are distorted: "
        "a size may be [height, width], too"
        if other
        else ""
    )
    return [
        f"train.progressive: training images are made smaller after augmentation, to {told}; evaluation sees "
        f"{by_text(recipe.data.evaluation_size)}. Times left are those of the present size{distorts}"
    ]


def _recipe_notes(recipe: Recipe) -> list[str]:
    """What is to be said of a recipe, whatever the data are."""
    return [*recipe.notes, *beyond_the_end(recipe), *_fit_notes(recipe), *_sizes_note(recipe)]


def _fit_notes(recipe: Recipe) -> list[str]:
    """What another ``data.fit`` than crop leaves unused, and where training and evaluation fit images differently."""
    data, notes = recipe.data, list[str]()
    if data.fit == "crop":
        return notes
    given = recipe.origin()["own"] is not None and recipe.is_own("data.crop_pct")
    if given or data.crop_pct != type(data).model_fields["crop_pct"].default:
        notes.append(f"data.crop_pct={data.crop_pct:g} is not used: data.fit={data.fit} crops nothing")
    if recipe.augment.crop == "random_resized":
        notes.append(
            f"data.fit={data.fit} is for evaluation: augment.crop=random_resized cuts parts out of the images as they "
            "are"
        )
    return notes


def _image(recipe: Recipe) -> tuple[int, int, int]:
    return recipe.data.in_chans, *recipe.smallest_size


def _open_images(recipe: Recipe, display: Display) -> DataSets:
    """Open the recipe's images and check every file. Raises ExciteError."""
    if recipe.data.part != "val":
        raise ExciteError(f"data.part={recipe.data.part} is only for measuring a trained network; train without it")
    return open_data(recipe.data, recipe.augment, check=True, progress=Slowly(display.message))


def gradient_exchange(recipe: Recipe) -> DistributedDataParallelKwargs:
    """The DDP settings for summing gradients over the processes.

    Gradients are views of the communication buckets, so nothing is copied. With a static graph, DDP need not search
    for unused parameters; ``torch.compile`` and gradient accumulation rule that out. Buffers are not broadcast at each
    step, because only those of the first process are evaluated or saved (:func:`share_buffers`).
    """
    config = recipe.train
    return DistributedDataParallelKwargs(
        broadcast_buffers=False,
        bucket_cap_mb=config.bucket_mb,
        gradient_as_bucket_view=True,
        static_graph=config.compile == "off" and config.grad_accumulation == 1,
    )


def share_buffers(run: Run) -> None:
    """Copy the first process's batch-norm statistics to all, so that every process evaluates the weights it saves."""
    if run.accelerator.num_processes == 1:
        return
    buffers = [b for b in run.evaluated.buffers() if b.is_floating_point()]
    if buffers:
        flat = broadcast(torch.cat([b.flatten() for b in buffers]))
        for buffer, values in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))


def kernels_note(recipe: Recipe, device: torch.device) -> str | None:
    """A sentence about the CPU kernels, or None. Builds them if they are wanted and not built yet."""
    if device.type != "cpu" or recipe.model.fused == "off" or not recipe.train.channels_last:
        return None
    if recipe.model.name.startswith(PREFIX):  # timm's modules do not use them
        return None
    if not native.available():
        return f"no CPU kernels ({native.why_not()}): using plain PyTorch, with the same results but slower"
    seconds = native.build_seconds()
    return None if seconds is None else f"CPU kernels compiled in {seconds:.1f} s; later runs reuse them"


def jpeg_note(images: ArrayImages | FileImages) -> str | None:
    """A sentence if JPEGs among these images are decoded slowly, or None. Builds the kernels if they are not built."""
    if not isinstance(images, FileImages) or not images.paths[0].lower().endswith(endings_of("JPEG")):
        return None
    if jpeg.available():
        return None
    return f"JPEGs are decoded whole ({jpeg.why_not()}): the pixels are the same, but it takes twice the time"


def make_model(recipe: Recipe, data: DataSets, resuming: bool = False) -> tuple[Classifier, list[str]]:
    """The network of a recipe, with weights from its seed or ``train.init_from``, and notes for the user."""
    model, _, notes = _make_model(recipe, data, resuming)
    return model, notes


def _make_model(recipe: Recipe, data: DataSets, resuming: bool) -> tuple[Classifier, Taken, list[str]]:
    seed_everything(recipe.train.seed)
    zero = (
        {"zero_init_last_gamma": True} if recipe.model.zero_init_last_gamma else {}
    )  # not every family has the option
    options = dict(recipe.model.options)
    pretrained = options.get("pretrained", False)
    if resuming:  # the checkpoint has the weights: download nothing
        options.pop("pretrained", None)
    model = create_model(
        recipe.model.name,
        num_classes=len(data.classes),
        in_chans=recipe.data.in_chans,
        image_size=recipe.data.image_size,
        drop_rate=recipe.model.drop_rate,
        drop_path_rate=recipe.model.drop_path_rate,
        fused=recipe.model.fused,
        **{**zero, **options},
    )
    _check_evaluation_size(model, recipe)
    taken = Taken([])
    if recipe.train.init_from and not resuming:  # its own checkpoint has the weights; the source may be gone
        taken = take_weights(model, recipe.train.init_from, data.classes, recipe.train.probe)
    elif pretrained and not resuming:
        taken = Taken([f"weights that timm has for {recipe.model.name}"], images_of_timm(model))
    if isinstance(model, FastNet) and not resuming and not recipe.train.init_from:
        with one_thread():
            model.start_from_images(_some_images(recipe, data))
    if recipe.train.grad_checkpointing:
        _checkpoint_gradients(model)
    return model, taken, taken.notes


#: Images that the first layer is computed from, where it is (as in Jordan, arXiv 2404.00498).
SOME_IMAGES = 5000


def _some_images(recipe: Recipe, data: DataSets) -> Iterator[Tensor]:
    """Training images at equal distances, because sources may be sorted by class, normalised: batches of float32
    (B, C, H, W). The same on every process."""
    positions = np.linspace(0, len(data.train) - 1, min(SOME_IMAGES, len(data.train))).astype(np.int64)
    some = data.train.take(positions)
    loader = EvalLoader(some, batch_size=100, device="cpu", data_config=recipe.data, rule="train")
    return (data.preprocessing.normalize(pixels) for pixels, _, _ in loader)


def _frozen_at_random(model: Classifier, recipe: Recipe, resuming: bool) -> list[str]:
    """A sentence if ``train.freeze`` holds weights that nothing has been learnt from, or none."""
    if not recipe.train.freeze or recipe.train.init_from or recipe.model.options.get("pretrained") or resuming:
        return []
    held = [n for n, p in model.named_parameters() if not p.requires_grad or hasattr(p, THAWS_AT)]
    own = {"conv1.weight"} if isinstance(model, FastNet) else set()  # from the images
    norms = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, _BatchNorm) for p in ("weight", "bias")}
    if not set(held) - own - norms:
        return []
    return ["train.freeze keeps randomly initialised weights frozen, because train.init_from is not set"]


def _checkpoint_gradients(model: Classifier) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):  # some of timm's models do not have it
        raise ExciteError(
            f"{model.model_name} does not support gradient checkpointing; set train.grad_checkpointing=false"
        ) from None


def _check_evaluation_size(model: Classifier, recipe: Recipe) -> None:
    """Some gates only take feature maps of one size: report that before the first epoch, not after it."""
    data = recipe.data
    bound = any(isinstance(m, Gate) and m.feature_size is not None for m in model.modules())
    if recipe.train.progressive is not None:
        if bound:
            raise ExciteError(
                f"train.progressive changes the size of the images, but the gather kernels of the gates of "
                f"{recipe.model.name} have the size of the feature map; use another gate or train.progressive=null"
            )
        _check_sizes(model, recipe)
    if bound and data.evaluation_size != data.training_size:
        raise ExciteError(
            f"data.eval_size ({data.eval_size}) must equal data.image_size ({data.image_size}) for "
            f"{recipe.model.name}: the gather kernels of its gates have the size of the feature map"
        )
