"""Evaluation: every image exactly once, over all processes."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.data import Preprocessing
from excite.training.device import DTYPES


@dataclass(frozen=True)
class Evaluation:
    """What a model does on a set of images.

    Attributes:
        images: how many there were.
        loss: mean cross-entropy, nats.
        top1, top5: accuracy in percent (top-5 is top-K where there are K < 5 classes).
        confusion: (K, K) counts, rows true classes, columns predictions.
        measured: which images these are: "validation", "test", "training", "all".
        notes: what a user should know of them, one sentence each.
    """

    images: int
    loss: float
    top1: float
    top5: float
    confusion: list[list[int]]
    measured: str = "validation"
    notes: tuple[str, ...] = ()

    @property
    def balanced(self) -> float:
        """Balanced accuracy in percent: the mean of the classes' own top-1, over those that have images."""
        shares = [row[k] / sum(row) for k, row in enumerate(self.confusion) if sum(row)]
        return 100 * sum(shares) / max(1, len(shares))

    def summary(self) -> dict[str, float]:
        """The scalar results, for a table or a line of JSON."""
        return {
            "images": self.images,
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "balanced": self.balanced,
        }

    def per_class(self, classes: list[str]) -> list[dict[str, Any]]:
        """One row a class: name, images, top-1 accuracy (recall) and precision in percent, None where there is none."""
        rows = []
        for k, name in enumerate(classes):
            right, support = self.confusion[k][k], sum(self.confusion[k])
            predicted = sum(row[k] for row in self.confusion)
            rows.append(
                {
                    "class": name,
                    "images": support,
                    "top1": 100 * right / support if support else None,
                    "precision": 100 * right / predicted if predicted else None,
                }
            )
        return rows


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    preprocessing: Preprocessing,
    num_classes: int,
    device: torch.device,
    precision: str = "fp32",
    channels_last: bool = True,
) -> Evaluation:
    """Evaluate ``model`` on (uint8 images (B, C, H, W), labels (B,), indices (B,)) batches.

    Sums are kept on the device and over all processes (torchmetrics), so that the numbers do not depend on the batch
    size or the number of processes. The model's training mode is put back afterwards.
    """
    from excite.training.metrics import MeanMetric, MetricCollection, MulticlassAccuracy, MulticlassConfusionMatrix

    metrics = MetricCollection(
        {
            "top5": MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro", validate_args=False),
            "confusion": MulticlassConfusionMatrix(num_classes, validate_args=False),
        },
        compute_groups=False,
    ).to(device)
    loss = MeanMetric().to(device)
    was_training = model.training
    model.eval()
    for images, labels, _ in batches:
        x = preprocessing.normalize(images)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            logits = model(x)
        logits = logits.float()
        metrics.update(logits, labels)
        loss.update(F.cross_entropy(logits, labels, reduction="none"))
    model.train(was_training)
    with warnings.catch_warnings():  # a process that has no image at all never updates its metrics, and need not
        warnings.filterwarnings("ignore", ".*was called before the ``update`` method.*")
        values, mean_loss = metrics.compute(), float(loss.compute())
    confusion = values["confusion"].long()
    count = int(confusion.sum())
    return Evaluation(
        images=count,
        loss=mean_loss,
        top1=100 * float(confusion.trace()) / max(1, count),
        # A float32 share times the count is a whole number but for rounding: give exact quotients.
        top5=100 * round(float(values["top5"]) * count) / max(1, count),
        confusion=confusion.tolist(),
    )
