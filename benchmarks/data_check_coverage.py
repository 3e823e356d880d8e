"""Does the interval of the restated accuracy cover the true one? 200 simulations of each kind.

    python benchmarks/data_check_coverage.py [--run RUN --data cifar10_jpeg.npz]

A simulation draws 1,000 validation images of a population whose accuracy is known, writes wrong labels, and adds 5 % of
leaks, which the network answers as their labels say. The accuracy as measured, and as restated, either covers the true
accuracy with its interval or does not. The leaks are known here: data_check.py measures how they are found.

Populations: "calibrated", answers drawn from the network's own probabilities, its logits then multiplied by 1.4;
"heavy", the same, but 2 % of the images are answered at random, however confident the network is; and with --run the
real logits of a network on CIFAR-10's test images (whose own labels count as true). Wrong labels: any other class
("any"), or always the most probable other class by the network ("similar"), which the estimator assumes not to be the
case.
Adds rows to benchmarks/results/data_check_coverage.csv.
"""

import argparse
import io
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from record import append_rows, commit

from excite.datacheck.labels import fit_noise
from excite.datacheck.restated import measured, true_accuracy

RESULTS = Path(__file__).parent / "results" / "data_check_coverage.csv"
TIMES, IMAGES, LEAKS = 200, 1000, 0.05
#: A function (generator, N) -> logits (N, K) and true classes (N,).
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def calibrated(rng: np.random.Generator, count: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Classes drawn from the probabilities of random logits; the logits are returned too sharp."""
    logits = 3 * rng.normal(size=(count, classes))
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    true = (np.exp(logits).cumsum(1) > rng.random((count, 1)) * (1 - 1e-9)).argmax(1)
    return 1.4 * logits, true


def heavy(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The same, with 2 % of the images answered wrongly whatever the confidence."""
    logits, true = calibrated(rng, count)
    lost = np.flatnonzero(rng.random(count) < 0.02)
    true[lost] = rng.integers(0, logits.shape[1], len(lost))
    return logits, true


def of_run(run: Path, data: Path) -> Draw:
    """Draw with replacement from a network's answers to CIFAR-10's test images from the 2,000th on."""
    import torch
    from PIL import Image

    from excite.trained.predictor import load

    predictor = load(run, "cpu")
    with np.load(data) as file:
        blob, offset, label = file["test_jpeg"].tobytes(), file["test_offset"], file["test_label"].astype(np.int64)
        order = [predictor.classes.index(str(name)) for name in file["classes"]]
    found = []
    for start in range(2000, len(label), 250):
        some = range(start, min(start + 250, len(label)))
        images = (Image.open(io.BytesIO(blob[offset[i] : offset[i + 1]])) for i in some)
        found.append(predictor.logits(torch.stack([predictor.preprocessing.load(image) for image in images])).numpy())
    logits, true = np.concatenate(found), np.array(order)[label[2000:]]

    def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.integers(0, len(true), count)
        return logits[chosen], true[chosen].copy()

    draw.population = float((logits.argmax(1) == true).mean())  # type: ignore[attr-defined]
    return draw


def simulated(draw: Draw, rate: float, similar: bool, population: float, seed: int) -> dict[str, float]:
    """Coverage, mean error and mean width over all simulations, in percent."""
    rng = np.random.default_rng(seed)
    inside, naive, error, width, noise = 0, 0, [], [], 0
    for _ in range(TIMES):
        logits, true = draw(rng, IMAGES)
        classes, answers, given = logits.shape[1], logits.argmax(1), true.copy()
        wrong = np.flatnonzero(rng.random(IMAGES) < rate)
        if similar:
            others = logits[wrong].copy()
            others[np.arange(len(wrong)), true[wrong]] = -np.inf
            given[wrong] = others.argmax(1)
        else:
            given[wrong] = (true[wrong] + rng.integers(1, classes, len(wrong))) % classes
        right, leaks = int((answers == given).sum()), round(LEAKS * IMAGES)
        plain = measured(right + leaks, IMAGES + leaks)
        naive += plain.low <= population <= plain.high
        found = fit_noise(logits, given)
        restated = true_accuracy(measured(right, IMAGES), found.rate, found.low, found.high, classes)
        inside += restated.low <= population <= restated.high
        noise += found.low <= rate <= found.high
        error.append(restated.share - population)
        width.append(restated.high - restated.low)
    return {
        "true_accuracy": round(100 * population, 2),
        "covered": 100 * inside / TIMES,
        "covered_as_measured": 100 * naive / TIMES,
        "noise_covered": 100 * noise / TIMES,
        "mean_error": round(100 * float(np.mean(error)), 2),
        "mean_width": round(100 * float(np.mean(width)), 2),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a network trained on CIFAR-10 class folders")
    parser.add_argument("--data", type=Path, help="cifar10_jpeg.npz")
    given = parser.parse_args()
    draws: dict[str, Draw] = {"calibrated": calibrated, "heavy": heavy}
    if given.run is not None:
        draws["real"] = of_run(given.run, given.data)
    rows = []
    for name, draw in draws.items():
        whole = getattr(draw, "population", None)
        if whole is None:
            logits, true = draw(np.random.default_rng(0), 2_000_000)
            whole = float((logits.argmax(1) == true).mean())
        for number, (rate, similar) in enumerate(
            [(0, False), (0.02, False), (0.05, False), (0.1, False), (0.05, True)]
        ):
            found = simulated(draw, rate, similar, whole, number)
            kind = {"population": name, "noise": rate, "wrong_labels": "similar" if similar else "any"}
            rows.append({**kind, "times": TIMES, "images": IMAGES, "leaks": LEAKS, **found})
            print(rows[-1], flush=True)
    more = {"commit": commit(), "date": date.today().isoformat()}
    append_rows(RESULTS, [{**row, **more} for row in rows])


if __name__ == "__main__":
    main()
