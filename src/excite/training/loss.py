"""Training losses. Notation: B images of a batch, K classes."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from excite.recipe import TrainConfig


class ByClass(NamedTuple):
    """What the loss knows about each class; see :func:`excite.training.rare.by_class`.

    Attributes:
        weights: (K,) float32 factors of ``train.class_weights``; None: all are 1.
        adjustment: (K,) float32, added to the logits (``train.logit_adjustment``); None: nothing.
        several: whether images may have several labels, so that each class is a question of its own.
    """

    weights: Tensor | None = None
    adjustment: Tensor | None = None
    several: bool = False


#: All classes alike.
ALIKE = ByClass()


def training_loss(
    logits: Tensor, targets: Tensor, config: TrainConfig, by_class: ByClass = ALIKE, taught: Tensor | None = None
) -> Tensor:
    """The mean loss of a batch, 0-d, in nats: that of :func:`label_loss`, or with a teacher a mixture.

    Args:
        logits: (B, K), float32.
        targets: see :func:`label_loss`.
        config: uses ``distill_weight`` w, ``distill_temperature``, and what :func:`label_loss` uses.
        by_class: weights and adjustment of the classes, for the labels only.
        taught: the teacher's logits, (B, K), float32: the loss is (1 - w) x label loss + w x :func:`distillation`.
    """
    if taught is None:
        return label_loss(logits, targets, config, by_class)
    share = config.distill_weight
    told = share * distillation(logits, taught, config.distill_temperature, by_class.several)
    return told if share == 1 else (1 - share) * label_loss(logits, targets, config, by_class) + told


def distillation(logits: Tensor, taught: Tensor, temperature: float, several: bool = False) -> Tensor:
    """How far the answers are from the teacher's, 0-d: T^2 x KL(teacher || student), both at temperature T.

    Hinton et al., arXiv 1503.02531, section 2: the gradients of softened answers shrink with 1 / T^2, which the factor
    makes up for, so that the share of the labels does not depend on T. It is 0 if the answers are the same. The mean is
    taken over images. With several labels, each class is a question of its own with two answers, and the mean is taken
    over images and classes, like that of the loss of the labels.

    Args:
        logits, taught: (B, K), float32, of the student and the teacher.
        temperature: T.
        several: whether images may have several labels.
    """
    mine, theirs = logits / temperature, taught / temperature
    if several:
        yes, no = F.logsigmoid(theirs), F.logsigmoid(-theirs)
        terms = yes.exp() * (yes - F.logsigmoid(mine)) + no.exp() * (no - F.logsigmoid(-mine))
        return temperature**2 * terms.mean()
    known = F.log_softmax(theirs, 1)
    return temperature**2 * (known.exp() * (known - F.log_softmax(mine, 1))).sum(1).mean()


def label_loss(logits: Tensor, targets: Tensor, config: TrainConfig, by_class: ByClass = ALIKE) -> Tensor:
    """The mean loss of a batch by its labels, 0-d, in nats.

    Args:
        logits: (B, K), float32.
        targets: class indices (B,), int64, or the class probabilities (B, K) of mixed images, float32; of images with
            several labels, 1 for each (B, K), float32, and shares if they are mixed.
        config: uses ``loss``, ``focal_gamma`` and ``label_smoothing``, which spreads a fraction s of each target evenly
            over all K classes: ``target * (1 - s) + s / K``.
        by_class: weights and adjustment of the classes.

    ``cross_entropy`` is averaged over images. ``bce`` is the binary cross-entropy of each class on its own, averaged
    over images and classes (Wightman et al., arXiv 2110.00476; timm and MindCV average likewise). ``focal`` is the
    multi-class form of Lin et al. (arXiv 1708.02002, equation 4): each term of the cross-entropy, ``-target * log p``,
    is multiplied by ``(1 - p)^gamma``; gamma 0 is the cross-entropy itself.

    The adjustment is added to the logits first (Menon et al., arXiv 2007.07314, equation 10).

    Weights mean what ``weight=`` means in PyTorch: they are the factors of the terms of cross-entropy, with smoothed
    and mixed targets, too; focal loss takes them as its alpha. For ``bce``, which PyTorch lets one weigh in any shape,
    an image is weighed by the mean of the weights over its target, in all its K terms: a factor for each column would
    not change how much rare classes count within their own column. In all cases the plain mean over images is taken.
    PyTorch's ``reduction="mean"`` divides by the sum of the weights in the batch instead; the gradient of an image
    would then depend on the others that share its process or part of a batch, and a step on the layout. So the weights
    are scaled to a mean of 1 over the training set, which gives PyTorch's mean in expectation.
    """
    weights, adjustment, several = by_class
    if several:
        return _of_each(logits, targets, config, weights)
    if adjustment is not None:
        logits = logits + adjustment
    if config.loss == "cross_entropy":
        if weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
        smoothing = config.label_smoothing
        return F.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing, reduction="none").mean()
    classes = logits.shape[1]
    wanted = F.one_hot(targets, classes).to(logits.dtype) if targets.ndim == 1 else targets
    if config.loss == "focal":
        return _focal(logits, _smoothed(wanted, config), config.focal_gamma, weights)
    of_images = None if weights is None else (wanted @ weights)[:, None]
    return F.binary_cross_entropy_with_logits(logits, _smoothed(wanted, config), weight=of_images)


#: The exponents for classes that an image has and has not, and the shift of the latter's probability: those of the
#: paper's experiments (Ridnik et al., arXiv 2009.14119, section 3.2).
ASYMMETRIC = (0.0, 4.0, 0.05)


def _of_each(logits: Tensor, wanted: Tensor, config: TrainConfig, weights: Tensor | None) -> Tensor:
    """The mean over images and classes, 0-d, where each class is a question of its own.

    ``cross_entropy`` and ``bce`` are the binary cross-entropy. ``focal`` multiplies each term by the probability of the
    wrong answer to the power gamma (Lin et al., equation 5, without alpha). ``asymmetric`` does so with an exponent of
    its own for classes that an image has not, whose probability is lowered first, so that the surest ones count nothing
    (Ridnik et al., arXiv 2009.14119, equation 7; the paper adds the classes up, which is K times as much). Label
    smoothing s moves targets to ``target * (1 - s) + s / 2``. Weights are factors of the terms of classes that an image
    has, as ``pos_weight`` is in PyTorch.
    """
    wanted = wanted * (1 - config.label_smoothing) + config.label_smoothing / 2
    yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
    if config.loss == "focal":
        yes, no = yes * _sure_of(no) ** config.focal_gamma, no * _sure_of(yes) ** config.focal_gamma
    elif config.loss == "asymmetric":
        own, other, shift = ASYMMETRIC
        chance = (torch.sigmoid(logits) - shift).clamp_min(0)
        yes, no = yes * no.exp() ** own, torch.log1p(-chance) * chance**other
    terms = wanted * (yes if weights is None else yes * weights) + (1 - wanted) * no
    return -terms.mean()


def _sure_of(log_chance: Tensor) -> Tensor:
    """The probability, but never 0, where the gradient of a power below 1 is infinite."""
    return log_chance.exp().clamp_min(torch.finfo(log_chance.dtype).eps)


def _smoothed(wanted: Tensor, config: TrainConfig) -> Tensor:
    return wanted * (1 - config.label_smoothing) + config.label_smoothing / wanted.shape[1]


def _focal(logits: Tensor, wanted: Tensor, gamma: float, weights: Tensor | None) -> Tensor:
    """Logits and targets (B, K) -> the mean over images, 0-d."""
    known = F.log_softmax(logits, 1)
    # Not 1 - p, which is 0 for log p > -6e-8; and never 0, see _sure_of.
    unsure = (-torch.expm1(known)).clamp_min(torch.finfo(known.dtype).eps)
    terms = -wanted * unsure**gamma * known
    return (terms if weights is None else terms * weights).sum(1).mean()
