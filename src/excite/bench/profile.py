"""Profiling: a trace for Chrome or Perfetto, and the most expensive operators."""

from pathlib import Path
from typing import TypedDict, final

import psutil
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from excite.bench.floors import FloorRow, floors
from excite.bench.timing import Workbench
from excite.files import written_aside
from excite.runtime.device import peak_memory_gb
from excite.runtime.timing import time_steps

#: Profiled steps: enough to see what repeats; a longer trace is slow to open.
STEPS = 3


class OperatorRow(TypedDict):
    """An operator: ``calls`` per step; ``ms``: its own milliseconds per step, on the accelerator if there is one;
    ``share``: percent of the time of all operators."""

    operator: str
    calls: float
    ms: float
    share: float


@final
class Profile(TypedDict):
    """The ten ``operators`` that take the most time, and ``floors``, which are empty for a compiled network, whose
    operators are the compiler's."""

    operators: list[OperatorRow]
    floors: list[FloorRow]


def profile_steps(bench: Workbench, trace: Path) -> Profile:
    """Profile :data:`STEPS` steps after the warm-up, write the trace, and return where the time went.

    Raises:
        ExciteError: the trace cannot be written.
    """
    kind = bench.device.type
    activities = {ProfilerActivity.CPU}
    if kind in ("cuda", "xpu"):
        activities.add(getattr(ProfilerActivity, kind.upper()))
    bench.warm()
    _fill_heap(bench)
    with profile(activities=sorted(activities, key=str), record_shapes=True) as profiler:
        time_steps(bench.step, bench.device, STEPS)
    with written_aside(trace) as aside:
        profiler.export_chrome_trace(str(aside))
    own = "self_device_time_total" if len(activities) > 1 else "self_cpu_time_total"  # microseconds
    # Operators only: an accelerator's kernels are also listed and would be counted twice.
    listed = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    events = sorted(listed, key=lambda event: getattr(event, own), reverse=True)
    total = sum(getattr(event, own) for event in events) or 1
    milliseconds = {event.key: getattr(event, own) / 1000 / STEPS for event in events}
    operators: list[OperatorRow] = [
        {
            "operator": event.key,
            "calls": event.count / STEPS,
            "ms": milliseconds[event.key],
            "share": 100 * getattr(event, own) / total,
        }
        for event in events[:10]
    ]
    return {"operators": operators, "floors": floors(bench, milliseconds) if bench.setting.compile == "off" else []}


def _fill_heap(bench: Workbench) -> None:
    """Reserve as much heap memory as the steps have used so far.

    On a CPU the profiler's records lie between freed maps, so that new maps need newly mapped memory: 100,000 page
    faults per step of a seresnet50 (batch 16), a tenth of its time, which do not occur without the profiler.
    """
    if bench.device.type == "cpu":
        size = min(int(1e9 * peak_memory_gb(bench.device)), psutil.virtual_memory().available // 2)
        torch.ones(size, dtype=torch.uint8)
