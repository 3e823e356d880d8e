"""Rare classes: what the number of images of each class means for the loss, and what is said about it.

Notation: N images, K classes, n_k images of class k.
"""

from collections.abc import Sequence

import numpy as np
import torch

from excite.data import ArrayImages, DataSets, FileImages
from excite.data.labels import counts as label_counts
from excite.data.sampler import shares
from excite.data.sources import UNBALANCED
from excite.errors import ExciteError
from excite.recipe import Recipe
from excite.text import printable
from excite.training.loss import ByClass

#: So many class names are listed in the error about a wrong number of weights.
_LISTED = 20


def class_counts(images: ArrayImages | FileImages, classes: int) -> np.ndarray:
    """int64 (K,): the images of each class."""
    return label_counts(images.labels.cpu().numpy() if isinstance(images, ArrayImages) else images.labels, classes)


def by_class(recipe: Recipe, data: DataSets, device: torch.device | str = "cpu") -> ByClass:
    """The weights and the adjustment of the classes for :func:`excite.training.loss.training_loss`.

    ``train.class_weights=balanced`` is N / (K n_k). Any weights are scaled to a mean of 1 over the images that training
    draws (with ``data.sampler``, in its shares), which keeps the loss at its scale and the learning rate at its
    meaning. With several labels an image, balanced is (N - n_k) / n_k, as PyTorch advises for ``pos_weight``, and
    weights are not scaled. ``train.logit_adjustment`` tau is tau * log(n_k / N). A class without training images counts
    as one image.

    Raises:
        ExciteError: ``train.class_weights`` has another number of weights than there are classes.
    """
    config, counts = recipe.train, class_counts(data.train, len(data.classes))
    seen = np.maximum(counts, 1)
    several = recipe.data.task == "multilabel"
    weights = adjustment = None
    if config.class_weights is not None:
        if config.class_weights == "balanced":
            factors = (len(data.train) - counts) / seen if several else seen.sum() / (len(seen) * seen)
        else:
            _check_weights(config.class_weights, data.classes)
            factors = np.asarray(config.class_weights, dtype=np.float64)
        if not several:
            factors = factors / (_drawn(recipe, data, counts) * factors).sum()
        weights = torch.tensor(factors, dtype=torch.float32, device=device)
    if config.logit_adjustment:
        prior = np.log(seen / seen.sum())
        adjustment = torch.tensor(config.logit_adjustment * prior, dtype=torch.float32, device=device)
    return ByClass(weights, adjustment, several)


def _drawn(recipe: Recipe, data: DataSets, counts: np.ndarray) -> np.ndarray:
    """The share of each class in what training draws: float64 (K,), of images with one class each."""
    images = data.train
    if recipe.data.sampler != "weights" or images.weights is None:
        return shares(counts, recipe.data.sampler)
    labels = images.labels.cpu().numpy() if isinstance(images, ArrayImages) else np.asarray(images.labels)
    return np.bincount(labels, images.weights, len(counts)) / images.weights.sum()


def _check_weights(weights: Sequence[float], classes: Sequence[str]) -> None:
    if len(weights) == len(classes):
        return
    more = f" and {len(classes) - _LISTED:,} more" if len(classes) > _LISTED else ""
    named = ", ".join(map(printable, classes[:_LISTED]))
    raise ExciteError(
        f"train.class_weights has {len(weights)} numbers, but there are {len(classes)} classes; give one for each of "
        f"{named}{more}, in this order, or train.class_weights=balanced"
    )


def notes(recipe: Recipe, data: DataSets, found: ByClass) -> list[str]:
    """What is done for rare classes, one sentence each; or, if nothing is and they are uneven, what there is."""
    counts, train = class_counts(data.train, len(data.classes)), recipe.train
    some = np.flatnonzero(counts)
    low, high = int(some[counts[some].argmin()]), int(counts.argmax())
    names = [printable(name) for name in data.classes]
    told = []
    if found.weights is not None:
        least, most = int(found.weights.argmin()), int(found.weights.argmax())
        what = "balanced" if train.class_weights == "balanced" else "[...]"
        told.append(
            f"train.class_weights={what}: the loss of an image counts {float(found.weights[least]):.3g} times "
            f"({names[least]}) to {float(found.weights[most]):.3g} times ({names[most]})"
            + (", where it has the class" if found.several else ", once on average")
        )
    if recipe.data.sampler == "weights" and data.train.weights is not None:
        each = data.train.weights * len(data.train) / data.train.weights.sum()
        told.append(
            f"data.sampler=weights: an epoch draws an image {each.min():.3g} to {each.max():.3g} times, as its weight "
            "says; the number of steps stays the same"
        )
    elif recipe.data.sampler is not None:
        times = shares(counts, recipe.data.sampler)[some] * counts.sum() / counts[some]
        of = dict(zip(some.tolist(), times.tolist(), strict=True))
        told.append(
            f"data.sampler={recipe.data.sampler}: an epoch draws each image of {names[high]} {of[high]:.3g} times and "
            f"each of {names[low]} {of[low]:.3g} times; the number of steps stays the same"
        )
    if found.adjustment is not None:
        last, first = int(found.adjustment.argmin()), int(found.adjustment.argmax())
        told.append(
            f"train.logit_adjustment={train.logit_adjustment:g}: in training, {float(found.adjustment[first]):.3g} "
            f"({names[first]}) to {float(found.adjustment[last]):.3g} ({names[last]}) is added to the logits, so that "
            "the training loss cannot be compared with that of other runs"
        )
    if not told and train.loss != "focal" and counts[high] >= UNBALANCED * counts[low]:
        keys = (
            "train.class_weights=balanced and train.loss=focal or asymmetric"
            if found.several
            else "train.logit_adjustment=1, train.class_weights=balanced, data.sampler=sqrt (or balanced) and "
            "train.loss=focal, and eval.metric=balanced to choose the epoch"
        )
        told.append(
            f"{names[high]} has {counts[high] / counts[low]:.3g} times as many training images as {names[low]} "
            f"({counts[high]:,} and {counts[low]:,}); for the rare classes there are {keys}"
        )
    return told
