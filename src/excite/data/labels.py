"""Labels of images: one class each, or several (``data.task=multilabel``).

    one class       int64 (N,): the number of the class
    several         uint8 (N, K): 1 for each class that an image has, maybe none

Nothing heavy is imported.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def several(labels: Any) -> bool:
    """Whether these are labels of images that may have several: an array or a tensor (N, K)."""
    return getattr(labels, "ndim", 1) == 2


def take(labels: Any, index: "np.ndarray") -> Any:
    """The labels at these positions."""
    return labels[index] if several(labels) else [labels[i] for i in index]


def counts(labels: Any, classes: int) -> "np.ndarray":
    """int64 (K,): the images that have each class."""
    import numpy as np

    found = np.asarray(labels)
    return found.sum(0, dtype=np.int64) if several(found) else np.bincount(found.astype(np.int64), minlength=classes)


def rarest(labels: Any) -> "np.ndarray":
    """One class number for each image, int64 (N,): its only class, or the rarest of several (K if it has none).

    For what deals images out by class: sorted so, even the rarest class is shared out evenly.
    """
    import numpy as np

    found = np.asarray(labels)
    if not several(found):
        return found.astype(np.int64)
    classes = found.shape[1]
    rank = np.where(found > 0, found.sum(0, dtype=np.int64)[None], np.iinfo(np.int64).max)
    return np.where(found.any(1), rank.argmin(1), classes)


def members(labels: Any) -> "np.ndarray":
    """int64 (2, M): a column (class, image) for each class of each image, sorted by class."""
    import numpy as np

    found = np.asarray(labels)
    if several(found):
        return np.stack(np.nonzero(found.T))
    return np.stack([found.astype(np.int64), np.arange(len(found))])[:, np.argsort(found, kind="stable")]


def renumbered(labels: Any, numbers: Sequence[int], classes: int) -> Any:
    """Labels with class ``k`` renumbered to ``numbers[k]`` of ``classes``."""
    import numpy as np

    if not several(labels):
        return [numbers[label] for label in labels]
    out = np.zeros((len(labels), classes), np.uint8)
    out[:, list(numbers)] = labels
    return out


def hot(sets: Sequence[Collection[int]], classes: int) -> "np.ndarray":
    """Numbers of the classes of each image -> uint8 (N, K)."""
    import numpy as np

    out = np.zeros((len(sets), classes), np.uint8)
    for i, numbers in enumerate(sets):
        out[i, list(numbers)] = 1
    return out


def text(label: Any) -> str:
    """The label of one image as text, for digests: the number of its class, or those of all."""
    if getattr(label, "ndim", 0) == 0:
        return str(int(label))
    return "+".join(str(k) for k, one in enumerate(label) if one)
