"""Does something that should not matter give the class away: format, size, shape, file size, mean colour?

A network learns whatever tells the classes apart. If all cats are PNG files, or all night pictures of one class, it may
learn that and look good until it meets other images.

For each property, the images are sorted into at most :data:`CELLS` cells by it alone (values, or quantiles of numbers),
and each cell answers the class that is the most frequent there compared with the whole: a classifier with equal priors,
cross-validated in five folds. Its balanced accuracy is compared with that for shuffled labels, a permutation test with
200 shuffles. Chance is the mean of those.
"""

from collections.abc import Sequence

import numpy as np

from excite.data.labels import counts, several
from excite.datacheck.contents import Giveaway
from excite.datacheck.look import Looks

#: Cells of a property, and of each of three colour channels.
CELLS, CELLS_OF_THREE = 32, 5
SHUFFLES, FOLDS, MOST = 200, 5, 20_000
#: With several labels an image, so many labels (images times classes) are shuffled.
MOST_LABELS = 2_000_000
#: A property gives the class away if it does better than all but 1 % of the shuffles, and is right for at least this
#: share of what chance gets wrong: mean colours tell CIFAR's ships from its frogs a little, as they should.
MATTERS = 0.2
#: The same where the best of many classes is told from all others, by what chance gets right half the time: airplanes
#: are told from the rest by their blue in two thirds of such images, as they should.
MATTERS_OF_SEVERAL = 0.5
#: Fewer images a class than this say nothing.
FEWEST = 10


def properties(looks: Looks) -> dict[str, np.ndarray]:
    """Property -> the cell of each image, int64 (N,), for those that vary."""
    rows = looks.rows
    width, height = rows["width"].astype(np.float64), rows["height"].astype(np.float64)
    colour = [_cells(rows["mean"][:, k], CELLS_OF_THREE) for k in range(3)]
    sides = _cells(width, 8) * CELLS + _cells(height, 8)
    found = {
        "format": np.unique(looks.formats(), return_inverse=True)[1],
        "kind of pixels": np.unique(rows["mode"], return_inverse=True)[1],
        "width and height": np.unique(sides, return_inverse=True)[1],
        "width / height": _cells(width / np.maximum(height, 1), CELLS),
        "file size": _cells(rows["bytes"], CELLS),
        "mean colour": np.unique(sum(c * CELLS_OF_THREE**k for k, c in enumerate(colour)), return_inverse=True)[1],
    }
    return {what: cells for what, cells in found.items() if cells.max(initial=0) > 0}


