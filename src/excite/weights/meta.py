"""Headers for converted weights: class names, preprocessing, and a recipe to validate and fine-tune with."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from excite.data.bands import COLOURS
from excite.data.preprocessing import Preprocessing
from excite.errors import ExciteError
from excite.files import to_json
from excite.models import Classifier
from excite.recipe import Recipe, load_recipe
from excite.weights.convert import Loaded
from excite.weights.header import Meta, RecipeMeta, read_header

#: Arguments of ``create_model`` that have their own keys in a recipe, or that follow from the data.
_ELSEWHERE = ("num_classes", "in_chans", "image_size", "drop_rate", "drop_path_rate")


def describe(model: Classifier, loaded: Loaded, classes: Sequence[str] | None = None) -> Meta:
    """The header of a converted file (without ``versions``), JSON-serialisable; see ``excite.weights.header``.

    Args:
        model: the loaded network.
        loaded: the result of ``convert``.
        classes: class names in the order of the logits; None: those of the source, or numbers.

    Raises:
        ExciteError: the number of names is not that of the classes, or a name occurs twice; or the source is a file of
            ours with an incomplete header.
    """
    foreign = loaded.foreign
    if foreign.meta:
        whole = read_header(to_json(foreign.meta), foreign.source)  # loading the weights needed less of the header
        meta: Meta = {**whole, "model": {"name": model.model_name, "args": model.model_args}}
        return meta if classes is None else {**meta, "classes": _names(model, loaded, classes)}
    preprocessing = Preprocessing.from_dict(
        {**foreign.preprocessing, "image_size": tuple(model.image_size), "in_chans": model.in_chans}
    )
    if model.in_chans != len(preprocessing.mean):
        raise ExciteError(f"{foreign.source} takes {model.in_chans} channels, for which the preprocessing is unknown")
    origin = {"format": foreign.format, "layout": "" if foreign.layout is None else foreign.layout.key}
    return _header(model, _names(model, loaded, classes), preprocessing, {"source": foreign.source, **origin})


def describe_timm(model: Classifier, preprocessing: Preprocessing | None, source: str) -> Meta:
    """The same header for a timm model that is not a run of ours; its classes are numbers.

    Args:
        model: from ``create_model("timm:...")``.
        preprocessing: as given by timm; None if its images are resized in another way.
        source: for ``converted_from``.

    Raises:
        ExciteError: the preprocessing is unknown.
    """
    if preprocessing is None or len(preprocessing.mean) != model.in_chans:
        raise ExciteError(
            f"{source} takes images of {'x'.join(map(str, model.input_size))}, for which the preprocessing is unknown: "
            "first train it with a recipe with model.name=timm:NAME, then graft onto the run"
        )
    classes = [str(number) for number in range(model.num_classes)]
    return _header(model, classes, preprocessing, {"source": source, "format": "timm", "layout": "timm"})


def _header(
    model: Classifier, classes: list[str], preprocessing: Preprocessing, converted_from: dict[str, str]
) -> Meta:
    return {
        "model": {"name": model.model_name, "args": model.model_args},
        "classes": classes,
        "preprocessing": preprocessing.to_dict(),
        "recipe": _recipe(model, preprocessing),
        "metrics": None,
        "step": 0,
        "epoch": 0.0,
        "precision": "fp32",
        "converted_from": converted_from,
    }


def _names(model: Classifier, loaded: Loaded, classes: Sequence[str] | None) -> list[str]:
    layout = loaded.foreign.layout
    if classes is None and layout is not None and len(layout.classes) == model.num_classes:
        return list(layout.classes)
    if classes is None:
        return [str(number) for number in range(model.num_classes)]
    if len(classes) != model.num_classes or len(set(classes)) != len(classes):
        raise ExciteError(
            f"{len(set(classes))} different class names were given, but the network has {model.num_classes} classes"
        )
    return list(classes)


def read_classes(path: Path) -> list[str]:
    """Read class names, one per line. Raises ExciteError if the file cannot be read."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ExciteError(f"{path} is not a readable list of class names: {error}") from None


def _recipe(model: Classifier, preprocessing: Preprocessing) -> RecipeMeta:
    """The closest shipped recipe with this network and these images, for ``excite validate`` and fine-tuning."""
    if model.model_name.endswith("_tf"):
        base = "cifar10-seresnet110-tf"
    else:
        base = "cifar10-seresnet20" if model.model_name.startswith("cifar_") else "folder-seresnet50"
    values = load_recipe(base).model_dump(mode="json")
    args = model.model_args
    values["model"] |= {
        "name": model.model_name,
        "drop_rate": args.get("drop_rate") or 0.0,
        "options": {key: value for key, value in args.items() if key not in _ELSEWHERE},
    }
    images = preprocessing.to_dict()
    values["data"] |= {**images, "eval_size": None}
    if preprocessing.in_chans not in COLOURS:
        values["augment"] |= {"color_jitter": None, "rand_augment": None, "trivial_augment": False}
    recipe = Recipe.from_dict(values, "the recipe of a converted network")
    return cast(RecipeMeta, recipe.model_dump(mode="json"))
