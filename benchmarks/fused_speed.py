"""A training step with norm, gate and activation in two passes against the textbook form, step by step in turns.

    python benchmarks/fused_speed.py seresnet50 resnet50 --batch 16 --size 224
    python benchmarks/fused_speed.py cifar_seresnet20 cifar_resnet20 --batch 64 --size 32 --steps 60

All contenders live in one process and take turns step by step, so that a noisy machine disturbs all alike; the bytes
that each keeps for the backward pass are counted, too. Rows are appended to benchmarks/results/fused_speed.csv.
"""

import argparse
from datetime import date
from pathlib import Path
from statistics import median, quantiles

import torch
from record import append_rows, commit
from torch import nn

from excite import create_model
from excite.bench.timing import training_step
from excite.console import Display, make_table
from excite.runtime.device import device_name, keep_freed_memory
from excite.runtime.timing import time_steps

RESULTS = Path(__file__).parent / "results" / "fused_speed.csv"


def saved_megabytes(model: nn.Module, images: torch.Tensor) -> float:
    """What the forward pass keeps for the backward pass, parameters apart, in MB (1e6 bytes)."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.UntypedStorage]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast(images.device.type, torch.bfloat16),
    ):
        model(images)
    return sum(size for at, (size, _) in kept.items() if at not in own) / 1e6


def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    device = torch.device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    images = torch.randn(args.batch, 3, args.size, args.size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (args.batch,), device=device)
    contenders = []
    for name in args.models:
        for fused in ("off", args.fused):
            model = create_model(name, fused=fused).to(device).to(memory_format=torch.channels_last)
            contenders.append((name, fused, model, training_step(model, images, labels, "bf16")))
    seconds: dict[tuple[str, str], list[float]] = {(name, fused): [] for name, fused, _, _ in contenders}
    for turn in range(args.warm_up + args.steps):
        for name, fused, _, step in contenders:
            taken = time_steps(step, device, 1)
            if turn >= args.warm_up:
                seconds[name, fused] += taken
    rows = []
    for name, fused, model, _ in contenders:
        times = seconds[name, fused]
        low, _, high = quantiles((args.batch / t for t in times), n=4)
        rows.append(
            {
                "date": date.today().isoformat(),
                "device": device_name(device),
                "torch": torch.__version__,
                "excite": commit(),
                "model": name,
                "fused": fused,
                "batch": args.batch,
                "image_size": args.size,
                "steps": len(times),
                "ms_per_step": round(1e3 * median(times), 2),
                "images_per_second": round(args.batch / median(times), 2),
                "lower_quartile": round(low, 2),
                "upper_quartile": round(high, 2),
                # Of each turn's pair: what disturbs a turn disturbs both.
                "over_textbook": round(median(a / b for a, b in zip(seconds[name, "off"], times, strict=True)), 3),
                "saved_mb": round(saved_megabytes(model, images), 1),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names from `excite models`")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--fused", default="auto", choices=["auto", "on"], help="what the textbook form is compared with"
    )
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = measure(args)
    columns = [("model", "model", ""), ("fused", "fused", ""), ("ms_per_step", "ms/step", ".1f")]
    columns += [
        ("images_per_second", "img/s", ".2f"),
        ("lower_quartile", "25 %", ".2f"),
        ("upper_quartile", "75 %", ".2f"),
    ]
    columns += [("over_textbook", "/ textbook", ".3f"), ("saved_mb", "saved MB", ".0f")]
    Display().table(
        make_table(rows, columns, f"{rows[0]['device']}, batch {args.batch}, {args.size}x{args.size}, bf16")
    )
    append_rows(args.results, rows)


if __name__ == "__main__":
    main()
