"""How many images and classes a recipe's data have, counted where they are here, without decoding or fetching any."""

from dataclasses import dataclass
from pathlib import Path

from excite.data.catalog import SOURCES
from excite.data.config import AugmentConfig, DataConfig
from excite.storage.address import is_remote

#: Counting has no need of large pixels; sources that are held in memory are opened at this size at most.
LARGEST = 64


@dataclass(frozen=True)
class Count:
    """What a training on the data sees.

    Attributes:
        train: training images, after the split and data.limit_train.
        classes: their classes.
        val: validation images; None where they were not counted.
        note: what was assumed, one sentence; None where all was counted.
    """

    train: int
    classes: int
    val: int | None = None
    note: str | None = None


def count_data(data: DataConfig, augment: AugmentConfig | None = None) -> Count:
    """Count the images and classes of a source, by opening it as a training does; nothing is decoded or downloaded.

    Raises:
        ExciteError: the data are here, and damaged or incomplete.
    """
    facts = SOURCES[data.source]
    if facts.assumed is None or (data.root and not is_remote(data.root) and Path(data.root).expanduser().exists()):
        from excite.data.sources import open_data

        size = {} if facts.class_folders else {"image_size": min(data.image_size, LARGEST)}
        # Streaming, so that a folder is listed only.
        opened = open_data(data.model_copy(update={"mode": "stream", **size}), augment)
        return Count(len(opened.train), len(opened.classes), len(opened.val))
    images, classes = facts.assumed.train, facts.assumed.classes
    why = "data.root is not given"
    if data.root:
        why = f"data.root={data.root} is {'an address, and not fetched' if is_remote(data.root) else 'not here'}"
    if data.val_from == "train":
        images -= round(images * data.val_fraction)
    if data.limit_train is not None:
        images = min(images, data.limit_train)
    if data.class_names is not None:
        classes = len(data.class_names)
    note = (
        f"{why}: {images:,} training images of {classes:,} classes assumed, as {facts.assumed.name} has"
        f"{' after data.limit_train' if images == data.limit_train else ''} (--images for another number)."
    )
    return Count(images, classes, note=note)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Optimiser steps: the last, incomplete batch is left out, unless it is all there is; see ``TrainLoader``."""
    return max(1, images // batch_size)
