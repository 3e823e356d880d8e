"""Devices: the only file that asks which one there is, what it can do, and how much memory it used."""

import ctypes
import os
import platform
import random
import sys
from functools import cache
from typing import Literal

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from excite.errors import ExciteError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_accelerator(device: str) -> Accelerator:
    """The processes and the device of this run.

    Mixed precision is not left to Accelerate: it would wrap the model's forward (which then shows in copies, exports
    and compiled graphs), and its scaler cannot hold a fixed loss scale.

    Raises:
        ExciteError: ``device`` is not on this machine.
    """
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    found = accelerator.device.type
    if device not in ("auto", found):
        raise ExciteError(f"train.device is {device!r}, but this machine offers {found!r}; use auto or {found}")
    return accelerator


def choose_precision(precision: str, device: torch.device) -> Precision:
    """``auto`` becomes bf16 where the device has fast bf16 arithmetic, else fp32. Raises ExciteError if impossible."""
    if precision != "auto":
        if device.type == "mps" and precision == "bf16":
            raise ExciteError("train.precision is 'bf16', which Apple MPS does not train in; use fp32 or fp16")
        return precision  # type: ignore[return-value]
    if device.type == "cpu":
        return "bf16" if _cpu_has_bf16() else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type in ("xpu", "npu") else "fp32"


@cache
def _cpu_has_bf16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def seed_everything(seed: int, step: int = 0, rank: int = 0) -> None:
    """Set every random stream as a pure function of (seed, step, rank).

    The training loop calls it at each step: the randomness of a step then does not depend on what came before, so that
    a resumed run needs no saved random states, and skipped or repeated evaluations change nothing (80 us a call).
    """
    mixed = _splitmix64(_splitmix64(_splitmix64(seed) + step) + rank)
    random.seed(mixed)
    np.random.seed(mixed & 0xFFFFFFFF)  # noqa: NPY002 - the global stream is what libraries draw from
    torch.manual_seed(mixed >> 1)


def _splitmix64(x: int) -> int:
    """Steele, Lea & Flood 2014: neighbouring inputs give unrelated outputs."""
    x = (x + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: on a CPU, mapping each activation anew costs page faults at every step.

    Only on Linux with glibc, only in this process, and not where the user has set MALLOC_* himself.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or any(k.startswith("MALLOC_") for k in os.environ):
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 64 << 20)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB (1e9 bytes): allocated on the accelerator, or resident on a CPU."""
    if device.type == "mps":  # counts no peak
        return torch.mps.driver_allocated_memory() / 1e9
    if device.type != "cpu":
        return getattr(torch, device.type).max_memory_allocated(device) / 1e9
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e9
    import resource  # POSIX only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def device_name(device: torch.device) -> str:
    """A human name: the GPU's, or the processor's with its number of threads in use."""
    if device.type == "cpu":
        return f"{_processor()} ({torch.get_num_threads()} threads)"
    return "Apple GPU (MPS)" if device.type == "mps" else getattr(torch, device.type).get_device_name(device)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
