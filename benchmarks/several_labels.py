"""Several labels an image: pictures of two CIFAR-10 images side by side, trained with each loss:

    python benchmarks/several_labels.py FOLDER [--losses bce focal asymmetric] [--seeds 0] [--epochs 8]

FOLDER gets ``pictures/`` and ``labels.csv``: 3,000 pictures for training, 600 for validation and 600 for testing, 32 x
64 pixels, each with the classes of both its halves (a tenth of them show one class twice). The validation pictures
choose the epoch and the threshold; the numbers are those of the test pictures, at that threshold, in percent.

The images are those of the JPEG copy that EXCITE_TEST_DATA names.
"""

import argparse
import io
import os
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import append_rows, commit

import excite
from excite.runtime.device import device_name

PARTS = {"train": 3000, "val": 600, "test": 600}
RESULTS = Path(__file__).parent / "results" / "several_labels.csv"


def make(folder: Path) -> Path:
    """Write the pictures and the table, unless they are there; return the table."""
    table = folder / "labels.csv"
    if table.exists():
        return table
    (folder / "pictures").mkdir(parents=True)
    data, rng = np.load(Path(os.environ["EXCITE_TEST_DATA"]) / "cifar10_jpeg.npz"), np.random.default_rng(0)
    names, rows = [str(name) for name in data["classes"]], ["path,label,part"]
    for part, count in PARTS.items():
        split = "train" if part == "train" else "test"
        blob, offset, label = data[f"{split}_jpeg"].tobytes(), data[f"{split}_offset"], data[f"{split}_label"]
        first = PARTS["val"] * 2 if part == "test" else 0  # validation and test pictures share no image
        for i, halves in enumerate((first + rng.permutation(2 * count)).reshape(count, 2).tolist()):
            picture = Image.new("RGB", (64, 32))
            for at, k in enumerate(halves):
                picture.paste(Image.open(io.BytesIO(blob[offset[k] : offset[k + 1]])), (32 * at, 0))
            path = f"pictures/{part}-{i:04}.png"
            picture.save(folder / path)
            rows.append(f"{path},{'|'.join(sorted({names[label[k]] for k in halves}))},{part}")
    table.write_text("\n".join(rows) + "\n")
    return table


def measure(table: Path, loss: str, seed: int, epochs: int, out: Path) -> dict[str, object]:
    """Train with one loss, and evaluate the test pictures."""
    words = ["data.source=table", f"data.root={table}", "task=multilabel", "data.image_size=[32,64]"]
    words += [f"train.loss={loss}", f"train.epochs={epochs}", f"train.seed={seed}", "train.device=cpu"]
    begun = time.perf_counter()
    run = excite.train("cifar10-seresnet20", [*words, "report.write=false"], out=out, quiet=True)["run"]
    seconds = time.perf_counter() - begun
    found = excite.validate(run, ["data.part=test"]).evaluation
    numbers = {key: found.summary()[key] for key in ("map", "macro_f1", "micro_f1", "threshold")}
    row = {"loss": loss, "seed": seed, **{key: round(value, 3) for key, value in numbers.items()}}
    machine = {"device": device_name(torch.device("cpu")), "threads": torch.get_num_threads()}
    row |= {"epochs": epochs, "train_images": PARTS["train"], "test_images": found.images, "seconds": round(seconds)}
    return {**row, **machine, "torch": torch.__version__, "commit": commit(), "date": f"{date.today()}"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--losses", nargs="*", default=["bce", "focal", "asymmetric"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=8)
    chosen = parser.parse_args()
    table = make(chosen.folder)
    for seed in chosen.seeds:
        for loss in chosen.losses:
            with tempfile.TemporaryDirectory() as out:
                row = measure(table, loss, seed, chosen.epochs, Path(out))
            print({key: row[key] for key in ("loss", "seed", "map", "macro_f1", "micro_f1", "threshold", "seconds")})
            append_rows(RESULTS, [row])
