"""Efficient Channel Attention. Notation: N images, C channels, k neighbouring channels, H x W positions."""

import math

from torch import Tensor, nn

from excite.errors import ExciteError
from excite.gates.base import Gate, in_gate_precision
from excite.gates.facts import Facts, Form
from excite.gates.registry import register_gate


def adaptive_kernel_size(channels: int, gamma: float = 2, beta: float = 1) -> int:
    """The kernel size k: ``(log2(C) + beta) / gamma``, truncated, plus 1 if even.

    This is the rule of the authors' code; the paper (section 3.2) says "the nearest odd number". 64 -> 3, 128 -> 5,
    256 -> 5, 2048 -> 7. timm's minimum of 3 only matters for fewer than 8 channels.

    Raises:
        ExciteError: gamma is not above 0.
    """
    if not gamma > 0:
        raise ExciteError(f"the gamma of the gate 'eca' must be above 0, not {gamma!r}")
    size = int(abs((math.log2(channels) + beta) / gamma))
    return size if size % 2 else size + 1


@register_gate("eca")
class EfficientChannelAttention(Gate):
    """``sigmoid(conv(mean over positions))``: (N, C, H, W) -> scale (N, C).

    The convolution runs over the channels: a channel's scale depends on the means of the k channels around it
    (zero-padded at both ends), with the same k weights for all channels. Parameters: k; ``conv.weight`` is (1, 1, k).

    ``kernel_size`` is k, odd; None means :func:`adaptive_kernel_size` with ``gamma`` and ``beta``.

    Source: Wang, Wu, Zhu, Li, Zuo, Hu, "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks"
    (arXiv 1910.03151), section 3.2.

    Raises:
        ExciteError: k is not odd and positive, or gamma is not positive.
    """

    channelwise = True
    facts = Facts(
        title="Efficient Channel Attention",
        paper="Wang, Wu, Zhu, Li, Zuo, Hu: ECA-Net, CVPR 2020, arXiv 1910.03151",
        options={
            "kernel_size": "k, the number of neighbouring channels, odd; null: computed from gamma and beta",
            "gamma": "k is (log2(C) + beta) / gamma, truncated, plus 1 if even",
            "beta": "see gamma",
        },
        forms=(
            Form(
                squeeze="mean over positions",
                scales="channels",
                formula="sigmoid(conv_k(mean(x)))",
                parameters="k",
                letters={"t": "int((log2(C) + 1) / 2)", "k": "t if t % 2 else t + 1"},
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int | None = None,
        gamma: float = 2,
        beta: float = 1,
        feature_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        k = adaptive_kernel_size(channels, gamma, beta) if kernel_size is None else kernel_size
        if not isinstance(k, int) or k < 1 or k % 2 == 0:
            raise ExciteError(f"the kernel_size of the gate 'eca' must be an odd whole number, not {kernel_size!r}")
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def excitation(self, squeezed: Tensor) -> Tensor:
        return in_gate_precision(self._excite, squeezed)

    def _excite(self, squeezed: Tensor) -> Tensor:
        return self.squash(self.conv(squeezed[:, None])[:, 0])

    def start_as_identity(self) -> bool:
        return self._zero_and_double(self.conv)
