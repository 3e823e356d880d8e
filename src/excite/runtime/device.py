"""Devices: which one there is, what it supports, and how much memory it has used. Only this file asks."""

import ctypes
import importlib.util
import os
import platform
import random
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, Literal

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, KwargsHandler
from torch import nn

from excite.choices import DEVICES, check_device, check_precision
from excite.errors import ExciteError, first_line
from excite.runtime.job import local_world_size, world_size
from excite.runtime.meeting import meet
from excite.runtime.waiting import patience
from excite.text import counted

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


#: Cost of emulating a dtype on a CPU without instructions for it; the measurements are in docs/precision.md.
SLOWER_ON_CPUS = {"bf16": "6 times", "fp16": "7 to 11 times"}


def make_accelerator(device: str, ddp: DistributedDataParallelKwargs | None = None) -> Accelerator:
    """Set up the processes and the device of this run.

    Mixed precision is not left to Accelerate: it would wrap the model's forward (which then appears in copies, exports
    and compiled graphs), and its scaler does not support a fixed loss scale.

    Args:
        device: "auto", or a key of :data:`DEVICES`.
        ddp: how gradients are summed over several processes.

    Raises:
        ExciteError: the device is unknown or not on this machine, or there are more processes than devices.
    """
    kind, count = count_devices(device)
    processes = local_world_size()
    if kind != "cpu" and processes > count:
        raise ExciteError(
            f"{processes} processes were started on this machine, which only has {counted(count, 'device')} of type "
            f"{kind}; start one process per device"
        )
    _forget_other_device(device)
    handlers: list[KwargsHandler] = [] if ddp is None else [ddp]
    if world_size() > 1:
        _check_meeting_place()
        _register_meeting()
        handlers.append(InitProcessGroupKwargs(init_method="excite://", timeout=_timeout()))
    accelerator = Accelerator(cpu=kind == "cpu", mixed_precision="no", kwargs_handlers=handlers)
    found = accelerator.device.type
    if device not in ("auto", found):  # several kinds in one machine, of which Accelerate prefers another
        raise ExciteError(f"device is {device!r}, but this machine offers {found!r}; use device=auto or device={found}")
    return accelerator


def _timeout() -> timedelta | None:
    """After which time an exchange is given up: EXCITE_PATIENCE, else torch's own (gloo 30 minutes, NCCL 10)."""
    return timedelta(seconds=patience()) if os.environ.get("EXCITE_PATIENCE") else None


