"""Gradient checkpointing that counts each batch once."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, recomputed in the backward pass instead of stored.

    The recomputation runs the block's batch norms a second time on the same batch; they then leave their running
    statistics alone, so that a checkpointed step ends with exactly the buffers of an ordinary one. Under
    ``torch.compile`` the compiler does the recomputing and writes buffers only once by itself.
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
    """Batch norms still normalise as they are set to, but do not move their running statistics.

    Momentum 0 and not ``track_running_stats=False``: the latter saves other tensors for the backward pass than the
    first run did, which checkpointing refuses.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm, (_, count) in zip(norms, saved, strict=True):
            # A scratch count and not None, on which nn.SyncBatchNorm insists.
            norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else torch.zeros_like(count)
        yield
    finally:
        for norm, (momentum, count) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
