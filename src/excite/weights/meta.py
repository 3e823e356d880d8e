"""What makes converted weights a file of ours: class names, preprocessing, a recipe to validate and fine-tune with."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from excite.data.preprocessing import Preprocessing
from excite.errors import ExciteError
from excite.files import to_json
from excite.models import Classifier
from excite.recipe import Recipe, load_recipe
from excite.weights.convert import Loaded
from excite.weights.header import Meta, RecipeMeta, read_header

#: Arguments of ``create_model`` that a recipe has keys of its own for, or that follow from the data.
_ELSEWHERE = ("num_classes", "in_chans", "image_size", "drop_rate", "drop_path_rate")


def describe(model: Classifier, loaded: Loaded, classes: Sequence[str] | None = None) -> Meta:
    """The header of the converted file (without ``versions``), JSON-able; see ``excite.training.checkpoint``.

    Args:
        model: the loaded network.
        loaded: what ``convert`` said of it.
        classes: class names in the order of the logits; None takes the source's own, or numbers.

    Raises:
        ExciteError: not as many names as classes, or one twice; a file of ours whose header is not whole.
    """
    foreign = loaded.foreign
    if foreign.meta:
        whole = read_header(to_json(foreign.meta), foreign.source)  # to take its weights over, less was enough
        meta: Meta = {**whole, "model": {"name": model.model_name, "args": model.model_args}}
        return meta if classes is None else {**meta, "classes": _names(model, loaded, classes)}
    preprocessing = Preprocessing.from_dict(
        {**foreign.preprocessing, "image_size": _image_size(model), "in_chans": model.in_chans}
    )
    if model.in_chans != len(preprocessing.mean):
        raise ExciteError(f"{foreign.source} sees {model.in_chans} channels, which no preprocessing is known for")
    origin = {"format": foreign.format, "layout": "" if foreign.layout is None else foreign.layout.key}
    return _header(model, _names(model, loaded, classes), preprocessing, {"source": foreign.source, **origin})


def describe_timm(model: Classifier, preprocessing: Preprocessing | None, source: str) -> Meta:
    """The same header for a model of timm that is no run of ours; its classes are numbers.

    Args:
        model: from ``create_model("timm:...")``.
        preprocessing: what timm says; None where its images are not square or are resized in a way of their own.
        source: for ``converted_from``.

    Raises:
        ExciteError: nothing says how images become its input.
    """
    if preprocessing is None or len(preprocessing.mean) != model.in_chans:
        raise ExciteError(
            f"{source} sees images of {'x'.join(map(str, model.input_size))}, which no preprocessing is known for: "
            "train it by a recipe with model.name=timm:NAME first, and graft the run"
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


def _image_size(model: Classifier) -> int:
    height, width = model.image_size
    if height != width:
        raise ExciteError(f"this network was made for images of {height}x{width}; excite's are square")
    return height


def _names(model: Classifier, loaded: Loaded, classes: Sequence[str] | None) -> list[str]:
    layout = loaded.foreign.layout
    if classes is None and layout is not None and len(layout.classes) == model.num_classes:
        return list(layout.classes)
    if classes is None:
        return [str(number) for number in range(model.num_classes)]
    if len(classes) != model.num_classes or len(set(classes)) != len(classes):
        raise ExciteError(
            f"{len(set(classes))} different class names were given for the {model.num_classes} classes of the network"
        )
    return list(classes)


def read_classes(path: Path) -> list[str]:
    """Class names, one a line. Raises ExciteError where the file cannot be read."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ExciteError(f"{path} is no readable list of class names: {error}") from None


def _recipe(model: Classifier, preprocessing: Preprocessing) -> RecipeMeta:
    """The nearest shipped recipe with this network and these images: for ``excite validate`` and fine-tuning."""
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
    recipe = Recipe.from_dict(values, "the recipe of a converted network")
    return cast(RecipeMeta, recipe.model_dump(mode="json"))
