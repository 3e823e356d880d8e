"""One training step: augmentation, forward and backward pass, optimiser, moving average."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from excite.logits import hits
from excite.runtime.device import DTYPES, seed_everything
from excite.training.loss import training_loss
from excite.training.optimizer import rate_of
from excite.training.schedule import learning_rate
from excite.training.setup import Run
from excite.training.shards import Shards


def train_step(run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One optimiser step on this process's share of the batch. It never waits for the device.

    Args:
        run: the run to advance; its ``step`` is left as it is.
        images: (B, C, H, W) uint8.
        labels: (B,) int64, or (B, K) uint8 of images with several.

    Returns:
        The mean loss and the number of correctly classified training images, both 0-d tensors on the device: of this
        process, or this process's part of those of all.
    """
    with run.computing():
        return _train_step(run, images, labels)


def _train_step(run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    config = run.recipe.train
    rate = learning_rate(run.recipe.schedule, run.recipe.optimizer.lr, run.step, run.steps_per_epoch, config.epochs)
    epoch = run.step // run.steps_per_epoch
    for group in run.optimizer.param_groups:
        group["lr"] = rate_of(group, rate, epoch)
    if run.buffers is not None:
        run.buffers.keep()
    backward = _backward if run.shards is None else _backward_in_shards
    total, correct = backward(run, images, labels)
    for group in run.optimizer.param_groups:
        if epoch >= group.get("freezes_at", math.inf):  # in no layout do they count, not even for clip_grad_norm
            for parameter in group["params"]:
                parameter.grad = None
    if run.recipe.optimizer.clip_grad_norm is not None:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.optimizer.clip_grad_norm, foreach=True)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    skipped = None
    if run.buffers is not None:  # fp16: a step that overflowed changes nothing but the counters
        skipped = run.scaler.overflowed
        run.buffers.restore(skipped)
    if run.lookahead is not None:
        run.lookahead.after(run.model, run.step + 1, run.total_steps)
    if run.ema is not None:
        run.ema.update(run.model, run.step, skipped)
    return total, correct


def _backward(run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Leave the gradients, which DDP averages over the processes, in the parameters."""
    seed_everything(run.recipe.train.seed, run.step + 1, run.accelerator.process_index)
    x, targets = run.augment(images, labels, run.training_size)
    return _of_chunks(run, run.net, x, targets, labels, exchanging=True)


def _backward_in_shards(run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same in shards, whatever the layout; see :mod:`excite.training.shards`."""
    shards: Shards = run.shards  # type: ignore[assignment]
    batches: list[tuple[Tensor, Tensor, Tensor]] = []
    states: list[Tensor] = []
    for index, (own, true) in enumerate(zip(shards.cut(images), shards.cut(labels), strict=True)):
        seed_everything(run.recipe.train.seed, run.step + 1, shards.number(index))
        batches.append((*run.augment(own, true, run.training_size), true))
        states.append(torch.get_rng_state())
    run.scaler.scale(torch.zeros(()))  # it makes its tensors at the first call, which must not be two at once

    def work(net: nn.Module, index: int) -> Tensor:
        total, correct = _of_chunks(run, net, *batches[index], share=1 / shards.count)
        return torch.stack([total, correct])

    total, correct = shards.backward(work, states).unbind()
    return total, correct / shards.world


def _of_chunks(
    run: Run, net: nn.Module, x: Tensor, targets: Tensor, labels: Tensor, share: float = 1.0, exchanging: bool = False
) -> tuple[Tensor, Tensor]:
    """Forward and backward pass of one batch, in the chunks of gradient accumulation.

    Args:
        run: the run.
        net: the network.
        x: (B, C, H, W), augmented.
        targets: (B,) or (B, K).
        labels: (B,) true classes.
        share: factor of the loss.
        exchanging: whether the last of the backward passes exchanges gradients.

    Returns:
        The mean loss times ``share`` and the number of correctly classified images, 0-d.
    """
    config = run.recipe.train
    total, correct = torch.zeros((), device=run.device), torch.zeros((), device=run.device)
    chunks = list(zip(*(t.chunk(config.grad_accumulation) for t in (x, targets, labels)), strict=True))
    for index, (inputs, wanted, true) in enumerate(chunks):
        quiet: Any = run.accelerator.no_sync(net) if exchanging and index + 1 < len(chunks) else nullcontext()
        with quiet:
            # The cache is shared by all threads of a process.
            taught = None if run.teacher is None else run.teacher.logits(inputs)
            cached = {"enabled": run.precision != "fp32", "cache_enabled": exchanging}
            with torch.autocast(run.device.type, DTYPES[run.precision], **cached):
                logits = net(inputs)
            # Parts may differ in size if the data set is smaller than a batch: weight each by its number of images.
            loss = training_loss(logits.float(), wanted, config, run.by_class, taught)
            loss = loss * len(true) / len(labels) * share
            run.scaler.scale(loss).backward()
        total += loss.detach()
        correct += hits(logits.detach(), true).sum()
    return total, correct
