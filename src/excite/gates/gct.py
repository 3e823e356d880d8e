"""The two gates abbreviated as GCT. Notation: N images, C channels, H x W positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError, nearest
from excite.gates.base import Gate, in_gate_precision
from excite.gates.facts import Facts, Form
from excite.gates.maps import spatial_norm
from excite.gates.registry import register_gate
from excite.ops.boundaries import one_node

MODES = ("l2", "l1")
# A learnable standard deviation is 3 * sigmoid(theta) + 1.
_RANGE, _LEAST = 3.0, 1.0


@register_gate("gct")
class GatedChannelTransformation(Gate):
    """``1 + tanh(gamma * normalised embedding + beta)``: (N, C, H, W) -> scale (N, C), in (0, 2).

        s = alpha * sqrt(sum of x^2 over positions + epsilon)                  the embedding
        scale = 1 + tanh(gamma * s / sqrt(mean of s^2 over channels + epsilon) + beta)

    ``mode="l1"`` uses sums of absolute values instead of both square roots. alpha, gamma and beta are (C,): 3*C
    parameters. They start at 1, 0 and 0, so a fresh gate changes nothing and learns from the first step on.

    Not to be confused with the Gaussian Context Transformer, ``gaussian_gct``, which has the same initials. The paper
    puts the gate in front of convolutions; in a residual block, ``gate_position="pre"`` comes closest to that.

    Source: Yang, Zhu, Wu, Yang, "Gated Channel Transformation for Visual Recognition" (arXiv 1909.11519), section 3;
    the second epsilon and the details of l1 are from the authors' code.

    Raises:
        ExciteError: ``mode`` is neither l1 nor l2, or ``epsilon`` is not above 0.
    """

    facts = Facts(
        title="Gated Channel Transformation",
        paper="Yang, Zhu, Wu, Yang: Gated Channel Transformation, CVPR 2020, arXiv 1909.11519",
        options={
            "mode": "l2 or l1: the norm over positions, and over the channels' norms",
            "epsilon": "added under the roots (l2) or to the mean over channels (l1)",
        },
        forms=(
            Form(
                squeeze="norm over positions",
                scales="channels",
                formula="s = alpha * norm(x); 1 + tanh(gamma * s / sqrt(mean(s^2)) + beta)",
                parameters="3*C",
                passes=12,
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        mode: str = "l2",
        epsilon: float = 1e-5,
        feature_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ExciteError(f"the mode of the gate 'gct' must be l2 or l1, not {mode!r}{nearest(str(mode), MODES)}")
        self.mode, self.epsilon = mode, _positive("gct", "epsilon", epsilon)
        self.alpha = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def scale(self, x: Tensor) -> Tensor:
        norms = spatial_norm(x) if self.mode == "l2" else _absolute_sum(x)
        return self._excite(norms).to(x.dtype)

    def _excite(self, norms: Tensor) -> Tensor:
        if self.mode == "l2":
            s = self.alpha * (norms.square() + self.epsilon).sqrt()
            spread = (s.square().mean(1, keepdim=True) + self.epsilon).sqrt()
        else:
            s = self.alpha * norms
            spread = s.abs().mean(1, keepdim=True) + self.epsilon
        return 1 + torch.tanh(self.gamma * s / spread + self.beta)

    def start_as_identity(self) -> bool:
        return True  # 1 + tanh(0)


@one_node
def _absolute_sum(x: Tensor) -> Tensor:
    return x.abs().sum((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


@register_gate("gaussian_gct")
class GaussianContextTransformer(Gate):
    """``exp(-z^2 / (2 c^2))`` of standardised means: (N, C, H, W) -> scale (N, C), in (0, 1].

    ``z = (m - mean of m over channels) / (standard deviation of m over channels)``, where m are the means over
    positions: the further a channel's mean is from the others', the less of it is let through. With ``learnable=False``
    (the paper's GCT-B0), c is ``std``, 2 by default, and there are no parameters. With ``learnable=True`` (GCT-B1), c
    is ``3 * sigmoid(theta) + 1``, and theta, which starts at 0, is the only parameter.

    Not to be confused with the Gated Channel Transformation, ``gct``, which has the same initials.

    Source: Ruan, Wang, Zheng, Zheng, Zheng, "Gaussian Context Transformer" (CVPR 2021), section 3. Unlike in the paper,
    1e-5 is added to the variance rather than to the standard deviation, so that equal means have a gradient. The
    authors published no code; the constants 3 and 1 of GCT-B1 are those of public re-implementations.

    Raises:
        ExciteError: ``std`` is not above 0, or is given with ``learnable``.
    """

    channelwise = True
    facts = Facts(
        title="Gaussian Context Transformer",
        paper="Ruan, Wang, Zheng, Zheng, Zheng: Gaussian Context Transformer, CVPR 2021",
        options={
            "std": "c, 2 by default; not allowed with learnable",
            "learnable": "whether to learn c, as 3 sigmoid(theta) + 1",
        },
        forms=(
            Form(
                squeeze="mean over positions",
                scales="channels",
                formula="exp(-standardised(mean(x))^2 / (2 c^2))",
                parameters="0",
            ),
            Form(
                squeeze="mean over positions",
                scales="channels",
                formula="exp(-standardised(mean(x))^2 / (2 (3 sigmoid(theta) + 1)^2))",
                parameters="1",
                options={"learnable": True},
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        std: float | None = None,
        learnable: bool = False,
        feature_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if learnable and std is not None:
            raise ExciteError("the gate 'gaussian_gct' learns std with learnable=True; leave std out")
        self.std = _positive("gaussian_gct", "std", 2.0 if std is None else std)
        self.theta = nn.Parameter(torch.zeros(())) if learnable else None

    def excitation(self, squeezed: Tensor) -> Tensor:
        return in_gate_precision(self._excite, squeezed)

    def _excite(self, squeezed: Tensor) -> Tensor:
        z = F.layer_norm(squeezed, squeezed.shape[-1:])
        c = self.std if self.theta is None else _RANGE * self.theta.sigmoid() + _LEAST
        return torch.exp(z.square() / (-2 * c * c))


def _positive(gate: str, option: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ExciteError(f"the {option} of the gate {gate!r} must be a number above 0, not {value!r}")
    return value
