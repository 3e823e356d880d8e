"""Accuracy restated: without images that the network was trained on, and with wrong labels taken into account.

Step 1, leaks. Validation images that are copies of training images are left out: the network has seen their labels. The
others are a sample of what it has not seen; the interval of their share is Wilson's.

Step 2, wrong labels. Let a be the accuracy by the true labels, q the share of wrong labels, and K the number of
classes. By the given labels, the network is right where it is right and the label is, (1 - q) a; and where both are
wrong in the same way, q (1 - a) / (K - 1). So the accuracy by the given labels is

    a' = (1 - q) a + q (1 - a) / (K - 1),    thus    a = (a' - q / (K - 1)) / (1 - q - q / (K - 1)).

q and its interval are those of :func:`excite.datacheck.labels.fit_noise` on the same images. The interval of a joins
Wilson's of a' and that of q by MOVER (Zou & Donner, Statistics in Medicine 27:1693, 2008): a grows with both, and with
the distances d and e from the estimate to the ends for each, its own is sqrt(d^2 + e^2 + 2 r d e). r is the correlation
of the two estimates: -0.15 to 0.17 in simulations, taken as :data:`CORRELATED`.

Assumptions: the remaining images are a random sample; a label is wrong with the same probability whether the network is
right or wrong; a wrong label is any other class with equal probability; and those of ``fit_noise`` on the network's
confidence. If wrong labels sit where the network errs, too, the restated accuracy is too high.
"""

from dataclasses import dataclass

from excite.pages.intervals import wilson

#: Correlation of the estimates of a' and q; more than in any simulation, so that the interval is not too short.
CORRELATED = 0.2


@dataclass(frozen=True)
class Share:
    """A share of ``images`` with its 95 % interval."""

    images: int
    share: float
    low: float
    high: float


def measured(right: int, images: int) -> Share:
    """The share of right answers, with Wilson's interval."""
    return Share(images, right / images, *wilson(right, images))


def true_accuracy(by_labels: Share, rate: float, low: float, high: float, classes: int) -> Share:
    """The accuracy by the true labels; see the top of this module.

    Args:
        by_labels: the accuracy by the given labels, of images that are not copies of training images.
        rate, low, high: the share of wrong labels among these, and its 95 % interval.
        classes: K.
    """
    a, chance = by_labels.share, 1 / (classes - 1)

    def solved(share: float, wrong: float) -> float:
        return (share - wrong * chance) / (1 - wrong * (1 + chance))

    # Where q comes close to (K - 1) / K, labels say nothing.
    rate, low, high = (min(x, 0.9 * (1 - 1 / classes)) for x in (rate, low, high))
    best = solved(a, rate)
    below = joined(best - solved(by_labels.low, rate), best - solved(a, low))
    above = joined(solved(by_labels.high, rate) - best, solved(a, high) - best)

    def within(share: float) -> float:
        return min(1.0, max(0.0, share))

    return Share(by_labels.images, within(best), within(best - below), within(best + above))


def joined(*distances: float) -> float:
    """The distance of the end of an interval from the estimate, of those of what it is made of: see the top."""
    total = sum(distances)
    squares = sum(each**2 for each in distances)
    return float((squares + CORRELATED * (total**2 - squares)) ** 0.5)
