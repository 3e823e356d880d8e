"""``excite gates``"""

from typing import TYPE_CHECKING, Annotated

import typer

from excite.commands.common import Json
from excite.files import to_json
from excite.text import print_json

if TYPE_CHECKING:
    from excite.gates.sheets import GateRow, GateSheet


def _complete_gate(incomplete: str) -> list[str]:
    from excite.gates.sheets import list_sheets

    return [sheet["name"] for sheet in list_sheets() if sheet["name"].startswith(incomplete)]


def gates(
    name: Annotated[
        str | None,
        typer.Argument(help="Describe this gate.", autocompletion=_complete_gate, show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the gates: paper, what each sees and scales, parameters, multiply-adds, passes; or describe one.

    Examples:

      excite gates

      excite gates cbam

      excite gates --json
    """
    from excite.gates.sheets import find_sheet, list_rows

    if name is None:
        rows = list_rows()
        print_json(rows) if as_json else _show_gates(rows)
    else:
        gate = find_sheet(name)
        print_json(gate) if as_json else _show_gate(gate)


def _show_gates(rows: "list[GateRow]") -> None:
    from excite.console import Display, make_table

    display, (channels, height, width) = Display(), rows[0]["map"]
    display.table(
        make_table(
            [{**row, "paper": _citation(row["paper"])} for row in rows],
            [
                ("gate", "gate", ""),
                ("paper", "paper", ""),
                ("squeeze", "sees", ""),
                ("scales", "scales", ""),
                ("parameters", "parameters", ""),
                ("params", f"at C={channels}", ",d"),
                ("macs", f"multiply-adds {channels}x{height}x{width}", ",d"),
                ("passes", "extra passes", "d"),
            ],
            prose=["paper", "squeeze", "parameters"],
        )
    )
    display.message(
        "extra passes: additional reads and writes of the feature map in a training step, compared with no gate"
    )
    display.message("details of one gate: excite gates NAME")
    display.message('to use one in a network: excite train RECIPE "model.options={gate: NAME}"')
    display.message("selective kernels (SK) are not a gate but a kind of block: `create_model(..., block_conv='sk')`")


def _citation(paper: str | None) -> str | None:
    """A citation that fits on one line: the first author, and where to find the paper."""
    if paper is None:
        return None
    authors, _, rest = paper.partition(": ")
    place = rest.rsplit(", ", 1)[-1].removeprefix("arXiv ")
    return f"{authors.split(', ')[0]} et al., {place}"


def _show_gate(gate: "GateSheet") -> None:
    from excite.console import Display, make_table

    display = Display()
    display.message(f"{gate['name']}: {gate['title'] or 'a gate without a data sheet'}")
    if gate["paper"]:
        display.message(gate["paper"])
    for form in gate["forms"]:
        channels, height, width = form["map"]
        display.message("")
        display.message(f"{form['gate']}: scale = {form['formula']}")
        facts = [
            ("sees", form["squeeze"]),
            ("scales", form["scales"]),
            ("parameters", f"{form['parameters']} ({form['params']:,} at {channels}x{height}x{width})"),
            ("multiply-adds", f"{form['macs']:,} at {channels}x{height}x{width}"),
            ("extra passes", f"{form['passes']} over the map in a training step"),
            (
                "fused",
                "with batch norm, addition and ReLU" if form["fused"] else "no, it uses more than the channel means",
            ),
        ]
        for what, value in facts:
            display.message(f"  {what:<14}{value}")
    if gate["options"]:
        rows = [{**row, "default": to_json(row["default"])} for row in gate["options"]]
        columns = [("option", "option", ""), ("default", "default", ""), ("meaning", "meaning", "")]
        display.message("")
        display.table(make_table(rows, columns, prose=["meaning"]))
    display.message("every gate also has the option identity: with true, a newly built gate scales by exactly 1")
    display.message("")
    display.text(gate["notes"])
