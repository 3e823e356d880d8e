"""The CPU kernels: compiled once with the machine's own C++ compiler, cached, loaded with ctypes.

No PyTorch headers are involved, so that it takes seconds and any C++17 compiler will do. Without one everything works
all the same in plain PyTorch, only slower; ``why_not()`` says what is missing.
"""

import atexit
import ctypes
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from excite.files import cache_folder, not_ours
from excite.runtime.job import local_rank
from excite.text import tell

FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC"]
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
OPEN, OUTPUT, RECOMPUTE = 0, 1, 2  # what ReLU lets through of a gradient; as in cpu_kernels.cpp


class Statistics(NamedTuple):
    """What one pass over a norm's input says, packed into (2N + 3, C) float32.

    In this order: mean over positions (N, C); squeezed, the same after the norm (N, C); batch mean, rstd and scale =
    weight * rstd (C).
    """

    packed: Tensor

    @property
    def squeezed(self) -> Tensor:
        """(N, C)."""
        n = (len(self.packed) - 3) // 2
        return self.packed[n : 2 * n]


class GradSums(NamedTuple):
    """Sums over positions, packed into (2 to 4, N, C) float32; and the map they are of.

    In this order: of g, the gradient behind the ReLU; of g * (y - mean); where there is a gate, the gradient of s;
    where the shortcut has a norm of its own, of g * (add - its mean).
    """

    packed: Tensor
    map: Tensor | None


# The arguments behind (type, N, P, C): pointer, float, int; the last is the number of threads.
_TYPES = {"p": ctypes.c_void_p, "f": ctypes.c_float, "i": ctypes.c_int}
_SIGNATURES = {
    "excite_moments": "pppi",
    "excite_statistics": "pppffpppi",
    "excite_apply": "pppppipi",
    "excite_grad_sums": "pppppppippi",
    "excite_grad_input": "ppppppppipppi",
    "excite_gather": "pppi",
    "excite_gather_grad": "pppppi",
}

_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_why_not: str | None = None
_build_seconds: float | None = None


def available() -> bool:
    """Whether the kernels are there; builds them on the first call (seconds; later processes find them ready)."""
    global _library, _why_not
    if _library is None and _why_not is None:
        with _lock:
            if _library is None and _why_not is None:
                try:
                    _library = _load()
                except (OSError, subprocess.SubprocessError, RuntimeError) as error:
                    _why_not = str(error).strip() or type(error).__name__
    return _library is not None


def why_not() -> str | None:
    """What kept the kernels from being built, None where they are there."""
    return None if available() else _why_not


def build_seconds() -> float | None:
    """How long this process compiled them; None where they were found ready, or are not there."""
    return _build_seconds


def _load() -> ctypes.CDLL:
    global _build_seconds
    if os.environ.get("EXCITE_KERNELS") == "off":
        raise RuntimeError("EXCITE_KERNELS=off")
    if sys.platform != "linux":
        raise RuntimeError(f"they are built on Linux only, not on {sys.platform}")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("there is no C++ compiler (g++ or clang++) on this machine")
    source = resources.files("excite.ops").joinpath("cpu_kernels.cpp").read_bytes()
    key = hashlib.sha256(source)
    # -march=native: what was built on one machine must not be loaded on another that shares the home folder.
    for part in (_version(compiler), " ".join(FLAGS), platform.machine(), _cpu_flags()):
        key.update(part.encode())
    name = f"cpu-{key.hexdigest()[:16]}.so"
    path = _private_folder() / name
    descriptor = _open_own(path)
    if descriptor is None:
        if local_rank() == 0:
            tell("compiling kernels for this CPU, once on this machine; this takes up to a minute ...")
        started = time.perf_counter()
        _build(compiler, source, path)
        _build_seconds = time.perf_counter() - started
        descriptor = _open_own(path)
        if descriptor is None:
            raise RuntimeError(f"{path} is not as it was written")
    _share_openmp()
    # Through the descriptor: it is the file that was looked at, whatever has happened to its name since. It stays open,
    # since the loader knows a library by its path.
    library = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    for name, arguments in _SIGNATURES.items():
        getattr(library, name).argtypes = [ctypes.c_int, *[ctypes.c_int64] * 3, *map(_TYPES.get, arguments)]
    return library


