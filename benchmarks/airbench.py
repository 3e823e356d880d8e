"""The reference of the recipe `cifar10-fast`: the published program of the CIFAR-10 records, on the same pictures.

    git clone https://github.com/KellerJordan/cifar10-airbench .peers/airbench
    python benchmarks/airbench.py .peers/airbench/legacy/airbench94.py --seeds 3

The program runs as it is published, but for what a CPU needs: float32 weights under autocast to bfloat16, where the
original has float16 weights; no torch.compile; a clock of its own. The pictures are those of EXCITE_TEST_DATA (the JPEG
copy of CIFAR-10). A row for each seed is appended to benchmarks/results/airbench.csv. Seconds are the program's own:
training and the last evaluation, without reading the data.

    python benchmarks/airbench.py --ours RUN [RUN ...]

appends a row for each run of `cifar10-fast`, measured once more with `--tta shift`; seconds are those of training.
"""

import argparse
import io
import os
import re
import sys
import time
import types
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import append_rows, commit

from excite.runtime.device import device_name

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "airbench.csv"
#: As the program is published -> as a CPU runs it.
CHANGES = (
    (r"\.half\(\)", ".float()"),
    (r"\.cuda\(\)", ""),
    (r"map_location=[^)]*\)?\)", 'map_location="cpu")'),
    (r"@torch\.compile\n", ""),
    (r"\w+\.compile\(mode=.*\)\n", "pass\n"),
)


def lay_out(folder: Path) -> None:
    """The pictures as the program keeps them."""
    with np.load(Path(os.environ["EXCITE_TEST_DATA"]) / "cifar10_jpeg.npz") as archive:
        for part in ("train", "test"):
            blob, offset = archive[f"{part}_jpeg"].tobytes(), archive[f"{part}_offset"]
            files = (blob[a:b] for a, b in pairwise(offset))
            pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
            labels = torch.from_numpy(archive[f"{part}_label"].astype(np.int64))
            classes = [str(name) for name in archive["classes"]]
            found = {"images": torch.from_numpy(pixels), "labels": labels, "classes": classes}
            torch.save(found, folder / f"{part}.pt")


class Normalize:
    """The only part of torchvision that the program uses."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        self.mean, self.std = mean.view(3, 1, 1), std.view(3, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std


class Event:
    """A stopwatch in place of that of a GPU."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.at - self.at)


def prepared(program: Path) -> dict[str, Any]:
    """The program's functions, for this CPU."""
    torchvision, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    transforms.Normalize = Normalize  # type: ignore[attr-defined]
    torchvision.transforms = transforms  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": torchvision, "torchvision.transforms": transforms}
    torch.cuda.Event, torch.cuda.synchronize = Event, lambda: None  # type: ignore[misc, assignment]
    text = program.read_text(encoding="utf-8")
    for before, after in CHANGES:
        text = re.sub(before, after, text)
    sys.argv = [str(program)]
    names: dict[str, Any] = {"__name__": "airbench"}
    exec(compile(text, str(program), "exec"), names)
    return names


def autocast(model: torch.nn.Module) -> torch.nn.Module:
    """A network that runs in bfloat16."""
    inner = model.forward

    def forward(*inputs: Any, **options: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return inner(*inputs, **options).float()

    model.forward = forward  # type: ignore[method-assign]
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def our_row(run: str, busy: bool) -> dict[str, Any]:
    """A run folder as a row of the same table."""
    from excite import validate
    from excite.recipe import load_recipe
    from excite.runtime.environment import read_environment
    from excite.training.results import read_results

    results, about = read_results(Path(run) / "results.json"), read_environment(Path(run) / "environment.json")
    _, seen = validate(run, tta="shift")
    git = about["git"]
    return {
        "date": date.today().isoformat(),
        "device": results["device"],
        "excite": git["commit"][:10] + "+" * git["changed"] if git else "unknown",
        "torch": torch.__version__,
        "program": results["recipe"],
        "seed": load_recipe(run).train.seed,
        "seconds": "" if busy else round(results["train_seconds"] or 0, 1),
        "top1": round(results["last_top1"] or 0, 2),
        "top1_tta": round(seen.top1, 2),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path, nargs="?")
    parser.add_argument("--ours", nargs="+", metavar="RUN", help="runs of cifar10-fast to add instead")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--busy", action="store_true", help="other work runs beside it: leave the seconds out")
    args = parser.parse_args()
    if args.ours:
        append_rows(RESULTS, [our_row(run, args.busy) for run in args.ours])
        return
    names, tree = prepared(args.program), commit()
    folder = Path("/tmp/airbench")
    (folder / "cifar10").mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if not (folder / "cifar10" / "test.pt").exists():
        lay_out(folder / "cifar10")
    timed: list[dict[str, Any]] = []
    shown = names["print_training_details"]

    def show(variables: dict[str, Any], is_final_entry: bool) -> None:
        timed.append(dict(variables))
        shown(variables, is_final_entry)
        sys.stdout.flush()

    names["print_training_details"] = show
    if "make_net" in names:
        make = names["make_net"]
        names["make_net"] = lambda *given: autocast(make(*given))
    for seed in range(args.first, args.first + args.seeds):
        torch.manual_seed(seed)
        given = (autocast(names["CifarNet"]()),) if "CifarNet" in names else ()
        tta = names["main"](seed, *given)
        seconds = timed[-1].get("total_time_seconds", timed[-1].get("time_seconds"))
        row = {
            "date": date.today().isoformat(),
            "device": device_name(torch.device("cpu")),
            "excite": tree,
            "torch": torch.__version__,
            "program": args.program.name,
            "seed": seed,
            "seconds": "" if args.busy else round(seconds, 1),
            "top1": round(100 * timed[-2]["val_acc"], 2),
            "top1_tta": round(100 * tta, 2),
            "threads": torch.get_num_threads(),
        }
        append_rows(RESULTS, [row])


if __name__ == "__main__":
    main()
