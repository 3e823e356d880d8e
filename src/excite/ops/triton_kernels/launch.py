"""Launches the kernels: which one runs with how many programs. The functions are documented in ``excite.ops.plain``."""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from excite.ops.activations import RELU
from excite.ops.native import GradSums, Statistics

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Devices that Triton compiles for ("cuda" includes AMD's, under ROCm).
DEVICES = ("cuda", "xpu")
#: Values of a tile of the passes that sum: 16 a thread, so two 16-byte loads of a bfloat16 map are under way at once.
SUM_TILE, SUM_WARPS = 2048, 4
#: So many programs fill the largest GPUs twice over (H100: 132 multiprocessors x 8 programs of 4 warps); with fewer the
#: positions of an image are split. A constant and no property of the device: sums come in the same order everywhere.
SUM_PROGRAMS = 2048
MAP_PROGRAMS = 8192
#: With fewer programs than this some multiprocessors do nothing; then a program may be as short as one tile.
MULTIPROCESSORS = 128
#: As long as this many tiles of one program take the launch that adds up the splits of a sum: an H100 reads a tile in
#: about 0.7 us, a launch takes 2 us as part of a CUDA graph and more without.
MERGE_TILES = 6
#: Offsets inside an image are 32-bit, those of a tile that hangs over its edge included.
MOST_IN_IMAGE = 2**30


class Plan(NamedTuple):
    """How maps of a shape are divided among programs; the notation is that of ``kernels``."""

    units: int
    outer: int
    align: int
    last: bool
    inner: int
    length: int
    splits: int

    def channel_tiles(self, tile: int) -> int:
        if self.last:
            return _ceil_div(self.units * self.align, self.inner)
        return _ceil_div(self.outer, tile // self.inner)


# --- whether ----------------------------------------------------------------------------------------------------------


def available() -> bool:
    """Whether the kernels can run here at all. The first call imports triton, if it is installed."""
    return why_not() is None


def why_not() -> str | None:
    """Why the kernels cannot run; None if they can."""
    return "EXCITE_KERNELS=off" if os.environ.get("EXCITE_KERNELS") == "off" else _why_not()


@cache
def _why_not() -> str | None:
    interpreted = _wants_interpreter()
    if not interpreted and not any(getattr(torch, kind).is_available() for kind in DEVICES):
        return "there is no GPU that Triton compiles for (TRITON_INTERPRET=1 runs its kernels on the CPU, slowly)"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    try:
        kernels = _kernels()
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if interpreted is not kernels.INTERPRETED:
        return "TRITON_INTERPRET was changed after Triton had been imported; set it before Python starts"
    return None


def _wants_interpreter() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@cache
def _kernels() -> ModuleType:
    from excite.ops.triton_kernels import kernels

    return kernels


def takes(*maps: Tensor) -> bool:
    """Whether the kernels can take these maps: on a GPU, of the same dtype and shape, dense in one layout."""
    first = maps[0]
    kind = first.device.type
    runs_here = kind in DEVICES or (kind == "cpu" and _wants_interpreter())
    if not runs_here or first.ndim != 4 or first.dtype not in DTYPES or not available():
        return False
    if first.dtype is torch.bfloat16 and kind == "cuda" and not _has_bfloat16(first.device):
        return False
    if not 0 < first.shape[1:].numel() <= MOST_IN_IMAGE or first.shape[0] == 0:
        return False
    layout = _layout(first)
    return layout is not None and all(
        m.dtype is first.dtype
        and m.shape == first.shape
        and m.device == first.device
        and m.is_contiguous(memory_format=layout)
        for m in maps
    )


@cache
def _has_bfloat16(device: torch.device) -> bool:
    """Compute capability 8.0; before, there are no instructions for it and the compiler gives up."""
    return torch.version.hip is not None or torch.get_device_module(device).get_device_capability(device) >= (8, 0)


def _layout(x: Tensor) -> torch.memory_format | None:
    """The memory layout of a map; if both apply (one channel, one position), the one with the longer runs."""
    last, first = x.is_contiguous(memory_format=torch.channels_last), x.is_contiguous()
    if last and not (first and x.shape[1] == 1):
        return torch.channels_last
    return torch.contiguous_format if first else None


def dense(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the dtype and layout of ``like``, copied only if necessary."""
    x = x if x.dtype is like.dtype else x.to(like.dtype)
    return x.contiguous(memory_format=_layout(like) or torch.contiguous_format)


# --- how --------------------------------------------------------------------------------------------------------------


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _plan(y: Tensor, tile: int, programs: int) -> Plan:
    layout = _layout(y)
    if layout is None:
        raise ValueError(f"a map of strides {y.stride()} is dense in neither layout; takes() says so beforehand")
    n, c, h, w = y.shape
    return _plan_shape(n, c, h * w, layout is torch.channels_last, tile, programs)


@lru_cache(maxsize=1024)
def _plan_shape(n: int, c: int, p: int, last: bool, tile: int, programs: int) -> Plan:
    """Long runs of the inner extent, little of a tile over its edge, and enough programs to fill a GPU."""
    inner, outer = (c, p) if last else (p, c)
    align = next(a for a in (8, 4, 2, 1) if inner % a == 0)
    widths = [w for w in (256, 128, 64) if w < 2 * inner] or [1 << (inner - 1).bit_length()]
    least = min(_ceil_div(inner, w) * w for w in widths)
    widths = [w for w in widths if _ceil_div(inner, w) * w == least]
    enough = [w for w in widths if n * _ceil_div(c, w) >= programs] or widths[-1:]
    block = enough[0] if last else widths[0]
    channels, positions = (block, tile // block) if last else (tile // block, block)
    steps = _ceil_div(p, positions)
    parts = n * _ceil_div(c, channels)
    shortest = 1 if parts < MULTIPROCESSORS else 2
    splits = min(_ceil_div(steps, shortest), _ceil_div(programs, parts))
    length = _ceil_div(steps, splits) * positions
    return Plan(inner // align, outer, align, last, block, length, _ceil_div(p, length))


def _plan_sums(y: Tensor) -> Plan:
    """For sums whose splits another launch has to add up: none where that would take longer than it saves."""
    plan = _plan(y, SUM_TILE, SUM_PROGRAMS)
    tile = SUM_TILE // plan.inner if plan.last else plan.inner
    positions = y.shape[2] * y.shape[3]
    if _ceil_div(positions, tile) - plan.length // tile > MERGE_TILES:
        return plan
    return plan._replace(length=_ceil_div(positions, tile) * tile, splits=1)


def _run_over(y: Tensor, kernel: Any, plan: Plan, *args: Any, **meta: Any) -> None:
    """Launch a pass over maps; a tuned kernel brings its own tile."""
    n, splits = y.shape[0], plan.splits

    def grid(chosen: dict[str, Any]) -> tuple[int, int, int]:
        return n * splits * plan.channel_tiles(chosen["TILE"]), 1, 1

    cut = (n, plan.units, plan.outer, plan.length, splits)
    _launch(y, kernel, grid, *args, *cut, ALIGN=plan.align, LAST=plan.last, INNER=plan.inner, **meta)


#: Compiled kernels by all that Triton makes them for, with the constants at the end of their arguments.
_compiled: dict[tuple[Any, ...], tuple[Any, dict[str, Any]]] = {}
#: AMD's are made for more than is in the key: whether a tensor lies within 2 GB.
_REUSES = torch.version.hip is None


def _launch(y: Tensor, kernel: Any, grid: Any, *args: Any, **meta: Any) -> None:
    """``kernel[grid](*args, **meta)``; all arguments of ``kernel`` but its constants, which come last, are ``args``.

    Triton's own way binds, describes and hashes all arguments anew at every launch, in Python: most of what a launch
    costs a network of small maps.
    """
    with _on(y.device):
        kinds = [(x.dtype, x.data_ptr() % 16 == 0) if isinstance(x, Tensor) else x is None for x in args]
        key = (id(kernel), y.device.index, *meta.items(), *kinds)
        if found := _compiled.get(key):
            compiled, constants = found
            compiled[grid(constants) if callable(grid) else grid](*args, *constants.values())
            return
        compiled = kernel[grid](*args, **meta)
        if compiled is not None and _REUSES:  # the interpreter gives nothing
            tuned = hasattr(kernel, "best_config")
            function, chosen = (kernel.fn, meta | kernel.best_config.kwargs) if tuned else (kernel, meta)
            _compiled[key] = compiled, {name: chosen[name] for name in function.arg_names[len(args) :]}


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def _floats(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().contiguous()


def _like(x: Tensor | None, y: Tensor) -> Tensor | None:
    return None if x is None else dense(x, y)


def _packed(known: Statistics | None) -> Tensor | None:
    return None if known is None else known.packed


def _parts(y: Tensor) -> tuple[Tensor, Plan]:
    """The first pass forward."""
    plan = _plan(y, SUM_TILE, SUM_PROGRAMS)
    parts = y.new_empty((2, plan.splits, *y.shape[:2]), dtype=torch.float32)
    _run_over(y, _kernels().moments, plan, y, parts, TILE=SUM_TILE, num_warps=SUM_WARPS)
    return parts, plan


def _sizes(y: Tensor, plan: Plan) -> tuple[int, ...]:
    return y.shape[0], y.shape[1], y.shape[2] * y.shape[3], plan.length, plan.splits


#: Blocks of the small kernels between the passes: of a flat array, and of images and channels. The latter run on few
#: multiprocessors (a channel's images are added up by one program), so what they wait for is memory: a program asks for
#: as much at once as its registers hold.
FLAT, IMAGES, CHANNELS, SMALL_WARPS = 1024, 512, 8, 8

# --- the passes -------------------------------------------------------------------------------------------------------


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> mean and biased variance over positions, each (N, C) float32."""
    parts, plan = _parts(y)
    mean, variance = y.new_empty((2, *y.shape[:2]), dtype=torch.float32)
    grid = (_ceil_div(mean.numel(), FLAT), 1, 1)
    _launch(y, _kernels().merge_moments, grid, parts, mean, variance, *_sizes(y, plan), BLOCK=FLAT)
    return mean, variance


def statistics(
    y: Tensor, weight: Tensor, bias: Tensor, eps: float, running: tuple[Tensor, Tensor] | None, momentum: float
) -> Statistics:
    """What batch norm and gate need of ``y``; updates the running mean and variance with ``momentum``."""
    parts, plan = _parts(y)
    n, c = y.shape[:2]
    known = y.new_empty((2 * n + 3, c), dtype=torch.float32)
    count = y.numel() // c
    affine = (_floats(weight), _floats(bias), *(running or (None, None)))
    rates = (float(eps), float(momentum), count / max(count - 1, 1))  # Triton makes kernels of their own for integers
    grid = (_ceil_div(c, CHANNELS), 1, 1)
    blocks = {"BLOCK_N": IMAGES, "BLOCK_C": CHANNELS, "num_warps": SMALL_WARPS}
    _launch(y, _kernels().finish_statistics, grid, parts, *affine, known, *_sizes(y, plan), *rates, **blocks)
    return Statistics(known)


def apply(
    y: Tensor, known: Statistics, s: Tensor | None, add: Tensor | None, act: int, known_add: Statistics | None = None
) -> Tensor:
    """``act(((y - mean) * scale + squeezed) * s + add)``; ``s`` (N, C). With ``known_add``, ``add`` is also normed."""
    kernels = _kernels()
    out = torch.empty_like(y)
    maps = (y, known.packed, _floats(s), _like(add, y), None if add is None else _packed(known_add), out)
    _run_over(y, kernels.apply, _plan(y, kernels.LARGEST_TILE, MAP_PROGRAMS), *maps, ACT=act)
    return out


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
    kernels = _kernels()
    plan = _plan_sums(y)
    n, c = y.shape[:2]
    gated, normed = s is not None, known_add is not None
    g = torch.empty_like(y) if write else None
    sums = y.new_empty((2 + gated + normed, n, c), dtype=torch.float32)
    whole = plan.splits == 1
    to = sums if whole else y.new_empty((plan.splits, 2 + normed, n, c), dtype=torch.float32)
    shortcut = (_like(add, y), _packed(known_add))
    out = _like(out, y) if act == RELU else None
    maps = (dense(grad, y), out, y, known.packed, _floats(s), *shortcut, g, to)
    meta = {"ACT": act, "WHOLE": whole, "TILE": SUM_TILE, "num_warps": SUM_WARPS}
    _run_over(y, kernels.grad_sums, plan, *maps, **meta)
    if not whole:
        grid = (_ceil_div(n * c, FLAT), 1, 1)
        sizes = (n, c, plan.splits)
        _launch(y, kernels.merge_grad_sums, grid, to, known.packed, sums, *sizes, GATED=gated, ADD=normed, BLOCK=FLAT)
    return GradSums(sums, g)


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
    """Gradients of the norm's weight and bias (C), and of ``y`` if wanted.

    ``act``: if nothing was added, the activation that ``grad`` is still to be taken back through; else 0.

    ``means`` (2, C): where the statistics are those of several processes, the gradients of weight and bias, added
    up over all of them and divided by the number of values per channel. Then the gradient of ``y`` alone is of use.
    """
    kernels = _kernels()
    n, c = y.shape[:2]
    s, dq = _floats(s), _floats(grad_squeezed)
    grads = y.new_empty((4, c), dtype=torch.float32)
    inputs = (_floats(sums.packed), known.packed, s, dq, grads, n, c, c / y.numel())
    blocks = {"BLOCK_N": IMAGES, "BLOCK_C": CHANNELS, "num_warps": SMALL_WARPS}
    _launch(y, kernels.finish_grad_sums, (_ceil_div(c, CHANNELS), 1, 1), *inputs, **blocks)
    if not wanted:
        return grads[0], grads[1], None
    dy = torch.empty_like(y)
    maps = (dense(grad, y), y, known.packed, s, dq, grads[2:] if means is None else _floats(means), dy)
    _run_over(y, kernels.grad_input, _plan(y, kernels.LARGEST_TILE, MAP_PROGRAMS), *maps, ACT=act)
    return grads[0], grads[1], dy
