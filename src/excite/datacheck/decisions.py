"""Labels of images with several classes: how many are missing or invented, and which; and mAP by the true labels.

Each class of each image is a decision: the class is there or not. The given label of a decision is wrong in one of two
ways. Of the classes that are there, a share m is not given ("missing"); of those that are not, a share i is given
("invented"). So, for an image x and a class whose given label is y:

    P(y = 1 | x) = (1 - m) p(x) + i (1 - p(x)),    P(y = 0 | x) = m p(x) + (1 - i) (1 - p(x))

p is a classifier that has not seen the image with its labels, calibrated: with s the sigmoid of its logit, the logit of
p is a log s - b log(1 - s) + c (beta calibration: Kull, Silva Filho & Flach, AISTATS 2017). a is the slope where the
classifier says no, b where it says yes: a network that is unsure of what is not there may be too sure of what is, and
with one slope for both, that looks like missing labels. m, i, a, b and c are those of all classes together, fitted by
maximum likelihood. As in
:mod:`excite.datacheck.labels`, the rates are the contradictions that remain where the classifier is sure; Bayes' rule
then gives the probability that each label is wrong, and intervals are those of the profile likelihood.

It assumes that one such curve calibrates all classes, and that labels go wrong whatever the image and the class.
Labels that go missing where the classifier fails, too (small things in a corner), are taken for its errors, which makes
m too small.

The average precision by the true labels follows from the rates (Natarajan et al., Learning with Noisy Labels, NeurIPS
2013, whose unbiased estimator this is): (y - i) / (1 - m - i) is, on average, 1 where the class is there and 0 where it
is not.

Notation: N images, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from excite.measures import by_class, sigmoid
from excite.pages.intervals import normal_quantile

#: A class is judged from so many images that have it, and so many that do not.
FEWEST = 10
#: The largest rates that are considered.
MOST = 0.5
#: A rate that the data say little about is taken to be small: a priori it is exponential, with this mean. Its interval
#: is without that.
EXPECTED = 0.05
#: Nor are the two slopes very different: a priori, the logarithm of b / a is normal with this standard deviation. A
#: curve that is flat where the classifier is sure explains missing labels as well as missing labels do.
APART = 0.7
#: Labels are not judged if the interval of the missing ones is wider than this: then the classifier is never sure
#: enough of what is there to tell a missing label from an error of its own.
VAGUE = 0.15
#: Half the 95 % quantile of a chi-square with one degree of freedom.
_DROP = 1.9207
#: Logits are rounded to 1 / _STEPS, and those beyond _FAR cut off: decisions with the same count together.
_STEPS, _FAR = 64, 100.0


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Decisions:
    """The wrong labels among N x K decisions.

    Attributes:
        missing: m, of the classes that are there, those not given.
        invented: i, of the classes that are not there, those given.
        given_wrongly: the share of the given labels that is invented.
        curve: (a, b, c).
        wrong: float64 (N, K), the probability that each decision is wrong; 0 for classes that are not judged.
        judged: bool (K,).
    """

    missing: Rate
    invented: Rate
    given_wrongly: Rate
    curve: tuple[float, float, float]
    wrong: np.ndarray
    judged: np.ndarray

    @property
    def vague(self) -> bool:
        """Whether missing labels cannot be told from errors of the classifier."""
        return self.missing.high - self.missing.low > VAGUE


def judged_classes(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool (K,): classes with enough images, of which the classifier knows more than chance.

    Its AUROC must exceed one half by more than 1.96 standard errors of the rank sum of a classifier that guesses.

    Args:
        logits: float (N, K), finite.
        labels: uint8 (N, K).
    """
    found = np.zeros(logits.shape[1], bool)
    for k, (own, score) in enumerate(by_class(logits, labels)):
        with_it, without = int(own.sum()), int((~own).sum())
        if min(with_it, without) < FEWEST:
            continue
        _, place, count = np.unique(score, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(count) - (count - 1) / 2)[place]
        area = (ranks[own].sum() - with_it * (with_it + 1) / 2) / (with_it * without)
        found[k] = area - 0.5 > normal_quantile(0.95) * ((len(own) + 1) / (12 * with_it * without)) ** 0.5
    return found


