"""Images that are unlike all others of their class, or of each of their classes.

Shapes: N images, D features.
"""

import numpy as np
import torch
from torch.nn import functional as F

from excite.data.labels import several

#: An image's distance is the mean to this many nearest neighbours of its class; no class with fewer than FEWEST images
#: has outliers. Of a larger class than MOST, so many images drawn at random are the possible neighbours.
NEIGHBOURS, FEWEST, MOST = 5, 20, 5000
#: Tukey's outer fence ("far out", Exploratory Data Analysis, 1977) on the logarithm of the distance: quartiles of the
#: class, and so many times their difference. Of a normal distribution, one in 425,000 lies beyond it.
FENCE = 3.0
_BLOCK = 1024


def find_outliers(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """How far each image lies beyond its class's fence, float64 (N,): above 0 for outliers.

    An image of several classes is one if it is for each of them; images without a class are a class, too.

    Distances are of directions (1 minus the cosine) after the features are centred and scaled. Copies of an image are
    not its neighbours.

    Args:
        values: float32 (N, D).
        labels: int64 (N,), or uint8 (N, K) with several an image.
        groups: int64 (N,), equal for copies of each other.
        seed: of the drawn neighbours.
    """
    beyond = np.full(len(labels), np.inf)
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    x = F.normalize((x - x.mean(0)) / x.std(0).clamp(min=1e-6)) if len(x) > 1 else x
    for members in _members(labels):
        if len(members) < FEWEST:
            continue
        others = np.sort(rng.permutation(members)[:MOST])
        near, of = x[others], torch.from_numpy(groups[others])
        far = np.empty(len(members))
        for start in range(0, len(members), _BLOCK):
            some = members[start : start + _BLOCK]
            apart = 1 - x[some] @ near.T
            apart[torch.from_numpy(groups[some])[:, None] == of[None]] = 4.0
            far[start : start + len(some)] = apart.topk(NEIGHBOURS, largest=False).values.mean(1).numpy()
        logs = np.log(np.maximum(far, 1e-9))
        low, high = np.quantile(logs, [0.25, 0.75])
        beyond[members] = np.minimum(beyond[members], logs - (high + FENCE * (high - low)))
    return np.where(beyond == np.inf, -np.inf, beyond)


def _members(labels: np.ndarray) -> list[np.ndarray]:
    """The images of each class."""
    if not several(labels):
        return [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return [np.flatnonzero(column) for column in (*(labels > 0).T, ~labels.any(1))]
