"""Does something that should not matter give the class away: format, size, shape, file size, mean colour?

A network learns whatever tells the classes apart. If all cats are PNG files, or all night pictures of one class, it may
learn that and look good until it meets other images.

For each property, the images are sorted into at most :data:`CELLS` cells by it alone (values, or quantiles of numbers),
and each cell answers the class that is the most frequent there compared with the whole: a classifier with equal priors,
cross-validated in five folds. Its balanced accuracy is compared with that for shuffled labels, a permutation test with
200 shuffles. Chance is the mean of those.
"""

import numpy as np

from excite.datacheck.contents import Giveaway
from excite.datacheck.look import Looks

#: Cells of a property, and of each of three colour channels.
CELLS, CELLS_OF_THREE = 32, 5
SHUFFLES, FOLDS, MOST = 200, 5, 20_000
#: A property gives the class away if it does better than all but 1 % of the shuffles, and is right for at least this
#: share of what chance gets wrong: mean colours tell CIFAR's ships from its frogs a little, as they should.
MATTERS = 0.2
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


def find_giveaways(looks: Looks, labels: np.ndarray, classes: int, seed: int = 0) -> list[Giveaway]:
    """Judge each property that varies, the most telling first; [] if there are too few images.

    Args:
        looks: of the readable images.
        labels: int64 (N,).
        classes: K.
        seed: of the folds and shuffles.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(labels, minlength=classes)
    if (sizes >= FEWEST).sum() < 2:
        return []
    chosen = np.flatnonzero(sizes[labels] >= FEWEST)
    chosen = np.sort(rng.permutation(chosen)[:MOST])
    numbers = np.unique(labels[chosen], return_inverse=True)[1]
    fold = rng.permutation(len(chosen)) % FOLDS
    shuffles = [rng.permutation(numbers) for _ in range(SHUFFLES)]
    found: list[Giveaway] = []
    for what, every in properties(looks).items():
        cells = every[chosen]
        real = _balanced_accuracy(cells, numbers, fold)
        shuffled = np.array([_balanced_accuracy(cells, other, fold) for other in shuffles])
        chance = float(shuffled.mean())
        p = (1 + int((shuffled >= real).sum())) / (1 + SHUFFLES)
        found.append(
            {
                "what": what,
                "accuracy": 100 * real,
                "chance": 100 * chance,
                "p": p,
                "gives_away": bool(p <= 0.01 and real - chance >= MATTERS * (1 - chance)),
            }
        )
    return sorted(found, key=lambda each: each["chance"] - each["accuracy"])


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
