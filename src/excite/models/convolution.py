"""The convolution that all bodies are made of."""

from torch import nn


def conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Conv2d:
    """A "same" convolution without bias, He-normal over fan-out as torchvision and timm have it."""
    padding = kernel // 2 * dilation
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)
    if not layer.weight.is_meta:  # there it does nothing, and takes half of the time to build a net
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
