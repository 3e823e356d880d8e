"""Use what was trained: load a run or checkpoint, evaluate it again, classify images."""

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from excite.data import DataSets, EvalLoader, Preprocessing, open_measured
from excite.data.decode import BadImageError
from excite.data.folder import in_order, some
from excite.data.formats import EXTENSIONS
from excite.data.pixels import FULL_WHITE
from excite.data.record import find_record
from excite.data.walk import look_at, walk
from excite.errors import ExciteError, nearest
from excite.logits import finite
from excite.models import fold as fold_model
from excite.models.timm_models import is_timm_model
from excite.progress import Advance
from excite.recipe import Recipe, apply_overrides, overridden
from excite.runtime.device import DTYPES, choose_precision, make_accelerator, precision_note
from excite.runtime.environment import versions
from excite.storage import expand, in_place, is_remote, local_file
from excite.text import as_json
from excite.training.evaluation import Evaluation, evaluate
from excite.training.precision import set_norm_precision
from excite.weights.convert import convert, is_foreign
from excite.weights.grafted import is_grafted_file
from excite.weights.meta import describe
from excite.weights.own import Checkpoint, build_network, find_weights, load_into, read_own

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
                for name, logits in zip(pending, self.logits(images).cpu(), strict=True):
                    yield Prediction(name, self.top(logits, top_k))
                pending = []

    def top(self, logits: Tensor, top_k: int) -> list[tuple[str, float]]:
        """The ``top_k`` classes with the largest of one image's logits (K), best first, as (class name, probability);
        none where the logits are not all finite."""
        if not bool(finite(logits[None])):
            return []
        best = logits.softmax(0).topk(min(top_k, len(self.classes)))
        return [(self.classes[k], p) for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

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
        return read_own(source)
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
    progress: Advance | None = None,
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
    recipe, data = open_images(predictor, source, overrides)
    process = predictor.accelerator
    loader = measuring_loader(
        data, recipe, predictor.device, batch_size, rank=process.process_index, world=process.num_processes
    )
    batches = _counted(loader, progress, len(data.val)) if progress else loader
    result = evaluate(
        predictor.model,
        batches,
        predictor.preprocessing,
        len(data.classes),
        predictor.device,
        predictor.precision,
        name_of=lambda index: data.val.names[index],
    )
    slow = precision_note(predictor.precision, predictor.device, "--precision ")
    notes = (*data.notes, *left_out(data, loader), *([slow] if slow else []))
    return predictor, replace(result, measured=data.measured, notes=notes)


def open_images(
    predictor: Predictor,
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    limits: Mapping[str, int] | None = None,
    train: bool = False,
) -> tuple[Recipe, DataSets]:
    """Open the images that a trained network is measured on, numbered by its own classes; they are ``val``.

    Without other data that is the validation part of its training, or what ``data.part`` says. Of other data, it is the
    part that is asked for, else all that there is to measure (see ``excite.data.open_measured``); its ``notes`` say
    what was left out, and how many of the images the network was trained on.

    Args:
        predictor: the network; one that only numbers its classes gets their names.
        source: where it came from.
        overrides: ``data.key=value`` strings, for example ``data.root=/other/images`` or ``data.part=test``.
        limits: at most so many images, ``limit_val`` and ``limit_train``, beside the recipe's own limits; the caller
            tells of them.
        train: whether training images are wanted, too.

    Returns:
        The recipe, with overrides and limits, and the images.

    Raises:
        ExciteError: the data cannot be read, or has classes that the network does not know.
    """
    recipe, data = data_for(predictor.meta, source, overrides, limits=limits, train=train)
    match_classes(predictor, data.classes, source)
    lacking = [name for name in predictor.classes if name not in data.classes]
    if lacking:
        data.notes.append(
            f"the data have {len(data.classes)} of the network's {len(predictor.classes)} classes: no {some(lacking)}"
        )
    return recipe, data.relabelled(predictor.classes)


def data_for(
    meta: dict[str, Any],
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    limits: Mapping[str, int] | None = None,
    train: bool = False,
) -> tuple[Recipe, DataSets]:
    """The same from a checkpoint's header alone, numbered by the data's own classes, whatever the network's are."""
    trained = Recipe.from_dict(meta["recipe"], str(source))
    recipe = Recipe.from_dict(apply_overrides(meta["recipe"], list(overrides)), str(source))
    keys = overridden(overrides)
    if "data.white" not in keys:  # what was found in the training images holds for others, too
        white = {"white": meta["preprocessing"].get("white", FULL_WHITE)}
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=white)})
    data = open_measured(
        recipe.data,
        recipe.augment,
        elsewhere="converted_from" in meta or _elsewhere(trained, recipe),
        asked="data.part" in keys,
        train=train,
        record=find_record(source),
        limits=limits,
    )
    if data.split and "val_from" not in meta["recipe"]["data"]:
        data.notes.append(
            "these weights are of a version that held out other images, so most of these were trained on: give images "
            "that were not, data.root=PATH"
        )
    if recipe.data.source == "folder" and recipe.data.class_names is None:
        check_order(meta, data.classes, recipe.data.class_order, source)
    return recipe, data


def measuring_loader(
    data: DataSets,
    recipe: Recipe,
    device: torch.device,
    batch_size: int | None = None,
    *,
    rank: int = 0,
    world: int = 1,
    train: bool = False,
) -> EvalLoader:
    """Batches of the images that are measured, or (``train``) of training's, each under its own rule on broken ones."""
    images = data.train if train else data.val
    training = train or data.measured == "training"
    return EvalLoader(
        images,
        batch_size=batch_size or recipe.eval.batch_size,
        device=device,
        data_config=recipe.data,
        rank=rank,
        world=world,
        rule="train" if training else "val",
    )


