"""Activations after norms and additions: usually a ReLU, which the fused operators include."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from excite.errors import ExciteError, nearest
from excite.ops import norm_excite_residual, norm_relu
from excite.ops.boundaries import is_plain, is_symbolic

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "mish": nn.Mish,
    "hard_swish": nn.Hardswish,
}


def check_activation(name: str) -> str:
    """Return ``name`` unchanged. Raises ExciteError if it is not in ``ACTIVATIONS``."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ExciteError(f"act_layer must be one of {known}, not {name!r}{nearest(str(name), ACTIVATIONS)}")
    return name


def activation(name: str) -> nn.Module:
    """The activation of that name as a module. Raises ExciteError if there is none."""
    return ACTIVATIONS[check_activation(name)]()


def rides_along(act: nn.Module) -> bool:
    """Whether ``act`` is a ReLU that the operators of ``excite.ops`` can include: it has no hooks."""
    return is_plain(act, nn.ReLU)


def norm_act(y: Tensor, norm: nn.Module, act: nn.Module, fused: str) -> Tensor:
    """``act(norm(y))``: (N, C, H, W) -> (N, C, H, W), in one pass if the operator can include ``act``."""
    if rides_along(act) and not is_symbolic(y):
        return norm_relu(y, norm, fused=fused)
    return act(norm_excite_residual(y, norm, fused=fused))
