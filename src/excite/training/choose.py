"""Which recipe trains on a folder of photographs when nobody names one."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from excite.data import DataSets, open_data
from excite.data.decode import PILLOW_LIMIT, BadImageError, opened, reading
from excite.data.images import FileImages
from excite.data.root import is_images
from excite.models.catalog import get_variant
from excite.models.timm_models import PREFIX
from excite.recipe import Overrides, Recipe, as_recipe, load_recipe, overridden, override_words
from excite.runtime.device import best_device
from excite.runtime.job import rank
from excite.text import tell
from excite.weights.hub import NotReached, local_weights
from excite.weights.pretrained import Pretrained, pretrained_of

#: Recipes: with trained weights and from scratch, on a CPU and on anything faster.
SMALL, SMALL_SCRATCH = "folder-finetune-small", "folder-small"
LARGE, LARGE_SCRATCH = "folder-finetune-seresnet50", "folder-seresnet50"
#: Images whose shorter side (the median) has no more pixels are not made larger than SMALL_SIZE.
TINY, SMALL_SIZE = 96, 128
#: How many images' sizes are looked at; reading headers takes well below a second.
LOOKED_AT = 64
#: On a CPU, epochs are so many that about this number of images is seen, within these bounds.
SEEN, FEWEST, MOST = 4000, 2, 10


@dataclass(frozen=True)
class Chosen:
    """A recipe, and in sentences why it is that one."""

    recipe: Recipe
    reasons: list[str]


def recipe_for(
    source: Recipe | str | os.PathLike[str],
    overrides: Overrides = (),
    *,
    run_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Recipe:
    """What ``excite.train`` takes for a recipe: one, its name, a YAML file, a run folder, or a folder of images, for
    which the first process says what was chosen and why, on standard error. Where ``run_dir`` holds a run already, as
    when a job is started again, that run's recipe stays, whatever would be chosen now.

    Raises:
        ExciteError: see :func:`choose_recipe` and ``load_recipe``.
    """
    if isinstance(source, Recipe) or not is_images(os.fspath(source)):
        return as_recipe(source, overrides)
    if run_dir is not None and (Path(run_dir) / "recipe.yaml").is_file():
        return as_recipe(run_dir, override_words(overrides))
    say = _silent if quiet or rank() != 0 else tell
    chosen = choose_recipe(os.fspath(source), override_words(overrides), say)
    for reason in chosen.reasons:
        say(reason)
    return chosen.recipe


def _silent(line: str) -> None:
    """Says nothing."""


def choose_recipe(folder: str, overrides: Sequence[str] = (), say: Callable[[str], None] = _silent) -> Chosen:
    """Choose for the images in ``folder``; ``overrides`` go before what is chosen.

    Trained weights are fetched, or found where they were. Where they cannot be had, and nobody asked for them by name,
    the choice is to train from scratch.

    Raises:
        ExciteError: the folder cannot be trained on, or what the user asks for cannot be had.
    """
    given, root = overridden(overrides), [f"data.root={folder}"]
    probe = load_recipe(SMALL, [*root, *overrides])
    # Streaming, so that the folder is listed and nothing decoded.
    images = open_data(probe.data.model_copy(update={"mode": "stream"}), probe.augment)
    count = len(images.train)
    device = probe.train.device if probe.train.device != "auto" else best_device()
    on_cpu = device == "cpu"
    tuned, scratch = (SMALL, SMALL_SCRATCH) if on_cpu else (LARGE, LARGE_SCRATCH)
    base = load_recipe(tuned, [*root, *overrides])
    words, reasons = [*root], []
    weights, model = base.train.init_from, base.model.name
    if not model.startswith(PREFIX):
        get_variant(model)  # raises where there is no such network
    known: Pretrained | None = pretrained_of(model)
    if "train.init_from" not in given and known is not None:
        weights = known.source
        words.append(f"train.init_from={weights}")
    if "train.init_from" not in given:
        reason = _why_not(known, model, say)
        if reason is not None:
            return _from_scratch(scratch, [*root, *overrides], images, reason)
    size = base.data.image_size
    if "data.image_size" not in given and (side := _usual_side(images)) is not None and side <= TINY:
        size = SMALL_SIZE
        words.append(f"data.image_size={size}")
        reasons.append(f"size: the images have about {side:.0f} pixels a side, so {size} are enough")
    if on_cpu and "train.epochs" not in given:
        words.append(f"train.epochs={_epochs(count)}")
    recipe = load_recipe(tuned, [*words, *overrides])
    where = "a CPU" if on_cpu else f"this machine's accelerator ({device})"
    worth = "" if known is None or weights != known.source else f", {known.top1:.1f} % right on ImageNet"
    first = (
        f"recipe {tuned}: {recipe.model.name} at {size} pixels, for {where} and {count:,} training images of "
        f"{len(images.classes)} classes"
    )
    second = f"start: trained weights, {weights}{worth}; a linear probe first, then fine-tuning"
    return Chosen(recipe, [first, second, *reasons])


def _why_not(known: Pretrained | None, model: str, say: Callable[[str], None]) -> str | None:
    """Fetch the weights; why there are none, or None where they are here."""
    if known is None:
        return f"there are no trained weights for {model} (`excite models --pretrained` lists what there is)"
    say(f"trained weights: {known.source}, {known.megabytes:.0f} MB, fetched unless they are here already ...")
    try:
        local_weights(known.source)
    except NotReached as error:
        return f"no trained weights: {error}"
    return None


def _from_scratch(name: str, words: Sequence[str], images: DataSets, reason: str) -> Chosen:
    recipe = load_recipe(name, list(words))
    what = (
        f"recipe {name}, from scratch: {recipe.model.name} at {recipe.data.image_size} pixels, {_epochs_of(recipe)} "
        f"over {len(images.train):,} images of {len(images.classes)} classes; expect much less than from "
        "trained weights: with 40 images a class, about half of them right"
    )
    return Chosen(recipe, [reason, what])


def _epochs_of(recipe: Recipe) -> str:
    return f"{recipe.train.epochs} epoch{'s' if recipe.train.epochs > 1 else ''}"


def _epochs(images: int) -> int:
    return max(FEWEST, min(MOST, round(SEEN / max(1, images))))


def _usual_side(images: DataSets) -> float | None:
    """Median of the shorter sides of some of the images, pixels; None where none can be read."""
    if not isinstance(images.train, FileImages):
        return None
    sides: list[int] = []
    paths = images.train.paths
    for path in paths[:: max(1, len(paths) // LOOKED_AT)]:
        with suppress(BadImageError), reading(path) as name, opened(path, name, PILLOW_LIMIT) as image:
            sides.append(min(image.size))
    return median(sides) if sides else None
