"""A trained network with its images, opened once, however many studies look at it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from excite.data import DataSets, EvalLoader, Preprocessing
from excite.data.sources import balanced_beginning
from excite.recipe import Overrides, Recipe, override_words
from excite.trained.images import measuring_loader, open_images
from excite.trained.predictor import Predictor, read_checkpoint
from excite.training.evaluation import Batch, Evaluation, evaluate
from excite.weights.locate import Located, locate


class Opened:
    """A trained network with the images that it is measured on; these are opened when they are first asked for.

    Args:
        located: where the network came from.
        predictor: the network.
        overrides: ``data.key=value`` strings, for example ``data.root=/other/images``; see ``load_recipe``.
        limits: at most so many images, ``limit_val`` and ``limit_train``; the caller tells of them.
        train: whether training images are wanted, too.
    """

    def __init__(
        self,
        located: Located,
        predictor: Predictor,
        overrides: Overrides = (),
        *,
        limits: Mapping[str, int] | None = None,
        train: bool = False,
    ) -> None:
        self.located, self.predictor = located, predictor
        self.overrides, self._limits, self._train = tuple(override_words(overrides)), limits, train
        self._opened: tuple[Recipe, DataSets] | None = None

    @property
    def _images(self) -> tuple[Recipe, DataSets]:
        if self._opened is None:
            self._opened = open_images(
                self.predictor, self.source, self.overrides, limits=self._limits, train=self._train
            )
        return self._opened

    @property
    def source(self) -> str:
        """What was asked for."""
        return self.located.source

    @property
    def run(self) -> Path | None:
        """The run folder, where the source is one on this machine."""
        return self.located.run

    @cached_property
    def weights(self) -> str:
        """sha256 (hex) of the weights file; see :meth:`Located.digest`."""
        return self.located.digest()

    @property
    def recipe(self) -> Recipe:
        """The network's own, with the overrides and the limits. Raises ExciteError where the images cannot be had."""
        return self._images[0]

    @property
    def data(self) -> DataSets:
        """What the recipe says, numbered by the network's classes; ``val`` is measured, ``train`` there if wanted.

        Raises:
            ExciteError: the data cannot be read, or has classes that the network does not know.
        """
        return self._images[1]

    @property
    def preprocessing(self) -> Preprocessing:
        """What is predicted with: size and crop as the recipe says, mean and standard deviation of the training."""
        own = self.predictor.preprocessing
        return replace(self.data.preprocessing, mean=own.mean, std=own.std)

    def name_of(self, position: int) -> str:
        """What a person calls the measured image at a position."""
        return self.data.val.names[position]

    def batches(
        self, batch_size: int | None = None, *, train: bool = False, rank: int = 0, world: int = 1
    ) -> EvalLoader:
        """A fresh pass over the measured images, or over training's.

        Args:
            batch_size: images at a time; None takes the recipe's. Has no influence on results but for rounding.
            train: whose.
            rank, world: this process's share of them.
        """
        device = self.predictor.device
        return measuring_loader(self.data, self.recipe, device, batch_size, rank=rank, world=world, train=train)

    def evaluate(self, model: nn.Module | None = None, batches: Iterable[Batch] | None = None) -> Evaluation:
        """Measure the network on all its images, or another one in its place that takes the same input.

        Args:
            model: the other one.
            batches: of the images; None: a fresh pass of :meth:`batches`.
        """
        p = self.predictor
        return evaluate(
            p.model if model is None else model,
            self.batches() if batches is None else batches,
            p.preprocessing,
            len(p.classes),
            p.device,
            p.precision,
            name_of=self.name_of,
        )

    def positions(self, limit: int, seed: int) -> np.ndarray:
        """Where at most ``limit`` of the measured images are: class-balanced, by ``seed``."""
        labels = self.data.val.labels
        numbers = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else labels
        return balanced_beginning(numbers, limit, seed)

    def taking(self, limit: int, seed: int) -> "Opened":
        """The same network with at most ``limit`` of its images: class-balanced, by ``seed``."""
        return self.with_images(self.positions(limit, seed))

    def with_images(self, positions: np.ndarray) -> "Opened":
        """The same network with some of its images."""
        some = Opened(self.located, self.predictor, self.overrides)
        some._opened = (self.recipe, replace(self.data, val=self.data.val.take(positions)))
        return some


def open_trained(
    source: str | Path,
    overrides: Overrides = (),
    *,
    device: str = "auto",
    precision: str | None = None,
    fold: bool | None = False,
    limits: Mapping[str, int] | None = None,
    train: bool = False,
) -> Opened:
    """Load a network; its images are opened when they are first asked for.

    Args:
        source: a run folder, a checkpoint (of other systems, too), or an address of either.
        overrides: ``data.key=value`` strings, for example ``data.root=/other/images``.
        device: "auto", "cpu", "cuda" ...
        precision: "fp32", "bf16", "fp16", "auto"; None takes what it was trained in, so that the numbers are those of
            the training.
        fold: fold the batch norms into the convolutions (see :class:`Predictor`); None does not in bf16, whose rounding
            would show in the numbers.
        limits: at most so many images, ``limit_val`` and ``limit_train``; the caller tells of them.
        train: whether training images are wanted, too.

    Raises:
        ExciteError: see ``excite.load``.
    """
    located = locate(source)
    checkpoint = read_checkpoint(located)
    precision = precision or checkpoint.meta["precision"]
    predictor = Predictor(checkpoint, device, precision, False if fold is None and precision != "fp32" else fold)
    return Opened(located, predictor, overrides, limits=limits, train=train)
