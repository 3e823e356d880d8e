"""What logits say, and when they say nothing: the one rule for all who make a class, a rank or a loss of them.

An image whose logits are not all finite has no class, no probabilities and no loss. It is wrong, in top-1 and in top-5;
it is counted and named; a mean loss is that of the other images, and None where there are none. Without the rule,
``argmax`` calls such an image the first class, and NaN makes every mean NaN and every comparison False.

Letters: N images, K classes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from excite.errors import ExciteError

#: What :func:`predicted` gives for an image without a class; no label is equal to it.
NO_CLASS = -1


class NoFiniteLogits(ExciteError):
    """A network has no answer, for an image that was asked about or for all of them."""


def finite(logits: Tensor) -> Tensor:
    """bool (N,): which images have finite logits only. ``logits``: (N, K)."""
    return logits.isfinite().all(1)


def predicted(logits: Tensor) -> Tensor:
    """int64 (N,): the class with the largest logit (the first of equals); ``NO_CLASS`` where logits are not finite."""
    return torch.where(finite(logits), logits.argmax(1), NO_CLASS)


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, nats, in the dtype of ``logits``: (N,); NaN where the logits are not finite."""
    sound = finite(logits)
    known = F.cross_entropy(torch.where(sound[:, None], logits, 0.0), labels, reduction="none")
    return torch.where(sound, known, torch.nan)


def mean_loss(values: Tensor) -> float | None:
    """The mean of what :func:`losses` gave, over the images that have one; None where none has."""
    known = values[~values.isnan()]
    return number(float(known.mean())) if len(known) else None


def number(value: float) -> float | None:
    """``value``, or None where it is no finite number: what a table shows as "-", and JSON as null."""
    return value if math.isfinite(value) else None


def sentence(without: int, images: int, first: str | None, about: str | None = None) -> str | None:
    """What a user is told of images without finite logits; None where there are none.

    Args:
        without: how many there are.
        images: of how many.
        first: the name of the first of them, where it is known.
        about: what became of them, where it is not that they count as wrong.
    """
    if not without:
        return None
    named = "" if first is None else f", the first: {first}" if without > 1 else f": {first}"
    verb = "has" if without == 1 else "have"
    rule = about or ("counted as wrong; the loss is the mean over the others" if without < images else "all wrong")
    hint = "" if without < images else "; use other weights, or fp32 where they are computed with in less"
    return f"{without:,} of {images:,} images {verb} no finite logits{named} ({rule}){hint}"
