"""Use what was trained: load a run or checkpoint, evaluate it again, classify images."""

import glob
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from excite.data import EvalLoader, Preprocessing, open_data
from excite.data.decode import BadImageError
from excite.data.folder import EXTENSIONS
from excite.errors import ExciteError
from excite.grafting.stored import is_grafted_file
from excite.models import create_model
from excite.models import fold as fold_model
from excite.models.timm_models import is_timm_model
from excite.recipe import Recipe, apply_overrides
from excite.storage import expand, in_place, is_remote, local_file
from excite.training.checkpoint import Checkpoint, find_weights, load_into, read_weights
from excite.training.device import DTYPES, choose_precision, make_accelerator
from excite.training.evaluation import Evaluation, evaluate
from excite.training.precision import set_norm_precision
from excite.training.run_folder import versions
from excite.weights.convert import convert, is_foreign
from excite.weights.meta import describe


@dataclass(frozen=True)
class Prediction:
    """One image's most likely classes: ``top`` holds (class name, probability), best first."""

    path: str
    top: list[tuple[str, float]]


class Predictor:
    """A trained network with everything it needs to be used: preprocessing, class names, where it came from.

    Args:
        checkpoint: what ``read_weights`` returned.
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
        data = self.meta["recipe"]["data"]
        if data["source"] == "folder" and data.get("white") is None:  # not to be found anew, in other images
            data["white"] = self.preprocessing.white
        self.model: nn.Module = create_model(checkpoint.meta["model"]["name"], **checkpoint.meta["model"]["args"])
        load_into(self.model, checkpoint)
        self.accelerator = make_accelerator(device)
        self.device = self.accelerator.device
        self.precision = choose_precision(precision, self.device)
        norm_precision = checkpoint.meta["recipe"]["train"].get("norm_precision", "auto")  # 0.1 files lack it
        set_norm_precision(self.model, norm_precision, self.precision)
        self.model.eval().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # On a CPU 1.05 to 1.9 times the speed for all nets but the TensorFlow one (the same), in fp32 and bf16.
        pays = self.device.type == "cpu" and self.precision != "fp16" and not is_timm_model(self.model)
        if fold or (fold is None and pays):
            self.model = fold_model(self.model, dtype=DTYPES[self.precision])

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
        pending: list[str] = []
        for path in [*map(str, paths), None]:
            if path is not None:
                pending.append(path)
            if pending and (path is None or len(pending) == batch_size):
                images = torch.stack([self._load(p) for p in pending])
                best = self.logits(images).softmax(1).topk(min(top_k, len(self.classes)))
                for name, values, indices in zip(pending, best.values.tolist(), best.indices.tolist(), strict=True):
                    yield Prediction(name, [(self.classes[k], p) for k, p in zip(indices, values, strict=True)])
                pending = []

    def _load(self, path: str) -> Tensor:
        try:
            return self.preprocessing.load(local_file(path))
        except BadImageError as error:
            raise BadImageError(path, error.reason) from error


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
    return Predictor(_read(source), device, precision, fold)


def _read(source: str | Path) -> Checkpoint:
    """A checkpoint of ours, or another system's, converted on the way (see docs/weights.md)."""
    if not is_foreign(source):
        return read_weights(source)
    if is_grafted_file(source):
        raise ExciteError(
            f"{source} is another library's network with grafted gates, without classes and preprocessing; from "
            "Python, excite.grafting.load_grafted loads it"
        )
    model, loaded = convert(source)
    return Checkpoint(Path(source), model.state_dict(), {**describe(model, loaded), "versions": versions()})


def weights_digest(source: str | Path) -> str:
    """sha256 (hex) of the weights file, what ``sha256sum`` gives; of a folder's or prefix's files, all of them.

    Empty for weights that are no file here, but at a hub.
    """
    path = Path(source) if is_foreign(source) else find_weights(source)
    files = [path] if path.is_file() else sorted(p for p in path.parent.glob(f"{path.name}*") if p.is_file())
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)  # goes on with what the files before have given
    return digest.hexdigest() if files else ""


def validate(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    device: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    fold: bool | None = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Predictor, Evaluation]:
    """Evaluate a trained network on the validation images of its recipe, or on others.

    Args:
        source: a run folder, a checkpoint folder, a ``.safetensors`` file, or another system's checkpoint; one without
            class names is taken to have the sorted class folders of the data, if it has as many.
        overrides: ``data.key=value`` strings, for example ``data.root=/other/images``.
        device: "auto", "cpu", "cuda" ...
        precision: None takes what it was trained with, so that the numbers are those of the training.
        batch_size: images at a time; has no influence on the result.
        fold: fold the batch norms into the convolutions (see :class:`Predictor`); None does not in bf16, whose rounding
            would show in the numbers.
        progress: called with (images done, images in all) after each batch.

    Raises:
        ExciteError: the checkpoint or the data cannot be read, or the data has other classes.
    """
    checkpoint = _read(source)
    precision = precision or checkpoint.meta["precision"]
    predictor = Predictor(checkpoint, device, precision, False if fold is None and precision != "fp32" else fold)
    recipe = Recipe.from_dict(apply_overrides(checkpoint.meta["recipe"], list(overrides)), str(source))
    data = open_data(recipe.data, recipe.augment)
    match_classes(predictor, data.classes, source)
    process = predictor.accelerator
    loader = EvalLoader(
        data.val,
        batch_size=batch_size or recipe.eval.batch_size,
        device=predictor.device,
        data_config=recipe.data,
        rank=process.process_index,
        world=process.num_processes,
    )
    batches = _counted(loader, progress, len(data.val)) if progress else loader
    result = evaluate(
        predictor.model, batches, predictor.preprocessing, len(data.classes), predictor.device, predictor.precision
    )
    return predictor, result


