"""``excite compare``"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excite.commands.beforehand import begin, check_precision, check_several_trained
from excite.commands.common import Device, Json, complete_run, complete_runs_and_data
from excite.errors import ExciteError
from excite.text import print_json

if TYPE_CHECKING:
    from excite.compare.study import Study
    from excite.compare.table import Differing, ShownRow
    from excite.console import Display

Columns = list[tuple[str, str, str]]


def compare(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|CHECKPOINT... [KEY=VALUE]...",
            help="Two or more; then other data for all of them, such as data.root=PATH.",
            show_default=False,
            callback=check_several_trained,
            autocompletion=complete_runs_and_data,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="The page; a CSV is written next to it.  [default: compare.html]",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            autocompletion=complete_run,
            help="The run that the others are compared with.  [default: the first]",
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(metavar="NAME,...", help="A name for each run.")] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write every figure as PNG and SVG.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    device: Device = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16 or fp16.  [default: the precision each network was trained in]", callback=check_precision
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    as_json: Json = False,
) -> None:
    """Compare trained networks on the same images: differences with intervals, McNemar's test, recipes, curves.

    Examples:

      excite compare runs/my-seresnet runs/my-resnet

      excite compare runs/a runs/b runs/c --labels none,se,ge --baseline none --out gates.html --figures gates

      excite compare runs/a model.safetensors data.root=/other/images --json
    """
    from excite.compare.words import read_words

    asked = read_words(
        words or [],
        out=out,
        figures=figures,
        labels=labels,
        baseline=baseline,
        confidence=confidence,
        force=force,
    )
    begin(f"comparing {' and '.join(asked.sources)}")
    from excite.compare.written import compare_and_write
    from excite.console import Display, ProgressBar

    with ProgressBar() as progress:
        result = compare_and_write(
            *(words or []),
            out=out,
            figures=figures,
            force=force,
            labels=labels,
            baseline=baseline,
            confidence=confidence,
            device=device,
            precision=precision,
            progress=progress,
        )
    if as_json:
        print_json({**result.to_dict(), "files": [str(path) for path in result.files]})
    else:
        show_comparison(result.found, result.files, Display())
    if dead := [r["label"] for r in result.found["rows"] if r["not_finite"] and r["not_finite"] == r["images"]]:
        raise ExciteError(f"{' and '.join(dead)}: no image has finite logits, so there is nothing to compare")


def show_comparison(found: "Study", written: Sequence[Path], display: "Display") -> None:
    """Print the table of runs, the differences between their recipes, and notes on how to read them."""
    from excite.compare.table import sentences, shown
    from excite.console import make_table

    rows = [{**row, **_cells(row)} for row in shown(found)]
    accuracy, cost = _accuracy_columns(found), _cost_columns(found)
    display.table(make_table(rows, [*accuracy, *cost]))
    _show_recipe(found, display)
    for line in [*found["notes"], *sentences(found)]:
        display.message(line)
    page, table, *rest = written
    display.message(f"page: {page}, table: {table}" + (f", figures: {rest[0].parent}/" if rest else ""))


def _cells(row: "ShownRow") -> dict[str, str | None]:
    """Cells that hold a number and its interval."""
    from excite.compare.table import interval, with_ends

    top1 = None if row["top1"] is None else with_ends(f"{row['top1']:.2f}", row["top1_interval"], "[]")
    change = row["difference_interval"]
    if row["difference"] is not None:
        change = f"{row['difference']:+.2f} [{interval(row['difference_low'], row['difference_high'], '+.2f')}]"
    f1 = row["f1_interval"]
    if row["f1_difference"] is not None:
        f1 = f"{row['f1_difference']:+.2f} [{f1}]"
    return {"top1_text": top1, "difference_text": change, "f1_change": f1}


def _accuracy_columns(found: "Study") -> Columns:
    from excite.compare.table import differing

    percent = f"{100 * found['confidence']:g} %"
    columns: Columns = [("label", "run", "")]
    columns += [("model", "model", "")] if differing(found["rows"], ["model"]) else []
    columns += [
        ("gate", "gate", ""),
        ("epochs_text", "epochs", ""),
        ("top1_text", f"{found['measure']} % [{percent}]", ""),
    ]
    columns += [("balanced", "balanced %", ".2f")] if found["uneven"] else []
    if found["paired"]:
        columns.append(("difference_text", f"difference [{percent}]", ""))
    if found["measure"] == "mAP":
        return [*columns, ("f1_text", f"micro F1 % [{percent}]", ""), ("f1_change", f"difference [{percent}]", "")]
    if found["paired"]:
        columns.append(("p_text", "p", ""))
        columns += [("p_holm_text", "Holm's p", "")] if len(found["paired"]) > 2 else []
    return columns


def _cost_columns(found: "Study") -> Columns:
    from excite.compare.table import differing

    columns: Columns = [("params_m", "params(M)", ".3f"), ("gmacs", "GMACs", ".3f")]
    columns += [
        ("images_per_second", "training img/s", ",.0f"),
        ("ms_per_step", "training ms/step", ".1f"),
        ("memory_gb", "peak GB", ".2f"),
    ]
    conditions: dict[Differing, str] = {"device": "device", "devices": "devices"}
    conditions |= {"batch_size": "batch size", "trained_in": "precision"}
    return columns + [(key, conditions[key], "") for key in differing(found["rows"], list(conditions))]


def _show_recipe(found: "Study", display: "Display") -> None:
    from excite.console import make_table

    if not found["recipe"]:
        return
    rows = [{"key": row["key"], **{f"v{i}": v for i, v in enumerate(row["values"])}} for row in found["recipe"]]
    columns: Columns = [("key", "recipe", "")]
    columns += [(f"v{i}", row["label"], "") for i, row in enumerate(found["rows"])]
    display.table(make_table(rows, columns))
