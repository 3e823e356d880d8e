"""Evaluation counts every image exactly once, whatever the batch size."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from excite.data import ArrayImages, EvalLoader, Preprocessing
from excite.data.config import DataConfig
from excite.training import evaluate
from excite.training.evaluation import Evaluation

CPU = torch.device("cpu")


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
    result = evaluate(model, loader, preprocessing, classes, CPU)
    logits = model.table[images.images[:, 0, 0, 0].long()].detach()
    rank = (logits > logits.gather(1, images.labels[:, None])).sum(1)
    assert result.images == 101
    assert result.top1 == 100 * (rank == 0).sum().item() / 101
    assert result.top5 == 100 * (rank < min(5, classes)).sum().item() / 101
    assert result.loss == pytest.approx(F.cross_entropy(logits, images.labels).item(), rel=1e-5)
    assert model.training  # put back
    assert result.first_not_finite is None
    assert result.balanced == pytest.approx(sum(row["top1"] for row in result.per_class(["?"] * classes)) / classes)
    rows = result.per_class([f"c{k}" for k in range(classes)])
    predicted = logits.argmax(1)
    for k, row in enumerate(rows):
        mine = images.labels == k
        assert row["images"] == mine.sum()
        assert row["top1"] == pytest.approx(100 * (predicted[mine] == k).float().mean().item())
        assert row["precision"] == pytest.approx(100 * (images.labels[predicted == k] == k).float().mean().item())


class Watched(nn.Module):
    """Logits that tell the pixels, and what held while they were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.seen = nn.Linear(2 * 3 * 3, 4), []

    def forward(self, x):
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        last = x.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((last, autocast, self.training, torch.is_grad_enabled()))
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("words", "last", "dtype"),
    [
        ([], True, None),
        (["fp32", False], False, None),
        (["bf16", True], True, torch.bfloat16),
        (["fp16", False], False, torch.float16),
    ],
)
def test_the_network_is_asked_in_the_layout_and_precision_that_were_told(words, last, dtype, training):
    """And its logits are taken in float32 from there on."""
    torch.manual_seed(0)
    model = Watched().train(training)
    images, labels = torch.randint(0, 256, (5, 2, 3, 3), dtype=torch.uint8), torch.tensor([0, 1, 2, 3, 0])
    preprocessing = Preprocessing(3, 1.0, "bilinear", (0.2, 0.7), (0.5, 0.25), 2)
    batches = [(images[:4], labels[:4], torch.arange(4)), (images[4:], labels[4:], torch.arange(4, 5))]
    found = evaluate(model, batches, preprocessing, 4, CPU, *words)
    assert model.seen == [(last, dtype, False, False)] * 2
    assert model.training == training
    x = (images / 255 - torch.tensor([0.2, 0.7])[:, None, None]) / torch.tensor([0.5, 0.25])[:, None, None]
    rounded = [t.to(dtype or torch.float32) for t in (x.flatten(1), model.linear.weight, model.linear.bias)]
    assert found.loss == pytest.approx(F.cross_entropy(F.linear(*rounded).float(), labels).item(), rel=1e-5)


def test_a_process_without_images_has_nothing_to_say_and_one_image_is_enough():
    """Of 3 images, the fourth of four processes has none."""
    preprocessing, model = Preprocessing(4, 1.0, "bilinear", (0.0,), (1.0,), 1), Lookup(3)
    found = evaluate(model, [], preprocessing, 3, CPU)
    assert (found.images, found.loss, found.top1, found.top5) == (0, None, 0.0, 0.0)
    assert (found.confusion, found.first_not_finite, found.balanced) == ([[0] * 3] * 3, None, 0.0)
    zeros = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    one = evaluate(model, [(zeros, model.table[0].argmax()[None], torch.tensor([0]))], preprocessing, 3, CPU)
    assert (one.images, one.top1, one.top5, one.balanced) == (1, 100.0, 100.0, 100.0)


def test_the_tables_by_hand():
    """The last class has no images, the third no predictions; of the first, one image has no logits, of the next 3."""
    confusion = [[3, 1, 0, 0], [0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
    shares = {"images": 12, "loss": 0.5, "top1": 100 * 5 / 12, "top5": 50.0}
    some = Evaluation(**shares, confusion=confusion, no_class=[1, 3, 0, 0], first_not_finite="b")
    every = Evaluation(**(shares | {"images": 8}), confusion=confusion)
    assert some.support == [5, 5, 2, 0]
    assert every.support == [4, 2, 2, 0]
    assert some.balanced == pytest.approx(100 * (3 / 5 + 2 / 5 + 0) / 3)
    assert every.balanced == pytest.approx(100 * (3 / 4 + 1 + 0) / 3)
    assert (some.not_finite, every.not_finite, every.warning) == (4, 0, None)
    assert some.warning.startswith("4 of 12 images have no finite logits, the first: b")
    measured = {"balanced": some.balanced, "macro_f1": pytest.approx(100 * (6 / 10 + 4 / 8 + 0 / 2) / 3)}
    assert some.summary() == {**shares, **measured, "not_finite": 4, "first_not_finite": "b"}
    assert some.uneven
    assert not Evaluation(**shares, confusion=[[3, 0], [1, 1]], no_class=[0, 0]).uneven  # 3 and 2
    names = ["a", "b", "c", "d"]
    for found, support, top1 in ((some, [5, 5, 2, 0], [60.0, 40.0, 0.0]), (every, [4, 2, 2, 0], [75.0, 100.0, 0.0])):
        assert found.per_class(names) == [
            {"class": name, "images": n, "top1": share, "precision": precision}
            for name, n, share, precision in zip(
                names, support, [*top1, None], [60.0, pytest.approx(200 / 3), None, None], strict=True
            )
        ]
