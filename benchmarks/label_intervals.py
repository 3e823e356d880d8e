"""How often the 95 % intervals of mAP and micro F1 cover the truth, on made-up logits:

    python benchmarks/label_intervals.py

Labels that so many percent of the images have; the logit of a label that is there is so many standard deviations
higher (:data:`SETTINGS`). The truth is that of 300,000 images. For each number of images, 200 sets of them, each
resampled 400 times.
"""

from datetime import date
from pathlib import Path

import numpy as np
from record import append_rows, commit

from excite.measures import label_counts_at, mean_average_precision
from excite.pages.resampling import interval, resampled

#: Name: the share of images with each label, and how much higher its logit is.
SETTINGS = {
    "common": (np.linspace(0.08, 0.35, 8), 1.6),
    "weak": (np.full(10, 0.09), 0.6),
    "rare": (np.full(10, 0.03), 1.6),
    "good": (np.full(6, 0.1), 3.5),
}
THRESHOLD, SETS, RESAMPLES = 0.35, 200, 400
RESULTS = Path(__file__).parent / "results" / "label_intervals.csv"


def draw(rng: np.random.Generator, images: int, shares: np.ndarray, higher: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels, (N, K)."""
    labels = (rng.random((images, len(shares))) < shares).astype(np.uint8)
    return (rng.normal(size=labels.shape) + higher * labels - 2).astype(np.float32), labels


def micro(logits: np.ndarray, labels: np.ndarray) -> float:
    """Micro F1 in percent."""
    right, said, there = (each.sum() for each in label_counts_at(logits, labels, THRESHOLD))
    return 200 * float(right) / float(said + there)


if __name__ == "__main__":
    rng = np.random.default_rng(1)
    rows = []
    for name, setting in SETTINGS.items():
        many = draw(rng, 300_000, *setting)
        truth = mean_average_precision(*many) or 0.0, micro(*many)
        for images in (100, 200, 600):
            covered, width = np.zeros(2), np.zeros(2)
            for seed in range(SETS):
                some = draw(rng, images, *setting)
                found = resampled(*some, THRESHOLD, RESAMPLES, seed)
                pairs = ((mean_average_precision(*some), found.map), (micro(*some), found.micro_f1))
                for k, (value, values) in enumerate(pairs):
                    low, high = interval(value, values)
                    assert low is not None
                    assert high is not None
                    covered[k] += low <= truth[k] <= high
                    width[k] += high - low
            row = {"labels": name, "images": images, "map_truth": round(truth[0], 2), "f1_truth": round(truth[1], 2)}
            row |= {"map_covered": float(100 * covered[0] / SETS), "f1_covered": float(100 * covered[1] / SETS)}
            row |= {"map_width": round(float(width[0]) / SETS, 2), "f1_width": round(float(width[1]) / SETS, 2)}
            rows.append({**row, "sets": SETS, "resamples": RESAMPLES, "commit": commit(), "date": f"{date.today()}"})
            print(rows[-1], flush=True)
    append_rows(RESULTS, rows)
