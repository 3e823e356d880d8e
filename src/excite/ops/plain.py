"""The passes of ``excite.ops.gated_norm`` in plain PyTorch: any device, any layout, float64 too.

Letters: N images, C channels, H x W positions. Same functions and arguments as ``excite.ops.native``. Sums and
arithmetic are float32 for maps of lower precision.
"""

import torch
from torch import Tensor

from excite.ops.native import OUTPUT, RECOMPUTE, GradSums, Statistics, known_statistics


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()


def _over(coefficient: Tensor) -> Tensor:
    """(N, C) or (C) -> broadcasts against (N, C, H, W)."""
    return coefficient[..., None, None]


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> mean and biased variance over positions, each (N, C)."""
    variance, mean = torch.var_mean(_wide(y), (2, 3), correction=0)
    return mean, variance


def statistics(
    y: Tensor, weight: Tensor, bias: Tensor, eps: float, running: tuple[Tensor, Tensor] | None, momentum: float
) -> Statistics:
    """What batch norm and gate need to know of ``y``; running mean and variance move by ``momentum``."""
    mean, within = moments(y)
    batch_mean = mean.mean(0)
    centred = mean - batch_mean
    variance = within.mean(0) + centred.square().mean(0)
    rstd = (variance + eps).rsqrt()
    scale = weight * rstd
    if running is not None:
        count = y.numel() // y.shape[1]
        running[0].lerp_(batch_mean.to(running[0].dtype), momentum)
        running[1].lerp_((variance * (count / (count - 1))).to(running[1].dtype), momentum)
    return known_statistics(mean, centred * scale + bias, batch_mean, rstd, scale)


def _unpack(known: Statistics) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """mean and squeezed (N, C); batch mean, rstd and scale (C)."""
    n = (len(known.packed) - 3) // 2
    mean, squeezed, rest = known.packed.split([n, n, 3])
    return mean, squeezed, *rest.unbind()


def apply(y: Tensor, known: Statistics, s: Tensor | None, add: Tensor | None, relu: bool) -> Tensor:
    """``relu(((y - mean) * scale + squeezed) * s + add)``; ``s`` (N, C)."""
    mean, squeezed, _, _, scale = _unpack(known)
    if s is not None:
        scale, squeezed = scale * s, squeezed * s
    out = (_wide(y) - _over(mean)) * _over(scale) + _over(squeezed)
    if add is not None:
        out = out + _wide(add)
    return (out.relu() if relu else out).to(y.dtype)


def _masked(grad: Tensor, out: Tensor | None, y: Tensor, known: Statistics, s: Tensor | None, mask: int) -> Tensor:
    if mask == RECOMPUTE:
        out = apply(y, known, s, None, relu=False)
    if mask in (OUTPUT, RECOMPUTE):
        assert out is not None
        grad = torch.ops.aten.threshold_backward(grad, out.to(grad.dtype), 0)
    return grad


def grad_sums(
    grad: Tensor, out: Tensor | None, y: Tensor, known: Statistics, s: Tensor | None, mask: int, write: bool
) -> GradSums:
    """Sums over positions of g and g * (y - mean), the gradient of ``s``, and g itself if wanted."""
    g = _masked(grad, out, y, known, s, mask)
    sum_g = _wide(g).sum((2, 3))
    mean, squeezed, _, _, scale = _unpack(known)
    sum_gy = (_wide(g) * (_wide(y) - _over(mean))).sum((2, 3))
    sums = [sum_g, sum_gy] if s is None else [sum_g, sum_gy, scale * sum_gy + squeezed * sum_g]
    return GradSums(torch.stack(sums), g if write else None)


def grad_input(
    grad: Tensor,
    out: Tensor | None,
    y: Tensor,
    known: Statistics,
    s: Tensor | None,
    sums: GradSums,
    grad_squeezed: Tensor | None,
    mask: int,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the norm's weight and bias (C), and of ``y`` if wanted."""
    mean, _, batch_mean, rstd, scale = _unpack(known)
    sum_g, sum_gy = sums.packed[:2]
    positions = y.shape[2] * y.shape[3]
    count = y.shape[0] * positions
    gate = 1 if s is None else s
    dq = torch.zeros_like(sum_g) if grad_squeezed is None else grad_squeezed
    centred = (mean - batch_mean) * rstd
    grad_bias = (gate * sum_g + dq).sum(0)
    grad_weight = (gate * (rstd * sum_gy + centred * sum_g) + dq * centred).sum(0)
    if not wanted:
        return grad_weight, grad_bias, None
    slope = scale * rstd * grad_weight / -count
    offset = scale * (dq / positions - (grad_bias + centred * grad_weight) / count)
    g = _wide(_masked(grad, out, y, known, s, mask))
    dy = g * _over(scale * gate) + (_wide(y) - _over(mean)) * _over(slope) + _over(offset)
    return grad_weight, grad_bias, dy.to(y.dtype)