def _cells(values: np.ndarray, most: int) -> np.ndarray:
    """The number of each value among the different ones, or of its quantile if there are more than ``most``."""
    different, number = np.unique(values, return_inverse=True)
    if len(different) <= most:
        return number
    edges = np.unique(np.quantile(values, np.linspace(0, 1, most + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


def find_giveaways(looks: Looks, labels: np.ndarray, classes: Sequence[str], seed: int = 0) -> list[Giveaway]:
    """Judge each property that varies, the most telling first; [] if there are too few images.

    Args:
        looks: of the readable images.
        labels: int64 (N,), or uint8 (N, K) with several an image: then each class is told from all others, and the one
            that is told best counts.
        classes: K names.
        seed: of the folds and shuffles.
    """
    rng = np.random.default_rng(seed)
    kinds, numbers, chosen = _judged(labels, len(classes), rng)
    if not len(kinds):
        return []
    fold = rng.permutation(len(chosen)) % FOLDS
    shuffles = [rng.permutation(numbers) for _ in range(SHUFFLES)]
    found: list[Giveaway] = []
    for what, every in properties(looks).items():
        cells = every[chosen]
        if several(labels):
            told = Cells(cells, fold)
            each = told.balanced_accuracies(numbers)
            best = int(each.argmax())
            real, label = float(each[best]), classes[int(kinds[best])]
            shuffled = np.array([told.balanced_accuracies(other).max() for other in shuffles])
        else:
            real, label = _balanced_accuracy(cells, numbers, fold), None
            shuffled = np.array([_balanced_accuracy(cells, other, fold) for other in shuffles])
        chance = float(shuffled.mean())
        matters = (MATTERS if label is None else MATTERS_OF_SEVERAL) * (1 - chance)
        p = (1 + int((shuffled >= real).sum())) / (1 + SHUFFLES)
        found.append(
            {
                "what": what,
                "label": label,
                "accuracy": 100 * real,
                "chance": 100 * chance,
                "p": p,
                "gives_away": bool(p <= 0.01 and real - chance >= matters),
            }
        )
    return sorted(found, key=lambda each: each["chance"] - each["accuracy"])


def _judged(labels: np.ndarray, classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The classes with enough images, the labels renumbered to them, and the images chosen; nothing if too few."""
    sizes = counts(labels, classes)
    if several(labels):
        kinds = np.flatnonzero((sizes >= FEWEST) & (len(labels) - sizes >= FEWEST))
        most = max(FOLDS * FEWEST, min(MOST, MOST_LABELS // max(1, len(kinds))))
        chosen = np.sort(rng.permutation(len(labels))[:most])
        return kinds, labels[chosen][:, kinds], chosen
    kinds = np.flatnonzero(sizes >= FEWEST)
    if len(kinds) < 2:
        return kinds[:0], labels[:0], kinds[:0]
    chosen = np.flatnonzero(sizes[labels] >= FEWEST)
    chosen = np.sort(rng.permutation(chosen)[:MOST])
    return kinds, np.unique(labels[chosen], return_inverse=True)[1], chosen


class Cells:
    """The cells of N images and their folds, int64 (N,) each, by which many classes are told at once."""

    def __init__(self, cells: np.ndarray, fold: np.ndarray) -> None:
        self.count = int(cells.max()) + 1
        flat = fold * self.count + cells
        self._order = np.argsort(flat, kind="stable")
        self._there, self._starts = np.unique(flat[self._order], return_index=True)

    def _table(self, values: np.ndarray) -> np.ndarray:
        """(N, K) summed in each fold and cell: float64 (FOLDS, cells, K)."""
        out = np.zeros((FOLDS * self.count, values.shape[1]))
        out[self._there] = np.add.reduceat(values[self._order], self._starts, axis=0, dtype=np.float64)
        return out.reshape(FOLDS, self.count, -1)

    def balanced_accuracies(self, labels: np.ndarray) -> np.ndarray:
        """uint8 (N, K), 1 for each class of an image -> float64 (K,), 0 to 1: the mean of the shares of images with the
        class and of those without it that the other folds' cells answer right."""
        own = self._table(labels)
        none = self._table(np.ones((len(labels), 1))) - own
        shares = []
        for table in (own, none):
            others = table.sum(0) - table
            shares.append((others + 0.5 / self.count) / (np.maximum(others.sum(1, keepdims=True), 1) + 0.5))
        said = shares[0] > shares[1]
        hits = [(table * right).sum((0, 1)) for table, right in ((own, said), (none, ~said))]
        return sum(hit / np.maximum(table.sum((0, 1)), 1) for hit, table in zip(hits, (own, none), strict=True)) / 2


def _balanced_accuracy(cells: np.ndarray, numbers: np.ndarray, fold: np.ndarray) -> float:
    """The mean over classes of the share that the other folds' cells answer right, 0 to 1."""
    count, classes = int(cells.max()) + 1, int(numbers.max()) + 1
    flat = (fold * count + cells) * classes + numbers
    table = np.bincount(flat, minlength=FOLDS * count * classes).reshape(FOLDS, count, classes)
    others = table.sum(0) - table
    sizes = np.maximum(others.sum(1, keepdims=True), 1)
    # Half an image more everywhere: an empty cell answers by nothing, and a single image does not outweigh a class.
    answers = ((others + 0.5 / count) / (sizes + 0.5)).argmax(2)
    right = answers[fold, cells] == numbers
    return float((np.bincount(numbers, right, classes) / np.maximum(np.bincount(numbers, minlength=classes), 1)).mean())
