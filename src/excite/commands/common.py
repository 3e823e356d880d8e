"""Arguments, options and messages that several commands share."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excite.choices import TTA
from excite.commands import beforehand
from excite.errors import ExciteError
from excite.measures import MEASURES, MeasureName
from excite.text import tell

if TYPE_CHECKING:
    from excite.console import Display


def complete_override(incomplete: str, ctx: Any = None) -> list[str]:
    """Complete a recipe or a run first, then keys and values."""
    if ctx is not None and ctx.args and incomplete not in ctx.args:
        return complete_key(incomplete)
    return complete_recipe(incomplete) or complete_key(incomplete)


def complete_recipe(incomplete: str) -> list[str]:
    """Complete recipe names and run folders."""
    from excite.recipe import list_recipes

    return [name for name in list_recipes() if name.startswith(incomplete)] + complete_run(incomplete)


def complete_key(incomplete: str) -> list[str]:
    """Complete ``key=``, with or without its section, and then the values it may take; [] where the value is a file."""
    return _keys(incomplete, "")


def _keys(incomplete: str, begin: str) -> list[str]:
    """Like :func:`complete_key`, for keys whose full names start with ``begin``."""
    from excite.recipe import override_keys, override_values

    every = override_keys()
    keys = [key for key in every if key.startswith(begin)]
    key, equals, text = incomplete.partition("=")
    if not equals:
        names = [key.partition(".")[2] for key in every]
        short = [k for k in (key.partition(".")[2] for key in keys) if names.count(k) == 1 or f"train.{k}" in keys]
        return [f"{key}=" for key in dict.fromkeys([*keys, *short * bool(incomplete)]) if key.startswith(incomplete)]
    known = key if key in keys else next((k for k in keys if k == f"train.{key}" or k.partition(".")[2] == key), None)
    kinds: dict[str, Callable[[str], list[str]]] = {"model.name": complete_model, "train.init_from": complete_run}
    kinds["train.teacher"] = complete_run
    values = kinds[known](text) if known in kinds else override_values(known) if known else []
    return [f"{key}={value}" for value in values if value.startswith(text)]


def complete_data_key(incomplete: str) -> list[str]:
    """Complete keys of the ``data`` section."""
    return _keys(incomplete, "data.")


def complete_report_key(incomplete: str) -> list[str]:
    """Complete keys of the ``data`` and ``report`` sections."""
    return [*_keys(incomplete, "data."), *_keys(incomplete, "report.")]


def complete_runs_and_data(incomplete: str) -> list[str]:
    """Complete run folders and keys of the ``data`` section."""
    return complete_run(incomplete) + (complete_data_key(incomplete) if incomplete else [])


def complete_format(incomplete: str) -> list[str]:
    """Complete export formats."""
    from excite.export.formats import MODULES

    return [name for name in MODULES if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Complete model names."""
    from excite.models.catalog import list_models

    return [name for name in list_models() if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Complete run folders: in ``runs/``, in the current folder, and in the folder typed so far."""
    folder = incomplete.rpartition("/")[0]
    places = dict.fromkeys([f"{folder}/" if folder else "", *([] if folder else ["runs/"])])
    found = []
    for place in places:
        with suppress(OSError):
            names = sorted(os.listdir(os.path.expanduser(place) or "."))
            found += [f"{place}{n}" for n in names if f"{place}{n}".startswith(incomplete) and _is_run(f"{place}{n}")]
    return found


def _is_run(path: str) -> bool:
    return any(os.path.isfile(os.path.join(os.path.expanduser(path), name)) for name in _OF_A_RUN)


_OF_A_RUN = ("recipe.yaml", "model.safetensors")


def one_of(*names: str) -> Callable[[str], list[str]]:
    """A completion function that offers ``names``."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


Trained = Annotated[
    str,
    typer.Argument(
        metavar="RUN|CHECKPOINT",
        help="A run folder, or a .safetensors file.",
        autocompletion=complete_run,
        callback=beforehand.check_trained,
    ),
]


OtherImages = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Use other images: data.root=PATH, data.part=test ...",
        show_default=False,
        callback=beforehand.check_changes,
        autocompletion=complete_data_key,
    ),
]


complete_precision = one_of("auto", "fp32", "bf16", "fp16")


Augmented = Annotated[
    str | None,
    typer.Option(
        "--tta",
        help="Mean probabilities of several views of each image: flip (and its mirror image), five (its centre and "
        "four corners), or shift (moved a little, and mirrored).",
        callback=beforehand.choice("--tta", TTA),
        autocompletion=one_of(*TTA),
    ),
]


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


RecipeWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A recipe name, a YAML file or a run folder, then changes to it, such as train.epochs=10.",
        autocompletion=complete_override,
        show_default=False,
    ),
]


Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, npu, xpu or mps.",
        callback=beforehand.check_device,
        autocompletion=one_of("auto", "cpu", "cuda", "npu", "xpu", "mps"),
    ),
]


Fold = Annotated[
    bool | None,
    typer.Option(
        "--fold/--no-fold",
        help="Fold batch norms into the convolutions.  [default: on a CPU, where it is faster]",
        show_default=False,
    ),
]


def tell_not_finite(warning: str | None, usable: bool) -> None:
    """Print the warning about images without finite logits.

    Raises:
        ExciteError: ``usable`` is false: the network has finite logits for none of the images.
    """
    if warning is not None and not usable:
        raise ExciteError(warning)
    if warning is not None:
        tell(f"warning: {warning}")


def teller(display: "Display", as_json: bool) -> Callable[[str], None]:
    """The function that prints messages: to standard output, or to standard error if standard output is JSON."""
    return tell if as_json else display.message


def metric_column(name: MeasureName, columns: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The column of the measure that chooses the best epoch, if the ``columns`` of a table lack it."""
    lacking = name not in [key for key, _, _ in columns]
    return [(name, MEASURES[name].label, ".2f" if MEASURES[name].percent else ".4f")] if lacking else []