def left_out(data: DataSets, loader: EvalLoader) -> list[str]:
    """A sentence on the images that could not be read and were left out; none where there were none."""
    bad = [*(data.bad[-data.bad_val :] if data.bad_val else []), *loader.bad]
    if not bad:
        return []
    key = "data.on_bad_train" if data.measured == "training" else "data.on_bad_val"
    path, reason = bad[0]
    return [f"{len(bad):,} images could not be read and were left out ({key}=stop refuses them): {path}: {reason}"]


def _elsewhere(trained: Recipe, now: Recipe) -> bool:
    """Whether the data are others than those of the training."""
    if trained.data.source != now.data.source:
        return True
    before, after = trained.data.root, now.data.root
    if before is None or after is None or is_remote(before) or is_remote(after):
        return before != after
    return Path(before).expanduser().resolve() != Path(after).expanduser().resolve()


def check_order(meta: dict[str, Any], classes: Sequence[str], order: str | None, source: str | Path) -> None:
    """Refuse to guess how weights without class names number class folders, where two usual orders differ.

    timm sorts them naturally (1, 2, 10), torchvision and most others as strings (1, 10, 2).

    Args:
        meta: header of the checkpoint.
        classes: names of the class folders.
        order: what was said, see ``DataConfig.class_order``.
        source: where the weights came from, for the message.

    Raises:
        ExciteError: it matters, and nobody has said.
    """
    if not only_numbers_classes(meta) or order is not None:
        return
    if in_order(classes, "natural") == in_order(classes, "string"):
        return
    raise ExciteError(
        f"{source} has no class names, and its classes may be numbered as {some(in_order(classes, 'string'))} or as "
        f"{some(in_order(classes, 'natural'))}: say which with data.class_order=string (torchvision and most others) "
        "or data.class_order=natural (timm)"
    )


def classes_fit(meta: dict[str, Any], classes: Sequence[str]) -> bool:
    """Whether data with these classes can be numbered as the outputs of a checkpoint's network are."""
    own = meta["classes"]
    return set(classes) <= set(own) or (only_numbers_classes(meta) and len(classes) == len(own))


def only_numbers_classes(meta: dict[str, Any]) -> bool:
    """Whether a checkpoint has "0", "1" ... for names: other systems number the sorted class folders, as we do.

    As they store no names, as many classes of data are those classes.
    """
    own = meta["classes"]
    return "converted_from" in meta and own == [str(number) for number in range(len(own))]


def match_classes(predictor: Predictor, classes: Sequence[str], source: str | Path) -> None:
    """Check that the network knows the classes of the data, by their names; one that only numbers them gets these.

    Args:
        predictor: the network; other systems' checkpoints without class names have "0", "1" ... in ``classes``.
        classes: of the data, in their order.
        source: where the network came from, for the message.

    Raises:
        ExciteError: it does not know one of them.
    """
    own = predictor.classes
    if list(classes) == own:
        return
    if only_numbers_classes(predictor.meta):
        if len(classes) != len(own):
            raise ExciteError(f"the data has {len(classes)} classes, but {source} was trained with {len(own)}")
        predictor.classes = list(classes)
        return
    unknown = [c for c in classes if c not in own]
    if unknown:
        raise ExciteError(
            f"the data has classes that {source} does not know: {', '.join(unknown[:5])}{nearest(unknown[0], own)}; "
            "give data with the classes that it was trained on (data.root=PATH)"
        )


def _counted(loader: Iterable[Any], progress: Advance, total: int) -> Iterator[Any]:
    done = 0
    for batch in loader:
        yield batch
        done += len(batch[1])
        progress(done, total)


def find_images(sources: Sequence[str], say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Image files from files, folders (searched through) and glob patterns, in order, each once.

    Those at an address such as ``s3://bucket/photos`` are staged to the local cache, and keep their address as name.

    Args:
        sources: what to look for.
        say: gets a sentence on what was left out of each folder, with counts.

    Raises:
        ExciteError: a source is not there, holds no images, or is no file (a named pipe would be waited for).
    """
    found: dict[str, None] = {}
    for source in sources:
        source = in_place(source)
        path = Path(source)
        left_out = None
        if is_remote(source):
            files = expand(source, EXTENSIONS)
        elif path.is_dir():
            listed = walk(path)
            files, left_out = [file.path for file in listed.files], listed.ignored()
        elif os.path.lexists(source):
            file, reason = look_at(source)
            if file is None:
                raise ExciteError(f"{source!r} cannot be read: {reason}")
            files = [source]
        else:
            files = sorted(f for f in glob.glob(source, recursive=True) if look_at(f)[0] is not None)
        if not files:
            what = "holds no images" if path.is_dir() else "is neither a file, a folder nor a pattern that matches any"
            raise ExciteError(f"{source!r} {what}" + (f" ({left_out})" if left_out else ""))
        if left_out is not None:
            say(f"{source}: {left_out}")
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
    from excite.figures import shortened, style, write

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
            name, probability = prediction.top[0] if prediction.top else (NO_ANSWER, None)
            percent = "" if probability is None else f"{100 * probability:.1f} %"
            axis.set_title(f"{shortened(name, 22)}\n{percent}", fontsize=9)
        return write(figure, path, dpi=100)


def to_rows(predictions: Iterable[Prediction]) -> list[dict[str, Any]]:
    """Predictions as a list of {path, top: [{class, probability}]}; ``top`` is [] where there is no answer."""
    return [{"path": p.path, "top": [{"class": c, "probability": v} for c, v in p.top]} for p in predictions]


def to_json(predictions: Iterable[Prediction]) -> str:
    """Predictions as JSON: what :func:`to_rows` gives."""
    return as_json(to_rows(predictions))
