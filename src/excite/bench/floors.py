"""The time of the parts of a step, compared with the least possible time (floor): floor, measured, ratio.

Notation: N images, C channels, H x W positions. A floor is work / a ceiling measured in the same process:
floating-point operations / the rate of a large matrix product in the step's precision, or bytes / the rate of a copy.
The work is that of an ideal step: for convolutions and dense layers, only their operations; for norm, gate, addition
and ReLU, the passes that remain if everything between two convolutions is fused (docs/free-excitation.md); for the
optimizer, each number read and written once.

This complements PyTorch's profiler, which shows what takes time but not how much less it could take.
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

#: Reads (R) and writes (W) of a map between two convolutions. Training: statistics R; normalisation and ReLU R W; in
#: the backward pass sums R R and gradient R R W. Inference: none, as part of the convolution's epilogue.
NORM_PASSES = {"train": 8, "infer": 0}
#: Additional reads and writes at the end of a block. Training: shortcut R; mask from the output R, and gradient of the
#: shortcut W. Inference: branch and shortcut R R, output W, squeeze R.
BLOCK_PASSES = {"train": 3, "infer": 4}
#: SGD with momentum in float32: reads parameter, gradient and momentum, writes parameter and momentum.
OPTIMIZER_BYTES = 5 * 4

MATRIX, MAPS, OPTIMIZER, REST = "convolutions, dense layers", "norms, gates, additions, ReLU", "optimizer", "the rest"
#: Part -> substrings of operator names; an operator belongs to the first part that matches.
_NAMES = {
    OPTIMIZER: ("_fused_sgd", "_fused_adam", "_foreach", "Optimizer."),
    MATRIX: ("conv", "mm", "linear"),
    MAPS: (
        *("Norm", "norm", "excite::", "Excite", "SpatialMean", "relu", "threshold", "sigmoid", "hardtanh", "avg_pool"),
        *("::add", "::mul", "::mean", "::sum", "::div", "::rsqrt", "::lerp", "::sub"),
    ),
}


class FloorRow(TypedDict):
    """A part of the step; floor and ratio are None if it has no floor. The ceilings are the same in all rows."""

    part: str
    floor_ms: float | None
    measured_ms: float
    ratio: float | None
    tflops: float
    gb_per_s: float


class Work(TypedDict):
    """Work of a step: floating-point operations, map values read or written, and parameters."""

    flops: int
    map_values: int
    parameters: int


def floors(bench: Workbench, milliseconds: Mapping[str, float]) -> list[FloorRow]:
    """One row per part of the step, and one for the whole step.

    Args:
        bench: the workbench, after its warm-up.
        milliseconds: operator -> its own time per step.
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
    """The part of a step that an operator belongs to."""
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
        elif type(module).__name__.endswith(("Block", "Bottleneck")):  # by name, to include other libraries
            hooks.append(module.register_forward_hook(count(BLOCK_PASSES[mode])))
    counter = FlopCounterMode(display=False)
    try:
        with counter:  # a norm with a hook runs separately, so that every map is seen
            bench.step()
    finally:
        for hook in hooks:
            hook.remove()
    parameters = sum(p.numel() for p in net.parameters())
    return {"flops": counter.get_total_flops(), "map_values": values, "parameters": parameters}


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: a @ b, device)


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes per second read and written by a large copy."""
    source = torch.ones(2**26 if device.type == "cpu" else 2**28, device=device)  # 268 MB, 1.07 GB: beyond any cache
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device)


def _median_seconds(call: Step, device: torch.device, rounds: int = 7) -> float:
    return statistics.median(time_steps(call, device, rounds + 2)[2:])
