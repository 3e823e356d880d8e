"""Checks that batch norm sees enough images at a time. Notation: N images, C channels, H x W positions."""

import copy
import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from excite.data import TrainLoader
from excite.errors import ExciteError
from excite.gates import Gate
from excite.recipe import Recipe
from excite.text import counted


class _OneValue(Exception):
    """A batch norm in training mode was given a single value per channel."""


def smallest_part(loader: TrainLoader, parts: int) -> int:
    """Number of images in the smallest of the ``parts`` that the loop cuts a process's batch into."""
    batch = loader.batch_size
    if not loader.drop_last:  # fewer images than a batch: a single step has them all
        batch = min(batch, len(loader.batch_indices(0, loader.steps_per_epoch - 1)))
    size = math.ceil(batch / parts)
    return batch % size or size


def check_batch_norms(model: nn.Module, recipe: Recipe, loader: TrainLoader, frozen: Collection[nn.Module]) -> None:
    """Refuse a recipe in which a batch norm gets a single value per channel, which has no variance.

    PyTorch would only fail in the first step or in the middle of the first epoch; the fused norms would divide by 0.

    Args:
        model: on the CPU, in float32. It is run on one image, and only if some part of a batch has just one.
        recipe: the recipe to train.
        loader: the loader of the training images.
        frozen: norms that are kept in eval mode while they are frozen.

    Raises:
        ExciteError: there is such a norm; the message names it and the keys to change.
    """
    config = recipe.train
    together = (config.sync_bn and loader.world > 1) or (loader.shards is not None and loader.shards * loader.world > 1)
    if together or smallest_part(loader, config.grad_accumulation) > 1:
        return
    thaws = config.freeze_epochs is not None and config.freeze_epochs < config.epochs
    names = {name for name, module in model.named_modules() if module in frozen and not thaws}
    found = first_with_one_value(model, (recipe.data.in_chans, *recipe.smallest_size), names)
    if found is not None:
        raise ExciteError(_sentence(model, found, recipe, loader))


def first_with_one_value(model: nn.Module, image: tuple[int, int, int], frozen: Collection[str] = ()) -> str | None:
    """The name of the first norm that gets a single value per channel from one image (C, H, W); None if there is none.

    ``model`` is on the CPU, in float32. Neither it nor the random state changes. ``frozen`` names modules in eval mode.
    """
    probe = copy.deepcopy(model).train()
    for module in probe.modules():
        if hasattr(type(module), "fused"):
            setattr(module, "fused", "off")  # noqa: B010 - so that norms are called as modules, hooks and all

    def watch(name: str, norm: _BatchNorm) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            if norm.training and inputs[0].numel() == inputs[0].shape[1]:
                raise _OneValue(name)

        norm.register_forward_pre_hook(hook)

    for name, module in probe.named_modules():
        if name in frozen:
            module.eval()
        elif isinstance(module, _BatchNorm):
            watch(name, module)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            probe(torch.zeros(1, *image))
    except _OneValue as one:
        return str(one)
    return None


def _sentence(model: nn.Module, name: str, recipe: Recipe, loader: TrainLoader) -> str:
    config, world = recipe.train, loader.world
    gates = [n for n, m in model.named_modules() if isinstance(m, Gate) and name.startswith(f"{n}.")]
    where = "of its gate " if gates else ""
    if loader.drop_last:
        shared = [f"{world} processes"] if world > 1 else []
        shared += [f"train.grad_accumulation={config.grad_accumulation}"] if config.grad_accumulation > 1 else []
        why = f"train.batch_size={config.batch_size}" + (f" shared by {' and '.join(shared)}" if shared else "")
        mend = [f"train.batch_size={2 * world * config.grad_accumulation} or more"]
    else:
        why = f"{len(loader.images)} training images in {counted(world * config.grad_accumulation, 'part')}"
        mend = ["more training images (data.limit_train?)"]
    mend += ["a smaller train.grad_accumulation"] if config.grad_accumulation > 1 else []
    mend += ["fewer devices", "train.sync_bn=true"] if world > 1 else []
    mend += ["a larger data.image_size"] if not gates else ["another gate or extent (model.options)"]
    return (
        f"the batch norm {name} {where}would get a single value per channel, which has no variance: one image at a "
        f"time ({why}); use {', or '.join(mend)}"
    )
