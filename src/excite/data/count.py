"""Counts the images and classes of a recipe's data, without decoding or downloading anything."""

import os
from dataclasses import dataclass

from excite.data.catalog import SOURCES
from excite.data.config import AugmentConfig, DataConfig
from excite.data.root import is_hub
from excite.errors import expanded
from excite.storage.address import is_remote

#: Counting does not need large images: sources that are held in memory are opened at most at this size.
LARGEST = 64


@dataclass(frozen=True)
class Count:
    """The numbers of images and classes that training on the data would see.

    Attributes:
        train: number of training images, after the split and data.limit_train.
        classes: number of classes.
        val: number of validation images; None if they were not counted.
        note: what was assumed, in one sentence; None if everything was counted.
    """

    train: int
    classes: int
    val: int | None = None
    note: str | None = None


def count_data(data: DataConfig, augment: AugmentConfig | None = None) -> Count:
    """Count the images and classes of a source by opening it as in training. Nothing is decoded or downloaded.

    Raises:
        ExciteError: the data is there, but damaged or incomplete.
    """
    facts = SOURCES[data.source]
    if facts.assumed is None or (data.root and not is_remote(data.root) and os.path.exists(expanded(data.root))):
        from excite.data.sources import open_data

        size = {} if facts.files else {"image_size": [min(side, LARGEST) for side in data.training_size]}
        # Streaming, so that a folder is only listed.
        opened = open_data(data.model_copy(update={"mode": "stream", **size}), augment)
        return Count(len(opened.train), len(opened.classes), len(opened.val))
    images, classes = facts.assumed.train, facts.assumed.classes
    why = "data.root is not given"
    if data.root:
        elsewhere = is_remote(data.root) or is_hub(data.root)
        why = f"data.root={data.root} {'is an address, not fetched' if elsewhere else 'does not exist'}"
    if data.fold is not None:
        images -= round(images / data.fold[1])
    elif data.val_from == "train":
        images -= round(images * data.val_fraction)
    if data.limit_train is not None:
        images = min(images, data.limit_train)
    if data.class_names is not None:
        classes = len(data.class_names)
    note = (
        f"{why}: assuming {images:,} training images of {classes:,} classes, as in {facts.assumed.name}"
        f"{' after data.limit_train' if images == data.limit_train else ''} (--images sets another number)."
    )
    return Count(images, classes, note=note)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Optimiser steps per epoch. An incomplete last batch is dropped unless it is the only one; see ``TrainLoader``."""
    return max(1, images // batch_size)
