"""Activations after norms and additions. The fused operators include most of them."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from excite.errors import ExciteError, nearest
from excite.ops import norm_excite_residual
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


#: What the operators of ``excite.ops`` call an activation that they can include.
_OPERATORS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Hardswish: "hard_swish",
}


def rides_along(act: nn.Module) -> str | None:
    """What the operators of ``excite.ops`` call ``act``, if they can include it (it has no hooks); else None."""
    if not is_plain(act, *_OPERATORS) or getattr(act, "approximate", "none") != "none":
        return None
    return _OPERATORS[type(act)]


def norm_act(y: Tensor, norm: nn.Module, act: nn.Module, fused: str) -> Tensor:
    """``act(norm(y))``: (N, C, H, W) -> (N, C, H, W), in two passes if the operator can include ``act``."""
    name = None if is_symbolic(y) else rides_along(act)
    y = norm_excite_residual(y, norm, act=name, fused=fused)
    return act(y) if name is None else y
