"""By how much weights differ when the same recipe is trained on another layout, with train.deterministic and without.

    python benchmarks/layouts.py [--recipe digits-seresnet20] [--epochs 2]

Every row is a training in a process of its own, compared with the first of its kind: whether model.safetensors is the
same file, and the largest difference of a weight, as a fraction of the largest weight of its tensor. Adds rows to
benchmarks/results/layouts.csv.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from record import append_rows
from safetensors.torch import load_file

from excite.files import sha256_of
from excite.runtime.environment import versions

RESULTS = Path(__file__).parent / "results" / "layouts.csv"
HEADS = ["recipe", "epochs", "deterministic", "layout", "same_file", "largest_difference", "cpu", "torch", "date"]
OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
#: Layout -> (processes, threads of each, environment).
LAYOUTS: dict[str, tuple[int, int, dict[str, str]]] = {
    "1 process, 1 thread": (1, 1, {}),
    "1 process, 2 threads": (1, 2, {}),
    "2 processes, 1 thread": (2, 1, {}),
    "4 processes, 1 thread": (4, 1, {}),
    "an older processor (AVX2)": (1, 1, OLDER),
}


def train(recipe: str, out: Path, layout: tuple[int, int, dict[str, str]], words: list[str]) -> Path:
    """Train in a process of its own; the weights."""
    processes, threads, more = layout
    command = [sys.executable, "-m", "excite", "train", recipe, *words, "train.device=cpu", "report.write=false"]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", "-m"]
        command[1:2] = launcher
    subprocess.run(
        [*command, "--run-dir", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), **more},
        check=True,
        capture_output=True,
    )
    return out / "model.safetensors"


def difference(one: Path, other: Path) -> float:
    """The largest difference of a value, as a fraction of the largest value of its tensor."""
    before, after = load_file(one), load_file(other)
    pairs = [(before[name].double(), after[name].double()) for name in before]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in pairs)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits-seresnet20")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("words", nargs="*", help="changes to the recipe")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for deterministic in ("true", "false"):
            first: Path | None = None
            for number, (name, layout) in enumerate(LAYOUTS.items()):
                words = [f"train.epochs={given.epochs}", "schedule.warmup_epochs=0", "train.sync_bn=true", *given.words]
                out = Path(scratch) / f"{deterministic}-{number}"
                weights = train(given.recipe, out, layout, [*words, f"train.deterministic={deterministic}"])
                first = first or weights
                same, apart = sha256_of(first) == sha256_of(weights), difference(first, weights)
                cpu = f"{platform.machine()}, {os.cpu_count()} cores"
                row = [" ".join([given.recipe, *given.words]), given.epochs, deterministic, name, same, f"{apart:.1e}"]
                rows.append(dict(zip(HEADS, [*row, cpu, versions()["torch"], date.today().isoformat()], strict=True)))
                print(f"deterministic={deterministic:<5}  {name:<26} same file {same!s:<5}  {apart:.1e}", flush=True)
    append_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