def classes_fit(meta: dict[str, Any], classes: Sequence[str]) -> bool:
    """Whether labels of data with these classes mean what the outputs of a checkpoint's network do."""
    own = meta["classes"]
    return list(classes) == own or (only_numbers_classes(meta) and len(classes) == len(own))


def only_numbers_classes(meta: dict[str, Any]) -> bool:
    """Whether a checkpoint has "0", "1" ... for names: other systems number the sorted class folders, as we do.

    As they store no names, as many classes of data are those classes.
    """
    own = meta["classes"]
    return "converted_from" in meta and own == [str(number) for number in range(len(own))]


def match_classes(predictor: Predictor, classes: list[str], source: str | Path) -> None:
    """Check that labels of the data mean what the network's outputs do; one that only numbers them gets their names.

    Args:
        predictor: the network; other systems' checkpoints without class names have "0", "1" ... in ``classes``.
        classes: of the data, in their order.
        source: where the network came from, for the message.

    Raises:
        ExciteError: the classes are others, or in another order.
    """
    own = predictor.classes
    if classes == own:
        return
    if classes_fit(predictor.meta, classes):
        predictor.classes = list(classes)
        return
    if only_numbers_classes(predictor.meta):
        raise ExciteError(f"the data has {len(classes)} classes, but {source} was trained with {len(own)}")
    unknown = [c for c in classes if c not in own]
    what = (
        f"the data has classes that {source} does not know: {', '.join(unknown[:5])}"
        if unknown
        else f"the {len(classes)} classes of the data are not the {len(own)} of {source} in their order"
    )
    raise ExciteError(f"{what}; give data with the classes that it was trained on (data.root=PATH)")


def _counted(loader: Iterable[Any], progress: Callable[[int, int], None], total: int) -> Iterator[Any]:
    done = 0
    for batch in loader:
        yield batch
        done += len(batch[1])
        progress(done, total)


def find_images(sources: Sequence[str]) -> list[str]:
    """Image files from files, folders (searched through) and glob patterns, in order, each once.

    Those at an address such as ``s3://bucket/photos`` are staged to the local cache, and keep their address as name.

    Raises:
        ExciteError: a source is not there or holds no images.
    """
    found: dict[str, None] = {}
    for source in sources:
        source = in_place(source)
        path = Path(source)
        if is_remote(source):
            files = expand(source, EXTENSIONS)
        elif path.is_dir():
            files = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        else:
            files = (
                [source]
                if path.is_file()
                else sorted(f for f in glob.glob(source, recursive=True) if Path(f).is_file())
            )
        if not files:
            what = "holds no images" if path.is_dir() else "is neither a file, a folder nor a pattern that matches any"
            raise ExciteError(f"{source!r} {what}")
        found.update(dict.fromkeys(files))
    return list(found)


def draw_grid(
    predictions: Sequence[Prediction], path: str | Path, columns: int = 5, limit: int = 50, white: int = 65535
) -> Path:
    """Draw the images with their best class and its probability into a PNG; at most ``limit`` of them.

    ``white`` is the value that is white in images of 16 bits a channel: the network's ``preprocessing.white``.
    """
    from matplotlib.figure import Figure

    from excite.data.decode import load_image
    from excite.figures import shortened, style
    from excite.files import written_aside

    shown = predictions[:limit]
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    path = Path(path)
    with style():
        figure = Figure(figsize=(2.4 * columns, 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, prediction in zip(axes.flat, shown, strict=False):
            axis.imshow(load_image(local_file(prediction.path), white=white))
            name, probability = prediction.top[0]
            axis.set_title(f"{shortened(name, 22)}\n{100 * probability:.1f} %", fontsize=9)
        with written_aside(path) as aside:
            figure.savefig(aside, dpi=100, format="png")
    return path


def to_json(predictions: Iterable[Prediction]) -> str:
    """Predictions as JSON: a list of {path, top: [{class, probability}]}."""
    rows = [{"path": p.path, "top": [{"class": c, "probability": v} for c, v in p.top]} for p in predictions]
    return json.dumps(rows, indent=2, ensure_ascii=False)
