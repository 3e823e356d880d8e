"""Where the time goes: a trace for Chrome or Perfetto, and the most expensive operators."""

from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from excite.bench.floors import floors
from excite.bench.timing import Workbench, time_steps
from excite.files import written_aside

#: Enough to see what repeats; a trace of more is slow to open.
STEPS = 3


def profile_steps(bench: Workbench, trace: Path) -> dict[str, list[dict[str, Any]]]:
    """Profile some steps after the warm-up, write the trace, and tell where the time went.

    Returns:
        ``operators``: the ten that take the most time, one row each: name, calls a step, its own milliseconds a step
        (on the accelerator where there is one), its share of all operators' in percent. ``floors``: see
        :func:`excite.bench.floors.floors`; none for a compiled network, whose operators are the compiler's.

    Raises:
        ExciteError: the trace cannot be written.
    """
    kind = bench.device.type
    activities = {ProfilerActivity.CPU}
    if kind in ("cuda", "xpu"):
        activities.add(getattr(ProfilerActivity, kind.upper()))
    bench.warm()
    with profile(activities=sorted(activities, key=str), record_shapes=True) as profiler:
        time_steps(bench.step, bench.device, STEPS)
    with written_aside(trace) as aside:
        profiler.export_chrome_trace(str(aside))
    own = "self_device_time_total" if len(activities) > 1 else "self_cpu_time_total"  # microseconds
    # Operators only: an accelerator's kernels are listed beside the operators that launched them, and count twice else.
    listed = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    events = sorted(listed, key=lambda event: getattr(event, own), reverse=True)
    total = sum(getattr(event, own) for event in events) or 1
    milliseconds = {event.key: getattr(event, own) / 1000 / STEPS for event in events}
    operators = [
        {
            "operator": event.key,
            "calls": event.count / STEPS,
            "ms": milliseconds[event.key],
            "share": 100 * getattr(event, own) / total,
        }
        for event in events[:10]
    ]
    return {"operators": operators, "floors": floors(bench, milliseconds) if bench.setting.compile == "off" else []}