def _private_folder() -> Path:
    """The folder of compiled kernels: that of the cache, or where others can write to it, a new one for this process.

    Whoever can put a file there could have it run as part of this process.
    """
    folder = cache_folder() / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    reason = not_ours(folder.lstat(), stat.S_ISDIR)
    if reason is None:
        return folder
    private = Path(tempfile.mkdtemp(prefix="excite-kernels-"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    if local_rank() == 0:
        tell(
            f"the cache of compiled kernels, {folder}, {reason}: they are compiled anew for this process; delete that "
            "folder, or set EXCITE_CACHE to one of your own"
        )
    return private


def _open_own(path: Path) -> int | None:
    """A descriptor of the compiled file; None where there is none, or others could have written it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    if not_ours(os.fstat(descriptor), stat.S_ISREG) is None:
        return descriptor
    os.close(descriptor)
    return None


def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{compiler} --version fails: {done.stderr.strip()[:200]}")
    return done.stdout


def _cpu_flags() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^(?:flags|Features)\s*:.*$", text, re.MULTILINE)
    return found.group() if found else ""


def _build(compiler: str, source: bytes, path: Path) -> None:
    """Compile to the side, then rename: processes that build at once end with the same whole file."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        code, objects, aside = (Path(folder) / name for name in ("kernels.cpp", "kernels.o", path.name))
        code.write_bytes(source)
        # Linked without -fopenmp: the OpenMP library is the one that PyTorch has loaded, not a second thread pool.
        for command in (
            [compiler, *FLAGS, "-c", str(code), "-o", str(objects)],
            [compiler, "-shared", str(objects), "-o", str(aside)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if done.returncode:
                raise RuntimeError(f"{compiler} could not compile them: {done.stderr.strip()[:500]}")
        aside.chmod(0o700)  # whatever the umask is
        aside.replace(path)


def _share_openmp() -> None:
    """Make the symbols of PyTorch's own OpenMP library visible to ours."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"(/\S*lib(?:gomp|iomp5|omp)\b\S*\.so\S*)", maps)
    if not found:
        raise RuntimeError("this build of PyTorch does not use OpenMP")
    ctypes.CDLL(found.group(1), mode=ctypes.RTLD_GLOBAL)


# --- calls ---------------------------------------------------------------------------------------------------------


def takes(*maps: Tensor) -> bool:
    """Whether the kernels can work on these maps: on the CPU, channels-last and of one type and shape."""
    first = maps[0]
    if first.device.type != "cpu" or first.ndim != 4 or first.numel() == 0 or not available():
        return False
    return first.dtype in DTYPES and all(
        m.dtype is first.dtype and m.shape == first.shape and m.is_contiguous(memory_format=torch.channels_last)
        for m in maps
    )


def dense(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the type of ``like`` and channels-last; a copy only where it is not."""
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
    if getattr(_library, name)(*args, torch.get_num_threads()):
        raise RuntimeError(f"{name}: this type of numbers is not compiled in")


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> mean and biased variance over positions, each (N, C) float32."""
    mean, variance = torch.empty(y.shape[:2]), torch.empty(y.shape[:2])
    _call("excite_moments", *_head(y), _at(y), _at(mean), _at(variance))
    return mean, variance


def statistics(
    y: Tensor, weight: Tensor, bias: Tensor, eps: float, running: tuple[Tensor, Tensor] | None, momentum: float
) -> Statistics:
    """What batch norm and gate need to know of ``y``; running mean and variance (float32) move by ``momentum``."""
    known = torch.empty(2 * y.shape[0] + 3, y.shape[1])
    mean, variance = running or (None, None)
    rates = (eps, momentum, _floats(mean), _floats(variance))
    _call("excite_statistics", *_head(y), _at(y), _floats(weight), _floats(bias), *rates, _at(known))
    return Statistics(known)


def known_statistics(mean: Tensor, squeezed: Tensor, batch_mean: Tensor, rstd: Tensor, scale: Tensor) -> Statistics:
    """Pack them: (N, C) and (C), float32."""
    return Statistics(torch.cat([mean, squeezed, batch_mean[None], rstd[None], scale[None]]))


def no_norm(x: Tensor) -> Statistics:
    """Statistics under which the norm does nothing."""
    n, c = x.shape[:2]
    known = torch.zeros(2 * n + 3, c)
    known[-1] = 1.0
    return Statistics(known)


def apply(
    y: Tensor, known: Statistics, s: Tensor | None, add: Tensor | None, relu: bool, known_add: Statistics | None = None
) -> Tensor:
    """``relu(((y - mean) * scale + squeezed) * s + add)``, ``s`` (N, C). With ``known_add``, ``add`` is normed, too."""
    out = torch.empty_like(y)
    shortcut = (_at(add), _packed(known_add))
    _call("excite_apply", *_head(y), _at(y), _at(known.packed), _floats(s), *shortcut, relu, _at(out))
    return out


def grad_sums(
    grad: Tensor,
    out: Tensor | None,
    y: Tensor,
    known: Statistics,
    s: Tensor | None,
    mask: int,
    write: bool,
    add: Tensor | None = None,
    known_add: Statistics | None = None,
) -> GradSums:
    """Sums over positions of g and g * (y - mean), the gradient of ``s``, and g itself if wanted (mask OUTPUT only).

    With ``add`` and ``known_add`` (a shortcut with a norm of its own) last of all the sums of g * (add - its mean).
    """
    g = torch.empty_like(y) if write else None
    sums = torch.empty(2 + (s is not None) + (known_add is not None), y.shape[0], y.shape[1])
    maps = (_at(grad), _at(out), _at(y), _at(known.packed), _floats(s), _at(add), _packed(known_add))
    _call("excite_grad_sums", *_head(y), *maps, mask, _at(g), _at(sums))
    return GradSums(sums, g)


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
    means: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the norm's weight and bias (C), and of ``y`` if wanted.

    ``means`` (2, C) float32: where statistics are those of several processes, the gradients of weight and bias, summed
    over all of them and divided by the number of values per channel. Then the gradient of ``y`` alone is of use.
    """
    dy = torch.empty_like(y) if wanted else None
    grad_weight, grad_bias = torch.zeros(2, y.shape[1])
    inputs = (_at(grad), _at(out), _at(y), _at(known.packed), _floats(s), _floats(sums.packed), _floats(grad_squeezed))
    _call("excite_grad_input", *_head(y), *inputs, _floats(means), mask, _at(grad_weight), _at(grad_bias), _at(dy))
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
