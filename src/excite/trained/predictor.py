"""A trained network with all that it needs to be used."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from excite.data import Preprocessing
from excite.data.ahead import decoded_batches
from excite.data.decode import BadImageError
from excite.errors import ExciteError
from excite.logits import finite
from excite.models import fold as fold_model
from excite.models.timm_models import is_timm_model
from excite.runtime.device import DTYPES, choose_precision, make_accelerator
from excite.runtime.environment import versions
from excite.storage import local_file
from excite.text import as_json
from excite.training.precision import set_norm_precision
from excite.weights.convert import convert
from excite.weights.locate import Located, locate
from excite.weights.meta import describe
from excite.weights.own import Checkpoint, build_network, load_into, read_own

#: What stands for a class where the logits of an image are not all finite.
NO_ANSWER = "no finite logits"


@dataclass(frozen=True)
class Prediction:
    """One image's most likely classes: ``top`` holds (class name, probability), best first.

    It is empty where the network has no answer: its logits are not all finite (see ``excite.logits``).
    """

    path: str
    top: list[tuple[str, float]]


class Predictor:
    """A trained network with everything it needs to be used: preprocessing, class names, where it came from.

    Args:
        checkpoint: what ``read_own`` returned.
        device: "auto", "cpu", "cuda" ...
        precision: "auto" (what it was trained with, where the device can), "fp32", "bf16", "fp16".
        fold: fold the batch norms into the convolutions (see ``excite.fold``); None does so where it was measured to be
            faster, on a CPU in fp32 or bf16.

    Attributes:
        model: the network, in eval mode on the device; its folded form if asked for.
        classes: class names in the order of the logits.
        preprocessing: how an image becomes the network's input.
        meta: recipe, metrics, versions, step and epoch, as stored in the checkpoint.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: str = "auto", precision: str = "fp32", fold: bool | None = False
    ) -> None:
        self.meta = checkpoint.meta
        self.classes: list[str] = checkpoint.meta["classes"]
        self.preprocessing = Preprocessing.from_dict(checkpoint.meta["preprocessing"])
        self.model: nn.Module = build_network(checkpoint.path, checkpoint.meta["model"], checkpoint.tensors)
        load_into(self.model, checkpoint)
        self.accelerator = make_accelerator(device)
        self.device = self.accelerator.device
        self.precision = choose_precision(precision, self.device, self.model)
        self._norm_precision = checkpoint.meta["recipe"]["train"].get("norm_precision", "auto")  # 0.1 files lack it
        set_norm_precision(self.model, self._norm_precision, self.precision)
        self.model.eval().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if fold or (fold is None and self._folding_pays()):
            self.model = fold_model(self.model, dtype=DTYPES[self.precision])

    def _folding_pays(self) -> bool:
        # On a CPU 1.05 to 1.9 times the speed for all nets but the TensorFlow one (the same), in fp32 and bf16.
        return self.device.type == "cpu" and self.precision != "fp16" and not is_timm_model(self.model)

    def as_predicting(self) -> "Predictor":
        """The same network, which is not folded yet, in the form that ``excite predict`` runs: fp32, its batch norms
        folded into the convolutions where that pays. The network itself is left as it is."""
        other = copy.copy(self)
        if self.precision != "fp32":
            other.precision, other.model = "fp32", copy.deepcopy(self.model)
            set_norm_precision(other.model, self._norm_precision, "fp32")
        if other._folding_pays():
            other.model = fold_model(other.model, dtype=DTYPES["fp32"])
        return other

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, S, S), already preprocessed, to float32 logits (B, K)."""
        x = self.preprocessing.normalize(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            return self.model(x).float()

    def predict(self, paths: Iterable[str | Path], top_k: int = 5, batch_size: int = 64) -> Iterator[Prediction]:
        """Classify image files.

        Args:
            paths: image files, of any size and format.
            top_k: how many classes to give for each.
            batch_size: images at a time.

        Raises:
            BadImageError: an image cannot be read.
        """
        for batch in self.predict_batches(paths, top_k, batch_size):
            for each in batch:
                if isinstance(each, BadImageError):
                    raise each
                yield each

    def predict_batches(
        self, paths: Iterable[str | Path], top_k: int, batch_size: int
    ) -> Iterator[list[Prediction | BadImageError]]:
        """The same, ``batch_size`` files at a time; what is wrong with an image stands in its place."""
        beside = self.device.type != "cpu"
        for batch in decoded_batches(map(str, paths), self._load, batch_size, beside=beside):
            good = [image for _, image in batch if isinstance(image, Tensor)]
            found = iter(self.logits(torch.stack(good)).cpu() if good else ())
            yield [
                Prediction(path, self.top(next(found), top_k)) if isinstance(image, Tensor) else image
                for path, image in batch
            ]

    def top(self, logits: Tensor, top_k: int) -> list[tuple[str, float]]:
        """The ``top_k`` classes with the largest of one image's logits (K), best first, as (class name, probability);
        none where the logits are not all finite."""
        if not bool(finite(logits[None])):
            return []
        best = logits.softmax(0).topk(min(top_k, len(self.classes)))
        return [(self.classes[k], p) for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def _load(self, path: str) -> Tensor | BadImageError:
        try:
            return self.preprocessing.load(local_file(path))
        except BadImageError as error:
            return BadImageError(path, error.reason)


def load(source: str | Path, device: str = "auto", precision: str = "fp32", fold: bool | None = False) -> Predictor:
    """Load a trained network.

    Args:
        source: a run folder (its best weights), a checkpoint folder, a ``.safetensors`` file, or another system's
            checkpoint (see ``excite.load_weights``).
        device: "auto", "cpu", "cuda" ...
        precision: "fp32", "bf16", "fp16" or "auto".
        fold: fold the batch norms into the convolutions, which is faster (see :class:`Predictor`).

    Raises:
        ExciteError: there is nothing there, it is damaged, or it was not written by this package.
    """
    return Predictor(read_checkpoint(locate(source)), device, precision, fold)


def read_checkpoint(located: Located) -> Checkpoint:
    """A checkpoint of ours, or another system's, converted on the way (see docs/weights.md)."""
    if located.kind == "own":
        return read_own(located.path)
    if located.kind == "grafted":
        raise ExciteError(
            f"{located.source} is another library's network with grafted gates, without classes and preprocessing; "
            "from Python, excite.grafting.load_grafted loads it"
        )
    model, loaded = convert(located.source)
    return Checkpoint(located.path, model.state_dict(), {**describe(model, loaded), "versions": versions()})


#: A class and its probability; "class" is a word of Python's.
ClassProbability = TypedDict("ClassProbability", {"class": str, "probability": float})


class PredictionRow(TypedDict):
    """A :class:`Prediction` in JSON."""

    path: str
    top: list[ClassProbability]


def to_rows(predictions: Iterable[Prediction]) -> list[PredictionRow]:
    """Predictions as a list of {path, top: [{class, probability}]}; ``top`` is [] where there is no answer."""
    return [{"path": p.path, "top": [{"class": c, "probability": v} for c, v in p.top]} for p in predictions]


def to_json(predictions: Iterable[Prediction]) -> str:
    """Predictions as JSON: what :func:`to_rows` gives."""
    return as_json(to_rows(predictions))
