"""What a comparison measures where images may have several labels each: mAP and F1 by resampling the same images, and
counts of image-label pairs in the place of images.

Notation: N images, K classes.
"""

import numpy as np

from excite.measures import average_precisions, label_counts_at, mean_average_precision, predicted_at
from excite.pages.resampling import Resampled, interval, resampled
from excite.trained.predictions import Predictions


class Labelled:
    """The predictions of one network, and what is computed from them once.

    Attributes:
        decided: bool (N, K), the classes predicted, from the network's threshold on.
        right: bool (N, K), whether these decisions are right; those of images without finite logits are wrong.
        precisions: average precision of each class in percent, None without images.
        map, micro_f1, macro_f1: percent.
    """

    def __init__(self, predictions: Predictions, threshold: float) -> None:
        self.predictions, self.threshold = predictions, threshold
        logits, labels = predictions.logits, predictions.labels
        self.decided = predicted_at(logits, threshold)
        self.right = (self.decided == (labels > 0)) & predictions.finite[:, None]
        self.precisions = average_precisions(logits, labels)
        self.map = mean_average_precision(logits, labels)
        hits, said, there = label_counts_at(logits, labels, threshold)
        some = said + there > 0
        self.micro_f1 = 200 * int(hits.sum()) / max(1, int((said + there).sum()))
        self.macro_f1 = float((200 * hits[some] / (said + there)[some]).mean()) if some.any() else 0.0
        self._resampled: Resampled | None = None

    @property
    def again(self) -> Resampled:
        """The measures in resamples of the images: the same ones for every network on the same images."""
        if self._resampled is None:
            self._resampled = resampled(self.predictions.logits, self.predictions.labels, self.threshold)
        return self._resampled

    def ends(self, confidence: float) -> dict[str, float | None]:
        """The measures with their intervals."""
        low, high = interval(self.map, self.again.map, confidence)
        f1_low, f1_high = interval(self.micro_f1, self.again.micro_f1, confidence)
        ends = {"top1_low": low, "top1_high": high, "micro_f1_low": f1_low, "micro_f1_high": f1_high}
        return {"top1": self.map, "micro_f1": self.micro_f1, "macro_f1": self.macro_f1, **ends}

    def against(self, base: "Labelled", confidence: float) -> dict[str, float | None]:
        """Differences to another network on the same images in percentage points, with paired intervals."""
        change = None if self.map is None or base.map is None else self.map - base.map
        low, high = interval(change, self.again.map - base.again.map, confidence, least=-100)
        f1 = self.micro_f1 - base.micro_f1
        f1_low, f1_high = interval(f1, self.again.micro_f1 - base.again.micro_f1, confidence, least=-100)
        ends = {"difference_low": low, "difference_high": high}
        return {"difference": change, **ends, "f1_difference": f1, "f1_low": f1_low, "f1_high": f1_high}

    def names(self, image: int) -> str:
        """The predicted classes of an image: "cat, dog", or "none"."""
        return _named(self.predictions.classes, self.decided[image])

    def labels(self, image: int) -> str:
        """The labels of an image."""
        return _named(self.predictions.classes, self.predictions.labels[image])

    def sure(self) -> np.ndarray:
        """float64 (N,): the probability of exactly the predicted classes, if they were independent."""
        chance = np.nan_to_num(self.predictions.probabilities())
        return np.where(self.decided, chance, 1 - chance).prod(1)


def _named(classes: tuple[str, ...], some: np.ndarray) -> str:
    return ", ".join(classes[k] for k in np.flatnonzero(some).tolist()) or "none"
