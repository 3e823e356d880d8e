"""How many labels are wrong, and which: a mixture of right labels and of labels drawn at random.

The model, for an image x whose given label is y, with K classes:

    P(y | x) = (1 - q) p_y(x) + q (1 - p_y(x)) / (K - 1)

p is a classifier that has not seen the image with its label, its logits divided by a temperature T; q is the share of
wrong labels, each equally likely to be any of the other classes. q and T are fitted together by maximum likelihood.
What tells the two apart: an unsure classifier is often wrong itself, but where a very sure one contradicts, the label
is more often at fault. q is the share of contradictions that does not vanish where the classifier becomes sure. By
Bayes' rule, each label is wrong with the probability q (1 - p_y) / (K - 1) / P(y | x).

It assumes that (1) the classifier's probabilities are calibrated by one temperature; a network that is very sure of
its own errors makes q too large; (2) wrong labels hit all images and all other classes alike; wrong labels that always
go to the most similar class are partly taken for errors of the classifier, which makes q too small.

Beside confident learning (Northcutt, Jiang & Chuang, JAIR 70, 2021; cleanlab), which takes most errors of a weak
classifier for wrong labels, see docs/data-check.md.

Notation: N images, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from excite.pages.intervals import wilson

#: A label that is wrong with this probability or more is reported; so are those worth a look, apart.
SURE, PERHAPS = 0.5, 0.2
#: Half the 95 % quantile of a chi-square with one degree of freedom: the likelihood interval of q.
_DROP = 1.9207
_ROWS = 4096
#: Below this many images, or images a class on average, nothing is said about labels.
FEWEST, FEWEST_A_CLASS = 50, 10


@dataclass(frozen=True)
class Noise:
    """The wrong labels among N.

    Attributes:
        rate: q, a share.
        low, high: its 95 % interval, by profile likelihood.
        temperature: T.
        wrong: float64 (N,), the probability that each label is wrong.
        instead: int64 (N,), the most probable class other than the label.
    """

    rate: float
    low: float
    high: float
    temperature: float
    wrong: np.ndarray
    instead: np.ndarray

    def order(self, least: float) -> np.ndarray:
        """int64: positions of labels that are wrong with at least this probability, the surest first."""
        chosen = np.flatnonzero(self.wrong >= least)
        return chosen[np.argsort(-self.wrong[chosen], kind="stable")]


def enough(labels: np.ndarray) -> bool:
    """Whether there are enough images, int64 (N,) labels of the classes that occur, to say anything."""
    classes = len(np.unique(labels))
    return classes > 1 and len(labels) >= max(FEWEST, FEWEST_A_CLASS * classes)


def informative(logits: np.ndarray, labels: np.ndarray) -> bool:
    """Whether a classifier knows more than which class is the most frequent one: only then can it judge labels.

    Its share of right answers must exceed that of the largest class by Wilson's 95 % interval.

    Args:
        logits: float (N, K).
        labels: int64 (N,).
    """
    right = int((logits.argmax(1) == labels).sum())
    return wilson(right, len(labels))[0] > np.bincount(labels).max() / len(labels)


def fit_noise(logits: np.ndarray, labels: np.ndarray) -> Noise:
    """Fit the mixture above.

    Args:
        logits: float (N, K), up to a constant in each row: logits or log-probabilities.
        labels: int64 (N,).
    """
    count, classes = logits.shape
    scores, own = torch.from_numpy(np.ascontiguousarray(logits, np.float32)), torch.from_numpy(labels)
    share = 1 / (classes - 1)
    # q and the temperature together first; then the likelihood of q alone, at the best temperature for each q.
    slope, spread = _sharpness(scores, own, share)
    tables = [_chances(scores, own, torch.tensor(slope + step * spread)) for step in _STEPS]

    def profile(rate: float) -> float:
        values = [_likelihood(table, torch.tensor(rate), share).item() for table in tables]
        return max(values)

    rate = _top(profile)
    least = profile(rate) - _DROP
    low = 0.0 if profile(0.0) >= least else _crossing(profile, least, 0.0, rate)
    high = MOST if profile(MOST) >= least else _crossing(profile, least, MOST, rate)
    chances = tables[int(np.argmax([_likelihood(table, torch.tensor(rate), share).item() for table in tables]))].numpy()
    odds = rate * share * (1 - chances)
    others = logits.astype(np.float32, copy=True)
    others[np.arange(count), labels] = -np.inf
    wrong = odds / np.maximum((1 - rate) * chances + odds, 1e-300)
    return Noise(rate, low, high, float(np.exp(-slope)), wrong, others.argmax(1))


#: The largest q that is considered: where most labels are wrong, no classifier learned from them tells which.
MOST = 0.5
#: Temperatures at which the likelihood of q is evaluated, in standard errors from the best one.
_STEPS = tuple(step / 2 for step in range(-8, 9))


def _likelihood(chances: Tensor, rate: Tensor, share: float) -> Tensor:
    return ((1 - rate) * chances + rate * share * (1 - chances)).clamp(min=1e-300).log().sum()


def _chances(scores: Tensor, own: Tensor, slope: Tensor) -> Tensor:
    """p_y for each image, float64 (N,), at the temperature exp(-slope)."""
    parts = [
        torch.log_softmax(scores[i : i + _ROWS].double() * slope.exp(), 1).gather(1, own[i : i + _ROWS, None])[:, 0]
        for i in range(0, len(scores), _ROWS)
    ]
    return torch.cat(parts).exp()


def _sharpness(scores: Tensor, own: Tensor, share: float) -> tuple[float, float]:
    """The log of 1 / T that fits best together with q, and its standard error."""
    place = torch.tensor([-4.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([place], max_iter=50, line_search_fn="strong_wolfe")
    rows = range(0, len(scores), _ROWS)  # the gradient, too, is summed piece by piece: it holds three copies of a piece

    def loss(theta: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in rows:
            piece = slice(i, i + _ROWS)
            part = -_likelihood(_chances(scores[piece], own[piece], theta[1]), MOST * theta[0].sigmoid(), share)
            if theta.requires_grad and torch.is_grad_enabled():
                part.backward()
            total += part.detach()
        return total / len(scores)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(place)
        assert place.grad is not None
        place.grad /= len(scores)
        return value

    optimizer.step(closure)
    with torch.no_grad():
        step = torch.tensor([0.0, 0.02], dtype=torch.float64)
        bend = float(loss(place + step) - 2 * loss(place) + loss(place - step)) * len(scores) / 0.02**2
    spread = min(0.5, 1 / max(bend, 1e-6) ** 0.5)
    return float(place[1].detach()), spread


def _top(profile: Callable[[float], float]) -> float:
    """The q in 0 to MOST at the maximum: golden section on the square root, which spreads small values."""
    low, high, ratio = 0.0, MOST**0.5, (5**0.5 - 1) / 2
    a, b = high - ratio * high, ratio * high
    at_a, at_b = profile(a * a), profile(b * b)
    while high - low > 1e-4:
        if at_a >= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = profile(a * a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = profile(b * b)
    middle = ((low + high) / 2) ** 2
    return 0.0 if profile(0.0) >= profile(middle) else middle


def _crossing(profile: Callable[[float], float], level: float, outside: float, inside: float) -> float:
    """Where the profile crosses a level between a q below it and a q above it, by bisection."""
    for _ in range(30):
        middle = (outside + inside) / 2
        if profile(middle) < level:
            outside = middle
        else:
            inside = middle
    return outside
