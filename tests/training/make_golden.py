"""Write tests/golden/training.json anew: python -m tests.training.make_golden (and say in CHANGELOG.md why)."""

import json
import tempfile
from pathlib import Path

import torch

from excite.training import train
from tests.training.small import metrics, small

if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = train(small("epochs=1"), out=folder, quiet=True)["run"]
        losses = [r["loss"] for r in metrics(run)]
    path = Path(__file__).parents[1] / "golden" / "training.json"
    path.write_text(json.dumps({"small": losses}, indent=1) + "\n")
    print(path, losses)
