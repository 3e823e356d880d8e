"""Inference: our folded form against the unfolded one, and against timm's in every eager setting, side by side.

    make bench-cpu-inference
    python benchmarks/inference_speed.py --model seresnext50_32x4d --batch 1 8

Each contender runs in a process of its own, as its own users would start it, in rounds that take turns, so that a noisy
machine disturbs all alike. timm is measured in float32, in both memory layouts, under bfloat16 autocast, and as a
bfloat16 model, the last two channels-last; ratios are over the best of these at the same batch. The table shows medians
over all timed passes with their quartiles; rows are appended to benchmarks/results/inference_speed.csv.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from statistics import median, quantiles

from peers import import_timm
from record import append_rows, commit

RESULTS = Path(__file__).parent / "results" / "inference_speed.csv"
#: Label -> library, whether of the plain net, and how it is run.
CONTENDERS: dict[str, dict[str, object]] = {
    "excite {model}, folded": {"library": "excite", "form": "folded"},
    "excite {model}, unfolded": {"library": "excite", "form": "autocast"},
    "excite {plain}, folded": {"library": "excite", "form": "folded", "plain": True},
    "timm {model}, bf16": {"library": "timm", "form": "cast"},
    "timm {model}, bf16 autocast": {"library": "timm", "form": "autocast"},
    "timm {model}, fp32 channels-last": {"library": "timm", "form": "fp32"},
    "timm {model}, fp32": {"library": "timm", "form": "fp32", "contiguous": True},
    "timm {plain}, bf16": {"library": "timm", "form": "cast", "plain": True},
}


def plain_name(model: str) -> str:
    return model.replace("se", "", 1)


def make_step(spec: dict[str, object], model: str, batch: int, size: int) -> Callable[[], object]:
    """A forward pass of one contender on random float32 images."""
    name = plain_name(model) if spec.get("plain") else model
    create = import_timm().create_model if spec["library"] == "timm" else None
    import torch

    from excite import create_model, fold

    form, layout = spec["form"], torch.contiguous_format if spec.get("contiguous") else torch.channels_last
    net = (create or create_model)(name).eval().to(memory_format=layout)
    if form == "folded":
        net = fold(net, dtype=torch.bfloat16)
    elif form == "cast":
        net = net.to(torch.bfloat16)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)

    def step() -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if form == "autocast" else nullcontext():
            return net(images.to(torch.bfloat16) if form == "cast" else images)

    return step


def run_one(spec: dict[str, object], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each timed pass of one contender, per batch, in this process."""
    found = {}
    for batch in args.batch:
        step = make_step(spec, args.model, batch, args.size)
        for _ in range(args.warm_up):
            step()
        seconds: list[float] = []
        while sum(seconds) < args.seconds or len(seconds) < 3:
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        found[str(batch)] = seconds
    return found


def run_in_turns(args: argparse.Namespace) -> dict[tuple[str, int], list[float]]:
    """Seconds per pass of every contender and batch, over all rounds."""
    seconds: dict[tuple[str, int], list[float]] = {}
    for turn in range(args.rounds):
        for label, spec in CONTENDERS.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--only", json.dumps(spec)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{label} failed:\n{done.stderr}")
            name = label.format(model=args.model, plain=plain_name(args.model))
            found = json.loads(done.stdout.splitlines()[-1])
            for batch, times in found.items():
                seconds.setdefault((name, int(batch)), []).extend(times)
            gist = ", ".join(f"batch {b}: {int(b) / median(t):.2f} img/s" for b, t in found.items())
            print(f"round {turn + 1}/{args.rounds}  {name}: {gist}", flush=True)
    return seconds


def rows_of(seconds: dict[tuple[str, int], list[float]], args: argparse.Namespace) -> list[dict[str, object]]:
    """One row a contender and batch: the table's and the CSV's."""
    timm = import_timm().__version__
    import torch

    from excite.runtime.device import device_name

    speed = {key: key[1] / median(times) for key, times in seconds.items()}
    rows = []
    for batch in args.batch:
        peers = {name: s for (name, b), s in speed.items() if b == batch and name.startswith(f"timm {args.model},")}
        best = max(peers, key=peers.__getitem__)
        print(f"batch {batch}: timm's best is {best.split(', ', 1)[1]}")
        for (name, b), times in seconds.items():
            if b != batch:
                continue
            low, _, high = quantiles((batch / t for t in times), n=4)
            rows.append(
                {
                    "date": date.today().isoformat(),
                    "device": device_name(torch.device("cpu")),
                    "torch": torch.__version__,
                    "timm": timm,
                    "excite": commit(),
                    "contender": name,
                    "batch": batch,
                    "image_size": args.size,
                    "passes": len(times),
                    "ms": round(1e3 * median(times), 2),
                    "images_per_second": round(speed[name, batch], 3),
                    "lower_quartile": round(low, 3),
                    "upper_quartile": round(high, 3),
                    "over_timm_best": round(speed[name, batch] / peers[best], 3),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="seresnet50", help="a gated name that both libraries have")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed passes per contender, batch and round")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(run_one(json.loads(args.only), args)))
        return
    rows = rows_of(run_in_turns(args), args)
    from excite.console import Display, make_table

    columns = [("contender", "inference", ""), ("batch", "batch", "d"), ("ms", "ms", ".1f")]
    columns += [("images_per_second", "img/s", ".2f"), ("lower_quartile", "25 %", ".2f")]
    columns += [("upper_quartile", "75 %", ".2f"), ("over_timm_best", "/ timm best", ".2f")]
    Display().table(make_table(rows, columns, f"{rows[0]['device']}, {args.size}x{args.size}"))
    append_rows(args.results, rows)


if __name__ == "__main__":
    main()
