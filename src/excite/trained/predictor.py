"""A trained network with everything needed to use it."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, overload

import numpy as np
import torch
from torch import Tensor, nn

from excite.choices import TTA, check_choice
from excite.data import Preprocessing
from excite.data.ahead import decoded_batches
from excite.data.decode import BadImageError
from excite.data.views import Tta, centre
from excite.logits import finite
from excite.models import fold as fold_model
from excite.models.folding import folding_pays, form_of
from excite.pages.inline import MOST_ROWS, Thumbnail, show_table
from excite.progress import Advance
from excite.runtime.device import DTYPES, choose_precision, make_accelerator
from excite.size import by_text
from excite.text import as_json, counted
from excite.trained.given import Given, GivenImage, given_images
from excite.training.evaluation import logits_of
from excite.training.precision import set_norm_precision
from excite.weights.checkpoint import read_checkpoint
from excite.weights.header import several_labels, threshold_of
from excite.weights.locate import locate
from excite.weights.own import Checkpoint, build_network, load_into

#: Shown instead of a class if the logits of an image are not all finite.
NO_ANSWER = "no finite logits"
#: Shown if an image that may have several classes, or none, has none.
NO_CLASS_OF_SEVERAL = "none of the classes"


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of an image.

    Attributes:
        path: the image file; for an image in memory, its name from :func:`excite.trained.given.given_images`.
        top: (class name, probability), most likely first. Empty if the logits are not all finite (see
            ``excite.logits``) or the image cannot be read. With several labels an image, all classes from the
            network's threshold on, maybe none.
        problem: why the image cannot be read; None if it can.
        answered: whether the logits are all finite.
        pixels: the network's view of the image, uint8 (H, W, C); only kept for the first few images, for display.
    """

    path: str
    top: list[tuple[str, float]]
    problem: str | None = None
    answered: bool = True
    pixels: np.ndarray | None = field(default=None, repr=False, compare=False)

    def text(self) -> str:
        """The classes with percentages, or why there are none."""
        if self.problem is not None:
            return f"cannot be read: {self.problem}"
        none = NO_CLASS_OF_SEVERAL if self.answered else NO_ANSWER
        return "  ".join(f"{name} {100 * share:.1f} %" for name, share in self.top) or none

    def _repr_html_(self) -> str:
        return Predicted([self])._repr_html_()


