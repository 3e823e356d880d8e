"""The CPU kernels of norm and gate (``cpu_kernels.cpp``), see :mod:`excite.runtime.compiled`.

Without a compiler, everything runs in plain PyTorch, with the same results but slower; ``why_not()`` says what is
missing.
"""

import ctypes
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from excite.runtime.compiled import Kernels

DTYPES = {torch.float32: 0, torch.bfloat16: 1}


class Statistics(NamedTuple):
    """The results of a pass over a norm's input, packed into (2N + 3, C) float32.

    In this order: mean over positions (N, C); squeezed, the same after the norm (N, C); batch mean, rstd and scale =
    weight * rstd, each (C,).
    """

    packed: Tensor

    @property
    def squeezed(self) -> Tensor:
        """(N, C)."""
        n = (len(self.packed) - 3) // 2
        return self.packed[n : 2 * n]


class GradSums(NamedTuple):
    """Sums over positions, packed into (2 to 4, N, C) float32; and the gradient map that they are of.

    In this order: the sums of g, the gradient before the activation; of g * (y - mean); with a gate, the gradient
    of s; if the shortcut has its own norm, the sums of g * (add - its mean).
    """

    packed: Tensor
    map: Tensor | None


# The arguments after (type, N, P, C): pointer, float, int; the last is the number of threads.
_TYPES = {"p": ctypes.c_void_p, "f": ctypes.c_float, "i": ctypes.c_int}
_SIGNATURES = {
    "excite_moments": "pppi",
    "excite_statistics": "pppffpppi",
    "excite_apply": "pppppipi",
    "excite_grad_sums": "pppppppippi",
    "excite_grad_input": "pppppppipppi",
    "excite_gather": "pppi",
    "excite_gather_grad": "pppppi",
}


def _declare(library: ctypes.CDLL) -> None:
    for name, arguments in _SIGNATURES.items():
        getattr(library, name).argtypes = [ctypes.c_int, *[ctypes.c_int64] * 3, *map(_TYPES.get, arguments)]


