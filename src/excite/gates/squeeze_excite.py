"""Squeeze-and-Excitation. Notation: N images, C channels, S squeezed channels, H x W positions."""

from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import ExciteError
from excite.gates.base import Gate, in_gate_precision
from excite.gates.facts import Facts, Form
from excite.gates.registry import register_gate


def squeeze_width(channels: int, reduction: int = 16, rd_divisor: int | None = None) -> int:
    """S, the width of the bottleneck between the two dense layers.

    There are two rules, which differ for narrow layers. With ``rd_divisor`` None or 1, it is ``channels // reduction``
    and at least 1 (the paper, Caffe, ModelZoo-PyTorch). With 8, it is ``channels / reduction`` rounded to the nearest
    multiple of 8 and at least 8 (MindCV, current timm): 64 -> 8 (not 4), 128 -> 8, 256 -> 16.

    Raises:
        ExciteError: ``reduction`` or ``rd_divisor`` is not a whole number of at least 1.
    """
    if not isinstance(reduction, int) or reduction < 1:
        raise ExciteError(f"reduction must be a whole number of at least 1, not {reduction!r}")
    if rd_divisor is None or rd_divisor == 1:
        return max(channels // reduction, 1)
    if not isinstance(rd_divisor, int) or rd_divisor < 1:
        raise ExciteError(f"rd_divisor must be None or a whole number of at least 1, not {rd_divisor!r}")
    return max(rd_divisor, int(channels / reduction + rd_divisor / 2) // rd_divisor * rd_divisor)


@register_gate("se")
class SqueezeExcite(Gate):
    """``sigmoid(fc2(relu(fc1(mean over positions))))``: (N, C, H, W) -> scale (N, C).

    Parameters: ``2*C*S``, and ``S + C`` more with ``bias``; S is :func:`squeeze_width`. The weights are 2-D:
    ``fc1.weight`` (S, C), ``fc2.weight`` (C, S).

    Source: Hu, Shen, Albanie, Sun, Wu, "Squeeze-and-Excitation Networks" (arXiv 1709.01507), section 3, equations 2-4.
    ModelZoo-PyTorch and the TensorFlow SE-ResNet-110 have ``bias=False``; the authors' Caffe nets have biases.
    """

    channelwise = True
    facts = Facts(
        title="Squeeze-and-Excitation",
        paper="Hu, Shen, Albanie, Sun, Wu: Squeeze-and-Excitation Networks, CVPR 2018, arXiv 1709.01507",
        options={
            "reduction": "S is C // reduction",
            "rd_divisor": "round S to a multiple of this (MindCV and timm: 8); null: do not round",
            "bias": "whether the dense layers have biases",
        },
        forms=(
            Form(
                squeeze="mean over positions",
                scales="channels",
                formula="sigmoid(W2 relu(W1 mean(x) + b1) + b2)",
                parameters="2*C*S + S + C",
                letters={"S": "C // 16"},
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        rd_divisor: int | None = None,
        bias: bool = True,
        feature_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        width = squeeze_width(channels, reduction, rd_divisor)
        self.fc1 = nn.Linear(channels, width, bias=bias)
        self.fc2 = nn.Linear(width, channels, bias=bias)

    def excitation(self, squeezed: Tensor) -> Tensor:
        return in_gate_precision(self._excite, squeezed)

    def _excite(self, squeezed: Tensor) -> Tensor:
        return self.squash(self.fc2(F.relu(self.fc1(squeezed))))

    def start_as_identity(self) -> bool:
        return self._zero_and_double(self.fc2)
