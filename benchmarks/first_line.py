"""How soon every command says something: ``python benchmarks/first_line.py PHOTOS [--repeats N] [--only COMMAND]``.

PHOTOS is a folder of two or more class folders. A small network and its ungated twin are trained on it first, in a
folder of their own. Each command is started with its output piped, and ended at its first line, on either stream. What
is printed, as CSV: the processor's seconds until then (which other work on the machine changes little), those of the
clock, and the line; the best of N each. The commands that run are those of the ``excite`` on PYTHONPATH, so that two
checkouts can be compared.
"""

import argparse
import csv
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = (
    "epochs=1 schedule.warmup_epochs=0 train.batch_size=16 image_size=64 train.precision=fp32 "
    "data.workers=1 data.on_bad_val=skip report.write=false"
)
COMMANDS = {
    "--version": "--version",
    "--help": "--help",
    "models": "models",
    "gates": "gates",
    "recipes": "recipes",
    "a mistake": "validate nowhere",
    "train": f"train folder-seresnet50 data.root=PHOTOS model.name=seresnet18 {SMALL} --run-dir new",
    "twins": f"twins folder-seresnet50 data.root=PHOTOS model.name=resnet18 {SMALL} --seeds 1 --out new",
    "validate": "validate run",
    "predict": "predict run PHOTOS",
    "bench": "bench seresnet18 --infer --batch 1",
    "scale": "scale imagenet-seresnet50-100ep",
    "convert": "convert run new.safetensors",
    "graft": "graft resnet18 --dry-run",
    "export": "export run -f pt2 --out new.pt2",
    "prune": "prune run --calibration 50",
    "explain": "explain run --images 50 --ablation off --no-timing --out new",
    "compare": "compare run twin --out new.html",
    "report": "report run --quick --out new.html",
}


def command(words: str, photos: Path) -> list[str]:
    """The process of ``excite WORDS``."""
    return [sys.executable, "-m", "excite", *(word.replace("PHOTOS", str(photos)) for word in words.split())]


def first_line(words: list[str], folder: str) -> tuple[float, float, str]:
    """(processor's seconds, seconds, the line); Linux only, for what /proc tells."""
    start = time.perf_counter()
    process = subprocess.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    select.select([process.stdout], [], [])
    seconds = time.perf_counter() - start
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    used = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime, stime, and those of children
    line = os.read(process.stdout.fileno(), 4096).decode(errors="replace").partition("\n")[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return used, seconds, line.strip()[:60]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--only", action="append", choices=list(COMMANDS), help="may be given several times")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    photos = asked.photos.resolve()
    table = csv.writer(sys.stdout)
    table.writerow(["command", "processor_s", "seconds", "line"])
    with tempfile.TemporaryDirectory() as folder:
        for run, model in (("run", "seresnet18"), ("twin", "resnet18")):
            words = f"train folder-seresnet50 data.root=PHOTOS model.name={model} {SMALL} --run-dir {run}"
            subprocess.run(command(words, photos), cwd=folder, check=True, capture_output=True)
        for name in asked.only or COMMANDS:
            tries = [first_line(command(COMMANDS[name], photos), folder) for _ in range(asked.repeats)]
            used, _, line = min(tries)
            table.writerow([name, f"{used:.2f}", f"{min(seconds for _, seconds, _ in tries):.2f}", line])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
