"""Choosing a recipe for photographs (a folder, a table, an archive, shards) if the user names none."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from excite.data import DataSets, open_data
from excite.data.decode import PILLOW_LIMIT, BadImageError, opened, reading
from excite.data.images import FileImages
from excite.data.root import source_of
from excite.models.catalog import get_variant
from excite.models.timm_models import PREFIX
from excite.recipe import Overrides, Recipe, as_recipe, load_recipe, overridden, override_words
from excite.runtime.device import best_device
from excite.runtime.job import rank
from excite.size import size_text
from excite.text import counted, tell
from excite.weights.hub import NotReached, local_weights
from excite.weights.pretrained import Pretrained, pretrained_of

#: Recipes with pretrained weights and from scratch, for a CPU and for an accelerator.
SMALL, SMALL_SCRATCH = "folder-finetune-small", "folder-small"
LARGE, LARGE_SCRATCH = "folder-finetune-seresnet50", "folder-seresnet50"
#: If the median of the shorter sides is at most TINY pixels, images are resized to SMALL_SIZE.
TINY, SMALL_SIZE = 96, 128
#: Number of images whose size is read; reading the headers takes well below a second.
LOOKED_AT = 64
#: On a CPU: training images to process in all epochs, about, and bounds on the number of epochs.
SEEN, FEWEST, MOST = 4000, 2, 10


@dataclass(frozen=True)
class Chosen:
    """A recipe, and the reasons for it in sentences."""

    recipe: Recipe
    reasons: list[str]


def recipe_for(
    source: Recipe | str | os.PathLike[str],
    overrides: Overrides = (),
    *,
    run_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Recipe:
    """The recipe for whatever ``excite.train`` is given: a recipe, its name, a YAML file, a run folder, or a folder of
    images. For images, the first process prints the choice and the reasons to standard error. If ``run_dir`` already
    holds a run, as when a job is restarted, the recipe of that run is kept.

    Raises:
        ExciteError: see :func:`choose_recipe` and ``load_recipe``.
    """
    kind = None if isinstance(source, Recipe) else source_of(os.fspath(source))
    if isinstance(source, Recipe) or kind is None:
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
    """Choose a recipe for the images in ``folder``; ``overrides`` take precedence over the choice.

    Pretrained weights are downloaded or taken from the cache. If they are not available, and the user did not name
    them, the choice is to train from scratch.

    Raises:
        ExciteError: the folder cannot be used for training, or the weights that the user named are not available.
    """
    given, root = overridden(overrides), [f"data.source={source_of(folder)}", f"data.root={folder}"]
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
    if "train.init_from" in given and weights is None:  # what random weights give is nothing to fit a probe to
        return _from_scratch(scratch, [*root, *overrides], images, "no weights to start from (train.init_from=null)")
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
        reasons.append(f"size: the shorter side of the images is about {side:.0f} pixels, so {size} is enough")
    if on_cpu and "train.epochs" not in given:
        words.append(f"train.epochs={_epochs(count)}")
    recipe = load_recipe(tuned, [*words, *overrides])
    where = "a CPU" if on_cpu else f"this machine's accelerator ({device})"
    worth = "" if known is None or weights != known.source else f", {known.top1:.1f} % top-1 on ImageNet"
    first = (
        f"recipe {tuned}: {recipe.model.name} at {size_text(size)}, for {where} and {count:,} training images of "
        f"{len(images.classes)} classes"
    )
    kind, how = "pretrained weights", "first a linear probe, then fine-tuning"
    if "train.init_from" in given:
        kind, how = "weights", "first a linear probe, unless they are for these classes, then fine-tuning"
    second = f"start: {kind} {weights}{worth}; {how if recipe.train.probe else 'fine-tuning'}"
    return Chosen(recipe, [first, second, *reasons])


def _why_not(known: Pretrained | None, model: str, say: Callable[[str], None]) -> str | None:
    """Get the weights into the cache; the reason if that fails, else None."""
    if known is None:
        return f"there are no pretrained weights for {model} (`excite models --pretrained` lists what there is)"
    say(f"pretrained weights: {known.source}, {known.megabytes:.0f} MB, downloaded unless they are in the cache ...")
    try:
        local_weights(known.source)
    except NotReached as error:
        return f"no pretrained weights: {error}"
    return None


def _from_scratch(name: str, words: Sequence[str], images: DataSets, reason: str) -> Chosen:
    recipe = load_recipe(name, list(words))
    what = (
        f"recipe {name}, from scratch: {recipe.model.name} at {size_text(recipe.data.image_size)}, "
        f"{_epochs_of(recipe)} over {len(images.train):,} images of {len(images.classes)} classes; expect far lower "
        "accuracy than with pretrained weights: with 40 images per class, about half of the answers are right"
    )
    return Chosen(recipe, [reason, what])


def _epochs_of(recipe: Recipe) -> str:
    return counted(recipe.train.epochs, "epoch")


def _epochs(images: int) -> int:
    return max(FEWEST, min(MOST, round(SEEN / max(1, images))))


def _usual_side(images: DataSets) -> float | None:
    """Median of the shorter sides of a sample of the images, in pixels; None if none of them can be read."""
    if not isinstance(images.train, FileImages):
        return None
    sides: list[int] = []
    files = images.train
    for i in range(0, len(files), max(1, len(files) // LOOKED_AT)):
        source = files.source(i)
        with suppress(BadImageError), reading(source) as name, opened(source, name, PILLOW_LIMIT) as image:
            sides.append(min(image.size))
    return median(sides) if sides else None
