"""The predictions for all validation images: computed once, cached in the run folder, and reused while valid.

Notation: N images, K classes.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from excite.data import DataSets, FileImages
from excite.data.labels import several
from excite.data.stored import PreprocessingValues
from excite.errors import ExciteError
from excite.files import from_json, to_json, written_aside
from excite.logits import finite, hits, predicted, sentence
from excite.measures import sigmoid
from excite.pages.intervals import wilson
from excite.progress import Advance
from excite.runtime.rows import Rows
from excite.trained.opened import Opened
from excite.untrusted.npz import read_npz

#: Name of the file in a run folder.
FILE = "predictions.npz"
FORMAT_VERSION = 2


class _About(TypedDict):
    format_version: int
    weights: str
    fingerprint: str
    precision: str
    preprocessing: PreprocessingValues


@dataclass(frozen=True)
class Predictions:
    """The logits of a trained network for all validation images, each once, in the order of the data.

    Attributes:
        logits: float32 (N, K).
        labels: int64 (N,), the true classes; of images with several labels uint8 (N, K), 1 for each class of an image.
        positions: int64 (N,), positions of the images in the data; with ``fingerprint`` they identify the images.
        names: N display names, see ``excite.data.ArrayImages`` and ``FileImages``.
        classes: K class names.
        fingerprint: fingerprint of the data, see ``DataSets.fingerprint``.
        weights: sha256 (hex) of the weights file.
        precision: "fp32", "bf16" or "fp16".
        preprocessing: the preprocessing of the images, see ``Preprocessing.to_dict``.
    """

    logits: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    names: tuple[str, ...]
    classes: tuple[str, ...]
    fingerprint: str
    weights: str
    precision: str
    preprocessing: PreprocessingValues

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def several(self) -> bool:
        """Whether images may have several labels."""
        return several(self.labels)

    @property
    def finite(self) -> np.ndarray:
        """bool (N,): whether all logits of an image are finite; other images have no class and no probabilities."""
        return finite(torch.from_numpy(self.logits)).numpy()

    @property
    def warning(self) -> str | None:
        """The warning about images without finite logits; None if there are none."""
        without = np.flatnonzero(~self.finite)
        return sentence(len(without), len(self), self.names[without[0]] if len(without) else None)

    def answered(self) -> "Predictions":
        """The predictions of images whose logits are all finite."""
        kept = np.flatnonzero(self.finite)
        names = tuple(self.names[i] for i in kept.tolist())
        return replace(
            self, logits=self.logits[kept], labels=self.labels[kept], positions=self.positions[kept], names=names
        )

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """Softmax of logits / temperature, or with several labels its sigmoid: float64 (N, K); rows of NaN for logits
        that are not finite."""
        scaled = self.logits.astype(np.float64)
        scaled[~self.finite] = np.nan
        scaled /= temperature  # in place, like all that follows: with 1,000 classes it takes 8 KB an image
        if self.several:
            return sigmoid(scaled)
        scaled -= scaled.max(1, keepdims=True)
        np.exp(scaled, out=scaled)
        scaled /= scaled.sum(1, keepdims=True)
        return scaled

    @property
    def predicted(self) -> np.ndarray:
        """int64 (N,): the class with the largest logit (first on ties), or ``NO_CLASS`` (-1) if not all are finite."""
        return predicted(torch.from_numpy(self.logits)).numpy()

    @property
    def right(self) -> np.ndarray:
        """bool (N,): whether the predicted class is the true one, or one of several."""
        return hits(torch.from_numpy(self.logits), torch.from_numpy(self.labels)).numpy()

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file atomically, without pickled objects. Raises ExciteError."""
        with written_aside(path) as aside, aside.open("wb") as file:
            np.savez(
                file,
                logits=self.logits,
                labels=self.labels,
                positions=self.positions,
                names=_packed("\0".join(self.names)),
                about=_packed(to_json({**self._about(), "classes": self.classes})),
            )

    def _about(self) -> _About:
        return _about(self.weights, self.fingerprint, self.precision, self.preprocessing)

    @classmethod
    def read(cls, path: Path) -> "Predictions | None":
        """Read what :meth:`save` wrote; None if there is nothing valid (it can be computed again)."""
        try:
            file = read_npz(path)
            about = from_json(_unpacked(file["about"]))
            if about.pop("format_version") != FORMAT_VERSION:
                return None
            names, classes = tuple(_unpacked(file["names"]).split("\0")), tuple(about.pop("classes"))
            found = cls(file["logits"], file["labels"], file["positions"], names, classes, **about)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if found._plausible() else None

    def _plausible(self) -> bool:
        """Whether shapes, types and ranges are consistent."""
        images, classes = len(self.names), len(self.classes)
        fits = self.logits.shape == (images, classes) and self.logits.dtype == np.float32
        fits = fits and self.positions.shape == (images,) and self.positions.dtype == np.int64
        shape, dtype = ((images, classes), np.uint8) if self.several else ((images,), np.int64)
        fits = fits and self.labels.shape == shape and self.labels.dtype == dtype
        texts = (*self.classes, self.fingerprint, self.weights, self.precision)
        if not fits or not all(isinstance(text, str) for text in texts) or not isinstance(self.preprocessing, dict):
            return False
        most = 1 if self.several else classes - 1
        return bool(self.labels.min() >= 0 and self.labels.max() <= most and self.positions.min() >= 0)


