"""What a gate is.  Letters: N images, C channels, H x W positions, h x w gathered positions."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from excite.gates.facts import Facts
from excite.ops import excite_residual, spatial_mean
from excite.ops.boundaries import NotScriptable, is_heard, is_symbolic


class Gate(NotScriptable):
    """A module that looks at a feature map and says how much of each channel (or position) to let through.

    ``scale(x)`` maps (N, C, H, W) to (N, C) where a gate weighs whole channels, or to (N, C, H, W) where it also weighs
    positions. ``gate(x)`` is ``x * scale(x)``; residual blocks call ``scale`` and leave the product to the fused end of
    the block, unless :func:`must_be_called` says that somebody would notice.

    A gate with ``channelwise = True`` sees of its input nothing but the mean over positions. It implements
    ``excitation`` on those means (N, C), so that an operator that already has them (batch norm does) need not read the
    map again.
    """

    #: The gate's data sheet (paper, formula, costs); None for a gate that has none.
    facts: ClassVar[Facts | None] = None
    channelwise: bool = False
    #: Height and width of the map the gate was built for; None where any map will do.
    feature_size: tuple[int, int] | None = None
    #: What :meth:`squash` multiplies by: 1 as in the papers; 2 in a gate that was made to start as the identity.
    amplitude: float = 1.0
    #: Names of the gates inside of this one. Such a gate has a ``forward`` that calls them where they must be called.
    parts: ClassVar[tuple[str, ...]] = ()
    #: Whether the gate was made by ``create_gate({..., "identity": True})``, so that a fresh one changes nothing.
    identity: bool = False

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

    def start_as_identity(self) -> bool:
        """Make the scale exactly 1 for every map, in a form that learns from its first step; False where it cannot.

        This is what ``create_gate({"name": ..., "identity": True})`` calls on a fresh gate, so that it can be put into
        a trained network without changing what that computes. A gate implements it in one line: it sends what goes into
        its sigmoids through :meth:`squash`, and zeroes the layers whose outputs those are::

            def start_as_identity(self) -> bool:
                return self._zero_and_double(self.fc2)

        Then every logit is 0 and every scale ``2 * sigmoid(0) = 1``, exactly so in any floating type, while the
        gradient of the zeroed layers is not 0 (that of the layers before them is, for one step). Twice the sigmoid is
        what NFNets have behind their SE, to keep the signal's size (Brock et al., arXiv 2102.06171, section 4). The
        range is (0, 2) instead of (0, 1), for good: the amplitude belongs to the gate's spec, not to its weights.

        A gate that is the identity when fresh anyway (GCT, 1 + tanh(0)) returns True and does nothing else. The
        default, for a gate that has no layer to zero, returns False and does nothing; ``create_gate`` then puts the
        gate into :class:`excite.gates.blend.Blend`, which learns how much of it to use.
        """
        return False

    def squash(self, logits: Tensor, function: Callable[[Tensor], Tensor] = torch.sigmoid) -> Tensor:
        """``amplitude * function(logits)``; ``function`` has the value 1/2 at 0 (sigmoid, hard sigmoid)."""
        squashed = function(logits)
        return squashed if self.amplitude == 1.0 else squashed * self.amplitude

    def _zero_and_double(self, *last_layers: nn.Module) -> bool:
        for layer in last_layers:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        self.amplitude = 2.0
        return True


def must_be_called(gate: nn.Module) -> bool:
    """Whether ``gate(x)`` is the only way to ask a module in a gate's place: somebody hears it or a gate inside of it,
    or it is no :class:`Gate` at all (a wrapper that somebody put there)."""
    if not isinstance(gate, Gate) or is_heard(gate):
        return True
    return bool(gate.parts) and any(must_be_called(gate.get_submodule(part)) for part in gate.parts)


def in_gate_precision(excite: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``excite(x)`` in the type of ``x``, computed in float32 where autocast would make it float16.

    The squeeze of a deep map can leave float16's range and the sigmoid's tail its precision; SE is known to diverge
    there. The arrays are small, so float32 costs nothing. bfloat16 has float32's range and needs no care. A graph of
    ``torch.fx`` cannot know of autocast, and does without.
    """
    if is_symbolic(x):
        return excite(x).to(x.dtype)
    kind = x.device.type
    # "meta" tensors carry no autocast state, and asking for it raises.
    if kind != "meta" and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        with torch.autocast(kind, enabled=False):
            return excite(x.float()).to(x.dtype)
    return excite(x).to(x.dtype)
