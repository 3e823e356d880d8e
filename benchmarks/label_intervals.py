"""How often the 95 % intervals of mAP and micro F1 cover the truth, on made-up logits:

    python benchmarks/label_intervals.py

Eight labels that 8 to 35 % of the images have; the logit of a label that is there is 1.6 standard deviations higher.
The truth is that of 300,000 images. For each number of images, 400 sets of them, each resampled 600 times.
"""

from datetime import date
from pathlib import Path

import numpy as np
from record import append_rows, commit

from excite.measures import label_counts_at, mean_average_precision
from excite.pages.resampling import interval, resampled

SHARES, THRESHOLD, SETS, RESAMPLES = np.linspace(0.08, 0.35, 8), 0.35, 400, 600
RESULTS = Path(__file__).parent / "results" / "label_intervals.csv"


def draw(rng: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels, (N, 8)."""
    labels = (rng.random((images, len(SHARES))) < SHARES).astype(np.uint8)
    return (rng.normal(size=labels.shape) + 1.6 * labels - 2).astype(np.float32), labels


def micro(logits: np.ndarray, labels: np.ndarray) -> float:
    """Micro F1 in percent."""
    right, said, there = (each.sum() for each in label_counts_at(logits, labels, THRESHOLD))
    return 200 * float(right) / float(said + there)


if __name__ == "__main__":
    rng = np.random.default_rng(1)
    many = draw(rng, 300_000)
    truth = mean_average_precision(*many) or 0.0, micro(*many)
    rows = []
    for images in (100, 200, 600):
        covered, width = np.zeros(2), np.zeros(2)
        for seed in range(SETS):
            some = draw(rng, images)
            found = resampled(*some, THRESHOLD, RESAMPLES, seed)
            pairs = ((mean_average_precision(*some), found.map), (micro(*some), found.micro_f1))
            for k, (value, values) in enumerate(pairs):
                low, high = interval(value, values)
                assert low is not None
                assert high is not None
                covered[k] += low <= truth[k] <= high
                width[k] += high - low
        row = {"images": images, "map_truth": round(truth[0], 2), "f1_truth": round(truth[1], 2)}
        row |= {"map_covered": float(100 * covered[0] / SETS), "f1_covered": float(100 * covered[1] / SETS)}
        row |= {"map_width": round(float(width[0]) / SETS, 2), "f1_width": round(float(width[1]) / SETS, 2)}
        rows.append({**row, "sets": SETS, "resamples": RESAMPLES, "commit": commit(), "date": f"{date.today()}"})
        print(rows[-1])
    append_rows(RESULTS, rows)
