"""``excite models``"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excite.commands.common import Json, complete_model
from excite.errors import ExciteError
from excite.text import as_json as to_json
from excite.text import print_json

if TYPE_CHECKING:
    from excite.models.published import PublishedAccuracy


def models(
    pattern: Annotated[
        str, typer.Argument(help='A pattern, such as "*seresnet50*".', autocompletion=complete_model)
    ] = "*",
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="List only models with trained weights, and their source.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the models: parameters, GMACs, input size, gate, published accuracy with its source.

    Examples:

      excite models "*seresnet*"

      excite models --pretrained

      excite models "*50*" --json
    """
    from excite.errors import nearest
    from excite.models.catalog import list_models

    names = list_models(pattern)
    if not names:
        hint = nearest(pattern.strip("*"), list_models())
        raise ExciteError(f"no model matches {pattern!r}{hint}")
    from excite.console import Display, make_table
    from excite.models.sizes import list_sizes

    if pretrained:
        _show_pretrained(names, as_json)
        return
    rows = list_sizes(names)
    if as_json:
        print_json(rows)
        return
    shown = [
        {
            **row,
            "params_m": row["params"] / 1e6,
            "input": "x".join(map(str, row["input_size"])),
            "gate": _gate(row["gate"]),
            "published": "; ".join(_published(p) for p in row["published"]) or None,
        }
        for row in rows
    ]
    columns = [
        ("name", "model", ""),
        ("params_m", "params(M)", ".2f"),
        ("gmacs", "GMACs", ".3f"),
        ("input", "input", ""),
    ]
    columns += [("gate", "gate", ""), ("published", "published top-1/top-5 (source)", "")]
    Display().table(make_table(shown, columns, prose=["published"]))


def _show_pretrained(names: list[str], as_json: bool) -> None:
    """Print the pretrained weights: source, download size, accuracy, and the cost of the network."""
    from excite.console import Display, make_table
    from excite.models.sizes import list_sizes
    from excite.weights.pretrained import measured_speeds, pretrained_of

    speeds = measured_speeds()
    gmacs = {row["name"]: row["gmacs"] for row in list_sizes(names)}
    found = [(name, known) for name in names if (known := pretrained_of(name)) is not None]
    rows = [
        {
            "model": name,
            "init_from": known.source,
            "megabytes": known.megabytes,
            "gmacs": gmacs[name],
            "image_size": known.image_size,
            "top1": known.top1,
            "top5": known.top5,
            "images_per_second": speeds["images_per_second"][name],
        }
        for name, known in found
    ]
    if as_json:
        print_json(rows)
        return
    if not rows:
        raise ExciteError(
            "there are no pretrained weights for these models; `excite models --pretrained` lists all that have some"
        )
    columns = [
        ("model", "model", ""),
        ("init_from", "init_from=", ""),
        ("megabytes", "MB", ".0f"),
        ("gmacs", "GMACs", ".2f"),
        ("image_size", "pixels", "d"),
        ("top1", "ImageNet top-1", ".2f"),
        ("images_per_second", "img/s", ".1f"),
    ]
    display = Display()
    display.table(make_table(rows, columns))
    display.message(
        f"img/s: forward passes of {speeds['batch']} images on {speeds['device']}, measured {speeds['date']}; no GPU "
        "has been measured yet. `excite bench MODEL --infer` measures this machine."
    )
    display.message(
        "The accuracies are those measured by timm. Weights are downloaded from the hub at first use and then cached: "
        "`excite train RECIPE model.name=MODEL init_from=SOURCE`."
    )


def _gate(gate: "str | Mapping[str, Any] | None") -> str | None:
    """A gate as typed on the command line: its name and its options."""
    if gate is None or isinstance(gate, str):
        return gate
    options = " ".join(f"{key}={to_json(value, None)}" for key, value in gate.items() if key != "name")
    return f"{gate['name']} {options}".rstrip()


def _published(entry: "PublishedAccuracy") -> str:
    numbers = "/".join(f"{share:.2f}" for share in (entry["top1"], entry["top5"]) if share is not None)
    return f"{numbers} ({entry['source']}{'' if entry['confirmed'] else ', unconfirmed'})"
