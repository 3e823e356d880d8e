"""Evaluation counts every image exactly once, whatever the batch size."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from excite.data import ArrayImages, EvalLoader, Preprocessing
from excite.data.config import DataConfig
from excite.training import evaluate


class Lookup(nn.Module):
    """Logits that depend on the first pixel only."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(256, classes, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return self.table[(x[:, 0, 0, 0] * 255).round().long()]


def make(count: int, classes: int):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return ArrayImages(images, torch.randint(0, classes, (count,), generator=generator))


@pytest.mark.parametrize("classes", [3, 7])
@pytest.mark.parametrize("batch_size", [1, 8, 64, 1000])
def test_every_image_once_whatever_the_batch_size(batch_size, classes):
    images, model = make(101, classes), Lookup(classes).train()
    preprocessing = Preprocessing(4, 1.0, "bilinear", (0.0,), (1.0,), 1)
    data = DataConfig(source="digits", image_size=4, in_chans=1)
    loader = EvalLoader(images, batch_size=batch_size, device="cpu", data_config=data)
    result = evaluate(model, loader, preprocessing, classes, torch.device("cpu"))
    logits = model.table[images.images[:, 0, 0, 0].long()].detach()
    rank = (logits > logits.gather(1, images.labels[:, None])).sum(1)
    assert result.images == 101
    assert result.top1 == 100 * (rank == 0).sum().item() / 101
    assert result.top5 == 100 * (rank < min(5, classes)).sum().item() / 101
    assert result.loss == pytest.approx(F.cross_entropy(logits, images.labels).item(), rel=1e-5)
    assert model.training  # put back
    rows = result.per_class([f"c{k}" for k in range(classes)])
    predicted = logits.argmax(1)
    for k, row in enumerate(rows):
        mine = images.labels == k
        assert row["images"] == mine.sum()
        assert row["top1"] == pytest.approx(100 * (predicted[mine] == k).float().mean().item())
        assert row["precision"] == pytest.approx(100 * (images.labels[predicted == k] == k).float().mean().item())
