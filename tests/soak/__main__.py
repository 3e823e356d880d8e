"""The long form: ``make test-soak`` watches a training, evaluations and predictions, and adds rows to a CSV file.

``python -m tests.soak [MINUTES] [KIND ...]``: train for so many minutes (60), with 100 evaluations and 10,000
predictions for an hour and in proportion otherwise; of these kinds only ("memory": more images than memory holds).
With EXCITE_SOAK_KEPT=FOLDER every sample is kept there, as CSV.
"""

import csv
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple
from datetime import date
from pathlib import Path

from excite.runtime.environment import versions
from tests.soak import memory
from tests.soak.flat import Verdict
from tests.soak.soak import KINDS, Soaked, soak
from tests.soak.watch import Sample

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "soak.csv"
HEADS = ["kind", "minutes", "done", "samples", "measure", "start", "end", "per_hour", "flat"]
MEMORY = RESULTS.with_name("memory.csv")
MEMORY_HEADS = [
    "command",
    "mode",
    "images",
    "decoded_mb",
    "limit",
    "limit_mb",
    "peak_mb_few",
    "peak_mb",
    "bytes_an_image",
]
MEMORY_HEADS += ["seconds", "right"]
#: For what is larger than memory: so many images, each under so many names; side of those that the network sees; MB
#: beyond what the few take. The many take 503 MB when decoded, more than the command may have altogether.
FEW, COPIES, SIDE, ALLOWED = 128, 80, 128, 96.0
#: Evaluations and predictions in an hour's soak.
AN_HOUR = {"evaluate": 100, "predict": 10_000}


def main() -> None:
    """Entry point."""
    words = sys.argv[1:]
    minutes = float(words.pop(0)) if words and words[0].replace(".", "", 1).isdecimal() else 60.0
    failed = False
    for kind in words or [*KINDS, "memory"]:
        if kind == "memory":
            failed = not more_than_memory() or failed
            continue
        amount = minutes if kind == "train" else max(1, round(AN_HOUR[kind] * minutes / 60))
        every = max(0.25, min(5.0, minutes / 12)) if kind == "train" else 0.5
        since = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
            found = soak(kind, Path(scratch), amount, every)
        taken = (time.monotonic() - since) / 60
        print(f"{kind}: {found.said}, {len(found.samples)} samples in {taken:.1f} minutes", flush=True)
        print(f"    {'':<12} {'start':>9} {'end':>9} {'an hour':>9}")
        for each in found.verdicts:
            numbers = " ".join(f"{value:>9.2f}" for value in (each.start, each.end, each.per_hour))
            print(f"    {each.measure:<12} {numbers}  {'flat' if each.flat else 'GROWS'}", flush=True)
        for line in found.wrong:
            print(f"    {line}", flush=True)
        failed = failed or bool(found.wrong)
        write(found, taken)
        if (kept := os.environ.get("EXCITE_SOAK_KEPT")) is not None:
            keep(found, Path(kept))
    sys.exit(failed)


def more_than_memory() -> bool:
    """Run commands on more images than memory holds, add a row for each to a CSV file; whether all is well."""
    fine = True
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        places = memory.prepare(Path(scratch) / "images", FEW, COPIES, SIDE)
        for command, mode in (("validate", "auto"), ("validate", "stream"), ("report", "auto"), ("predict", "stream")):
            rest = (COPIES, SIDE, Path(scratch) / f"{command}-{mode}")
            try:
                kind, found = "cgroup", memory.study(command, *places, *rest, "cgroup", ALLOWED, mode)
            except PermissionError:
                kind, found = "ulimit", memory.study(command, *places, *rest, "ulimit", ALLOWED, mode)
            what = f"{command}, data.mode={mode}, {found.images:,} images of {found.decoded:.0f} MB"
            limit = found.before.peak(kind) + ALLOWED
            print(f"{what} within {limit:.0f} MB ({kind}): {found.bytes_an_image:,.0f} bytes an image", flush=True)
            for line in found.wrong:
                print(f"    {line}", flush=True)
            fine = fine and not found.wrong
            row = [
                command,
                mode,
                found.images,
                f"{found.decoded:.0f}",
                kind,
                f"{limit:.0f}",
                f"{found.before.memory:.1f}",
            ]
            numbers = [f"{found.within.memory:.1f}", f"{found.bytes_an_image:.0f}", f"{found.within.seconds:.0f}"]
            append(MEMORY, MEMORY_HEADS, [[*row, *numbers, not found.wrong]])
    return fine


def append(path: Path, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Add rows to a CSV file, with where and when they were measured."""
    new = not path.is_file()
    device = f"{platform.machine()}, {os.cpu_count()} cores"
    made_with = versions()["torch"], platform.python_version()
    with path.open("a", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        if new:
            table.writerow([*heads, "cpu", "torch", "python", "date"])
        for row in rows:
            table.writerow([*row, device, *made_with, date.today().isoformat()])


def write(found: Soaked, minutes: float) -> None:
    """Add a row for each measure to the CSV file."""
    append(RESULTS, HEADS, [_row(found, minutes, each) for each in found.verdicts])


def keep(found: Soaked, folder: Path) -> None:
    """Write every sample into a file, to see how a measure grew."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{found.kind}.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(Sample.__annotations__)
        table.writerows(astuple(sample) for sample in found.samples)


def _row(found: Soaked, minutes: float, each: Verdict) -> list[object]:
    numbers = [f"{value:.2f}" for value in (each.start, each.end, each.per_hour)]
    return [found.kind, f"{minutes:.1f}", found.done, len(found.samples), each.measure, *numbers, each.flat]


if __name__ == "__main__":
    main()
