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
    as_json: Json = False,
) -> None:
    """List the models: parameters, GMACs, input size, gate, published accuracy with its source.

    Examples:

      excite models "*seresnet*"

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


def _gate(gate: "str | Mapping[str, Any] | None") -> str | None:
    """A gate as it is typed: its name, and the options that it has."""
    if gate is None or isinstance(gate, str):
        return gate
    options = " ".join(f"{key}={to_json(value, None)}" for key, value in gate.items() if key != "name")
    return f"{gate['name']} {options}".rstrip()


def _published(entry: "PublishedAccuracy") -> str:
    numbers = "/".join(f"{share:.2f}" for share in (entry["top1"], entry["top5"]) if share is not None)
    return f"{numbers} ({entry['source']}{'' if entry['confirmed'] else ', unconfirmed'})"
