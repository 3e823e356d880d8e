"""A trained network with its images, opened once for any number of studies."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from excite.data import DataSets, EvalLoader, Preprocessing
from excite.data.sources import balanced_beginning
from excite.data.views import Tta
from excite.measures import MeasureName
from excite.recipe import Overrides, Recipe, override_words
from excite.trained.images import measuring_loader, open_images
from excite.trained.predictor import Predictor
from excite.training.evaluation import Batch, Evaluation, evaluate
from excite.weights.checkpoint import read_checkpoint
from excite.weights.locate import Located, locate


class Opened:
    """A trained network with the images that it is evaluated on, which are opened on first use.

    Args:
        located: the origin of the network.
        predictor: the network.
        overrides: ``data.key=value`` strings, for example ``data.root=/other/images``; see ``load_recipe``.
        limits: ``limit_val`` and ``limit_train``, the most images; the caller reports them.
        train: whether to open the training images, too.
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
        """The run folder, checkpoint or address, as given."""
        return self.located.source

    @property
    def run(self) -> Path | None:
        """The run folder, if the source is one on this machine."""
        return self.located.run

    @cached_property
    def weights(self) -> str:
        """sha256 (hex) of the weights file; see :meth:`Located.digest`."""
        return self.located.digest()

    @property
    def recipe(self) -> Recipe:
        """The network's recipe with overrides and limits. Raises ExciteError if the images cannot be opened."""
        return self._images[0]

    @property
    def data(self) -> DataSets:
        """The data of the recipe, with labels in the network's class order; ``val`` are the images to evaluate.

        Raises:
            ExciteError: the data cannot be read, or has classes that the network does not know.
        """
        return self._images[1]

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing for predictions: size and crop from the recipe, mean and std from the training."""
        own = self.predictor.preprocessing
        return replace(self.data.preprocessing, mean=own.mean, std=own.std)

    def name_of(self, position: int) -> str:
        """The display name of the image at a position."""
        return self.data.val.names[position]

    def batches(
        self, batch_size: int | None = None, *, train: bool = False, rank: int = 0, world: int = 1
    ) -> EvalLoader:
        """Start a new pass over the images to evaluate, or over the training images.

        Args:
            batch_size: images per batch; None: the recipe's. Affects results only by rounding.
            train: use the training images.
            rank, world: this process's share.
        """
        device = self.predictor.device
        margin = self.predictor.tta == "five"
        return measuring_loader(
            self.data, self.recipe, device, batch_size, rank=rank, world=world, train=train, margin=margin
        )

    def evaluate(
        self, model: nn.Module | None = None, batches: Iterable[Batch] | None = None, metric: MeasureName = "top1"
    ) -> Evaluation:
        """Evaluate the network on all its images.

        Args:
            model: another network to evaluate instead, with the same input.
            batches: batches of the images; None: a new pass of :meth:`batches`.
            metric: a measure to compute, too, if it takes the logits of all images.
        """
        p = self.predictor
        return evaluate(
            p.model if model is None else model,
            self.batches() if batches is None else batches,
            self.preprocessing,
            len(p.classes),
            p.device,
            p.precision,
            name_of=self.name_of,
            metric=metric,
            several=p.several,
            threshold=p.threshold if p.several else None,
            tta=p.tta,
        )

    def positions(self, limit: int, seed: int) -> np.ndarray:
        """int64 (N,): positions of at most ``limit`` images, drawn class-balanced with ``seed``."""
        labels = self.data.val.labels
        numbers = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else labels
        return balanced_beginning(numbers, limit, seed)

    def taking(self, limit: int, seed: int) -> "Opened":
        """This network with at most ``limit`` of its images, drawn class-balanced with ``seed``."""
        return self.with_images(self.positions(limit, seed))

    def with_images(self, positions: np.ndarray) -> "Opened":
        """This network with the images at these positions only."""
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
    tta: Tta | None = None,
) -> Opened:
    """Load a network; its images are opened on first use.

    Args:
        source: a run folder, a checkpoint (also of another library), or an address of either.
        overrides: ``data.key=value`` strings, for example ``data.root=/other/images``.
        device: "auto", "cpu", "cuda" ...
        precision: "fp32", "bf16", "fp16" or "auto"; None uses that of the training, so that the numbers agree with it.
        fold: fold the batch norms into the convolutions (see :class:`Predictor`); None: only where that is faster, and
            only in fp32, because in lower precisions rounding would change the numbers.
        limits: ``limit_val`` and ``limit_train``, the most images; the caller reports them.
        train: whether to open the training images, too.
        tta: test-time augmentation; see ``excite.load``.

    Raises:
        ExciteError: see ``excite.load``.
    """
    located = locate(source)
    checkpoint = read_checkpoint(located)
    precision = precision or checkpoint.meta["precision"]
    predictor = Predictor(checkpoint, device, precision, False if fold is None and precision != "fp32" else fold, tta)
    return Opened(located, predictor, overrides, limits=limits, train=train)