def prepared(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The model as the processes of this job train it together; with a single process, the model itself.

    Accelerate does the same, but first imports PyTorch's distributed tensors, which takes 1 to 2 s.
    """
    return model if accelerator.distributed_type == DistributedType.NO else accelerator.prepare_model(model)


def _check_meeting_place() -> None:
    """Check the address of the rendezvous, which MPI launchers do not set."""
    if torch.distributed.is_initialized():  # by the program that calls us
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ExciteError(
            f"{world_size()} processes were started, but {' and '.join(missing)} are not set, so they cannot find each "
            "other: give the first machine and a free port on it, such as `mpirun -x MASTER_ADDR=localhost -x "
            "MASTER_PORT=29400 ...`, or start them with torchrun (docs/scaling.md)"
        )
    port = os.environ["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:  # with port 0, all but the first would wait for ever
        raise ExciteError(
            f"MASTER_PORT is {port!r}, but must be the number of a free port on the first machine, 1 to 65535, such as "
            "29400; torchrun finds one itself with --standalone"
        )


@cache
def _register_meeting() -> None:
    torch.distributed.register_rendezvous_handler("excite", meet)


def count_devices(device: str) -> tuple[str, int]:
    """The type that ``device`` ("auto" or a type) means on this machine, and the number of such devices; CPUs count as
    one.

    Raises:
        ExciteError: the device is unknown or not on this machine.
    """
    _load_plugins(device)
    _check_there(device)
    kind = best_device() if device == "auto" else device
    return kind, 1 if kind in ("cpu", "mps") else getattr(torch, kind).device_count()


def has_sync_batchnorm(device: torch.device) -> bool:
    """Whether ``nn.SyncBatchNorm`` runs on the device."""
    return device.type in ("cuda", "xpu", "npu")


def _load_plugins(device: str) -> None:
    """Import a plug-in that adds a device to PyTorch. Recent ones are loaded with torch, unless
    TORCH_DEVICE_BACKEND_AUTOLOAD=0; importing one again costs nothing."""
    if importlib.util.find_spec("torch_npu") is None:
        return
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # its compiled library may raise anything if the driver is not set up
        why = first_line(error)
        reason = f"torch_npu is installed but cannot be imported: {why}"
        if device == "npu":
            raise ExciteError(f"device is 'npu', but {reason}") from None
        warnings.warn(f"{reason}; continuing without it", stacklevel=3)


def is_available(kind: str) -> bool:
    """Whether this machine and this PyTorch have a device of a type in :data:`DEVICES`."""
    if kind in ("cpu", "mps"):
        return kind == "cpu" or torch.backends.mps.is_available()
    module = getattr(torch, kind, None)  # torch.npu is there once torch_npu is
    return module is not None and module.is_available()


def best_device() -> str:
    """What "auto" means here, in Accelerate's order of preference."""
    return next((kind for kind in ("mps", "npu", "cuda", "xpu") if is_available(kind)), "cpu")


def _check_there(device: str) -> None:
    check_device(device)
    if device != "auto" and not is_available(device):
        best = best_device()
        offer = "device=cpu" if best == "cpu" else f"device=auto or device={best}"
        raise ExciteError(
            f"device is {device!r}, but {_why_missing(device)}; this machine offers {best!r}: use {offer}"
        )


def _why_missing(kind: str) -> str:
    if kind == "npu" and importlib.util.find_spec("torch_npu") is None:
        return "torch_npu is not installed"
    # There is a version string if the wheel was built for that type.
    built = {
        "cuda": torch.version.cuda or torch.version.hip,
        "xpu": getattr(torch.version, "xpu", None),
        "mps": torch.backends.mps.is_built(),
        "npu": True,
    }
    if not built[kind]:
        return f"this PyTorch ({torch.__version__}) is built without {kind.upper()}"
    return f"no {DEVICES[kind]} can be seen (is its driver set up?)"


def _forget_other_device(device: str) -> None:
    """Make Accelerate forget the first device of a process, so that a single process can use another one later."""
    state = PartialState._shared_state
    if not state or state.get("num_processes") != 1:
        return
    if state["device"].type != (best_device() if device == "auto" else device):
        AcceleratorState._reset_state(reset_partial_state=True)


def choose_precision(precision: str, device: torch.device, net: nn.Module | None = None) -> Precision:
    """``auto`` becomes bf16 if the device has fast bf16 arithmetic (and, on a CPU, ``net`` has no depth-wise
    convolutions), else fp32. Raises ExciteError if the device does not support ``precision``."""
    if precision == "auto":
        slow = device.type == "cpu" and net is not None and has_depthwise(net)
        return "bf16" if _has_fast_bf16(device.type) and not slow else "fp32"
    check_precision(precision)
    if precision != "fp32":
        obstacle = _precision_obstacle(precision, device.type)
        if obstacle:
            other = "fp16 or fp32" if precision == "bf16" else "fp32"
            raise ExciteError(f"precision is {precision!r}, but {obstacle}; use {other}")
    return precision  # type: ignore[return-value]


def has_depthwise(net: nn.Module) -> bool:
    """Whether a network is built from depth-wise convolutions, like networks for phones.

    oneDNN has no bfloat16 kernels for them on a CPU. With 96 channels, 3x3, stride 2, from 112 pixels, batch 8,
    channels last, on one thread of an EPYC with AVX512-BF16, the forward pass took 24 ms in float32 and 719 ms in
    bfloat16, the backward pass 110 and 1,042 ms (PyTorch 2.13). Those in gates do not count: there is only one in a
    block of dense convolutions.
    """
    return any(
        isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 and "gate" not in name.split(".")
        for name, m in net.named_modules()
    )


def _precision_obstacle(precision: str, kind: str) -> str | None:
    """Why a device cannot compute in bf16 or fp16 at all; None if it can."""
    if kind == "mps":  # fp16 always
        newer = precision != "bf16" or torch.backends.mps.is_macos_or_newer(14, 0)
        return None if newer else "Apple's MPS computes in bfloat16 from macOS 14 on"
    if kind == "cuda":
        able = precision != "bf16" or torch.cuda.is_bf16_supported()
        return None if able else f"{torch.cuda.get_device_name()} does not compute in bfloat16"
    if kind == "npu":  # autocast would only warn, and continue in fp32
        npu = _module("npu")
        able = DTYPES[precision] in npu.get_amp_supported_dtype() and (precision != "bf16" or _npu_has_bf16())
        return None if able else f"{npu.get_device_name()} does not compute in {precision}"
    return None


def _has_fast_bf16(kind: str) -> bool:
    if kind == "cpu":
        return _cpu_has("bf16")
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "xpu":
        return torch.xpu.is_bf16_supported(including_emulation=False)
    return kind == "npu" and _npu_has_bf16()


def _npu_has_bf16() -> bool:
    """The first Ascend 910 only supports fp16, and a torch_npu that cannot tell is too old for bf16, too."""
    return getattr(_module("npu"), "is_bf16_supported", lambda: False)()


def _module(kind: str) -> Any:
    """torch.cuda and the like; torch.npu exists once torch_npu is imported."""
    return getattr(torch, kind)


def is_emulated(precision: str, device: torch.device) -> bool:
    """Whether the device supports the precision, but has no instructions for it. (False for "auto".)"""
    kind = device.type
    if kind == "cpu":
        return precision in ("bf16", "fp16") and not _cpu_has(precision)
    return kind in ("cuda", "xpu") and precision == "bf16" and not _has_fast_bf16(kind)


def precision_note(precision: Precision, device: torch.device, option: str = "train.precision=") -> str | None:
    """A line for the user if the device only emulates the precision, which is slower than fp32; else None.

    ``option`` is the option that sets it, which the line completes with a better precision.
    """
    if not is_emulated(precision, device):
        return None
    speed = "it works, but is hardly faster than fp32, or slower"
    if device.type == "cpu":
        speed = f"measured {SLOWER_ON_CPUS[precision]} as slow as fp32 (docs/precision.md)"
    better = choose_precision("auto", device)
    return f"{precision} is emulated on this {DEVICES[device.type]}: {speed}; type {option}{better}"


@cache
def _cpu_has(precision: str) -> bool:
    """Whether the processor has instructions for the dtype (PyTorch only has underscored functions for that)."""
    if precision == "fp16":
        ask = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None)
        return ask is None or ask()  # a build without oneDNN cannot tell, so do not warn
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def compile_obstacle(device: torch.device) -> str | None:
    """What torch.compile lacks on a device; None if it has everything."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "no C++ compiler was found (install g++ or clang++, or set the environment variable CXX)"
    elif device.type in ("cuda", "xpu"):
        from torch.utils._triton import has_triton

        if not has_triton():
            return f"Triton, which compiles kernels for a {DEVICES[device.type]}, is missing (pip install triton)"
    return None


def seed_everything(seed: int, step: int = 0, rank: int = 0) -> None:
    """Seed every random generator with a pure function of (seed, step, rank).

    The training loop calls this at each step. The randomness of a step then does not depend on what came before, so a
    resumed run needs no saved random states, and skipped or repeated evaluations change nothing. It takes 80 us.
    """
    mixed = _splitmix64(_splitmix64(_splitmix64(seed) + step) + rank)
    random.seed(mixed)
    np.random.seed(mixed & 0xFFFFFFFF)  # noqa: NPY002 - the global stream is what libraries draw from
    torch.manual_seed(mixed >> 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Context in which every operation on the CPU is computed by the thread that calls it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _splitmix64(x: int) -> int:
    """SplitMix64 (Steele, Lea & Flood 2014): neighbouring inputs give unrelated outputs."""
    x = (x + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks: on a CPU, mapping every activation again costs page faults at every step.

    It only applies to this process, on Linux with glibc, and not if the user has set MALLOC_*.
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


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory, if the device supports it (accelerators except MPS)."""
    if device.type not in ("cpu", "mps"):
        getattr(torch, device.type).reset_peak_memory_stats(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def device_name(device: torch.device) -> str:
    """A readable name: that of the GPU, or of the processor with the number of threads in use."""
    if device.type == "cpu":
        return f"{_processor()} ({torch.get_num_threads()} threads)"
    return "Apple GPU (MPS)" if device.type == "mps" else getattr(torch, device.type).get_device_name(device)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: accelerators have an exception class for it, the CPU allocator only a message."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def needed_memory(error: BaseException) -> str:
    """How much memory a failed allocation asked for, as ``(12.4 GB more were asked for)``; or nothing."""
    match = re.search(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error))
    if match is None:
        return ""
    exponent = "KMGT".find(match[2][0]) + 1 if match[2] != "bytes" else 0
    return f" ({float(match[1]) * 1024**exponent / 1e9:.3g} GB more were asked for)"
