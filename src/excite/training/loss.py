"""Training losses."""

from torch import Tensor
from torch.nn import functional as F

from excite.recipe import TrainConfig


def training_loss(logits: Tensor, targets: Tensor, config: TrainConfig) -> Tensor:
    """The mean loss of a batch, 0-d, in nats.

    Args:
        logits: (B, K), float32.
        targets: class indices (B,), int64, or the class probabilities (B, K) of mixed images, float32.
        config: uses ``loss`` and ``label_smoothing``, which spreads a fraction s of each target evenly over all K
            classes: ``target * (1 - s) + s / K``.

    ``cross_entropy`` is averaged over images. ``bce`` is the binary cross-entropy of each class on its own, averaged
    over images and classes (Wightman et al., arXiv 2110.00476; timm and MindCV average likewise).
    """
    if config.loss == "cross_entropy":
        return F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
    classes = logits.shape[1]
    wanted = F.one_hot(targets, classes).to(logits.dtype) if targets.ndim == 1 else targets
    wanted = wanted * (1 - config.label_smoothing) + config.label_smoothing / classes
    return F.binary_cross_entropy_with_logits(logits, wanted)
