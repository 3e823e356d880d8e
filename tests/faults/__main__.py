"""The long form: ``make test-faults`` plants many faults of each kind, prints the table and adds rows to a CSV file.

``python -m tests.faults [TIMES] [KIND ...]``: so many faults of each kind (50), of these kinds only.
"""

import csv
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from excite.runtime.environment import versions
from tests.faults import kinds, stores
from tests.faults.gate import BROKEN, STALLED
from tests.faults.harness import import_beforehand
from tests.faults.kinds import Row

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "faults.csv"
HEADS = ["fault", "planted", "reached", "lost", "hung", "tracebacks", "wrong", "seconds", "cpu", "torch", "date"]

KINDS: dict[str, Callable[[Path, int], Row]] = {
    **{
        kind: (lambda folder, n, kind=kind: kinds.killed_at(kind, folder, n))
        for kind in ("file", "step", "save", "evaluation")
    },
    "worker": kinds.worker_killed,
    "rank0": lambda folder, n: kinds.rank_killed(folder, n, [0]),
    "rank1": lambda folder, n: kinds.rank_killed(folder, n, [1]),
    "node": lambda folder, n: kinds.rank_killed(folder, n, [0, 1], "node"),
    "upload": stores.upload_killed,
    "stall": lambda folder, n: stores.store_away(folder, n, STALLED),
    "break": lambda folder, n: stores.store_away(folder, n, BROKEN),
    **{name: (lambda folder, n, name=name: kinds.command_killed(name, folder, n)) for name in kinds.COMMANDS},
    "full": lambda folder, n: kinds.full_disk(folder, [200 + 150 * index for index in range(n)]),
    "read-only": kinds.read_only,
    "damaged": lambda folder, n: kinds.damaged(folder, times=10**6 if n >= 50 else n),
}
#: Used by some kinds only.
IMPORTED = (
    "s3fs",
    "aiobotocore.session",
    "onnx",
    "onnxscript",
    "torch.onnx",
    "excite.export.build",
    "excite.report.build",
)


def main() -> None:
    """Entry point."""
    words = sys.argv[1:]
    times = int(words.pop(0)) if words and words[0].isdecimal() else 50
    failed = False
    import_beforehand(*IMPORTED)
    print(f"{'fault':<56} planted reached  lost  hung trace wrong")
    for name in words or KINDS:
        since = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
            try:
                row = KINDS[name](Path(scratch), times)
            except PermissionError as error:
                print(f"{name}: skipped: {error}", flush=True)
                continue
        counts = [row.planted, row.reached, row.lost, row.hung, row.tracebacks, row.wrong]
        print(
            f"{row.fault[:56]:<56} {counts[0]:>7} {counts[1]:>7} " + " ".join(f"{n:>5}" for n in counts[2:]), flush=True
        )
        for example in row.examples[:5]:
            print(f"    {example}", flush=True)
        failed = failed or not row.fine
        write(row, time.monotonic() - since)
    sys.exit(failed)


def write(row: Row, seconds: float) -> None:
    """Add a row to the CSV file."""
    new = not RESULTS.is_file()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        if new:
            table.writerow(HEADS)
        cpu = f"{platform.machine()}, {os.cpu_count()} cores"
        counts = [row.planted, row.reached, row.lost, row.hung, row.tracebacks, row.wrong]
        table.writerow([row.fault, *counts, f"{seconds:.0f}", cpu, versions()["torch"], date.today().isoformat()])


if __name__ == "__main__":
    main()