def fit_decisions(logits: np.ndarray, labels: np.ndarray, judged: np.ndarray) -> Decisions:
    """Fit the mixture above.

    Args:
        logits: float (N, K), finite.
        labels: uint8 (N, K).
        judged: bool (K,), see :func:`judged_classes`; at least one.
    """
    scores, own = np.clip(logits[:, judged].astype(np.float64), -_FAR, _FAR), labels[:, judged] > 0
    values, place = np.unique(np.round(scores * _STEPS), return_inverse=True)
    table = torch.from_numpy(
        np.stack([np.bincount(place.ravel(), (own == y).ravel(), len(values)) for y in (False, True)])
    )
    steps = torch.from_numpy(values / _STEPS)

    def best(fixed: dict[int, float], start: Tensor, prior: float = 0.0) -> tuple[Tensor, float]:
        return _fitted(steps, table, fixed, start, prior)

    def everywhere(start: Tensor, prior: float) -> tuple[Tensor, float]:
        theta, top = best({}, start, prior)
        for k in (0, 1):  # the border, which a search inside only comes near to
            edge, value = best({k: 0.0}, theta, prior)
            if value >= top - 1e-6:
                theta, top = edge, value
        return theta, top

    likeliest, top = everywhere(torch.tensor([0.02, 0.005, 1.0, 1.0, 0.0], dtype=torch.float64), 0.0)
    ends = [_ends(k, likeliest, top, best) for k in (0, 1)]
    theta, _ = everywhere(likeliest, 1 / EXPECTED)
    rates = {k: min(max(float(theta[k]), low), high) for k, (low, high) in enumerate(ends)}
    theta, _ = best(rates, likeliest)
    missing, invented = (Rate(rates[k], *ends[k]) for k in (0, 1))
    m, i, *curve = theta.tolist()
    p = sigmoid(_calibrated(torch.from_numpy(scores), *curve).numpy())
    given, absent = (1 - m) * p + i * (1 - p), m * p + (1 - i) * (1 - p)
    wrong = np.zeros(logits.shape)
    wrong[:, judged] = np.where(own, i * (1 - p) / np.maximum(given, 1e-300), m * p / np.maximum(absent, 1e-300))
    # Of the given labels, so many are invented for each 1 % of the decisions without the class that is.
    each = float((1 - p).sum()) / max(1, int(own.sum()))
    share = Rate(*(min(1.0, each * rate) for rate in (invented.share, invented.low, invented.high)))
    return Decisions(missing, invented, share, (curve[0], curve[1], curve[2]), wrong, judged)


def _calibrated(logits: Tensor, a: float | Tensor, b: float | Tensor, c: float | Tensor) -> Tensor:
    return a * F.logsigmoid(logits) - b * F.logsigmoid(-logits) + c


def _likelihood(theta: Tensor, steps: Tensor, table: Tensor) -> Tensor:
    m, i, *curve = theta
    scores = _calibrated(steps, *curve)
    p, q = scores.sigmoid(), (-scores).sigmoid()
    given, absent = (1 - m) * p + i * q, m * p + (1 - i) * q
    return (table[1] * given.clamp(min=1e-300).log() + table[0] * absent.clamp(min=1e-300).log()).sum()


def _fitted(
    steps: Tensor, table: Tensor, fixed: dict[int, float], start: Tensor, prior: float = 0.0
) -> tuple[Tensor, float]:
    """The best (m, i, a, b, c), some of them fixed, and its log-likelihood with the priors."""
    free = [k for k in range(5) if k not in fixed]
    place = _unbounded(start)[free].requires_grad_()
    optimizer = torch.optim.LBFGS([place], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
    total = float(table.sum())

    def outer() -> Tensor:
        x = dict(zip(free, place, strict=True))
        rates = [torch.tensor(fixed[k]).double() if k in fixed else MOST * x[k].sigmoid() for k in (0, 1)]
        return torch.stack([*rates, x[2].exp(), x[3].exp(), x[4]])

    def score(theta: Tensor) -> Tensor:
        apart = (theta[3] / theta[2]).log() / APART
        return _likelihood(theta, steps, table) - prior * theta[:2].sum() - apart**2 / 2

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -score(outer()) / total
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        theta = outer()
        return theta, float(score(theta))


def _unbounded(theta: Tensor) -> Tensor:
    """Rates by their log-odds, slopes by their logarithms."""
    rates = torch.logit((theta[:2] / MOST).clamp(1e-4, 1 - 1e-4))
    return torch.cat([rates, theta[2:4].clamp(min=1e-3).log(), theta[4:]])


def _ends(
    k: int, likeliest: Tensor, top: float, best: Callable[[dict[int, float], Tensor], tuple[Tensor, float]]
) -> tuple[float, float]:
    """Where the profile likelihood of one rate falls by _DROP on either side, by bisection on its square root."""

    def below(rate: float) -> bool:
        return best({k: rate}, likeliest)[1] < top - _DROP

    ends = []
    for outside in (0.0, MOST):
        if not below(outside):
            ends.append(outside)
            continue
        a, b = outside**0.5, float(likeliest[k]) ** 0.5
        for _ in range(14):
            middle = (a + b) / 2
            a, b = (middle, b) if below(middle**2) else (a, middle)
        ends.append(((a + b) / 2) ** 2)
    return ends[0], max(ends)


def true_precision(logits: np.ndarray, labels: np.ndarray, missing: float, invented: float) -> float | None:
    """mAP in percent by the true labels, given the rates; None if nothing is left of any class.

    Of each class, the sum over its images, the most likely ones first, of precision times the recall gained, of the
    unbiased estimates of what is there. An image's own estimate counts in its precision as it is there, not squared.

    Args:
        logits: float32 (N, K).
        labels: uint8 (N, K).
        missing, invented: m and i.
    """
    found = []
    for own, score in by_class(logits, labels):
        if not own.any():
            continue
        order = np.argsort(-score, kind="stable")
        there = (own[order] - invented) / (1 - missing - invented)
        before = np.cumsum(there) - there
        total = there.sum()
        if total >= 1:
            found.append(100 * float((there * (before + 1) / np.arange(1, len(own) + 1)).sum() / total))
    return min(100.0, max(0.0, float(np.mean(found)))) if found else None
