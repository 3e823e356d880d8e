"""Gradient checkpointing that counts each batch only once in running statistics."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, recomputed in the backward pass instead of stored.

    The recomputation runs the block's batch norms a second time on the same batch, without updating their running
    statistics. A checkpointed step thus ends with exactly the buffers of an ordinary one. Under ``torch.compile``, the
    compiler does the recomputation and writes buffers only once anyway.
    """
    if torch.compiler.is_compiling():
        return checkpoint(block, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


def run_plain(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


Runner = Callable[[nn.Module, Tensor], Tensor]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Context in which batch norms normalise as usual, but do not update their running statistics.

    It sets momentum to 0 rather than ``track_running_stats=False``, which saves other tensors for the backward pass
    than the first run did; checkpointing refuses that.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm, (_, count) in zip(norms, saved, strict=True):
            # A scratch counter rather than None, because nn.SyncBatchNorm needs one.
            norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else torch.zeros_like(count)
        yield
    finally:
        for norm, (momentum, count) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