def _share_openmp() -> None:
    """Make the symbols of PyTorch's OpenMP library visible to our kernels."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"(/\S*lib(?:gomp|iomp5|omp)\b\S*\.so\S*)", maps)
    if not found:
        raise RuntimeError("this build of PyTorch does not use OpenMP")
    ctypes.CDLL(found.group(1), mode=ctypes.RTLD_GLOBAL)


_kernels = Kernels("excite.ops", "cpu_kernels.cpp", "cpu", ("-fno-math-errno", "-fopenmp"), _declare, _share_openmp)


def available() -> bool:
    """Whether the kernels are available. The first call builds them (in seconds); later processes reuse them."""
    return _kernels.available()


def why_not() -> str | None:
    """Why the kernels could not be built; None if they are available."""
    return _kernels.why_not()


def build_seconds() -> float | None:
    """How long this process took to compile them; None if they were already built, or are not available."""
    return _kernels.build_seconds()


# --- calls ---------------------------------------------------------------------------------------------------------


def takes(*maps: Tensor) -> bool:
    """Whether the kernels can take these maps: on the CPU, channels-last, and of the same dtype and shape."""
    first = maps[0]
    if first.device.type != "cpu" or first.ndim != 4 or first.numel() == 0 or not available():
        return False
    return first.dtype in DTYPES and all(
        m.dtype is first.dtype and m.shape == first.shape and m.is_contiguous(memory_format=torch.channels_last)
        for m in maps
    )


def dense(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the dtype of ``like`` and channels-last, copied only if necessary."""
    x = x if x.dtype is like.dtype else x.to(like.dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _head(y: Tensor) -> tuple[Any, ...]:
    n, c, h, w = y.shape
    return DTYPES[y.dtype], n, h * w, c


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _packed(known: Statistics | None) -> int | None:
    return None if known is None else known.packed.data_ptr()


def _floats(x: Tensor | None) -> int | None:
    assert x is None or (x.dtype is torch.float32 and x.is_contiguous())
    return None if x is None else x.data_ptr()


def _call(name: str, *args: Any) -> None:
    if getattr(_kernels.library, name)(*args, torch.get_num_threads()):
        raise RuntimeError(f"{name}: the kernels do not support this dtype or activation")


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> mean and biased variance over positions, each (N, C) float32."""
    mean, variance = torch.empty(y.shape[:2]), torch.empty(y.shape[:2])
    _call("excite_moments", *_head(y), _at(y), _at(mean), _at(variance))
    return mean, variance


def statistics(
    y: Tensor, weight: Tensor, bias: Tensor, eps: float, running: tuple[Tensor, Tensor] | None, momentum: float
) -> Statistics:
    """What batch norm and gate need of ``y``; updates the running mean and variance (float32) with ``momentum``."""
    known = torch.empty(2 * y.shape[0] + 3, y.shape[1])
    mean, variance = running or (None, None)
    rates = (eps, momentum, _floats(mean), _floats(variance))
    _call("excite_statistics", *_head(y), _at(y), _floats(weight), _floats(bias), *rates, _at(known))
    return Statistics(known)


def known_statistics(mean: Tensor, squeezed: Tensor, batch_mean: Tensor, rstd: Tensor, scale: Tensor) -> Statistics:
    """Pack them: mean and squeezed (N, C); the others (C,), float32."""
    return Statistics(torch.cat([mean, squeezed, batch_mean[None], rstd[None], scale[None]]))


def no_norm(x: Tensor) -> Statistics:
    """Statistics with which the norm is the identity."""
    n, c = x.shape[:2]
    known = torch.zeros(2 * n + 3, c)
    known[-1] = 1.0
    return Statistics(known)


def apply(
    y: Tensor, known: Statistics, s: Tensor | None, add: Tensor | None, act: int, known_add: Statistics | None = None
) -> Tensor:
    """``act(((y - mean) * scale + squeezed) * s + add)``; ``s`` (N, C). With ``known_add``, ``add`` is also normed."""
    out = torch.empty_like(y)
    shortcut = (_at(add), _packed(known_add))
    _call("excite_apply", *_head(y), _at(y), _at(known.packed), _floats(s), *shortcut, act, _at(out))
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
    g = torch.empty_like(y) if write else None
    sums = torch.empty(2 + (s is not None) + (known_add is not None), y.shape[0], y.shape[1])
    maps = (_at(grad), _at(out), _at(y), _at(known.packed), _floats(s), _at(add), _packed(known_add))
    _call("excite_grad_sums", *_head(y), *maps, act, _at(g), _at(sums))
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
    """Gradients of the norm's weight and bias (C,), and of ``y`` if wanted.

    ``act``: if nothing was added, the activation that ``grad`` is still to be taken back through; else 0.

    ``means`` (2, C) float32: if the statistics are those of several processes, the gradients of weight and bias, summed
    over all processes and divided by the number of values per channel. Then only the gradient of ``y`` is meaningful.
    """
    dy = torch.empty_like(y) if wanted else None
    grad_weight, grad_bias = torch.zeros(2, y.shape[1])
    inputs = (_at(grad), _at(y), _at(known.packed), _floats(s), _floats(sums.packed), _floats(grad_squeezed))
    _call("excite_grad_input", *_head(y), *inputs, _floats(means), act, _at(grad_weight), _at(grad_bias), _at(dy))
    return grad_weight, grad_bias, dy


def gather(y: Tensor, weight: Tensor) -> Tensor:
    """(N, C, H, W) and float32 weights (H, W, C) -> (N, C) float32: the weighted sum over positions."""
    sums = torch.empty(y.shape[:2])
    _call("excite_gather", *_head(y), _at(y), _floats(weight), _at(sums))
    return sums


def gather_grad(
    grad: Tensor, y: Tensor, weight: Tensor, wants_weight: bool, wants_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the weight (H, W, C) and of ``y``, each if wanted, from that of the sums, (N, C) float32."""
    grad_weight = torch.empty_like(weight) if wants_weight else None
    dy = torch.empty_like(y) if wants_y else None
    _call("excite_gather_grad", *_head(y), _floats(grad), _at(y), _floats(weight), _at(grad_weight), _at(dy))
    return grad_weight, dy
