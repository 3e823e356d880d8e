"""The activations that the operators of this package can end in, by name and by the number that the kernels know."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from excite.errors import ExciteError, nearest

#: Their numbers in ``cpu_kernels.cpp`` and in the Triton kernels; 0 is no activation. GELU is the exact one (with erf).
ACTS = {"relu": 1, "relu6": 2, "silu": 3, "gelu": 4, "hard_swish": 5}
LINEAR, RELU, RELU6, SILU, GELU, HARD_SWISH = 0, *ACTS.values()

_FUNCTIONS: dict[int, Callable[[Tensor], Tensor]] = {
    RELU: F.relu,
    RELU6: F.relu6,
    SILU: F.silu,
    GELU: F.gelu,
    HARD_SWISH: F.hardswish,
}
_aten: Any = torch.ops.aten
_BACKWARD: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    RELU: lambda grad, z: _aten.threshold_backward(grad, z, 0),
    RELU6: lambda grad, z: _aten.hardtanh_backward(grad, z, 0, 6),
    SILU: lambda grad, z: _aten.silu_backward(grad, z),
    GELU: lambda grad, z: _aten.gelu_backward(grad, z),
    HARD_SWISH: lambda grad, z: _aten.hardswish_backward(grad, z),
}


def number_of(act: str | None) -> int:
    """The number of an activation; 0 for None. Raises ExciteError if there is none of that name."""
    if act is None:
        return LINEAR
    if act not in ACTS:
        raise ExciteError(f"act is {act!r}{nearest(str(act), ACTS)} (allowed: {', '.join(ACTS)})")
    return ACTS[act]


def activate(z: Tensor, act: int, inplace: bool = False) -> Tensor:
    """The activation of ``z``, in its dtype. ``inplace``: whether ``z`` may be changed, which a ReLU makes use of."""
    if act == LINEAR:
        return z
    return z.relu_() if act == RELU and inplace else _FUNCTIONS[act](z)


def derivative_from(act: int, added: Tensor | None, out: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What the derivative behind an addition is computed from, beside what the backward pass reads anyway: what was
    added, or, for a ReLU, its output, which the next layer mostly keeps as well."""
    if act == LINEAR:
        return None, None
    return (None, out) if act == RELU else (added, None)


def differentiate(grad: Tensor, z: Tensor, act: int) -> Tensor:
    """``grad`` times the derivative at ``z``; for a ReLU, ``z`` may be its output."""
    return grad if act == LINEAR else _BACKWARD[act](grad, z)
