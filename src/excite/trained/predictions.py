"""What a network says about every validation image: made once, kept beside the run, read back while it still holds.

Letters: N images, K classes.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from excite.data import DataSets, FileImages
from excite.data.stored import PreprocessingValues
from excite.errors import ExciteError
from excite.files import from_json, to_json, written_aside
from excite.logits import finite, predicted, sentence
from excite.pages.intervals import wilson
from excite.progress import Advance
from excite.trained.opened import Opened
from excite.untrusted.npz import read_npz

#: In a run folder.
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
        labels: int64 (N,), the true classes.
        positions: int64 (N,), of the images in the data: with ``fingerprint``, which images these are.
        names: N texts, what a person calls them, see ``excite.data.ArrayImages`` and ``FileImages``.
        classes: K names.
        fingerprint: of the data, see ``DataSets.fingerprint``.
        weights: sha256 (hex) of the weights file.
        precision: "fp32", "bf16" or "fp16".
        preprocessing: how an image became the network's input, see ``Preprocessing.to_dict``.
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
    def finite(self) -> np.ndarray:
        """bool (N,): the images whose logits are all finite; the others have no class and no probabilities."""
        return finite(torch.from_numpy(self.logits)).numpy()

    @property
    def warning(self) -> str | None:
        """The sentence about images without finite logits; None where there are none."""
        without = np.flatnonzero(~self.finite)
        return sentence(len(without), len(self), self.names[without[0]] if len(without) else None)

    def answered(self) -> "Predictions":
        """Those of the images whose logits are all finite."""
        kept = np.flatnonzero(self.finite)
        names = tuple(self.names[i] for i in kept.tolist())
        return replace(
            self, logits=self.logits[kept], labels=self.labels[kept], positions=self.positions[kept], names=names
        )

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """Softmax of logits / temperature: float64 (N, K); a row of NaN where logits are not finite."""
        scaled = np.where(self.finite[:, None], self.logits.astype(np.float64), np.nan) / temperature
        scaled -= scaled.max(1, keepdims=True)
        np.exp(scaled, out=scaled)
        return scaled / scaled.sum(1, keepdims=True)

    @property
    def predicted(self) -> np.ndarray:
        """int64 (N,): the class with the largest logit (the first of equals, as torch does it); ``NO_CLASS`` (-1) where
        logits are not finite."""
        return predicted(torch.from_numpy(self.logits)).numpy()

    @property
    def right(self) -> np.ndarray:
        """bool (N,): whether that class is the true one."""
        return self.predicted == self.labels

    def save(self, path: Path) -> None:
        """Write an ``.npz`` whole or not at all; nothing in it is pickled. Raises ExciteError."""
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
        """What :meth:`save` wrote; None where there is nothing readable (it can be made again)."""
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
        """Whether the parts fit each other, whatever they say."""
        images, classes = len(self.names), len(self.classes)
        fits = self.logits.shape == (images, classes) and self.logits.dtype == np.float32
        fits = fits and all(a.shape == (images,) and a.dtype == np.int64 for a in (self.labels, self.positions))
        texts = (*self.classes, self.fingerprint, self.weights, self.precision)
        if not fits or not all(isinstance(text, str) for text in texts) or not isinstance(self.preprocessing, dict):
            return False
        return bool(self.labels.min() >= 0 and self.labels.max() < classes and self.positions.min() >= 0)


def _about(weights: str, fingerprint: str, precision: str, preprocessing: PreprocessingValues) -> _About:
    """What must agree for stored predictions to hold."""
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
    """Classify all validation images in this process, each once, in their order.

    Under a launcher, too: the other processes may be gone, and nothing here waits for them.

    Args:
        opened: what :func:`excite.trained.opened.open_trained` gave.
        progress: called after each batch.
        batch_size: images at a time; None takes the recipe's. Has no influence on the result but for rounding.

    Raises:
        ExciteError: an image cannot be read (unless ``data.on_bad_val`` is "skip"), or there is none.
    """
    outputs, labels, positions, done = [], [], [], 0
    for images, truth, index in opened.batches(batch_size):
        outputs.append(opened.predictor.logits(images).cpu().numpy())
        labels.append(truth.cpu().numpy())
        positions += index.tolist()
        done += len(truth)
        if progress is not None:
            progress(done, len(opened.data.val))
    if not done:
        raise ExciteError(f"there are no validation images to predict in the data of {opened.source}")
    return Predictions(
        logits=np.concatenate(outputs),
        labels=np.concatenate(labels).astype(np.int64),
        positions=np.array(positions, dtype=np.int64),
        names=_names(opened.data, positions),
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
    """The predictions stored in the run folder, where weights, data, precision and preprocessing are the same; else
    made anew, and stored there.

    Args:
        opened: what :func:`excite.trained.opened.open_trained` gave.
        progress: called after each batch that is predicted.
        keep: whether to store what is made anew. A folder that cannot be written is no error: it is only a cache.

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
        # The fingerprint of images in memory is of their pixels: since then, their files may have got other names.
        and stored.names == _names(opened.data, stored.positions.tolist())
    ):
        return stored
    made = predict_all(opened, progress)
    if path is not None and keep:
        with suppress(ExciteError):
            made.save(path)
    return made


def pictures(opened: Opened, positions: Sequence[int]) -> list[np.ndarray]:
    """Validation images by their positions in the data, as the network sees them: uint8 (S, S, C) each.

    Raises:
        ExciteError: one cannot be read any more.
    """
    images = opened.data.val
    found = []
    for position in positions:
        if isinstance(images, FileImages):
            pixels = opened.data.preprocessing.load(images.paths[position], opened.recipe.data.max_pixels)
        else:
            pixels = images.images[position]
        found.append(pixels.permute(1, 2, 0).numpy())
    return found


class Accuracy(TypedDict):
    """How often predictions are right; shares in percent.

    ``top1_low`` and ``top1_high`` are the ends of Wilson's interval at ``confidence``. ``top5_of`` is K where K < 5.
    ``not_finite`` images have no finite logits, and are wrong.
    """

    images: int
    right: int
    top1: float
    top1_low: float
    top1_high: float
    top5: float
    top5_of: int
    confidence: float
    not_finite: int


def accuracy(predictions: Predictions, confidence: float = 0.95) -> Accuracy:
    """Top-1 in percent with Wilson's interval, top-5 (top-K where K < 5), their counts; ``not_finite`` images have no
    finite logits, and are wrong."""
    right, images = int(predictions.right.sum()), len(predictions)
    low, high = wilson(right, images, confidence)
    most = min(5, len(predictions.classes))
    # As torchmetrics' top-k does it: among the k largest logits, the first of equals first.
    best = torch.from_numpy(predictions.logits).topk(most).indices.numpy()
    among = int(((best == predictions.labels[:, None]).any(1) & predictions.finite).sum())
    return {
        "images": images,
        "right": right,
        "top1": 100 * right / images,
        "top1_low": 100 * low,
        "top1_high": 100 * high,
        "top5": 100 * among / images,
        "top5_of": most,
        "confidence": confidence,
        "not_finite": int((~predictions.finite).sum()),
    }
