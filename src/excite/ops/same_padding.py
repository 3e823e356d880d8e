"""Convolutions with TensorFlow's and MindSpore's "same" padding. Notation: N images, C channels, H x W positions."""

from torch import Tensor, nn
from torch.nn import functional as F

from excite.ops.boundaries import one_node


@one_node
def pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Pad (N, C, H, W) with zeros so that a convolution with this kernel and stride gives ceil(H / stride) rows.

    If the number of zeros is odd, the extra one goes to the bottom and right: a strided convolution of an even map gets
    one row of zeros fewer at the top than at the bottom. (PyTorch's padding is the same on both sides.)
    """
    sides: list[int] = []
    for axis in (1, 0):  # F.pad takes the last first
        size, s = x.shape[2 + axis], stride[axis]
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        total = max((-(-size // s) - 1) * s + reach - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


class SameConv2d(nn.Conv2d):
    """``nn.Conv2d`` with :func:`pad_same` before it; its own ``padding`` is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(pad_same(x, self.kernel_size, self.stride, self.dilation), self.weight, self.bias)
