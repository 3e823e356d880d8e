"""Where a step's time goes beside the least it could take: floor, measured, ratio.

Letters: N images, C channels, H x W positions. A floor is work over a ceiling measured in the same process:
floating-point operations over the rate of a large matrix product in the step's precision, bytes over the rate of a
copy. The counts are of an ideal step: for convolutions and dense layers their operations and nothing else; for norm,
gate, addition and ReLU the passes that are left when all between two convolutions is fused (docs/free-excitation.md);
for the optimizer each number read and written once.

Kept beside PyTorch's profiler, which says what takes the time and not how much less it could be.
"""

import statistics
from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from excite.bench.timing import Workbench
from excite.runtime.device import DTYPES
from excite.runtime.timing import Step, time_steps

#: Reads and writes of a map between two convolutions. Training: statistics R; normalise and ReLU R W; backward the sums
#: R R, and the gradient R R W. Inference: in the convolution's own epilogue.
NORM_PASSES = {"train": 8, "infer": 0}
#: What the end of a block adds. Training: the shortcut R; the mask from the output R, and the shortcut's gradient W.
#: Inference: branch and shortcut R R, output W, and the squeeze R.
BLOCK_PASSES = {"train": 3, "infer": 4}
#: SGD with momentum, float32: parameter, gradient and momentum read, parameter and momentum written.
OPTIMIZER_BYTES = 5 * 4

MATRIX, MAPS, OPTIMIZER, REST = "convolutions, dense layers", "norms, gates, additions, ReLU", "optimizer", "the rest"
#: Parts of operators' names; the first part that has one takes it.
_NAMES = {
    OPTIMIZER: ("_fused_sgd", "_fused_adam", "_foreach", "Optimizer."),
    MATRIX: ("conv", "mm", "linear"),
    MAPS: (
        *("Norm", "norm", "excite::", "Excite", "SpatialMean", "relu", "threshold", "sigmoid", "hardtanh", "avg_pool"),
        *("::add", "::mul", "::mean", "::sum", "::div", "::rsqrt", "::lerp", "::sub"),
    ),
}


class FloorRow(TypedDict):
    """A part of the step; floor and ratio are None where there is no floor. The ceilings are those of all rows."""

    part: str
    floor_ms: float | None
    measured_ms: float
    ratio: float | None
    tflops: float
    gb_per_s: float


class Work(TypedDict):
    """Floating-point operations, values of maps that must move, parameters."""

    flops: int
    map_values: int
    parameters: int


def floors(bench: Workbench, milliseconds: Mapping[str, float]) -> list[FloorRow]:
    """One row a part of the step, and one of all.

    Args:
        bench: warm.
        milliseconds: operator -> its own time in one step.
    """
    mode = bench.setting.mode
    dtype = DTYPES[bench.precision]
    work = _work(bench)
    rate, bandwidth = _matrix_rate(bench.device, dtype), _copy_bandwidth(bench.device)
    seconds = {
        MATRIX: work["flops"] / rate,
        MAPS: work["map_values"] * torch.empty((), dtype=dtype).element_size() / bandwidth,
    }
    if mode == "train":
        seconds[OPTIMIZER] = work["parameters"] * OPTIMIZER_BYTES / bandwidth
    measured = dict.fromkeys([MATRIX, MAPS, OPTIMIZER, REST], 0.0)
    for name, ms in milliseconds.items():
        measured[part_of(name)] += ms

    def row(part: str, floor: float | None, ms: float) -> FloorRow:
        return {
            "part": part,
            "floor_ms": floor,
            "measured_ms": ms,
            "ratio": ms / floor if floor else None,
            "tflops": rate / 1e12,
            "gb_per_s": bandwidth / 1e9,
        }

    rows = [row(part, 1000 * seconds[part] if part in seconds else None, ms) for part, ms in measured.items()]
    return [*rows, row("all", sum(1000 * s for s in seconds.values()), sum(measured.values()))]


def part_of(operator: str) -> str:
    """The part of a step that an operator's time is counted to."""
    return next((part for part, names in _NAMES.items() if any(name in operator for name in names)), REST)


def _work(bench: Workbench) -> Work:
    net, mode = bench.model, bench.setting.mode
    values = 0

    def count(passes: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal values
            if isinstance(output, Tensor) and output.ndim == 4:
                values += passes * output.numel()

        return hook

    hooks = []
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_hook(count(NORM_PASSES[mode])))
        elif type(module).__name__.endswith(("Block", "Bottleneck")):  # by name: other libraries' are counted, too
            hooks.append(module.register_forward_hook(count(BLOCK_PASSES[mode])))
    counter = FlopCounterMode(display=False)
    try:
        with counter:  # a norm that is listened to runs as itself, so that every map is seen
            bench.step()
    finally:
        for hook in hooks:
            hook.remove()
    parameters = sum(p.numel() for p in net.parameters())
    return {"flops": counter.get_total_flops(), "map_values": values, "parameters": parameters}


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: a @ b, device)


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.ones(2**26 if device.type == "cpu" else 2**28, device=device)  # 268 MB, 1.07 GB: beyond any cache
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device)


def _median_seconds(call: Step, device: torch.device, rounds: int = 7) -> float:
    return statistics.median(time_steps(call, device, rounds + 2)[2:])
