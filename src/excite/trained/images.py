"""The images that a trained network is measured on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from excite.data import DataSets, EvalLoader, open_measured
from excite.data.catalog import SOURCES
from excite.data.folder import some
from excite.data.pixels import FULL_WHITE
from excite.data.record import find_record
from excite.recipe import Recipe, apply_overrides, overridden
from excite.storage import is_remote
from excite.trained.classes import check_order, match_classes
from excite.trained.predictor import Predictor
from excite.weights.header import Meta


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
    recipe, data = _open_data(predictor.meta, source, overrides, limits, train)
    match_classes(predictor, data.classes, source)
    lacking = [name for name in predictor.classes if name not in data.classes]
    if lacking:
        data.notes.append(
            f"the data have {len(data.classes)} of the network's {len(predictor.classes)} classes: no {some(lacking)}"
        )
    return recipe, data.relabelled(predictor.classes)


def _open_data(
    meta: Meta, source: str | Path, overrides: Sequence[str], limits: Mapping[str, int] | None, train: bool
) -> tuple[Recipe, DataSets]:
    """The same, numbered by the data's own classes, whatever the network's are."""
    trained = Recipe.from_dict(meta["recipe"], str(source))
    recipe = Recipe.from_dict(apply_overrides(meta["recipe"], overrides), str(source))
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
    if SOURCES[recipe.data.source].class_folders and recipe.data.class_names is None:
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
