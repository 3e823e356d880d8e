"""The one rule for logits that are not finite, for all code that derives a class, a rank or a loss from logits.

An image whose logits are not all finite has no class, no probabilities and no loss. It counts as wrong in top-1 and
top-5, and is counted and named. A mean loss is over the other images, and None if there are none. Without this rule,
``argmax`` would assign such an image to the first class, NaN would turn every mean into NaN, and comparisons with NaN
would be False.

Notation: N images, K classes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from excite.errors import ExciteError

#: The result of :func:`predicted` for an image without a class; it equals no label.
NO_CLASS = -1


class NoFiniteLogits(ExciteError):
    """The network has no finite logits, for one image or for all of them."""


def finite(logits: Tensor) -> Tensor:
    """Logits (N, K) -> bool (N,): whether all logits of an image are finite."""
    return logits.isfinite().all(1)


def predicted(logits: Tensor) -> Tensor:
    """Logits (N, K) -> int64 (N,): the class with the largest logit (the first on ties), or ``NO_CLASS``."""
    return torch.where(finite(logits), logits.argmax(1), NO_CLASS)


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (N, K), int64 labels (N,) or uint8 (N, K) of images with several -> bool (N,): whether the class with the
    largest logit is the label, or one of them."""
    found = predicted(logits)
    if labels.ndim == 1:
        return found == labels
    return (labels.gather(1, found.clamp_min(0)[:, None])[:, 0] > 0) & (found != NO_CLASS)


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (N, K), int64 labels (N,) -> cross-entropy (N,) in nats, in the logits' dtype; NaN where not finite. With
    labels (N, K) of images with several, it is the mean of the binary cross-entropies of all classes."""
    sound = finite(logits)
    logits = torch.where(sound[:, None], logits, 0.0)
    if labels.ndim == 2:
        known = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(1)
    else:
        known = F.cross_entropy(logits, labels, reduction="none")
    return torch.where(sound, known, torch.nan)


def mean_loss(values: Tensor) -> float | None:
    """The mean of the losses (N,) from :func:`losses`, leaving out NaN; None if nothing is left."""
    known = values[~values.isnan()]
    return number(float(known.mean())) if len(known) else None


def number(value: float) -> float | None:
    """``value``, or None if it is not finite: tables show "-", JSON has null."""
    return value if math.isfinite(value) else None


def sentence(without: int, images: int, first: str | None, about: str | None = None) -> str | None:
    """The warning about images without finite logits; None if there are none.

    Args:
        without: number of such images.
        images: number of all images.
        first: name of the first such image, if known.
        about: how they were treated, if not by counting them as wrong.
    """
    if not without:
        return None
    named = "" if first is None else f", the first: {first}" if without > 1 else f": {first}"
    verb = "has" if without == 1 else "have"
    rule = about or ("counted as wrong; the loss is the mean over the others" if without < images else "all wrong")
    hint = "" if without < images else "; use other weights, or fp32 if the precision is lower"
    return f"{without:,} of {images:,} images {verb} no finite logits{named} ({rule}){hint}"
