"""Training speed of our default against timm's default and timm's best setting, side by side in one run.

    make bench-cpu                                     # on a CPU
    python benchmarks/train_speed.py --device cuda --batch 256 --steps 30

Each contender runs in a process of its own, as its own users would start it, in rounds that take turns, so that a noisy
machine disturbs all alike. The table shows medians over all timed steps with their quartiles, and ratios of medians;
rows are appended to benchmarks/results/train_speed.csv.
"""

import argparse
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from statistics import median, quantiles

from peers import import_timm
from record import append_rows, commit

RESULTS = Path(__file__).parent / "results" / "train_speed.csv"


def settings(device: str) -> dict[str, dict[str, object]]:
    """What each contender runs with."""
    best = {"precision": "bf16", "channels_last": True, "fused": True}
    ours = {**best, "keep_freed_memory": device == "cpu"}  # what `excite train` does by default on such a device
    return {
        "excite {model}, default": {"library": "excite", **ours},
        "excite {plain}, default": {"library": "excite", "plain": True, **ours},
        "timm {model}, default": {"library": "timm", "precision": "fp32", "channels_last": False, "fused": False},
        "timm {model}, best (bf16, channels-last)": {"library": "timm", **best},
        "timm {plain}, best (bf16, channels-last)": {"library": "timm", "plain": True, **best},
    }


def run_one(spec: dict[str, object], args: argparse.Namespace) -> list[float]:
    """Time one contender in this process."""
    name = args.model.replace("se", "", 1) if spec["plain"] else args.model
    if spec["library"] == "timm":
        model = import_timm().create_model(name)
    else:
        from excite import create_model
        from excite.runtime.device import keep_freed_memory

        if spec["keep_freed_memory"]:
            keep_freed_memory()
        model = create_model(name)
    from excite.bench import training_step_seconds  # after timm: torchmetrics looks for torchvision too

    return training_step_seconds(
        model,
        batch_size=args.batch,
        image_size=args.size,
        device=args.device,
        steps=args.steps,
        **{k: spec[k] for k in ("precision", "channels_last", "fused")},
    )


def run_in_turns(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per step of every contender, over all rounds."""
    seconds: dict[str, list[float]] = {}
    for turn in range(args.rounds):
        for label, spec in settings(args.device).items():
            command = [sys.executable, __file__, *sys.argv[1:], "--only", json.dumps({"plain": False, **spec})]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{label} failed:\n{done.stderr}")
            name = label.format(model=args.model, plain=args.model.replace("se", "", 1))
            times = json.loads(done.stdout.splitlines()[-1])
            seconds.setdefault(name, []).extend(times)
            print(f"round {turn + 1}/{args.rounds}  {name}: {args.batch / median(times):.2f} img/s", flush=True)
    return seconds


def rows_of(seconds: dict[str, list[float]], args: argparse.Namespace) -> list[dict[str, object]]:
    """One row a contender: the table's and the CSV's."""
    import torch

    from excite.runtime.device import device_name

    speed = {name: args.batch / median(times) for name, times in seconds.items()}
    default, best = (speed[n] for n in speed if n.startswith(f"timm {args.model}"))
    rows = []
    for name, times in seconds.items():
        low, _, high = quantiles((args.batch / t for t in times), n=4)
        rows.append(
            {
                "date": date.today().isoformat(),
                "device": device_name(torch.device(args.device)),
                "torch": torch.__version__,
                "timm": import_timm().__version__,
                "excite": commit(),
                "contender": name,
                "batch": args.batch,
                "image_size": args.size,
                "steps": len(times),
                "images_per_second": round(speed[name], 3),
                "lower_quartile": round(low, 3),
                "upper_quartile": round(high, 3),
                "over_timm_default": round(speed[name] / default, 3),
                "over_timm_best": round(speed[name] / best, 3),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="seresnet50", help="a gated name that both libraries have")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(run_one(json.loads(args.only), args)))
        return
    rows = rows_of(run_in_turns(args), args)
    from excite.console import Display, make_table

    columns = [
        ("contender", "training", ""),
        ("images_per_second", "img/s", ".2f"),
        ("lower_quartile", "25 %", ".2f"),
        ("upper_quartile", "75 %", ".2f"),
        ("over_timm_default", "/ timm default", ".2f"),
        ("over_timm_best", "/ timm best", ".2f"),
    ]
    Display().table(make_table(rows, columns, f"{rows[0]['device']}, batch {args.batch}, {args.size}x{args.size}"))
    append_rows(args.results, rows)


if __name__ == "__main__":
    main()
