"""The embedded data set: 1797 UCI handwritten digits, 8x8 (source and licence: assets/README.md)."""

from importlib.resources import files

import numpy as np
import torch

from excite.data.config import DataConfig
from excite.data.contents import Contents
from excite.data.images import ArrayImages


def read_digits() -> tuple[list[str], ArrayImages, ArrayImages]:
    """Class names, 1437 training images and 360 test images: uint8 (N, 1, 8, 8), ink 0..16 scaled to 0..255."""
    with (files("excite.data") / "assets" / "digits.npz").open("rb") as file, np.load(file) as stored:
        ink, labels, test = stored["images"], stored["labels"].astype(np.int64), stored["test"]
    # round(v * 255 / 16), halves up: 8 becomes 128.
    pixels = torch.from_numpy(((ink.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8))[:, None]
    every = ArrayImages(pixels, torch.from_numpy(labels))
    return [str(d) for d in range(10)], every.take(np.flatnonzero(~test)), every.take(np.flatnonzero(test))


def read_source(data: DataConfig, root: None, least_classes: int) -> Contents:
    """Read the digits; their test images are used for validation."""
    classes, train, val = read_digits()
    return Contents(classes, {"train": train, "val": val})
