"""How fast: the timing core that benchmarks share. Letters: N images, S pixels a side."""

import time

import torch
from torch import nn
from torch.nn import functional as F

from excite.training.device import DTYPES, synchronize


def training_step_seconds(
    model: nn.Module,
    *,
    batch_size: int,
    image_size: int,
    precision: str = "fp32",
    channels_last: bool = False,
    fused: bool = False,
    num_classes: int = 1000,
    device: str = "cpu",
    warm_up: int = 2,
    steps: int = 6,
) -> list[float]:
    """Seconds of each of ``steps`` training steps (forward, loss, backward, SGD) on random images, after a warm-up.

    Args:
        model: (N, 3, S, S) float32 -> (N, num_classes).
        batch_size: N. image_size: S.
        precision: "fp32", or "bf16" or "fp16" autocast (without loss scaling: only the time matters).
        channels_last: memory layout of the model and the images.
        fused: PyTorch's fused SGD kernel instead of its default.
        device: where to run.
        warm_up: steps before those that are timed.
    """
    place = torch.device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.train().to(place).to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(batch_size, 3, image_size, image_size).to(place).contiguous(memory_format=layout)
    labels = torch.randint(num_classes, (batch_size,)).to(place)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=fused or None)
    seconds = []
    for _ in range(warm_up + steps):
        synchronize(place)
        started = time.perf_counter()
        with torch.autocast(place.type, DTYPES[precision], enabled=precision != "fp32"):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(place)
        seconds.append(time.perf_counter() - started)
    return seconds[warm_up:]