def _about(weights: str, fingerprint: str, precision: str, preprocessing: PreprocessingValues) -> _About:
    """The values that must match for stored predictions to be reused."""
    return {
        "format_version": FORMAT_VERSION,
        "weights": weights,
        "fingerprint": fingerprint,
        "precision": precision,
        "preprocessing": preprocessing,
    }


def _packed(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _unpacked(values: np.ndarray) -> str:
    return values.tobytes().decode()


def predict_all(opened: Opened, progress: Advance | None = None, batch_size: int | None = None) -> Predictions:
    """Predict all validation images, each once and in order, in this process.

    This also holds under a launcher: other processes may have ended, and are not waited for.

    Args:
        opened: the network and its images, from :func:`excite.trained.opened.open_trained`.
        progress: called with (images done, images in total) after each batch.
        batch_size: images per batch; None: the recipe's. Affects the result only by rounding.

    Raises:
        ExciteError: an image cannot be read (unless ``data.on_bad_val`` is "skip"), or there are no images.
    """
    outputs, labels, positions = Rows(), Rows(), Rows()
    for images, truth, index in opened.batches(batch_size):
        outputs.add(opened.predictor.logits(images).cpu().numpy())
        labels.add(truth.cpu().numpy())
        positions.add(index.cpu().numpy())
        if progress is not None:
            progress(len(labels), len(opened.data.val))
    if not len(labels):
        raise ExciteError(f"there are no validation images to predict in the data of {opened.source}")
    return Predictions(
        logits=outputs.all(),
        labels=labels.all() if opened.predictor.several else labels.all().astype(np.int64),
        positions=positions.all().astype(np.int64),
        names=_names(opened.data, positions.all().tolist()),
        classes=tuple(opened.predictor.classes),
        fingerprint=opened.data.fingerprint,
        weights=opened.weights,
        precision=opened.predictor.precision,
        preprocessing=opened.preprocessing.to_dict(),
    )


def _names(data: DataSets, positions: Sequence[int]) -> tuple[str, ...]:
    names = data.val.names
    return tuple(names[position] for position in positions)


def predictions_of(opened: Opened, progress: Advance | None = None, *, keep: bool = True) -> Predictions:
    """The predictions stored in the run folder if weights, data, precision and preprocessing match; else new ones.

    Args:
        opened: the network and its images, from :func:`excite.trained.opened.open_trained`.
        progress: called with (images done, images in total) after each batch that is predicted.
        keep: whether to store new predictions in the run folder; errors in writing this cache are ignored.

    Raises:
        ExciteError: see :func:`predict_all`.
    """
    path = None if opened.run is None else opened.run / FILE
    wanted = _about(
        opened.weights,
        opened.data.fingerprint,
        opened.predictor.precision,
        from_json(to_json(opened.preprocessing.to_dict())),
    )
    stored = None if path is None else Predictions.read(path)
    if (
        stored is not None
        and stored._about() == wanted
        and list(stored.classes) == opened.predictor.classes
        # The fingerprint of images in memory covers only pixels: their files may have been renamed since.
        and stored.names == _names(opened.data, stored.positions.tolist())
    ):
        return stored
    made = predict_all(opened, progress)
    if path is not None and keep:
        with suppress(ExciteError):
            made.save(path)
    return made


def pictures(opened: Opened, positions: Sequence[int]) -> list[np.ndarray]:
    """Validation images at these positions in the data, as the network sees them: uint8 (H, W, C) each.

    Raises:
        ExciteError: an image can no longer be read.
    """
    images = opened.data.val
    found = []
    for position in positions:
        if isinstance(images, FileImages):
            pixels = opened.data.preprocessing.load(images.source(position), opened.recipe.data.max_pixels)
        else:
            pixels = images.images[position]
        found.append(pixels.permute(1, 2, 0).numpy())
    return found


class Accuracy(TypedDict):
    """Accuracy of predictions, in percent.

    ``top1_low`` and ``top1_high`` are the ends of Wilson's interval at the level ``confidence``. ``balanced`` is the
    mean of the top-1 accuracies of the classes that have images. ``top5`` is top-k
    accuracy with k = ``top5_of`` = min(5, K). ``not_finite`` is the number of images without finite logits, which count
    as wrong.
    """

    images: int
    right: int
    top1: float
    top1_low: float
    top1_high: float
    balanced: float
    top5: float
    top5_of: int
    confidence: float
    not_finite: int


def accuracy(predictions: Predictions, confidence: float = 0.95) -> Accuracy:
    """Top-1 accuracy with Wilson's interval, and top-5 accuracy (top-K if K < 5); see :class:`Accuracy`."""
    right, images = int(predictions.right.sum()), len(predictions)
    low, high = wilson(right, images, confidence)
    most = min(5, len(predictions.classes))
    # Like torchmetrics' top-k: the k largest logits, the first on ties.
    best = torch.from_numpy(predictions.logits).topk(most).indices.numpy()
    among = int(((best == predictions.labels[:, None]).any(1) & predictions.finite).sum())
    return {
        "images": images,
        "right": right,
        "top1": 100 * right / images,
        "top1_low": 100 * low,
        "top1_high": 100 * high,
        "balanced": _balanced(predictions),
        "top5": 100 * among / images,
        "top5_of": most,
        "confidence": confidence,
        "not_finite": int((~predictions.finite).sum()),
    }


def _balanced(predictions: Predictions) -> float:
    images = np.bincount(predictions.labels)
    right = np.bincount(predictions.labels[predictions.right], minlength=len(images))
    return 100 * float(np.mean(right[images > 0] / images[images > 0]))
