"""Selective kernels. Notation: N images, C channels, H x W positions, M paths, S squeezed channels."""

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn

from excite.errors import ExciteError, nearest
from excite.gates.base import in_gate_precision
from excite.gates.squeeze_excite import squeeze_width
from excite.models.activation import activation, norm_act
from excite.models.convolution import conv
from excite.ops import excite_residual, spatial_mean
from excite.ops.boundaries import NotScriptable, is_plain

#: ``"sk"``, or a table such as ``{"name": "sk", "reduction": 8}``.
BlockConvSpec = str | Mapping[str, Any]


class SelectiveKernelOptions(TypedDict, total=False):
    """Options of :class:`SelectiveKernel`."""

    kernel_sizes: Sequence[int]
    dilated: bool
    reduction: int
    min_width: int
    split_input: bool


#: Arguments that come from the block, not from a table.
_OF_THE_BODY = ("stride", "groups", "act_layer")


class SelectiveKernel(NotScriptable):
    """Convolutions of several kernel sizes on the same map, weighted per image and channel by attention over the paths.

        U[m] = relu(BN(conv[m](x)))                                         M paths, (N, C, H, W) each
        a = softmax over m of fc2(relu(BN(fc1(mean over positions of sum_m U[m]))))     (N, M, C)
        out = sum_m a[m] * U[m]                                             (N, C, H, W)

    It replaces a 3x3 convolution with its norm and ReLU: (N, in_channels, H, W) -> (N, channels, H/stride, W/stride).

    - ``kernel_sizes``: one per path, odd; 3 and 5 by default. With ``dilated`` (the default), a path of size k is a 3x3
      convolution with dilation (k - 1) / 2, as in the paper's experiments.
    - S, the width between ``fc1`` and ``fc2``, is ``channels // reduction`` (reduction 16 by default), but at least
      ``min_width`` (32).
    - ``split_input``: each path takes its own M-th part of the input's channels rather than all of them (as in timm's
      skresnet18, 34 and 50; not in the paper).

    Parameters, besides those of M convolutions and batch norms: ``(M + 1) * channels * S + 2 * S``. Layers:
    ``paths.0.conv``, ``paths.0.bn``, ``fc1``, ``bn``, ``fc2``. Because of ``bn``, training needs at least two images
    per batch.

    Source: Li, Wang, Hu, Yang, "Selective Kernel Networks" (arXiv 1903.06586), section 3.1, equations 1-6.

    Raises:
        ExciteError: a kernel size is not odd or there are fewer than two, a width is invalid, or the input channels
            cannot be split.
    """

    #: How norms and products run: "auto", "on", "plain" or "off" (see excite.ops.norm_excite_residual).
    fused: str = "auto"

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        kernel_sizes: Sequence[int] = (3, 5),
        dilated: bool = True,
        reduction: int = 16,
        min_width: int = 32,
        split_input: bool = False,
        act_layer: str = "relu",
    ) -> None:
        super().__init__()
        sizes = _check_sizes(kernel_sizes)
        if not isinstance(min_width, int) or min_width < 1:
            raise ExciteError(f"min_width must be a whole number of at least 1, not {min_width!r}")
        parts = len(sizes) if split_input else 1
        if in_channels % parts:
            raise ExciteError(f"split_input: {in_channels} channels cannot be split into {parts} equal parts")
        self.split_input = split_input
        self.paths = nn.ModuleList()
        for size in sizes:
            kernel, dilation = (3, size // 2) if dilated and size > 3 else (size, 1)
            layer = conv(in_channels // parts, channels, kernel, stride, groups, dilation)
            self.paths.append(nn.Sequential(OrderedDict(conv=layer, bn=nn.BatchNorm2d(channels))))
        width = max(squeeze_width(channels, reduction), min_width)
        self.act = activation(act_layer)
        self.fc1 = nn.Linear(channels, width, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.fc2 = nn.Linear(width, len(sizes) * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inputs = x.chunk(len(self.paths), 1) if self.split_input else [x] * len(self.paths)
        maps = [self._path(cast(nn.Sequential, path), inputs[m]) for m, path in enumerate(self.paths)]
        # The mean of the sum is the sum of the means, so the maps are never added up.
        weights = in_gate_precision(self._select, torch.stack([spatial_mean(u) for u in maps]).sum(0))
        out = None
        for m, u in enumerate(maps):
            out = excite_residual(u, weights[:, m], out, fused=self.fused)
        assert out is not None
        return out

    def _path(self, path: nn.Sequential, x: Tensor) -> Tensor:
        if not is_plain(path, nn.Sequential):
            return self.act(path(x))
        return norm_act(path[0](x), path[1], self.act, self.fused)

    def _select(self, squeezed: Tensor) -> Tensor:
        """(N, C) -> weights (N, M, C), which sum to 1 over M."""
        hidden = self.bn(self.fc1(squeezed)[:, :, None, None]).flatten(1)
        return self.fc2(self.act(hidden)).unflatten(1, (len(self.paths), -1)).softmax(1)


def block_conv_options(spec: BlockConvSpec | None) -> SelectiveKernelOptions | None:
    """The options of the :class:`SelectiveKernel` that ``block_conv`` asks for; None for a plain 3x3 convolution.

    Raises:
        ExciteError: the name is not "sk", or an option does not exist.
    """
    if spec is None:
        return None
    table = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = table.pop("name", None)
    if name != "sk":
        raise ExciteError(f"block_conv must be 'sk' or a table with name: sk and its options, not {spec!r}")
    parameters = inspect.signature(SelectiveKernel).parameters.values()
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _OF_THE_BODY]
    for option in table:
        if option not in allowed:
            raise ExciteError(
                f"block_conv 'sk' has no option {option!r}{nearest(option, allowed)} (allowed: {', '.join(allowed)})"
            )
    return cast(SelectiveKernelOptions, table)  # values are checked where they are used


def selective_kernel_settings(spec: BlockConvSpec | None) -> SelectiveKernelOptions | None:
    """Options that change what :class:`SelectiveKernel` computes but not its tensors' shapes, with defaults filled in.

    Dilated paths of any size have 3x3 kernels. None for a plain 3x3 convolution.

    Raises:
        ExciteError: as in :func:`block_conv_options`.
    """
    options = block_conv_options(spec)
    if options is None:
        return None
    parameters = inspect.signature(SelectiveKernel).parameters
    return {
        "kernel_sizes": list(options.get("kernel_sizes", parameters["kernel_sizes"].default)),
        "dilated": options.get("dilated", parameters["dilated"].default),
        "split_input": options.get("split_input", parameters["split_input"].default),
    }


def _check_sizes(sizes: Sequence[int]) -> list[int]:
    known = list(sizes) if isinstance(sizes, list | tuple) else []
    if len(known) < 2 or any(not isinstance(k, int) or k < 1 or k % 2 == 0 for k in known):
        raise ExciteError(f"kernel_sizes of selective kernels must be two or more odd whole numbers, not {sizes!r}")
    return known
