"""The images that a trained network is evaluated on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from excite.data import DataSets, EvalLoader, open_measured
from excite.data.catalog import SOURCES
from excite.data.folder import some
from excite.data.pixels import FULL_WHITE
from excite.data.record import find_record
from excite.errors import expanded
from excite.recipe import Recipe, apply_overrides, elsewhere, overridden
from excite.storage import is_remote
from excite.trained.classes import check_order, match_classes
from excite.trained.predictor import Predictor


def open_images(
    predictor: Predictor,
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    limits: Mapping[str, int] | None = None,
    train: bool = False,
) -> tuple[Recipe, DataSets]:
    """Open the images that a trained network is evaluated on, as ``val``, with labels in the network's class order.

    By default these are the validation images of its training, or those of ``data.part``. For other data, they are the
    part asked for, or else all images that can be evaluated (see ``excite.data.open_measured``). The ``notes`` of the
    data say what was left out, and how many of the images the network was trained on.

    Args:
        predictor: the network; if it has no class names, it gets those of the data.
        source: its origin, for messages.
        overrides: ``data.key=value`` strings, for example ``data.root=/other/images`` or ``data.part=test``.
        limits: ``limit_val`` and ``limit_train``, the most images, in addition to the recipe's limits; the caller
            reports them.
        train: whether to open the training images, too.

    Returns:
        The recipe, with overrides and limits, and the data.

    Raises:
        ExciteError: the data cannot be read, or has classes that the network does not know.
    """
    recipe, data = _open_data(predictor, source, overrides, limits, train)
    match_classes(predictor, data.classes, source)
    lacking = [name for name in predictor.classes if name not in data.classes]
    if lacking:
        data.notes.append(
            f"the data have {len(data.classes)} of the network's {len(predictor.classes)} classes; missing: "
            f"{some(lacking)}"
        )
    return recipe, data.relabelled(predictor.classes)


def _open_data(
    predictor: Predictor, source: str | Path, overrides: Sequence[str], limits: Mapping[str, int] | None, train: bool
) -> tuple[Recipe, DataSets]:
    """Like :func:`open_images`, with labels in the data's own class order."""
    meta = predictor.meta
    trained = Recipe.from_dict(meta["recipe"], str(source))
    keys = overridden(overrides)
    recipe = Recipe.from_dict(apply_overrides(meta["recipe"], elsewhere(trained.data, overrides)), str(source))
    if predictor.tta == "five":  # images decoded into memory have lost their margins
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"mode": "stream"})})
    if "data.white" not in keys:  # the white level of the training images also applies to others
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
            "these weights come from an older version, which held out other images, so most of these were trained on; "
            "use images that were not: data.root=PATH"
        )
    if SOURCES[recipe.data.source].files and recipe.data.class_names is None:
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
    margin: bool = False,
) -> EvalLoader:
    """Batches of the images to evaluate, or with ``train`` of the training images.

    Broken images are treated by ``data.on_bad_val`` or ``data.on_bad_train``.

    Args:
        data: the data.
        recipe: its recipe.
        device: the device that gets the batches.
        batch_size: images per batch; None: the recipe's ``eval.batch_size``.
        rank, world: this process's share.
        train: use the training images.
        margin: keep what the views of ``tta=five`` need.
    """
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
        margin=margin,
    )


def left_out(data: DataSets, loader: EvalLoader) -> list[str]:
    """A list with one sentence about unreadable images that were left out; [] if there were none."""
    bad = [*(data.bad[-data.bad_val :] if data.bad_val else []), *loader.bad]
    if not bad:
        return []
    key = "data.on_bad_train" if data.measured == "training" else "data.on_bad_val"
    path, reason = bad[0]
    return [
        f"{len(bad):,} images could not be read and were left out ({key}=stop makes this an error): {path}: {reason}"
    ]


def _elsewhere(trained: Recipe, now: Recipe) -> bool:
    """Whether the data differ from those of the training."""
    if trained.data.source != now.data.source:
        return True
    before, after = trained.data.root, now.data.root
    if before is None or after is None or is_remote(before) or is_remote(after):
        return before != after
    return expanded(before).resolve() != expanded(after).resolve()
