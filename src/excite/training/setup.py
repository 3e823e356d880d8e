"""From a recipe to everything the loop needs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from excite.data import BatchAugment, DataSets, EvalLoader, Preprocessing, TrainLoader, open_data
from excite.errors import ExciteError
from excite.models import Classifier, create_model
from excite.recipe import Recipe
from excite.training import checkpoint as ckpt
from excite.training.device import Precision, choose_precision, keep_freed_memory, seed_everything
from excite.training.display import Display
from excite.training.ema import Ema
from excite.training.optimizer import LossScaler, freeze, make_optimizer
from excite.training.run_folder import versions


@dataclass
class Run:
    """All parts of one training run. ``step`` counts optimiser steps done; everything else follows from it."""

    recipe: Recipe
    accelerator: Accelerator
    precision: Precision
    data: DataSets
    preprocessing: Preprocessing
    train_loader: TrainLoader
    eval_loader: EvalLoader
    augment: BatchAugment
    model: Classifier
    net: nn.Module
    ema: Ema | None
    frozen_norms: list[nn.Module]
    optimizer: torch.optim.Optimizer
    scaler: LossScaler
    display: Display
    folder: Path = Path()
    step: int = 0
    best: dict[str, float] | None = None
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        return self.accelerator.device

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return self.train_loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Optimiser steps in the whole run."""
        return self.recipe.train.epochs * self.steps_per_epoch

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are evaluated and shipped: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def meta(self, metrics: dict[str, float] | None) -> dict[str, Any]:
        """What makes a weights file self-contained."""
        return {
            "model": {"name": self.model.model_name, "args": self.model.model_args},
            "classes": self.data.classes,
            "preprocessing": self.preprocessing.to_dict(),
            "recipe": self.recipe.model_dump(mode="json"),
            "metrics": metrics,
            "versions": versions(),
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "precision": self.precision,
        }

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights; plain values and tensors only."""
        return {
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else {},
            "best": self.best,
            "seconds": self.seconds,
            "fingerprint": self.data.fingerprint,
        }


def set_up(recipe: Recipe, display: Display, accelerator: Accelerator, resuming: bool = False) -> Run:
    """Build data, model, optimiser and the rest; the run folder (and, resuming, the weights) come later.

    Raises:
        ExciteError: the recipe asks for what cannot be.
    """
    config = recipe.train
    device, world = accelerator.device, accelerator.num_processes
    if config.batch_size % (world * config.grad_accumulation):
        raise ExciteError(
            f"train.batch_size ({config.batch_size}) must be a multiple of processes ({world}) x "
            f"train.grad_accumulation ({config.grad_accumulation})"
        )
    if device.type == "cpu":
        keep_freed_memory()
    precision = choose_precision(config.precision, device)
    data = open_data(recipe.data, recipe.augment)
    model, notes = make_model(recipe, data, resuming)
    frozen_norms = freeze(model, config.freeze)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    ema = Ema(model, config.ema_decay) if config.ema_decay else None
    net = accelerator.prepare_model(model)
    if config.compile != "off":
        net = torch.compile(net, mode=None if config.compile == "default" else config.compile)
    rank = accelerator.process_index
    return Run(
        recipe=recipe,
        accelerator=accelerator,
        precision=precision,
        data=data,
        preprocessing=data.preprocessing,
        train_loader=TrainLoader(
            data.train,
            batch_size=config.batch_size // world,
            seed=config.seed,
            device=device,
            augment=recipe.augment,
            data_config=recipe.data,
            rank=rank,
            world=world,
        ),
        eval_loader=EvalLoader(
            data.val, batch_size=recipe.eval.batch_size, device=device, data_config=recipe.data, rank=rank, world=world
        ),
        augment=BatchAugment(recipe.augment, data.mean, data.std, len(data.classes), memory_format=layout),
        model=model,
        net=net,
        ema=ema,
        frozen_norms=frozen_norms,
        optimizer=make_optimizer(model, recipe.optimizer),
        scaler=LossScaler(device.type, config, enabled=precision == "fp16"),
        display=display,
        notes=notes,
    )


def make_model(recipe: Recipe, data: DataSets, resuming: bool = False) -> tuple[Classifier, list[str]]:
    """The network of a recipe, with weights from its seed or ``train.init_from``, and what there is to tell of it."""
    seed_everything(recipe.train.seed)
    zero = (
        {"zero_init_last_gamma": True} if recipe.model.zero_init_last_gamma else {}
    )  # not every family has the option
    model = create_model(
        recipe.model.name,
        num_classes=len(data.classes),
        in_chans=recipe.data.in_chans,
        image_size=recipe.data.image_size,
        drop_rate=recipe.model.drop_rate,
        drop_path_rate=recipe.model.drop_path_rate,
        **{**zero, **recipe.model.options},
    )
    notes = []
    if recipe.train.init_from and not resuming:  # its own checkpoint has the weights; the source may be gone
        fresh = ckpt.init_from(model, recipe.train.init_from)
        kept = f"all but {', '.join(fresh)} (another number of classes)" if fresh else "all tensors"
        notes.append(f"weights from {recipe.train.init_from}: {kept}")
    if recipe.train.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return model, notes


def restore(run: Run) -> None:
    """Take up the latest checkpoint of the run's folder. Raises ExciteError where there is none or the data changed."""
    steps = ckpt.saved_steps(run.folder)
    if not steps:
        raise ExciteError(
            f"{run.folder} holds no checkpoint to resume from; start it anew with `excite train {run.folder}`"
        )
    folder = ckpt.step_folder(run.folder, steps[-1])
    state = ckpt.load_state(folder)
    for key, now, what in (
        ("fingerprint", run.data.fingerprint, "the training images are not those that this run was started with"),
        (
            "steps_per_epoch",
            run.steps_per_epoch,
            "the batch size or the number of images is not what this run was started with",
        ),
    ):
        if state[key] != now:
            raise ExciteError(f"{run.folder} cannot be resumed: {what} (then {state[key]}, now {now})")
    ckpt.load_into(run.model, ckpt.read_weights(folder / ckpt.WEIGHTS))
    if run.ema is not None:
        ckpt.load_into(run.ema.module, ckpt.read_weights(folder / ckpt.EMA))
    run.optimizer.load_state_dict(state["optimizer"])
    if run.scaler.is_enabled():
        run.scaler.load_state_dict(state["scaler"])
    run.step, run.best, run.seconds = state["step"], state["best"], state["seconds"]
