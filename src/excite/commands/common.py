"""What several commands take and say."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from excite.commands import beforehand
from excite.errors import ExciteError
from excite.text import tell

if TYPE_CHECKING:
    from excite.console import Display


def complete_override(incomplete: str) -> list[str]:
    from excite.recipe import list_recipes, override_keys

    keys = [f"{key}=" for key in override_keys()]
    return [name for name in [*list_recipes(), *keys] if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    from excite.models.catalog import list_models

    return [name for name in list_models() if name.startswith(incomplete)]


Trained = Annotated[
    str,
    typer.Argument(
        metavar="RUN|CHECKPOINT", help="A run folder, or a .safetensors file.", callback=beforehand.check_trained
    ),
]


OtherImages = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Other images: data.root=PATH, data.part=test ...",
        show_default=False,
        callback=beforehand.check_changes,
    ),
]


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


RecipeWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A recipe's name, a YAML file or a run folder; then changes to it, such as train.epochs=10.",
        autocompletion=complete_override,
        show_default=False,
    ),
]


Device = Annotated[str, typer.Option(help="auto, cpu, cuda, npu, xpu or mps.", callback=beforehand.check_device)]


Fold = Annotated[
    bool | None,
    typer.Option(
        "--fold/--no-fold",
        help="Fold batch norms into convolutions.  [default: on a CPU, where it is faster]",
        show_default=False,
    ),
]


def tell_not_finite(warning: str | None, usable: bool) -> None:
    """The sentence about images without finite logits; an error where the network has an answer for none of them."""
    if warning is not None and not usable:
        raise ExciteError(warning)
    if warning is not None:
        tell(f"warning: {warning}")


def teller(display: "Display", as_json: bool) -> Callable[[str], None]:
    """Where sentences go: to the terminal, or, so that standard output is JSON alone, to standard error."""
    return tell if as_json else display.message
