"""What the tests of explaining share: a small network with a stored checkpoint."""

from pathlib import Path

import pytest
import torch

from excite.trained.predictor import load
from excite.training import train
from tests.training.small import small


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A small gated network's run folder, trained for one epoch."""
    return Path(
        train(
            # The first class's name is no valid formula of Matplotlib's.
            small(
                "train.epochs=1",
                "mixup=0.0",
                "data.limit_train=64",
                "data.class_names=[$x^$,'1','2','3','4','5','6','7','8','9']",
            ),
            out=tmp_path_factory.mktemp("explain"),
            quiet=True,
        )["run"]
    )


@pytest.fixture(scope="session")
def ungated(tmp_path_factory) -> Path:
    """The same without gates."""
    recipe = small("train.epochs=1", "mixup=0.0", "data.limit_train=64", "model.name=cifar_resnet20")
    return Path(train(recipe, out=tmp_path_factory.mktemp("ungated"), quiet=True)["run"])


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
