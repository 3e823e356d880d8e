"""The textbook form of each operator, against which the fast forms in this package are tested."""

from collections.abc import Callable

from torch import Tensor, nn

from excite.ops.activations import activate, number_of
from excite.ops.boundaries import one_node


def spatial_mean(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C): the mean over positions."""
    return x.mean((2, 3))


@one_node
def over_positions(scale: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, 1), which broadcasts against a map; any other shape is returned unchanged."""
    return scale[:, :, None, None] if scale.ndim == 2 else scale


def excite_residual(
    x: Tensor, scale: Tensor | None = None, identity: Tensor | None = None, act: str | None = None
) -> Tensor:
    """``act(x * scale + identity)``, each part optional; ``x`` (N, C, H, W), ``scale`` (N, C) or broadcastable."""
    if scale is not None:
        x = x * over_positions(scale).to(x.dtype)
    if identity is not None:
        x = x + identity.to(x.dtype)
    return activate(x, number_of(act))


def norm_excite_residual(
    y: Tensor,
    norm: nn.Module,
    excitation: Callable[[Tensor], Tensor] | None = None,
    identity: Tensor | None = None,
    *,
    identity_norm: nn.Module | None = None,
    keep: Tensor | None = None,
    act: str | None = None,
) -> Tensor:
    """``act(norm(y) * keep * excitation(mean over positions of norm(y)) + identity)``, one operation at a time.

    With ``identity_norm``, ``identity_norm(identity)`` is added.
    """
    if identity is not None and identity_norm is not None:
        identity = identity_norm(identity)
    z = norm(y)
    scale = None if excitation is None else excitation(spatial_mean(z))
    if keep is not None:
        scale = keep if scale is None else scale * keep.flatten(1)
    return excite_residual(z, scale, identity, act)
