"""The Triton kernels themselves; imported on first use by ``excite.ops.triton_kernels``, because it imports triton.

Notation: N images, C channels, P positions (H * W), S splits of an image's positions.

A map is dense, either (N, P, C) in memory (channels-last, LAST) or (N, C, P). Of an image, whichever of C and P has its
values side by side is the *inner* extent, the other the *outer* one. A program works on one image, on BLOCK_C channels
and on a run of ``length`` positions, tile by tile; a tile is always [TILE // INNER, INNER] with the inner extent last,
so that a thread's values lie side by side and come in 16-byte loads. For that the compiler must know what divides the
inner extent: it is passed as ``units`` of ALIGN. Offsets inside an image are 32-bit (the launcher sees to it), that of
the image itself is 64-bit.

What is saved per image and channel or per channel is float32, packed as ``native.Statistics`` and ``native.GradSums``
say. Storage is float32, bfloat16 or float16; arithmetic and sums are float32.

What the passes move through device memory, in values (of 2 or 4 bytes) per element of the map. The (N, C) arrays are
1/P of that, so the floor of a pass is this over the copy bandwidth:

    moments      reads y                                                                    1
    apply        reads y and the shortcut, writes out                                       3 (2 without a shortcut)
    grad_sums    reads grad, y, out (ReLU) or the shortcut, writes g (if wanted)            4 (2 without a shortcut)
                 and, with a ReLU, the shortcut, where that has a norm of its own           5
    grad_input   reads g, y, writes dy                                                      3

Each second pass walks the map backwards: what the first pass read last is still in the L2 cache then.

No float atomics: whatever is summed by more than one program goes through a buffer and is added up in a fixed order.
Sums over positions depend on the tile, so their tile is fixed per shape and never tuned: the same bits every time.
"""

from collections.abc import Callable, Sequence
from statistics import median

import torch
import triton
import triton.language as tl

from excite.ops import activations

#: Whether these kernels are run by the interpreter, that is whether Triton's own functions were made for it.
INTERPRETED = not isinstance(tl.cdiv, triton.JITFunction)
RELU: tl.constexpr = tl.constexpr(activations.RELU)
RELU6: tl.constexpr = tl.constexpr(activations.RELU6)
SILU: tl.constexpr = tl.constexpr(activations.SILU)
GELU: tl.constexpr = tl.constexpr(activations.GELU)
HARD_SWISH: tl.constexpr = tl.constexpr(activations.HARD_SWISH)

# Extents change from layer to layer; kernels of their own for those that 16 divides, or that are 1, are start-up time.
_EXTENTS = ["images", "units", "outer", "length", "splits"]

# The passes that sum nothing give the same bits with any tile, so theirs may be tuned.
TILES = [
    triton.Config({"TILE": 2048}, num_warps=4),
    triton.Config({"TILE": 2048}, num_warps=8),
    triton.Config({"TILE": 4096}, num_warps=8),
]


