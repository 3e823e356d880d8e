"""What the tests of explaining share: a small network with a stored checkpoint."""

from pathlib import Path

import pytest
import torch

from excite.trained.predictor import load


@pytest.fixture(scope="session")
def trained(tiny) -> Path:
    """A small gated network's run folder."""
    return tiny.gated


@pytest.fixture(scope="session")
def ungated(tiny) -> Path:
    """The same without gates."""
    return tiny.bare


@pytest.fixture
def predictor(trained):
    """The small network, loaded in float32."""
    return load(trained, "cpu", "fp32")


@pytest.fixture(scope="session")
def batches():
    """Three uneven batches of noise: uint8 images (N, 1, 8, 8), labels (N), positions (N)."""
    generator = torch.Generator().manual_seed(0)
    found, start = [], 0
    for size in (7, 12, 5):
        images = torch.randint(256, (size, 1, 8, 8), generator=generator, dtype=torch.uint8)
        labels = torch.randint(10, (size,), generator=generator)
        found.append((images, labels, torch.arange(start, start + size)))
        start += size
    return found


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    """An image file."""
    from PIL import Image

    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = torch.randint(256, (20, 20), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path
