"""A linear classifier on features, cross-fitted: every image is judged by one that has seen neither it nor its copies.

Shapes: N images, D features, K classes.
"""

import numpy as np
import torch
from torch.nn import functional as F

from excite.data.labels import several
from excite.progress import Progress, silent

FOLDS = 5
#: Weight decay of the classifier on features of unit variance.
DECAY = 1e-3
#: The most images and features that one fold is fitted to: more change the answer little and take longer.
MOST, WIDE = 40_000, 256
_ITERATIONS = 60


def folds(groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """The fold of each image, int64 (N,): images of one group, such as copies of each other, stay together."""
    names, number = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (order % FOLDS)[number]


def cross_fitted(
    values: np.ndarray, labels: np.ndarray, classes: int, groups: np.ndarray, progress: Progress = silent
) -> np.ndarray:
    """Probabilities of the classes for every image from a classifier fitted to the other folds: float32 (N, K).

    Multinomial logistic regression with weight decay (with several labels an image, one regression a class), fitted by
    L-BFGS; the features are standardised, and projected at random to 256 if there are more.

    Args:
        values: float32 (N, D).
        labels: int64 (N,), or uint8 (N, K) with several an image.
        classes: K.
        groups: int64 (N,), see :func:`folds`.
        progress: called after each fold.
    """
    x = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    generator = torch.Generator().manual_seed(0)
    if x.shape[1] > WIDE:
        x = x @ (torch.randn(x.shape[1], WIDE, generator=generator) / x.shape[1] ** 0.5)
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    y = torch.from_numpy(labels)
    where = torch.from_numpy(folds(groups))
    out = torch.full((len(x), classes), 1 / classes)
    for fold in range(FOLDS):
        fitted, judged = torch.nonzero(where != fold)[:, 0], where == fold
        if len(fitted) > MOST:
            fitted = fitted[torch.randperm(len(fitted), generator=generator)[:MOST]]
        if len(fitted) and bool(judged.any()):
            out[judged] = _fit(x[fitted], y[fitted], classes, x[judged])
        progress("fitting a classifier", fold + 1, FOLDS)
    return out.numpy()


def _fit(x: torch.Tensor, y: torch.Tensor, classes: int, other: torch.Tensor) -> torch.Tensor:
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        scores = x @ weight + bias
        if several(y):
            fit = F.binary_cross_entropy_with_logits(scores, y.float(), reduction="sum") / len(y)
        else:
            fit = F.cross_entropy(scores, y)
        loss = fit + DECAY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        scores = other @ weight + bias
        return scores.sigmoid() if several(y) else scores.softmax(1)