def _milliseconds(call: Callable[[], None], quantiles: Sequence[float]) -> list[float]:
    """The median of ten launches, for the tuner, whose own way takes 256 MB to clear the cache: much in a training."""
    kind = torch.accelerator.current_accelerator()
    times = []
    for turn in range(13):
        start, end = (torch.Event(device=kind, enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(start.elapsed_time(end))
    return [median(times)] * len(quantiles)


LARGEST_TILE = max(config.kwargs["TILE"] for config in TILES)
# One choice per layout, inner block and types of the arguments, kept on disk beside the compiled kernels.
_tuned = triton.autotune(
    TILES[:1] if INTERPRETED else TILES, key=["LAST", "INNER"], do_bench=_milliseconds, cache_results=True
)

# --- tiles ----------------------------------------------------------------------------------------------------------


@triton.jit
def _extents(units, outer, ALIGN: tl.constexpr, LAST: tl.constexpr):
    """C and P."""
    inner = units * ALIGN
    if LAST:
        C, P = inner, outer
    else:
        C, P = outer, inner
    return C, P


@triton.jit
def _task(program, C, P, length, splits, BLOCK_C: tl.constexpr):
    """Image, first channel, split, and the positions from - to of a program."""
    tiles = tl.cdiv(C, BLOCK_C)
    split = program // tiles % splits
    image = program // tiles // splits
    start = split * length
    return image.to(tl.int64), program % tiles * BLOCK_C, split, start, tl.minimum(start + length, P)


@triton.jit
def _channels(first, BLOCK_C: tl.constexpr, LAST: tl.constexpr):
    """Channels of a tile: [1, BLOCK_C] or [BLOCK_C, 1]."""
    c = first + tl.arange(0, BLOCK_C)
    return c[None, :] if LAST else c[:, None]


@triton.jit
def _tile(c, step, C, P, BLOCK_P: tl.constexpr, LAST: tl.constexpr):
    """Offsets of a tile inside its image, and which of them exist."""
    p = step * BLOCK_P + tl.arange(0, BLOCK_P)
    if LAST:
        p = p[:, None]
        offsets = p * C + c
    else:
        p = p[None, :]
        offsets = c * P + p
    return offsets, (p < P) & (c < C)


@triton.jit
def _of_image(pointer, row, c, C):
    """A row (64-bit) of an array of C values a row."""
    return tl.load(pointer + row * C + c, mask=c < C, other=0.0)


@triton.jit
def _norm(known, s, N, n, c, C):
    """Mean, scale and squeezed of an image, the gate in the latter two: z = (y - mean) * scale + squeezed."""
    mean = _of_image(known, n, c, C)
    squeezed = _of_image(known, N + n, c, C)
    scale = _of_image(known, N * 2 + 2, c, C)
    if s is not None:
        gate = _of_image(s, n, c, C)
        scale, squeezed = scale * gate, squeezed * gate
    return mean, scale, squeezed


@triton.jit
def _normal(z, e):
    """P(Z <= z) of the normal distribution, with e = exp(-z^2 / 2), as in ``cpu_kernels.cpp``.

    Small values of GELU are as exact as large ones, which they would not be by 1 + erf, and it takes fewer registers.
    """
    t = 1.0 / (1.0 + 0.28 * tl.abs(z))
    p = 0.0261485097
    p = p * t - 0.099127217
    p = p * t + 0.101123454
    p = p * t - 0.0135513227
    p = p * t + 0.0759828482
    p = p * t + 0.0828455456
    p = p * t + 0.103178833
    p = p * t + 0.111695515
    p = p * t + 0.111703889
    tail = e * t * p
    return tl.where(z < 0.0, tail, 1.0 - tail)


@triton.jit
def _activated(z, ACT: tl.constexpr):
    """As PyTorch has it, also for NaN, which tl.maximum and tl.minimum would lose."""
    if ACT == RELU:
        z = tl.where(z < 0.0, 0.0, z)
    if ACT == RELU6:
        z = tl.where(z < 0.0, 0.0, tl.where(z > 6.0, 6.0, z))
    if ACT == SILU:  # z * sigmoid(z) in a form that fits into the registers
        e = tl.exp(-tl.abs(z))
        z = z * tl.where(z < 0.0, e, 1.0) / (1.0 + e)
    if ACT == GELU:
        z = z * _normal(z, tl.exp(-0.5 * z * z))
    if ACT == HARD_SWISH:
        z = z * tl.where(z < -3.0, 0.0, tl.where(z > 3.0, 6.0, z + 3.0)) * 0.16666666666666666
    return z


@triton.jit
def _differentiated(g, z, ACT: tl.constexpr):
    """``g`` times the derivative of the activation at ``z``; of a ReLU, ``z`` may be the output."""
    if ACT == RELU:
        g = tl.where(z <= 0.0, 0.0, g)
    if ACT == RELU6:
        g = tl.where((z <= 0.0) | (z >= 6.0), 0.0, g)
    if ACT == SILU:
        s = tl.sigmoid(z)
        g = g * s * (1.0 + z * (1.0 - s))
    if ACT == GELU:
        e = tl.exp(-0.5 * z * z)
        g = g * (_normal(z, e) + z * e * 0.3989422804014327)
    if ACT == HARD_SWISH:
        g = tl.where(z <= -3.0, 0.0, tl.where(z < 3.0, g * (z * 0.3333333333333333 + 0.5), g))
    return g


# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_EXTENTS)
def moments(
    y,
    parts,
    images,
    units,
    outer,
    length,
    splits,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INNER: tl.constexpr,
    TILE: tl.constexpr,
):
    """``parts`` (2, S, N, C): of each split, the mean and the sum of squared distances from it.

    Sums are of the distance from the split's first value, not of the values: E[x^2] - E[x]^2 in raw form cancels where
    the mean is large. Of n values, the first one's squared distance from the mean is at most n times the variance, so
    at the very worst n roundings are lost and usually none; and it takes less arithmetic than Welford's recurrence,
    which divides. Splits are merged by the formula of Chan, Golub and LeVeque (1979).
    """
    BLOCK_C: tl.constexpr = INNER if LAST else TILE // INNER
    BLOCK_P: tl.constexpr = TILE // INNER if LAST else INNER
    AXIS: tl.constexpr = 0 if LAST else 1
    C, P = _extents(units, outer, ALIGN, LAST)
    n, channel, split, start, end = _task(tl.program_id(0), C, P, length, splits, BLOCK_C)
    N = images.to(tl.int64)
    c = _channels(channel, BLOCK_C, LAST)
    y += n * C * P
    first = tl.load(y + (start * C + c if LAST else c * P + start), mask=c < C, other=0.0)
    shift = first.to(tl.float32)
    total = tl.zeros([TILE // INNER, INNER], tl.float32)
    squares = tl.zeros([TILE // INNER, INNER], tl.float32)
    for step in tl.range(start // BLOCK_P, tl.cdiv(end, BLOCK_P)):
        at, inside = _tile(c, step, C, P, BLOCK_P, LAST)
        x = tl.load(y + at, mask=inside, other=first).to(tl.float32) - shift
        total += x
        squares += x * x
    a = tl.sum(total, AXIS, keep_dims=True)
    mean = a / (end - start).to(tl.float32)
    distance = tl.sum(squares, AXIS, keep_dims=True) - a * mean
    distance = tl.where(distance < 0.0, 0.0, distance)  # not tl.maximum, which would lose NaN
    parts += (split * N + n) * C + c
    tl.store(parts, shift + mean, mask=c < C)
    tl.store(parts + splits * N * C, distance, mask=c < C)


@triton.jit
def _count(k, length, P):
    """How many positions split ``k`` has."""
    return tl.minimum(length, P - k * length).to(tl.float32)


@triton.jit
def _image_mean(parts, one, at, inside, P, length, splits):
    """Mean over all positions of an image, from those of its splits; (n, c) is at ``at`` in an array of ``one``."""
    first = tl.load(parts + at, mask=inside, other=0.0)
    off = tl.zeros_like(first)
    # Unrolled, so that several loads are under way at once.
    for k in tl.range(1, splits, loop_unroll_factor=4):
        off += _count(k, length, P) * (tl.load(parts + k * one + at, mask=inside, other=0.0) - first)
    return first + off / P.to(tl.float32)


@triton.jit(do_not_specialize=["images", "channels", "positions", "length", "splits"])
def merge_moments(parts, mean, variance, images, channels, positions, length, splits, BLOCK: tl.constexpr):
    """``parts`` of :func:`moments` -> mean and biased variance over positions, (N, C)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    one = images.to(tl.int64) * channels
    inside = i < one
    m = _image_mean(parts, one, i, inside, positions, length, splits)
    distance = tl.zeros_like(m)
    for k in tl.range(0, splits, loop_unroll_factor=4):
        off = tl.load(parts + k * one + i, mask=inside, other=0.0) - m
        distance += tl.load(parts + (splits + k) * one + i, mask=inside, other=0.0)
        distance += _count(k, length, positions) * off * off
    tl.store(mean + i, m, mask=inside)
    tl.store(variance + i, distance / positions.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["images", "channels", "positions", "length", "splits"])
def finish_statistics(
    parts,
    weight,
    bias,
    running_mean,
    running_var,
    known,
    images,
    channels,
    positions,
    length,
    splits,
    eps,
    momentum,
    unbiased,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``parts`` of :func:`moments` -> ``known``; running statistics move. ``unbiased`` is M / (M - 1), M = N * P."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    rows = tl.arange(0, BLOCK_N)[:, None]
    valid = c < channels
    one = images.to(tl.int64) * channels
    # All splits of all images at once: the law of total variance holds for any parts, weighted by their sizes. Sums are
    # of the distance from the first part's mean.
    shift = tl.load(parts + c, mask=valid, other=0.0)
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, images * splits, BLOCK_N):
        row = start + rows
        inside = (row < images * splits) & valid
        at = row.to(tl.int64) * channels + c
        x = tl.where(inside, tl.load(parts + at, mask=inside, other=0.0) - shift, 0.0)
        weighted = _count(row // images, length, positions) * x
        total += weighted
        squares += weighted * x + tl.load(parts + splits * one + at, mask=inside, other=0.0)
    count = images.to(tl.float32) * positions.to(tl.float32)
    off = tl.sum(total, 0, keep_dims=True) / count
    variance = tl.sum(squares, 0, keep_dims=True) / count - off * off
    variance = tl.where(variance < 0.0, 0.0, variance)  # not tl.maximum, which would lose NaN
    batch_mean = shift + off
    rstd = 1.0 / tl.sqrt(variance + eps)
    scale = tl.load(weight + c, mask=valid, other=0.0) * rstd
    if running_mean is not None:
        _move(running_mean + c, batch_mean, momentum, valid)
        _move(running_var + c, variance * unbiased, momentum, valid)
    last = known + one * 2 + c
    tl.store(last, batch_mean, mask=valid)
    tl.store(last + channels, rstd, mask=valid)
    tl.store(last + channels * 2, scale, mask=valid)
    shifted = tl.load(bias + c, mask=valid, other=0.0)
    for start in range(0, images, BLOCK_N):
        n = start + rows
        inside = (n < images) & valid
        at = n.to(tl.int64) * channels + c
        mean = _image_mean(parts, one, at, inside, positions, length, splits)
        tl.store(known + at, mean, mask=inside)
        tl.store(known + one + at, (mean - batch_mean) * scale + shifted, mask=inside)


@triton.jit
def _move(running, value, momentum, valid):
    old = tl.load(running, mask=valid, other=0.0).to(tl.float32)
    tl.store(running, (old + momentum * (value - old)).to(running.dtype.element_ty), mask=valid)


@_tuned
@triton.jit(do_not_specialize=_EXTENTS)
def apply(
    y,
    known,
    s,
    add,
    known_add,
    out,
    images,
    units,
    outer,
    length,
    splits,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INNER: tl.constexpr,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    """``out = act(((y - mean) * scale + squeezed) * s + add)``; ``known_add`` is there if ``add`` is to be normed."""
    BLOCK_C: tl.constexpr = INNER if LAST else TILE // INNER
    BLOCK_P: tl.constexpr = TILE // INNER if LAST else INNER
    C, P = _extents(units, outer, ALIGN, LAST)
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n, channel, _, start, end = _task(program, C, P, length, splits, BLOCK_C)
    c = _channels(channel, BLOCK_C, LAST)
    N = images.to(tl.int64)
    mean, scale, squeezed = _norm(known, s, N, n, c, C)
    y += n * C * P
    out += n * C * P
    if add is not None:
        add += n * C * P
    if known_add is not None:
        add_mean, add_scale, add_squeezed = _norm(known_add, None, N, n, c, C)
    for step in tl.range(start // BLOCK_P, tl.cdiv(end, BLOCK_P)):
        at, inside = _tile(c, step, C, P, BLOCK_P, LAST)
        z = (tl.load(y + at, mask=inside, other=0.0).to(tl.float32) - mean) * scale + squeezed
        if add is not None:
            shortcut = tl.load(add + at, mask=inside, other=0.0).to(tl.float32)
            if known_add is not None:
                shortcut = (shortcut - add_mean) * add_scale + add_squeezed
            z += shortcut
        tl.store(out + at, _activated(z, ACT).to(out.dtype.element_ty), mask=inside)


# --- backward ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_EXTENTS)
def grad_sums(
    grad,
    out,
    y,
    known,
    s,
    add,
    known_add,
    g_out,
    sums,
    images,
    units,
    outer,
    length,
    splits,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INNER: tl.constexpr,
    ACT: tl.constexpr,
    WHOLE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sums over positions of g, of g * (y - mean) and of g * (add - its mean); and g itself.

    ``sums`` is (rows, N, C) as ``native.GradSums`` has it if WHOLE (S is 1), else (S, 2 or 3, N, C) for
    :func:`merge_grad_sums`.
    """
    BLOCK_C: tl.constexpr = INNER if LAST else TILE // INNER
    BLOCK_P: tl.constexpr = TILE // INNER if LAST else INNER
    AXIS: tl.constexpr = 0 if LAST else 1
    ROWS: tl.constexpr = 2 if known_add is None else 3
    C, P = _extents(units, outer, ALIGN, LAST)
    n, channel, split, start, end = _task(tl.program_id(0), C, P, length, splits, BLOCK_C)
    c = _channels(channel, BLOCK_C, LAST)
    N = images.to(tl.int64)
    mean, scale, squeezed = _norm(known, s, N, n, c, C)
    grad += n * C * P
    y += n * C * P
    if out is not None:
        out += n * C * P
    if g_out is not None:
        g_out += n * C * P
    total = tl.zeros([TILE // INNER, INNER], tl.float32)
    product = tl.zeros([TILE // INNER, INNER], tl.float32)
    if add is not None:
        add += n * C * P
    if known_add is not None:
        add_mean, add_scale, add_squeezed = _norm(known_add, None, N, n, c, C)
        add_product = tl.zeros([TILE // INNER, INNER], tl.float32)
    for step in tl.range(start // BLOCK_P, tl.cdiv(end, BLOCK_P)):
        at, inside = _tile(c, step, C, P, BLOCK_P, LAST)
        x = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if add is not None:
            shortcut = tl.load(add + at, mask=inside, other=0.0).to(tl.float32)
        if out is not None:
            z = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
        else:
            z = (x - mean) * scale + squeezed
            if known_add is not None:
                z += (shortcut - add_mean) * add_scale + add_squeezed
            elif add is not None:
                z += shortcut
        g = _differentiated(g, z, ACT)
        if g_out is not None:
            stored = g.to(g_out.dtype.element_ty)
            tl.store(g_out + at, stored, mask=inside)
            if ACT != RELU:  # which rounds nothing
                g = stored.to(tl.float32)  # the sums must be those of what the second pass reads
        total += g
        product += g * (x - mean)
        if known_add is not None:
            add_product += g * (shortcut - add_mean)
    a = tl.sum(total, AXIS, keep_dims=True)
    b = tl.sum(product, AXIS, keep_dims=True)
    one = N * C
    sums += (split * ROWS * N + n) * C + c
    tl.store(sums, a, mask=c < C)
    tl.store(sums + one, b, mask=c < C)
    if WHOLE and s is not None:
        _store_grad_s(sums + one * 2, a, b, known, N, n, c, C, c < C)
        sums += one
    if known_add is not None:
        tl.store(sums + one * 2, tl.sum(add_product, AXIS, keep_dims=True), mask=c < C)


@triton.jit
def _store_grad_s(to, sum_g, sum_gy, known, N, n, c, C, inside):
    """``scale * sum_gy + squeezed * sum_g``: the gradient of the gate."""
    squeezed = tl.load(known + (N + n) * C + c, mask=inside, other=0.0)
    scale = tl.load(known + (N * 2 + 2) * C + c, mask=inside, other=0.0)
    tl.store(to, scale * sum_gy + squeezed * sum_g, mask=inside)


@triton.jit(do_not_specialize=["images", "channels", "splits"])
def merge_grad_sums(
    parts, known, sums, images, channels, splits, GATED: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    """``parts`` (S, 2 or 3, N, C) of :func:`grad_sums`, added up in their order -> ``native.GradSums``."""
    ROWS: tl.constexpr = 3 if ADD else 2
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    N = images.to(tl.int64)
    one = N * channels
    inside = i < one
    a = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    d = tl.zeros([BLOCK], tl.float32)
    for k in tl.range(0, splits, loop_unroll_factor=4):
        part = parts + k * ROWS * one + i
        a += tl.load(part, mask=inside, other=0.0)
        b += tl.load(part + one, mask=inside, other=0.0)
        if ADD:
            d += tl.load(part + one * 2, mask=inside, other=0.0)
    sums += i
    tl.store(sums, a, mask=inside)
    tl.store(sums + one, b, mask=inside)
    if GATED:
        _store_grad_s(sums + one * 2, a, b, known, N, i // channels, i % channels, channels, inside)
        sums += one
    if ADD:
        tl.store(sums + one * 2, d, mask=inside)


@triton.jit(do_not_specialize=["images", "channels"])
def finish_grad_sums(
    sums, known, s, grad_squeezed, grads, images, channels, share, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):
    """``grads`` (4, C): gradients of weight and bias, and both times ``share``."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    rows = tl.arange(0, BLOCK_N)[:, None]
    valid = c < channels
    one = images.to(tl.int64) * channels
    batch_mean = tl.load(known + one * 2 + c, mask=valid, other=0.0)
    rstd = tl.load(known + one * 2 + channels + c, mask=valid, other=0.0)
    weight = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    bias = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, images, BLOCK_N):
        n = start + rows
        inside = (n < images) & valid
        at = n.to(tl.int64) * channels + c
        # Of an image that is not there the mean is the batch's, so that not even 0 * inf is added.
        centred = tl.where(inside, tl.load(known + at, mask=inside, other=0.0) - batch_mean, 0.0) * rstd
        sum_g = tl.load(sums + at, mask=inside, other=0.0)
        scaled = rstd * tl.load(sums + one + at, mask=inside, other=0.0) + centred * sum_g
        if s is not None:
            gate = tl.load(s + at, mask=inside, other=0.0)
            scaled, sum_g = scaled * gate, sum_g * gate
        if grad_squeezed is not None:
            dq = tl.load(grad_squeezed + at, mask=inside, other=0.0)
            scaled, sum_g = scaled + dq * centred, sum_g + dq
        weight += scaled
        bias += sum_g
    grads += c
    total_weight = tl.sum(weight, 0, keep_dims=True)
    total_bias = tl.sum(bias, 0, keep_dims=True)
    tl.store(grads, total_weight, mask=valid)
    tl.store(grads + channels, total_bias, mask=valid)
    tl.store(grads + channels * 2, total_weight * share, mask=valid)
    tl.store(grads + channels * 3, total_bias * share, mask=valid)


@_tuned
@triton.jit(do_not_specialize=_EXTENTS)
def grad_input(
    grad,
    y,
    known,
    s,
    grad_squeezed,
    means,
    dy,
    images,
    units,
    outer,
    length,
    splits,
    ALIGN: tl.constexpr,
    LAST: tl.constexpr,
    INNER: tl.constexpr,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    """``dy = g * scale * s + (y - mean) * slope + offset``; ``means`` (2, C): gradients of weight and bias over M."""
    BLOCK_C: tl.constexpr = INNER if LAST else TILE // INNER
    BLOCK_P: tl.constexpr = TILE // INNER if LAST else INNER
    C, P = _extents(units, outer, ALIGN, LAST)
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n, channel, _, start, end = _task(program, C, P, length, splits, BLOCK_C)
    c = _channels(channel, BLOCK_C, LAST)
    N = images.to(tl.int64)
    mean, gated, squeezed = _norm(known, s, N, n, c, C)
    batch_mean = _of_image(known, N * 2, c, C)
    rstd = _of_image(known, N * 2 + 1, c, C)
    scale = _of_image(known, N * 2 + 2, c, C)
    mean_weight = _of_image(means, 0, c, C)
    offset = _of_image(means, 1, c, C) + (mean - batch_mean) * rstd * mean_weight
    if grad_squeezed is None:
        offset = -scale * offset
    else:
        offset = scale * (_of_image(grad_squeezed, n, c, C) / P.to(tl.float32) - offset)
    slope = -scale * rstd * mean_weight
    grad += n * C * P
    y += n * C * P
    dy += n * C * P
    for step in tl.range(start // BLOCK_P, tl.cdiv(end, BLOCK_P)):
        at, inside = _tile(c, step, C, P, BLOCK_P, LAST)
        x = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        g = _differentiated(g, (x - mean) * gated + squeezed, ACT)
        tl.store(dy + at, (g * gated + (x - mean) * slope + offset).to(dy.dtype.element_ty), mask=inside)