class Predicted(Sequence[Prediction]):
    """The predictions for several images: one :class:`Prediction` per image, in order."""

    def __init__(self, predictions: Iterable[Prediction]) -> None:
        self._predictions = list(predictions)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> "Predicted": ...

    def __getitem__(self, index: int | slice) -> "Prediction | Predicted":
        found = self._predictions[index]
        return Predicted(found) if isinstance(found, list) else found

    def __len__(self) -> int:
        return len(self._predictions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Predicted) and self._predictions == other._predictions

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __repr__(self) -> str:
        return f"Predicted({self._predictions!r})"

    @property
    def readable(self) -> "Predicted":
        """The predictions of images that could be read."""
        return Predicted(p for p in self if p.problem is None)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(path, reason) of the images that could not be read."""
        return [(p.path, p.problem) for p in self if p.problem is not None]

    def _repr_html_(self) -> str:
        rows = [(Thumbnail(p.pixels, p.path), p.path, p.text()) for p in self._predictions[:MOST_ROWS]]
        return show_table(("", "image", "classes"), rows, more=len(self) - len(rows))


class Predictor:
    """A trained network with everything needed to use it: preprocessing, class names, origin.

    Args:
        checkpoint: a checkpoint from ``read_own``.
        device: "auto", "cpu", "cuda" ...
        precision: "auto" (chosen for the device), "fp32", "bf16" or "fp16".
        fold: fold the batch norms into the convolutions (see ``excite.fold``); None: only where measured to be faster,
            on a CPU in fp32 or bf16.
        tta: test-time augmentation: predict the mean probabilities of several views of each image.

    Attributes:
        model: the network in eval mode on the device, folded if requested.
        classes: class names in the order of the logits.
        preprocessing: converts an image to the network's input.
        meta: recipe, metrics, versions, step and epoch, as stored in the checkpoint.
        device: the ``torch.device``.
        precision: the precision in use: "fp32", "bf16" or "fp16".
        several: whether an image may have several classes (``task=multilabel``), maybe none.
        threshold: the probability from which on a class is predicted, if several may be.
        tta: test-time augmentation, "flip", "five" or "shift" (see ``excite.data.views``), or None.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        precision: str = "fp32",
        fold: bool | None = False,
        tta: Tta | None = None,
    ) -> None:
        if tta is not None:
            check_choice("tta", tta, TTA)
        self.tta = tta
        self.meta = checkpoint.meta
        self.classes: list[str] = checkpoint.meta["classes"]
        self.preprocessing = Preprocessing.from_dict(checkpoint.meta["preprocessing"])
        self.several = several_labels(checkpoint.meta)
        self.threshold = threshold_of(checkpoint.meta)
        self.model: nn.Module = build_network(checkpoint.path, checkpoint.meta["model"], checkpoint.tensors)
        load_into(self.model, checkpoint)
        self.accelerator = make_accelerator(device)
        self.device = self.accelerator.device
        self.precision = choose_precision(precision, self.device, self.model)
        self._norm_precision = checkpoint.meta["recipe"]["train"].get("norm_precision", "auto")  # 0.1 files lack it
        set_norm_precision(self.model, self._norm_precision, self.precision)
        self.model.eval().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if fold or (fold is None and folding_pays(self.model, self.device, self.precision)):
            self.model = fold_model(self.model, dtype=DTYPES[self.precision])

    def as_predicting(self) -> "Predictor":
        """A copy of this network, which must not be folded, in the form that ``excite predict`` runs.

        That is fp32, with batch norms folded into the convolutions where that is faster. This network is not changed.
        """
        other = copy.copy(self)
        if self.precision != "fp32":
            other.precision, other.model = "fp32", copy.deepcopy(self.model)
            set_norm_precision(other.model, self._norm_precision, "fp32")
        if folding_pays(other.model, other.device, other.precision):
            other.model = fold_model(other.model, dtype=DTYPES["fp32"])
        return other

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Preprocessed uint8 images (B, C, H, W) -> float32 logits (B, K); with test-time augmentation, those of the
        mean probabilities over the views of each image."""
        return logits_of(
            self.model,
            images.to(self.device),
            self.preprocessing,
            self.device,
            self.precision,
            channels_last=True,
            tta=self.tta,
            several=self.several,
        )

    def __call__(
        self,
        images: Given | Iterable[Given],
        top_k: int = 5,
        batch_size: int = 64,
        *,
        progress: Advance | None = None,
    ) -> Predicted:
        """Classify images: ``model("photo.jpg")``.

        Args:
            images: the path of an image, a folder, a pattern such as ``"photos/*.jpg"``, an address; a PIL image; uint8
                or uint16 pixels (H, W), (H, W, C), or several (N, H, W, C); the bytes of an image file; or a list of
                these.
            top_k: number of classes per image.
            batch_size: images per batch.
            progress: called with (images done, images in total).

        Returns:
            One :class:`Prediction` per image, in order. For an image that cannot be read, ``problem`` is set and there
            are no classes.

        Raises:
            TypeError: ``images`` is of another type.
            ExciteError: there is no such file, or none of the images can be read.
        """
        given = given_images(images)
        found = Predicted(self.answers(given, top_k, batch_size, progress))
        if given and len(found.bad) == len(found):
            path, reason = found.bad[0]
            more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
            raise BadImageError(path, f"{reason}{more}")
        return found

    def predict(self, paths: Given | Iterable[Given], top_k: int = 5, batch_size: int = 64) -> Iterator[Prediction]:
        """Classify images one after another, stopping at the first that cannot be read.

        Args:
            paths: image files of any size and format, or anything that a call accepts.
            top_k: number of classes per image.
            batch_size: images per batch.

        Raises:
            BadImageError: an image cannot be read.
            TypeError: ``paths`` is of another type.
        """
        for prediction in self.answers(given_images(paths), top_k, batch_size):
            if prediction.problem is not None:
                raise BadImageError(prediction.path, prediction.problem)
            yield prediction

    def answers(
        self, images: Sequence[GivenImage], top_k: int, batch_size: int, progress: Advance | None = None
    ) -> Iterator[Prediction]:
        """One :class:`Prediction` per image, in order; ``progress`` is called after each batch."""
        done, beside = 0, self.device.type != "cpu"
        for batch in decoded_batches(images, self._load, batch_size, path_of=_path_of, beside=beside):
            pixels = [each for _, each in batch if isinstance(each, Tensor)]
            logits = iter(self.logits(torch.stack(pixels)).cpu() if pixels else ())
            for image, each in batch:
                if isinstance(each, Tensor):
                    seen = centre(each, self.preprocessing.size)
                    kept = seen.permute(1, 2, 0).numpy() if done < MOST_ROWS else None
                    own = next(logits)
                    answered = bool(finite(own[None]))
                    yield Prediction(image.name, self.top(own, top_k), answered=answered, pixels=kept)
                else:
                    yield Prediction(image.name, [], each.reason, answered=False)
                done += 1
            if progress is not None:
                progress(done, len(images))

    def top(self, logits: Tensor, top_k: int) -> list[tuple[str, float]]:
        """The ``top_k`` most likely classes for one image's logits (K,), as (class name, probability); with several
        labels an image, all classes from the threshold on.

        Empty if the logits are not all finite.
        """
        if not bool(finite(logits[None])):
            return []
        if self.several:
            chance = logits.double().sigmoid()
            order = chance.argsort(descending=True, stable=True).tolist()
            return [(self.classes[k], float(chance[k])) for k in order if chance[k] >= self.threshold]
        best = logits.softmax(0).topk(min(top_k, len(self.classes)))
        return [(self.classes[k], p) for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def _load(self, image: GivenImage) -> Tensor | BadImageError:
        try:
            return self.preprocessing.load(image.open(), margin=self.tta == "five")
        except BadImageError as error:
            return error

    def _repr_html_(self) -> str:
        p = self.preprocessing
        classes = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        rows = [
            ("classes", f"{len(self.classes):,}: {classes}"),
            ("input", f"{by_text(p.size)}, {counted(p.in_chans, 'channel')}"),
            ("runs on", f"{self.device}, {form_of(self.model, self.precision)}"),
            ("trained by", f"{self.meta['recipe']['name']}, {self.meta['epoch']:g} epochs"),
        ]
        return show_table(("", ""), rows, title=self.meta["model"]["name"])


def _path_of(image: GivenImage) -> str | None:
    return image.source if isinstance(image.source, str) else None


def load(
    source: str | Path,
    device: str = "auto",
    precision: str = "fp32",
    fold: bool | None = False,
    tta: Tta | None = None,
) -> Predictor:
    """Load a trained network.

    Args:
        source: a run folder (its best weights), a checkpoint folder, a ``.safetensors`` file, or another library's
            checkpoint (see ``excite.load_weights``).
        device: "auto", "cpu", "cuda" ...
        precision: "fp32", "bf16", "fp16" or "auto".
        fold: fold the batch norms into the convolutions, which is faster on a CPU (see :class:`Predictor`).
        tta: test-time augmentation: None, "flip" (the image and its mirror image), "five" (its centre and four
            corners) or "shift" (moved a little, and mirrored): the mean of the probabilities.

    Raises:
        ExciteError: there is nothing, it is damaged, or its format is unknown.
    """
    return Predictor(read_checkpoint(locate(source)), device, precision, fold, tta)


#: A class and its probability; "class" is a Python keyword.
ClassProbability = TypedDict("ClassProbability", {"class": str, "probability": float})


class PredictionRow(TypedDict):
    """A :class:`Prediction` as JSON."""

    path: str
    top: list[ClassProbability]


def to_rows(predictions: Iterable[Prediction]) -> list[PredictionRow]:
    """Predictions as a list of {path, top: [{class, probability}]}; ``top`` is [] if there are no classes."""
    return [{"path": p.path, "top": [{"class": c, "probability": v} for c, v in p.top]} for p in predictions]


def to_json(predictions: Iterable[Prediction]) -> str:
    """The result of :func:`to_rows` as JSON text."""
    return as_json(to_rows(predictions))
