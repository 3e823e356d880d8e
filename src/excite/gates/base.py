"""What a gate is.  Letters: N images, C channels, H x W positions, h x w gathered positions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from excite.ops import excite_residual, spatial_mean


class Gate(nn.Module):
    """A module that looks at a feature map and says how much of each channel (or position) to let through.

    ``scale(x)`` maps (N, C, H, W) to (N, C) where a gate weighs whole channels, or to (N, C, H, W) where it also weighs
    positions. ``gate(x)`` is ``x * scale(x)``; residual blocks call ``scale`` and leave the product to the fused end of
    the block.

    A gate with ``channelwise = True`` sees of its input nothing but the mean over positions. It implements
    ``excitation`` on those means (N, C), so that an operator that already has them (batch norm does) need not read the
    map again.
    """

    channelwise: bool = False
    #: Height and width of the map the gate was built for; None where any map will do.
    feature_size: tuple[int, int] | None = None

    def excitation(self, squeezed: Tensor) -> Tensor:
        """(N, C) means over positions -> (N, C) scales. Only for gates with ``channelwise = True``."""
        raise NotImplementedError(f"{type(self).__name__} is not a function of the channel means alone")

    def scale(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C) or (N, C, H, W), in the type of ``x``."""
        return self.excitation(spatial_mean(x))

    def forward(self, x: Tensor) -> Tensor:
        return excite_residual(x, self.scale(x))

    def resize(self, feature_size: tuple[int, int]) -> None:
        """Adapt the parameters to maps of another size, in place. Nothing to do for most gates."""


def in_gate_precision(excite: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``excite(x)`` in the type of ``x``, computed in float32 where autocast would make it float16.

    The squeeze of a deep map can leave float16's range and the sigmoid's tail its precision; SE is known to diverge
    there. The arrays are small, so float32 costs nothing. bfloat16 has float32's range and needs no care.
    """
    kind = x.device.type
    # "meta" tensors carry no autocast state, and asking for it raises.
    if kind != "meta" and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        with torch.autocast(kind, enabled=False):
            return excite(x.float()).to(x.dtype)
    return excite(x).to(x.dtype)
