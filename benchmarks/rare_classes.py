"""What helps rare classes: CIFAR-10 made long-tailed, trained in six ways: python benchmarks/rare_classes.py [SEED...]

The ten classes of the JPEG copy that EXCITE_TEST_DATA names have 500 to 20 training images, in geometric steps
(airplane has most, truck fewest); 2,000 test images, 200 a class, are evaluated once, after the last epoch, so that
nothing is chosen by them. Each seed is one training of each way, in turns, on one thread.

Columns: ``balanced`` is the accuracy on the test images, in percent, where all classes count the same; ``top1`` is what
it would be with classes as frequent as in training (the sum of the classes' accuracies, weighted by their shares);
``rarest`` and ``commonest`` are the mean accuracies of the three classes with the fewest and the most images.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from record import append_rows, commit

import excite
from excite.runtime.device import device_name

MOST, FEWEST, CLASSES = 500, 20, 10
WAYS = {
    "plain": [],
    "class_weights=balanced": ["train.class_weights=balanced"],
    "sampler=balanced": ["data.sampler=balanced"],
    "sampler=sqrt": ["data.sampler=sqrt"],
    "focal": ["train.loss=focal"],
    "logit_adjustment=1": ["train.logit_adjustment=1"],
}
RESULTS = Path(__file__).parent / "results" / "rare_classes.csv"


def counts() -> list[int]:
    """The training images of each class."""
    return [round(MOST * (FEWEST / MOST) ** (k / (CLASSES - 1))) for k in range(CLASSES)]


def make(folder: Path) -> None:
    """Lay the data set out as class folders."""
    data = Path(os.environ["EXCITE_TEST_DATA"])
    words = ["cifar-folder", str(folder), "--train", "8000", "--test", "2400"]
    subprocess.run([sys.executable, str(data / "unpack.py"), *words], check=True, stdout=subprocess.DEVNULL)
    for part, wanted in (("train", counts()), ("val", [200] * CLASSES)):
        for label, count in zip(sorted((folder / part).iterdir()), wanted, strict=True):
            for path in sorted(label.iterdir())[count:]:
                path.unlink()


def measure(root: Path, way: str, seed: int, epochs: int, size: int) -> dict[str, object]:
    """Train in one way and evaluate the last epoch."""
    words = [f"data.root={root}", "data.source=folder", f"image_size={size}", f"train.epochs={epochs}"]
    words += [f"eval.every_epochs={epochs}", f"train.seed={seed}", "train.precision=fp32", "train.device=cpu"]
    out = Path(tempfile.mkdtemp())
    begun = time.perf_counter()
    results = excite.train("cifar10-seresnet20", [*words, "report.write=false", *WAYS[way]], out=out, quiet=True)
    seconds = time.perf_counter() - begun
    predictor, found = excite.validate(results["run"])
    shutil.rmtree(out)
    recall = [row["top1"] for row in found.per_class(predictor.classes)]
    prior = [n / sum(counts()) for n in counts()]
    row = {
        "way": way,
        "seed": seed,
        "balanced": found.balanced,
        "macro_f1": found.value("macro_f1"),
        "top1": sum(p * r for p, r in zip(prior, recall, strict=True)),
        "rarest": sum(recall[-3:]) / 3,
        "commonest": sum(recall[:3]) / 3,
    }
    row = {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}
    settings = {"epochs": epochs, "image_size": size, "train_images": sum(counts()), "test_images": found.images}
    machine = {
        "seconds": round(seconds),
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
    }
    return {**row, **settings, **machine, "torch": torch.__version__, "commit": commit(), "date": f"{date.today()}"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--image-size", type=int, default=16)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as there:
        root = Path(there) / "cifar10-lt"
        make(root)
        for seed in chosen.seeds:
            for way in chosen.ways:
                found = measure(root, way, seed, chosen.epochs, chosen.image_size)
                print(
                    {key: found[key] for key in ("way", "seed", "balanced", "top1", "rarest", "commonest", "seconds")}
                )
                append_rows(RESULTS, [found])
