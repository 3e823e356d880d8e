"""What a GPU should do, before one is at hand: python benchmarks/predict_gpu.py

Bytes and operations of a training step in bfloat16 are counted from the network's shapes, and divided by the rates of
an H200 (data sheet: 989 TFLOP/s in bfloat16 without sparsity, 4.8 TB/s) times the shares of them that large
convolutions and copies are assumed to reach. One run of benchmarks/gpu.sh can confirm or refute it; its rows are then
put beside these. Rows are appended to benchmarks/results/predicted_gpu.csv.

Accesses to a map of a norm's size (R and W of docs/free-excitation.md), forward and backward, are those of a norm and
its ReLU inside a block, of the end of a block, and of the norm of a shortcut.
"""

import argparse
from datetime import date
from pathlib import Path
from typing import Any

import torch
from record import append_rows, commit
from torch.utils.flop_counter import FlopCounterMode

from excite import create_model
from excite.models.blocks import ResidualBlock

RESULTS = Path(__file__).parent / "results" / "predicted_gpu.csv"
FLOPS, BYTES = 989e12, 4.8e12
#: Form -> (inside, end of a gated block, end of an ungated one, shortcut): accesses in a step.
ACCESSES = {"textbook": (13, 25, 16, 8), "two passes": (8, 11, 11, 6)}


def counted(name: str, batch: int, form: str) -> tuple[float, float]:
    """Operations and bytes of the maps in a step."""
    inside, gated, plain, shortcut = ACCESSES[form]
    with torch.device("meta"):
        model = create_model(name)
    values = 0

    def count(times: int) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            nonlocal values
            values += times * output.numel()

        return hook

    for block in (module for module in model.modules() if isinstance(module, ResidualBlock)):
        norms = [(n, m) for n, m in block.named_modules() if isinstance(m, torch.nn.BatchNorm2d) and ".gate" not in n]
        own = [norm for n, norm in norms if not n.startswith("downsample")]
        for norm in own[:-1]:
            norm.register_forward_hook(count(inside))
        own[-1].register_forward_hook(count(plain if block.gate is None else gated))
        for _, norm in (each for each in norms if each[0].startswith("downsample")):
            norm.register_forward_hook(count(shortcut))
    model.bn1.register_forward_hook(count(inside))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(batch, *model.input_size, device="meta"))
    return 3.0 * counter.get_total_flops(), 2.0 * values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--convolutions", type=float, default=0.5, help="share of the peak that convolutions reach")
    parser.add_argument("--bandwidth", type=float, default=0.85, help="share of the bandwidth that passes reach")
    args = parser.parse_args()
    rows, tree = [], commit()
    for name in ("resnet50", "seresnet50", "geresnet50_theta_minus"):
        for form in ACCESSES:
            flops, moved = counted(name, args.batch, form)
            matrix, maps = flops / FLOPS / args.convolutions, moved / BYTES / args.bandwidth
            row = {"date": date.today().isoformat(), "excite": tree, "device": "H200, predicted", "network": name}
            row |= {"form": form, "batch": args.batch, "tflop": round(flops / 1e12, 2), "gb": round(moved / 1e9, 2)}
            row |= {"convolutions_ms": round(1000 * matrix, 1), "maps_ms": round(1000 * maps, 1)}
            row |= {"images_per_second": round(args.batch / (matrix + maps))}
            rows.append(row)
            print({key: value for key, value in row.items() if key not in ("date", "excite", "device")})
    append_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
