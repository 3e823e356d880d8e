"""Each pass of the fused operator by Triton, over the floor: the bytes it must move, by the bandwidth of a large copy.

    python benchmarks/triton_passes.py                  # the four stages of ResNet-50 and CIFAR's three, on the GPU
    python benchmarks/triton_passes.py --sweep          # other tiles for the passes that sum, which are not tuned
    TRITON_INTERPRET=1 python benchmarks/triton_passes.py --device cpu --small    # checks only; no rows

What a pass computes is compared with plain PyTorch before anything is timed. Maps are bfloat16 and channels-last.
Several sets of maps take turns, results included, so that none is in the cache because of the turn before; what is
timed is a CUDA graph of all turns, for the copy likewise. "block" is one block's four passes one after the other, where
the second of a pair may find what the first has read. Rows are appended to benchmarks/results/triton_passes.csv.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from record import append_rows, commit
from torch import Tensor

from excite.console import Display, make_table
from excite.ops import plain, triton_kernels
from excite.ops.activations import LINEAR, RELU
from excite.ops.native import GradSums, Statistics
from excite.ops.triton_kernels import launch
from excite.runtime.device import device_name

RESULTS = Path(__file__).parent / "results" / "triton_passes.csv"
#: Batch, channels, pixels a side.
SIZES = [(256, 256, 56), (256, 512, 28), (256, 1024, 14), (256, 2048, 7), (128, 16, 32), (128, 32, 16), (128, 64, 8)]
SMALL = [(2, 24, 5), (1, 64, 9)]
#: Passes of the tuned kind bring their own tiles; these are tried for the others: values a tile, warps, programs.
SWEEP = [(2048, 4, 2048), (2048, 4, 1024), (2048, 4, 4096), (4096, 8, 2048), (4096, 4, 2048), (2048, 8, 2048)]
COPY_BYTES = 2**30
REPEATS = 20


class Block(NamedTuple):
    """One set of tensors: maps, (N, C) arrays and (C) arrays."""

    y: Tensor
    add: Tensor
    grad: Tensor
    out: Tensor
    weight: Tensor
    s: Tensor
    known: Statistics
    known_add: Statistics
    sums: GradSums


class Pass(NamedTuple):
    """A pass: ``run(passes, block)`` with plain or triton_kernels; how many maps it reads and writes."""

    name: str
    maps: int
    run: Callable[[Any, Block], tuple[Tensor | None, ...]]


def _statistics(passes: Any, b: Block) -> tuple[Tensor | None, ...]:
    return (passes.statistics(b.y, b.weight, b.weight, 1e-5, None, 0.0).packed,)


def _apply(passes: Any, b: Block) -> tuple[Tensor | None, ...]:
    return (passes.apply(b.y, b.known, b.s, b.add, RELU),)


def _apply_projection(passes: Any, b: Block) -> tuple[Tensor | None, ...]:
    return (passes.apply(b.y, b.known, b.s, b.add, RELU, b.known_add),)


def _grad_sums(passes: Any, b: Block) -> tuple[Tensor | None, ...]:
    return tuple(passes.grad_sums(b.grad, b.out, b.y, b.known, b.s, RELU, True))


def _grad_sums_projection(passes: Any, b: Block) -> tuple[Tensor | None, ...]:
    return tuple(passes.grad_sums(b.grad, b.out, b.y, b.known, b.s, RELU, True, b.add, b.known_add))


def _grad_input(passes: Any, b: Block) -> tuple[Tensor | None, ...]:
    return passes.grad_input(b.grad, b.y, b.known, b.s, b.sums, b.s, LINEAR, True)


def _block(passes: Any, b: Block) -> tuple[Tensor | None, ...]:
    known = passes.statistics(b.y, b.weight, b.weight, 1e-5, None, 0.0)
    out = passes.apply(b.y, known, b.s, b.add, RELU)
    sums = passes.grad_sums(b.grad, out, b.y, known, b.s, RELU, True)
    return out, *passes.grad_input(sums.map, b.y, known, b.s, sums, b.s, LINEAR, True)


PASSES = [
    Pass("statistics", 1, _statistics),
    Pass("apply", 3, _apply),
    Pass("apply, projection", 3, _apply_projection),
    Pass("grad_sums", 4, _grad_sums),
    Pass("grad_sums, projection", 5, _grad_sums_projection),
    Pass("grad_input", 3, _grad_input),
    Pass("block", 11, _block),
]


def make_block(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device, seed: int) -> Block:
    generator = torch.Generator(device).manual_seed(seed)
    n, c, side = size

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    y, add, grad = (
        (draw(n, c, side, side) + 1).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(3)
    )
    weight, s = draw(c), draw(n, c).sigmoid()
    known, known_add = (plain.statistics(x, weight, weight, 1e-5, None, 0.0) for x in (y, add))
    out = plain.apply(y, known, s, add, RELU)
    sums = GradSums(plain.grad_sums(grad, out, y, known, s, RELU, False).packed, None)
    return Block(y, add, grad, out, weight, s, known, known_add, sums)


#: A unit in bfloat16's last place: the interpreter cuts off where GPUs round.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


def check(size: tuple[int, int, int], device: torch.device, dtypes: Sequence[torch.dtype]) -> None:
    """Exits where a pass does not give what plain PyTorch gives from the same maps."""
    for dtype in dtypes:
        block = make_block(size, dtype, device, seed=1)
        for one in PASSES:
            for ours, theirs in zip(one.run(triton_kernels, block), one.run(plain, block), strict=True):
                if ours is None or theirs is None:
                    continue
                error = ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()
                if not error <= TOLERANCES[dtype]:
                    sys.exit(f"{one.name} of {size} in {dtype} is {error:.1e} (relative norm) off plain PyTorch")


def milliseconds(calls: list[Callable[[], Any]]) -> list[float]:
    """What one call takes, ``REPEATS`` times: all calls in turn as one CUDA graph, between two events."""
    for call in calls:  # compiles and tunes
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call() for call in calls]
    times = []
    for turn in range(REPEATS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(start.elapsed_time(end) / len(results))
    return times


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.randn(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2e3 * COPY_BYTES / median(milliseconds([lambda: target.copy_(source)]))


@contextmanager
def sum_tiles(tile: int, warps: int, programs: int) -> Iterator[None]:
    """The passes that sum, with other tiles."""
    before = launch.SUM_TILE, launch.SUM_WARPS, launch.SUM_PROGRAMS
    launch.SUM_TILE, launch.SUM_WARPS, launch.SUM_PROGRAMS = tile, warps, programs
    try:
        yield
    finally:
        launch.SUM_TILE, launch.SUM_WARPS, launch.SUM_PROGRAMS = before


def measure(size: tuple[int, int, int], device: torch.device, bandwidth: float) -> list[dict[str, object]]:
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    n, c, side = size
    map_bytes = 2 * n * c * side * side
    # At least two sets, and more than four times the cache between one use of a map and the next.
    sets = max(2, -(-4 * cache // map_bytes))
    blocks = [make_block(size, torch.bfloat16, device, seed) for seed in range(sets)]
    rows = []
    for one in PASSES:
        times = milliseconds([lambda one=one, block=block: one.run(triton_kernels, block) for block in blocks])
        floor = 1e3 * one.maps * map_bytes / bandwidth
        low, _, high = quantiles(times, n=4)
        rows.append(
            {
                "date": date.today().isoformat(),
                "device": device_name(device),
                "torch": torch.__version__,
                "triton": triton_version(),
                "excite": os.environ.get("COMMIT") or commit(),  # a copy of the source may be without its history
                "batch": n,
                "channels": c,
                "side": side,
                "pass": one.name,
                "sum_tile": launch.SUM_TILE,
                "sum_warps": launch.SUM_WARPS,
                "sum_programs": launch.SUM_PROGRAMS,
                "maps_moved": one.maps,
                "copy_gb_per_second": round(bandwidth / 1e9, 1),
                "floor_us": round(1e3 * floor, 2),
                "us": round(1e3 * median(times), 2),
                "lower_quartile": round(1e3 * low, 2),
                "upper_quartile": round(1e3 * high, 2),
                "over_floor": round(median(times) / floor, 3),
            }
        )
    return rows


def triton_version() -> str:
    import triton

    return triton.__version__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="two small sizes, checked and not timed")
    parser.add_argument("--sweep", action="store_true", help="other tiles for the passes that sum")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if reason := triton_kernels.why_not():
        sys.exit(f"The Triton kernels cannot run: {reason}")
    device = torch.device(args.device)
    if device.type != "cuda" and not args.small:
        sys.exit(f"Only a CUDA GPU is timed, not {device.type}; --small checks without timing")
    sizes = SMALL if args.small else SIZES
    for size in sizes:
        # The tests see to float32; here each type costs the compiler another minute.
        check(size, device, list(TOLERANCES) if args.small else [torch.bfloat16])
        print(f"{size}: as plain PyTorch", flush=True)
    if args.small:
        print("two small sizes: checked, not timed")
        return
    bandwidth = copy_bandwidth(device)
    rows = []
    for tiles in SWEEP if args.sweep else SWEEP[:1]:
        with sum_tiles(*tiles):
            for size in sizes:
                found = measure(size, device, bandwidth)
                append_rows(args.results, found)  # at once: what is stopped later has measured something
                rows += found
    columns = [("channels", "channels", ""), ("side", "side", ""), ("pass", "pass", ""), ("sum_tile", "tile", "")]
    columns += [("sum_warps", "warps", ""), ("sum_programs", "programs", ""), ("floor_us", "floor us", ".1f")]
    columns += [("us", "us", ".1f"), ("over_floor", "/ floor", ".2f")]
    Display().table(make_table(rows, columns, f"{rows[0]['device']}, copy {bandwidth / 1e12:.2f} TB/s"))


if __name__ == "__main__":
    main()
