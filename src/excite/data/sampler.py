"""Class sampling: how often an epoch draws the images of each class (``data.sampler``).

There is no hidden state: an epoch's order is a pure function of (labels, seed, epoch), so that a resumed run, and every
rank of a job, has the same one. Nothing is drawn at random but the order:

- Each class has a fixed share of every epoch. What cannot be divided is given to the classes in turn, over 64 epochs.
- The images of a class are gone through in seeded permutations, one after the other across epochs. No image of a class
  is used again before all its others have been used.

Notation: N images, K classes, L draws in an epoch.
"""

from collections.abc import Sequence

import numpy as np

from excite.data.config import SamplerName

# The first number of every seed, see excite.data.loader: other streams than those of orders and crops.
CLASS_ORDER, WITHIN_CLASS, WEIGHTED = 3, 4, 5
#: Epochs after which the extra draws of classes repeat.
PERIOD = 64
#: Permutations of small classes are made so many numbers at a time: a generator for each would take longer.
BLOCK = 1024


def shares(counts: np.ndarray, sampler: SamplerName | None) -> np.ndarray:
    """The share of each class in what an epoch draws: float64 (K,), adding up to 1.

    Args:
        counts: int (K,), images of each class; a class without images has no share.
        sampler: "balanced": equal shares; "sqrt": in proportion to the square root of the count (halfway between the
            two, as in Mahajan et al., arXiv 1805.00932); else: in proportion to the count.
    """
    weight = {"balanced": counts > 0, "sqrt": np.sqrt(counts)}.get(str(sampler), counts).astype(np.float64)
    return weight / weight.sum()


class WeightSampler:
    """Draws each image in proportion to its weight. The order of an epoch is a pure function of (weights, seed, epoch).

    Systematic sampling: laid end to end, the weights are cut into L equal parts at a random place, after the images are
    shuffled. So an image of weight w is drawn floor or ceil of L w / sum(w) times in each epoch, and that often on
    average; one of weight 0 is never drawn.

    Args:
        weights: float64 (N,), at least 0, one of them above.
        seed: of the orders.
        length: L.
    """

    def __init__(self, weights: np.ndarray, seed: int, length: int) -> None:
        self.weights, self.seed, self.length = weights, seed, length

    def order(self, epoch: int) -> np.ndarray:
        """The draws of an epoch: int64 (L,), numbered as those of :class:`ClassSampler`."""
        count = len(self.weights)
        rng = np.random.default_rng((WEIGHTED, self.seed, epoch))
        shuffled = rng.permutation(count)
        ends = np.cumsum(self.weights[shuffled])
        places = (np.arange(self.length) + rng.random()) * (ends[-1] / self.length)
        # Rounding may put the last place at the very end, where there is nothing to draw.
        at = np.minimum(np.searchsorted(ends, places, side="right"), np.flatnonzero(self.weights[shuffled])[-1])
        order = rng.permutation(shuffled[at])
        return order + _occurrence(order) * count


class ClassSampler:
    """The draws of any epoch.

    Args:
        labels: (N,), class numbers.
        sampler: how often classes are drawn.
        seed: of the orders.
        length: L.
    """

    def __init__(self, labels: Sequence[int] | np.ndarray, sampler: SamplerName, seed: int, length: int) -> None:
        labels = np.asarray(labels, dtype=np.int64)
        self.count, self.seed, self.length = len(labels), seed, length
        counts = np.bincount(labels)
        by_class = np.argsort(labels, kind="stable")
        self._members = np.split(by_class, np.cumsum(counts)[:-1])
        wanted = shares(counts, sampler) * length
        self._base = np.floor(wanted).astype(np.int64)
        # Systematic sampling: class k has an extra draw where a whole number falls into its part of the fractions laid
        # end to end, and the whole numbers move by 1/64 from one epoch to the next. (In bit-reversed order, so that
        # the draws of a class are spread over the epochs.)
        left = length - int(self._base.sum())
        ends = np.minimum(np.cumsum(wanted - self._base), left)
        ends[-1] = left
        offsets = np.array([int(f"{i:06b}"[::-1], 2) / PERIOD for i in range(PERIOD)])
        reached = np.floor(ends + offsets[:, None]).astype(np.int64)
        extra = np.diff(reached, axis=1, prepend=np.floor(offsets)[:, None].astype(np.int64))
        self._before = np.concatenate([np.zeros((1, len(counts)), dtype=np.int64), np.cumsum(extra, axis=0)])

    def drawn(self, epochs: int) -> np.ndarray:
        """How many images of each class the first ``epochs`` epochs draw: int64 (K,)."""
        whole, rest = divmod(epochs, PERIOD)
        return epochs * self._base + whole * self._before[-1] + self._before[rest]

    def order(self, epoch: int) -> np.ndarray:
        """The draws of an epoch: int64 (L,). The j-th draw of image i in the epoch (from 0) has number j * N + i, so
        that each draw has its own random crop."""
        before, after = self.drawn(epoch), self.drawn(epoch + 1)
        classes = np.repeat(np.arange(len(before)), after - before)
        classes = np.random.default_rng((CLASS_ORDER, self.seed, epoch)).permutation(classes)
        order = np.empty(self.length, dtype=np.int64)
        places = np.split(np.argsort(classes, kind="stable"), np.cumsum(after - before)[:-1])
        for k, place in enumerate(places):
            if len(place):
                order[place] = self._of_class(k, int(before[k]), int(after[k]))
        return order + _occurrence(order) * self.count

    def _of_class(self, k: int, start: int, stop: int) -> np.ndarray:
        """Draws ``start`` to ``stop`` of a class over the whole training."""
        members = self._members[k]
        size = len(members) * max(1, BLOCK // len(members))
        first, last = start // size, -(-stop // size)
        blocks = [self._block(k, members, size, number) for number in range(first, last)]
        return np.concatenate(blocks)[start - first * size : stop - first * size]

    def _block(self, k: int, members: np.ndarray, size: int, number: int) -> np.ndarray:
        rng = np.random.default_rng((WITHIN_CLASS, self.seed, k, number))
        return rng.permuted(np.broadcast_to(members, (size // len(members), len(members))), axis=1).ravel()


def _occurrence(order: np.ndarray) -> np.ndarray:
    """For each draw, how many draws of the same image there are before it: int64 (L,)."""
    sorting = np.argsort(order, kind="stable")
    placed = order[sorting]
    begins = np.concatenate([[True], placed[1:] != placed[:-1]])
    start = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    found = np.empty(len(order), dtype=np.int64)
    found[sorting] = np.arange(len(order)) - start
    return found
