"""What ``excite data check`` finds of missing and invented labels in pictures of two handwritten digits each.

    python benchmarks/data_check_labels.py --out FOLDER

FOLDER gets ``labels.csv`` with 3,000 training and 1,200 validation pictures, 16 x 32 pixels, of the digits that come
with the package (a digit is in one part only), each with the names of both. 8 % of the pictures lose a label, 4 % get
one that does not belong there; 40 darker copies of training pictures are put into the validation part. A network is
trained for 10 epochs, and its run is checked. Adds rows to benchmarks/results/data_check_labels.csv.
"""

import argparse
import csv
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image
from record import append_rows, commit

import excite
from excite.data import open_data
from excite.datacheck.decisions import fit_decisions, judged_classes
from excite.datacheck.judged import restated_precision
from excite.datacheck.restated import Share
from excite.measures import mean_average_precision, sigmoid
from excite.pages.resampling import interval, resampled
from excite.recipe import load_recipe

RESULTS = Path(__file__).parent / "results" / "data_check_labels.csv"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PARTS, LEAKS = {"train": 3000, "val": 1200}, 40


def make(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Write pictures and table; return name -> (true labels, given labels)."""
    (folder / "pictures").mkdir(parents=True)
    recipe, rng = load_recipe("digits-seresnet20"), np.random.default_rng(1)
    data = open_data(recipe.data, recipe.augment)
    rows, told = [], {}

    def add(name: str, pixels: np.ndarray, true: list[str], given: list[str], part: str) -> None:
        Image.fromarray(pixels).save(folder / "pictures" / name)
        rows.append((f"pictures/{name}", "|".join(given), part))
        told[name] = (true, given)

    for (part, count), source in zip(PARTS.items(), (data.train, data.val), strict=True):
        for number in range(count):
            pair = rng.choice(len(source), 2, replace=False).tolist()
            pixels = np.concatenate([np.asarray(source.images[k])[0] for k in pair], axis=1)
            true = sorted({NAMES[int(source.labels[k])] for k in pair})
            given, chance = list(true), rng.random()
            if chance < 0.08:
                given.remove(rng.choice(given))
            elif chance < 0.12:
                given = sorted([*given, rng.choice([name for name in NAMES if name not in true])])
            add(f"{part}{number:04}.png", pixels, true, given, part)
    for number in range(LEAKS):
        name = f"train{number:04}.png"
        pixels = np.asarray(Image.open(folder / "pictures" / name)) * 0.8 + 5
        add(f"leak{number:02}.png", pixels.astype(np.uint8), *told[name], "val")
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "part"), *rows])
    return told


def coverage(times: int = 40, images: int = 800) -> None:
    """How often the restated mAP of calibrated answers covers the true one, with the rates of missing labels."""
    rng = np.random.default_rng(3)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        logits = 3 * rng.normal(size=(count, 10)) - 2.5
        return (1.3 * logits).astype(np.float32), (rng.random(logits.shape) < sigmoid(logits)).astype(np.uint8)

    population = mean_average_precision(*draw(200_000))
    assert population is not None
    for missing, invented in ((0.0, 0.0), (0.05, 0.005), (0.15, 0.01)):
        inside, rates = 0, 0
        for _ in range(times):
            logits, true = draw(images)
            chance = rng.random(true.shape)
            given = np.where(true > 0, chance >= missing, chance < invented).astype(np.uint8)
            noise = fit_decisions(logits, given, judged_classes(logits, given))
            value = mean_average_precision(logits, given)
            low, high = interval(value, resampled(logits, given, 0.5, 300).map)
            by_labels = Share(images, *(float(each or 0) / 100 for each in (value, low, high)))
            restated = restated_precision(logits, given, by_labels, noise)
            inside += restated is not None and restated.low <= population / 100 <= restated.high
            rates += noise.missing.low <= missing <= noise.missing.high
        print(f"missing {missing}, invented {invented}: mAP {inside} of {times}, missing {rates} of {times}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    told = make(out)
    words = ["data.source=table", f"data.root={out / 'labels.csv'}", "task=multilabel", "data.in_chans=1"]
    words += ["data.image_size=[16,32]", "train.epochs=10", "report.write=false"]
    run = excite.train("digits-seresnet20", words, out=out, quiet=True)["run"]
    numbers, _ = excite.check_data(run)
    found = {each["kind"]: each["examples"] for each in numbers["findings"]}
    rows = []
    for part in PARTS:
        planted = {name for name, (true, given) in told.items() if true != given and name.startswith(part)}
        for least, kinds in ((50, ["labels"]), (20, ["labels", "labels-perhaps"])):
            some = [each for kind in kinds for each in found.get(kind, []) if each["name"].startswith(part)]
            hits = [each for each in some if each["name"] in planted]
            proposed = [each for each in hits if sorted(str(each["instead"]).split("|")) == told[each["name"]][0]]
            rows.append(
                {
                    "part": part,
                    "wrong with at least": least,
                    "planted": len(planted),
                    "found": len(some),
                    "precision": round(100 * len(hits) / max(1, len(some)), 1),
                    "recall": round(100 * len(hits) / len(planted), 1),
                    "proposed right": len(proposed),
                    "date": f"{date.today()}",
                    "commit": commit(),
                }
            )
            print(rows[-1])
    for row in numbers["labels"]:
        print(row)
    print(numbers["restated"])
    append_rows(RESULTS, rows)
    coverage()


if __name__ == "__main__":
    main()
