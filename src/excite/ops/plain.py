"""The passes of ``excite.ops.gated_norm`` in plain PyTorch, for any device and layout, and float64, too.

Notation: N images, C channels, H x W positions. It has the same functions and arguments as ``excite.ops.native``. Sums
and arithmetic are float32 for maps of lower precision.
"""

import torch
from torch import Tensor

from excite.ops.activations import LINEAR, RELU, activate, differentiate
from excite.ops.native import GradSums, Statistics, known_statistics

#: Unpacked statistics: mean and squeezed (N, C); batch mean, rstd and scale (C,).
Unpacked = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()


def _over(coefficient: Tensor) -> Tensor:
    """(N, C) or (C,) -> a shape that broadcasts against (N, C, H, W)."""
    return coefficient[..., None, None]


def dense(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the dtype of ``like``, in any layout."""
    return x.to(like.dtype)


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> mean and biased variance over positions, each (N, C)."""
    variance, mean = torch.var_mean(_wide(y), (2, 3), correction=0)
    return mean, variance


def statistics(
    y: Tensor, weight: Tensor, bias: Tensor, eps: float, running: tuple[Tensor, Tensor] | None, momentum: float
) -> Statistics:
    """What batch norm and gate need of ``y``; updates the running mean and variance with ``momentum``."""
    return known_statistics(*unpacked_statistics(y, weight, bias, eps, running, momentum))


def unpacked_statistics(
    y: Tensor, weight: Tensor, bias: Tensor, eps: float, running: tuple[Tensor, Tensor] | None, momentum: float
) -> Unpacked:
    """The same unpacked: mean and squeezed (N, C), batch mean, rstd and scale (C,); differentiable by autograd."""
    mean, within = moments(y)
    batch_mean = mean.mean(0)
    centred = mean - batch_mean
    variance = within.mean(0) + centred.square().mean(0)
    rstd = (variance + eps).rsqrt()
    scale = weight * rstd
    if running is not None:
        count = y.numel() // y.shape[1]
        running[0].lerp_(batch_mean.detach().to(running[0].dtype), momentum)
        running[1].lerp_((variance.detach() * (count / (count - 1))).to(running[1].dtype), momentum)
    return mean, centred * scale + bias, batch_mean, rstd, scale


def _unpack(known: Statistics) -> Unpacked:
    """Mean and squeezed (N, C); batch mean, rstd and scale (C,)."""
    n = (len(known.packed) - 3) // 2
    mean, squeezed, rest = known.packed.split([n, n, 3])
    return mean, squeezed, *rest.unbind()


def apply(
    y: Tensor, known: Statistics, s: Tensor | None, add: Tensor | None, act: int, known_add: Statistics | None = None
) -> Tensor:
    """``act(((y - mean) * scale + squeezed) * s + add)``; ``s`` (N, C). With ``known_add``, ``add`` is also normed."""
    of_add = None if known_add is None else _unpack(known_add)
    return apply_unpacked(y, _unpack(known), s, add, act, of_add)


def apply_unpacked(
    y: Tensor, known: Unpacked, s: Tensor | None, add: Tensor | None, act: int, of_add: Unpacked | None = None
) -> Tensor:
    """The same with the result of ``unpacked_statistics``."""
    return activate(_before_act(y, known, s, add, of_add), act).to(y.dtype)


def _before_act(y: Tensor, known: Unpacked, s: Tensor | None, add: Tensor | None, of_add: Unpacked | None) -> Tensor:
    out = _normed(y, known, s)
    if add is None:
        return out
    return out + (_wide(add) if of_add is None else _normed(add, of_add, None))


def _normed(y: Tensor, known: Unpacked, s: Tensor | None) -> Tensor:
    mean, squeezed, _, _, scale = known
    if s is not None:
        scale, squeezed = scale * s, squeezed * s
    return (_wide(y) - _over(mean)) * _over(scale) + _over(squeezed)


def grad_sums(
    grad: Tensor,
    out: Tensor | None,
    y: Tensor,
    known: Statistics,
    s: Tensor | None,
    act: int,
    write: bool,
    add: Tensor | None = None,
    known_add: Statistics | None = None,
) -> GradSums:
    """Sums over positions of g, the gradient before the activation ``act``, and of g * (y - mean); the gradient of
    ``s``; and g itself if wanted: where an activation follows an addition.

    There, a ReLU needs its output ``out``, and the others need ``add``. With ``known_add`` (a shortcut with its own
    norm), ``add`` is always needed, and the last sums are those of g * (add - its mean).
    """
    g = _wide(grad)
    if act != LINEAR:
        z = out if act == RELU else None
        if z is None:
            z = _before_act(y, _unpack(known), s, add, None if known_add is None else _unpack(known_add))
        g = differentiate(g, z.to(g.dtype), act)
    written = g.to(y.dtype) if write else None
    if written is not None:  # the sums must be those of what the second pass reads
        g = _wide(written)
    sum_g = g.sum((2, 3))
    _, squeezed, _, _, scale = _unpack(known)
    sums = [sum_g, _centred_sums(g, y, known)]
    if s is not None:
        sums.append(scale * sums[1] + squeezed * sum_g)
    if add is not None and known_add is not None:
        sums.append(_centred_sums(g, add, known_add))
    return GradSums(torch.stack(sums), written)


def _centred_sums(g: Tensor, y: Tensor, known: Statistics) -> Tensor:
    """(N, C): the sum over positions of g * (y - mean)."""
    return (g * (_wide(y) - _over(_unpack(known)[0]))).sum((2, 3))


def grad_input(
    grad: Tensor,
    y: Tensor,
    known: Statistics,
    s: Tensor | None,
    sums: GradSums,
    grad_squeezed: Tensor | None,
    act: int,
    wanted: bool,
    means: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the norm's weight and bias (C,), and of ``y`` if wanted.

    ``act``: if nothing was added, the activation that ``grad`` is still to be taken back through; else 0.

    ``means`` (2, C): if the statistics are those of several processes, the gradients of weight and bias, summed over
    all processes and divided by the number of values per channel. Then only the gradient of ``y`` is meaningful.
    """
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
    mean_weight, mean_bias = (grad_weight / count, grad_bias / count) if means is None else means
    slope = -scale * rstd * mean_weight
    offset = scale * (dq / positions - mean_bias - centred * mean_weight)
    g = _wide(grad)
    if act != LINEAR:
        g = differentiate(g, _normed(y, _unpack(known), s), act)
    dy = g * _over(scale * gate) + (_wide(y) - _over(mean)) * _over(slope) + _over(offset)
    return grad_weight, grad_bias, dy.to(y.dtype)
