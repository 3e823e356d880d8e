"""Intervals of measures of several labels an image, by the bootstrap: images are drawn with replacement, all labels of
an image together (Efron, Annals of Statistics 7:1, 1979), corrected for their bias in two ways.

Notation: N images, K classes, B resamples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from excite.measures import by_class, predicted_at, weighted_precisions
from excite.pages.intervals import normal_quantile

#: How often the images are drawn, and the seed.
RESAMPLES, SEED = 2000, 0
#: About how many counts are held at a time.
_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Resampled:
    """Measures in percent in each resample, float64 (B,): two of them with the same N and seed are of the same images,
    so that their difference is paired.

    Attributes:
        map: mean of the average precisions of the classes that are there.
        micro_f1: F1 over all images and classes.
        macro_f1: mean F1 of the classes that are there or predicted.
    """

    map: np.ndarray
    micro_f1: np.ndarray
    macro_f1: np.ndarray


def resampled(
    logits: np.ndarray, labels: np.ndarray, threshold: float, resamples: int = RESAMPLES, seed: int = SEED
) -> Resampled:
    """The measures of each resample.

    Args:
        logits: float32 (N, K); images that are not all finite count as in :func:`excite.measures.by_class`.
        labels: uint8 (N, K), 1 for each class of an image.
        threshold: the probability from which on a class counts as predicted, for F1.
        resamples: B.
        seed: what the images are drawn by.
    """
    said, own = predicted_at(logits, threshold), labels > 0
    right, both = (said & own).astype(np.float64), said.astype(np.float64) + own
    classes = list(by_class(logits, labels))
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for counts in _counts(len(logits), resamples, seed):
        without = np.full(counts.shape[1], np.nan)
        precisions = np.stack([weighted_precisions(*c, counts) if c[0].any() else without for c in classes], axis=1)
        hit, all_of = counts.T @ right, counts.T @ both
        micro = 200 * hit.sum(1) / np.maximum(1, all_of.sum(1))
        macro = 200 * _mean_over(hit / np.maximum(1, all_of), all_of > 0)
        rows.append((_mean_over(precisions, ~np.isnan(precisions)), micro, macro))
    return Resampled(*(np.concatenate(each) for each in zip(*rows, strict=True)))


def _counts(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn: int32 (N, some) at a time."""
    rng = np.random.default_rng(seed)
    size = max(1, _AT_ONCE // max(1, images))
    for start in range(0, resamples, size):
        some = min(size, resamples - start)
        drawn = rng.integers(images, size=(some, images)) + images * np.arange(some)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=some * images).reshape(some, images)
        yield np.ascontiguousarray(counts.T, dtype=np.int32)


def _mean_over(values: np.ndarray, some: np.ndarray) -> np.ndarray:
    """The mean of each row over the columns that are there, NaN if none is: (B, K) -> (B,)."""
    count = some.sum(1)
    return np.where(count > 0, np.where(some, values, 0).sum(1) / np.maximum(1, count), np.nan)


def interval(
    observed: float | None, values: np.ndarray, confidence: float = 0.95, least: float = 0.0
) -> tuple[float | None, float | None]:
    """(low, high): the wider end each of two intervals that correct the bias of resampling.

    Average precision is too high in few images, and once more in resamples of them. Bias-corrected percentiles (Efron,
    Canadian Journal of Statistics 9:139, 1981) shift by how many of the resamples lie below the observed value, ties by
    half; near 100 %, where resamples are skewed, they are the better ones. But they stay within the resamples, and
    where nearly all of these are too high (a weak network, rare classes) they shrink to their lowest: there the normal
    interval with twice the observed value minus the resamples' mean as its centre (Davison and Hinkley, Bootstrap
    Methods, 1997, section 5.2) is the better one.

    Args:
        observed: the measure in percent, or the difference of two, in the images themselves.
        values: float64 (B,), the same in each resample; those without a value are left out.
        confidence: confidence level.
        least: the lowest value possible: 0, or -100 for a difference; the highest is 100.

    Returns:
        None twice if nothing has a value.
    """
    known = values[~np.isnan(values)]
    if observed is None or not len(known):
        return None, None
    normal = NormalDist()
    below = float((known < observed).mean() + (known == observed).mean() / 2)
    below = min(max(below, 0.5 / len(known)), 1 - 0.5 / len(known))
    shift, z = 2 * normal.inv_cdf(below), normal_quantile(confidence)
    low, high = np.quantile(known, [normal.cdf(shift - z), normal.cdf(shift + z)])
    centre, half = 2 * observed - float(known.mean()), z * float(known.std())
    return max(least, min(float(low), centre - half)), min(100.0, max(float(high), centre + half))
