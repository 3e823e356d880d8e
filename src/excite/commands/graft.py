"""``excite graft``"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excite.choices import INITS
from excite.commands.beforehand import (
    begin,
    check_gate,
    check_network,
    check_new_file,
    check_read,
    check_weights,
    choice,
)
from excite.commands.common import Json, complete_model, one_of, teller
from excite.commands.gates import _complete_gate
from excite.errors import ExciteError, shown, shown_text
from excite.text import print_json

if TYPE_CHECKING:
    from excite.console import Display
    from excite.gates.registry import GateTable
    from excite.grafting.costs import GateCosts
    from excite.models.grafting.core import GraftPlan


def graft(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A run folder, a checkpoint (also of other libraries), timm:NAME, or a model name.",
            autocompletion=complete_model,
            callback=check_network,
        ),
    ],
    gate: Annotated[
        str,
        typer.Option(metavar="GATE", autocompletion=_complete_gate, help="One of `excite gates`.", callback=check_gate),
    ] = "se",
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Modules to gate, by name or order (first, last2, every2); may be repeated.  [default: ends of "
            "branches]",
        ),
    ] = None,
    init: Annotated[
        str,
        typer.Option(
            help="identity: gates start as exact no-ops and learn; paper: the usual initialisation.",
            callback=choice("--init", INITS),
            autocompletion=one_of(*INITS),
        ),
    ] = "identity",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Option of the gate, such as reduction=8; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show where the gates would go and what they cost.")
    ] = False,
    latency: Annotated[
        bool, typer.Option("--latency", help="Also measure what each gate adds to the time of one image.")
    ] = False,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Images for the verification.  [default: random ones]", callback=check_read
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Weights of a timm: model.  [default: those of NAME.TAG, else random]",
            callback=check_weights,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the grafted network (.safetensors).", callback=check_new_file),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Insert gates into a network trained without them, and verify that its output does not change.

    Examples:

      excite graft timm:resnet50 --gate se --dry-run

      excite graft timm:resnet50 --gate se --dry-run --latency --at last2

      excite graft runs/my-run --images photos/ --out grafted.safetensors

      excite graft runs/my-run --gate ge --option variant=theta --option extent=4 --at layer3 --at layer4

      excite graft timm:resnet50 --weights resnet50.safetensors --gate eca --out grafted.safetensors
    """
    options = _options_given(option or [])
    begin(f"grafting {gate} into {source}")
    from excite.console import Display, ProgressBar
    from excite.grafting.proof import graft_and_prove

    display = Display()

    with ProgressBar() as progress:
        result = graft_and_prove(
            source,
            gate=gate,
            at=at or [],
            init=init,
            options=options,
            dry_run=dry_run,
            latency=latency,
            images=images,
            weights=weights,
            out=out,
            force=force,
            say=progress.beside(teller(display, as_json)),
            show=(lambda plan, costs: None) if as_json else progress.beside(partial(_show, display)),
            progress=progress,
        )
    if as_json:
        print_json(result)


def _show(display: "Display", plan: "GraftPlan", costs: "GateCosts | None") -> None:
    """Print the places, and with ``costs`` what their gates add to the time of one image."""
    from excite.console import make_table

    columns = [("place", "place", ""), ("channels", "channels", "d"), ("map", "map", "")]
    columns += [("parameters", "new params", ",d"), ("what", "gate", "")]
    rows = [dict(row) for row in plan.rows()]
    if costs is not None:
        columns.append(("ms", "adds ms", ""))
        for row in rows:
            row["ms"] = costs.text(str(row["place"]))
    display.table(make_table(rows, columns))
    display.message(f"{plan.sentence}; {plan.added:,} new parameters")
    if costs is not None:
        predicted = [("where", "gates at", ""), ("ms", "ms", ".2f"), ("more", "more", "")]
        display.table(make_table(costs.rows(), predicted))
        display.message(costs.sentence)
    for note in [*plan.notes, *(costs.notes if costs is not None else [])]:
        display.message(note)


def _options_given(words: list[str]) -> "GateTable":
    """Parse NAME=VALUE words; values are YAML, as in a recipe. Raises ExciteError for a word of another form."""
    from excite.recipe import parse_yaml

    options = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ExciteError(f"--option {shown(word)} is not of the form NAME=VALUE (for example reduction=8)")
        options[name] = parse_yaml(text, f"the value of --option {shown_text(name)}")
    return options
