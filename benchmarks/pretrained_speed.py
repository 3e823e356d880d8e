"""How fast the networks with pretrained weights are here: python benchmarks/pretrained_speed.py

Runs ``excite bench --infer`` on all of them, in turns, and rewrites
src/excite/weights/speeds.json, which ``excite models --pretrained`` shows. On a CPU, run nothing beside it.
"""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from record import commit

from excite.weights.pretrained import PRETRAINED, SPEEDS

FILE = Path(__file__).resolve().parents[1] / "src" / "excite" / "weights" / SPEEDS
BATCH = 16


def bench(*words: str) -> list[dict[str, Any]]:
    """The rows of ``excite bench``."""
    names = [known.model for known in PRETRAINED]
    command = [sys.executable, "-P", "-m", "excite", "bench", *names, *words, "--batch", str(BATCH), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


def main() -> None:
    measured = commit()
    rows = bench("--infer", "--image-size", "224", "--seconds", "2", "--rounds", "1", "--warm-up", "2")
    speeds = {
        "device": rows[0]["device"],
        "date": date.today().isoformat(),
        "torch": rows[0]["torch"],
        "excite": measured,
        "batch": BATCH,
        "images_per_second": {row["model"]: round(row["images_per_second"], 2) for row in rows},
    }
    FILE.write_text(json.dumps(speeds, indent=1) + "\n")


if __name__ == "__main__":
    main()
