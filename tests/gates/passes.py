"""Counts the reads and writes of whole maps that the end of a residual block makes in a training step."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from excite.models.blocks import BasicBlock, BlockOptions
from excite.ops import native, plain

N, C, SIDE = 2, 48, 6  # C * SIDE * SIDE is the size of no weight of any gate


class Count(TorchDispatchMode):
    """Adds up, over PyTorch's operators and the kernels' passes, the map-sized tensors that go in and come out."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and "empty" not in func.name():
            self.total += len(maps([args, kwargs])) + len(maps(out))
        return out

    def kernel(self, function):
        """The same pass in PyTorch, counted as the one call that it is with kernels."""

        def run(*args, **kwargs):
            with torch.utils._python_dispatch._disable_current_modes():
                out = function(*args, **kwargs)
            self.total += len(maps([args, kwargs])) + len(maps(out))
            return out

        return run


def maps(values):
    """The tensors among them that take as much memory as the map (an expanded one does not)."""
    if isinstance(values, torch.Tensor):
        whole = values.numel() == N * C * SIDE * SIDE
        return [values] if whole and values.untyped_storage().nbytes() >= values.numel() * values.itemsize else []
    if isinstance(values, dict):
        values = list(values.values())
    return [m for value in values for m in maps(value)] if isinstance(values, list | tuple) else []


def gather(y, weight):
    return torch.einsum("nchw,hwc->nc", y, weight)


def gather_grad(grad, y, weight, needs_weight, needs_y):
    return torch.einsum("nc,nchw->hwc", grad, y), grad[:, :, None, None] * weight.permute(2, 0, 1)


def count_passes(spec, monkeypatch):
    """Over forward and backward pass of "norm, gate, addition, ReLU", the kernels taken to be there."""
    torch.manual_seed(0)
    block = BasicBlock(C, C, 1, (SIDE, SIDE), BlockOptions(gate=spec))
    y, identity = (
        torch.randn(N, C, SIDE, SIDE).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2)
    )
    grad, wanted = torch.randn_like(y), [] if block.gate is None else list(block.gate.parameters())
    count = Count()
    with monkeypatch.context() as patched:
        patched.setattr(native, "takes", lambda *maps: True)
        for name in ("moments", "statistics", "apply", "grad_sums", "grad_input"):
            patched.setattr(native, name, count.kernel(getattr(plain, name)))
        patched.setattr(native, "gather", count.kernel(gather))
        patched.setattr(native, "gather_grad", count.kernel(gather_grad))
        with count:
            torch.autograd.grad(block._leave(y, block.bn2, identity), (y, identity, *wanted), grad)
    return count.total
