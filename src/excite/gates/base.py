"""The base class of gates. Notation: N images, C channels, H x W positions, h x w gathered positions."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from excite.gates.facts import Facts
from excite.ops import excite_residual, spatial_mean
from excite.ops.boundaries import NotScriptable, is_heard, is_symbolic


class Gate(NotScriptable):
    """A module that computes from a feature map how much of each channel (or position) to let through.

    ``scale(x)`` maps (N, C, H, W) to (N, C) if the gate scales whole channels, or to (N, C, H, W) if it also scales
    positions. ``gate(x)`` is ``x * scale(x)``. Residual blocks call ``scale`` and leave the product to the fused end of
    the block, unless :func:`must_be_called` says that the module itself must be called.

    A gate with ``channelwise = True`` uses nothing of its input but the means over positions. It implements
    ``excitation`` on those means (N, C), so that an operator that already has them (as batch norm does) need not read
    the map again.
    """

    #: The gate's data sheet (paper, formula, costs); None for a gate that has none.
    facts: ClassVar[Facts | None] = None
    channelwise: bool = False
    #: Height and width of the maps that the gate was built for; None if it takes maps of any size.
    feature_size: tuple[int, int] | None = None
    #: Factor in :meth:`squash`: 1 as in the papers, or 2 in a gate created to start as the identity.
    amplitude: float = 1.0
    #: Names of the gates inside this one. Such a gate has a ``forward`` that calls them where they must be called.
    parts: ClassVar[tuple[str, ...]] = ()
    #: Whether the gate was created by ``create_gate({..., "identity": True})`` and so changes nothing when fresh.
    identity: bool = False

    def excitation(self, squeezed: Tensor) -> Tensor:
        """(N, C) means over positions -> (N, C) scales. Only for gates with ``channelwise = True``."""
        raise NotImplementedError(f"{type(self).__name__} is not a function of the channel means only")

    def scale(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> scales (N, C) or (N, C, H, W), in the dtype of ``x``."""
        return self.excitation(spatial_mean(x))

    def forward(self, x: Tensor) -> Tensor:
        return excite_residual(x, self.scale(x))

    def resize(self, feature_size: tuple[int, int]) -> None:
        """Adapt the parameters to maps of another (height, width), in place. Most gates have nothing to do."""

    def start_as_identity(self) -> bool:
        """Make the scale exactly 1 for every map, in a form that can learn from the first step on.

        ``create_gate({"name": ..., "identity": True})`` calls this on a fresh gate, so that the gate can be added to a
        trained network without changing its output. A gate computes its sigmoids with :meth:`squash`, and implements
        this method in one line that zeroes the layers before them::

            def start_as_identity(self) -> bool:
                return self._zero_and_double(self.fc2)

        Then every logit is 0 and every scale is ``2 * sigmoid(0) = 1``, exactly, in any floating-point type. The
        gradient of the zeroed layers is not 0 (that of the layers before them is, for one step). NFNets double the
        sigmoid of their SE in the same way, to preserve the signal's variance (Brock et al., arXiv 2102.06171, section
        4). The range stays (0, 2) instead of (0, 1): the amplitude belongs to the gate's spec, not to its weights.

        A gate that is the identity when fresh anyway (GCT, 1 + tanh(0)) just returns True. The default, for gates
        without a layer to zero, returns False; ``create_gate`` then wraps the gate in
        :class:`excite.gates.blend.Blend`, which learns how much of it to use.

        Returns:
            Whether the scale is now 1.
        """
        return False

    def squash(self, logits: Tensor, function: Callable[[Tensor], Tensor] = torch.sigmoid) -> Tensor:
        """``amplitude * function(logits)``, where ``function`` is 1/2 at 0 (sigmoid, hard sigmoid)."""
        squashed = function(logits)
        return squashed if self.amplitude == 1.0 else squashed * self.amplitude

    def _zero_and_double(self, *last_layers: nn.Module) -> bool:
        for layer in last_layers:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        self.amplitude = 2.0
        return True


def must_be_called(gate: nn.Module) -> bool:
    """Whether a module in a gate's place must be called as ``gate(x)``: because it or a gate inside it has hooks, or
    because it is not a :class:`Gate` (but a wrapper that somebody put there)."""
    if not isinstance(gate, Gate) or is_heard(gate):
        return True
    return bool(gate.parts) and any(must_be_called(gate.get_submodule(part)) for part in gate.parts)


def in_gate_precision(excite: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``excite(x)`` in the dtype of ``x``, computed in float32 where autocast would use float16.

    The squeeze of a deep map can exceed the range of float16, and the tail of the sigmoid its precision; SE is known to
    diverge there. The arrays are small, so float32 costs nothing. bfloat16 has the range of float32 and needs no such
    care. Under ``torch.fx``, whose graphs do not record autocast, nothing is changed.
    """
    if is_symbolic(x):
        return excite(x).to(x.dtype)
    kind = x.device.type
    # "meta" tensors carry no autocast state, and asking for it raises.
    if kind != "meta" and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        with torch.autocast(kind, enabled=False):
            return excite(x.float()).to(x.dtype)
    return excite(x).to(x.dtype)
