"""The convolution that all networks are built from."""

from torch import nn

from excite.ops.same_padding import SameConv2d


def conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Conv2d:
    """A "same" convolution without bias, initialised He-normal over fan-out as in torchvision and timm."""
    padding = kernel // 2 * dilation
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)
    if not layer.weight.is_meta:  # on meta it does nothing, but would take half of the time to build a network
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def set_conv_padding(body: nn.Module, kind: str) -> None:
    """Pad the strided convolutions of ``body`` on all sides ("symmetric") or as TensorFlow does ("same"), in place.

    Weights and names do not change, and neither do gates inside ``body``.
    """
    for name, module in body.named_modules():
        if not isinstance(module, nn.Conv2d) or max(module.stride) == 1 or "gate" in name.split("."):
            continue
        if kind == "same":
            module.__class__, module.padding = SameConv2d, (0, 0)
        elif isinstance(module, SameConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
            sides = zip(module.kernel_size, module.dilation, strict=True)
            module.padding = tuple(k // 2 * d for k, d in sides)  # as in conv()
