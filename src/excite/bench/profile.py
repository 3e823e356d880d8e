"""Where the time goes: a trace for Chrome or Perfetto, and the most expensive operators."""

from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from excite.bench.timing import Workbench, time_steps
from excite.files import written_aside

#: Enough to see what repeats; a trace of more is slow to open.
STEPS = 3


def profile_steps(bench: Workbench, trace: Path) -> list[dict[str, Any]]:
    """Profile some steps after the warm-up, write the trace, and tell the ten operators that take the most time.

    Returns:
        One row an operator: name, calls a step, its own milliseconds a step (on the accelerator where there is one),
        its share of all operators' in percent.

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
    events = sorted(profiler.key_averages(), key=lambda event: getattr(event, own), reverse=True)
    total = sum(getattr(event, own) for event in events) or 1
    return [
        {
            "operator": event.key,
            "calls": event.count / STEPS,
            "ms": getattr(event, own) / 1000 / STEPS,
            "share": 100 * getattr(event, own) / total,
        }
        for event in events[:10]
    ]
