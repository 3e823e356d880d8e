"""The body of ``excite compare``: which words are runs, where things go, and the tables on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from excite.compare.build import Comparison, check_folder, check_target, compare
from excite.compare.table import differing, interval, sentences, shown
from excite.console import Display, make_table
from excite.recipe import is_override

#: Columns of a terminal that the whole table fits in.
WIDE = 150
Columns = list[tuple[str, str, str]]


def run(
    words: Sequence[str],
    *,
    out: Path | None,
    figures: Path | None,
    force: bool,
    **options: Any,
) -> tuple[Comparison, list[Path]]:
    """Compare, write page, CSV and figures, and give the comparison and the files.

    Args:
        words: runs, and ``data.key=value``.
        out: the page; None takes ``compare.html`` here, with a number where that is taken.
        figures: a folder for the figures; None writes none.
        force: replace what is there.
        options: see ``excite.compare.compare``.

    Raises:
        ExciteError: see ``compare``; something is there already.
    """
    out = _free_name() if out is None else out
    check_target(out, force)
    if figures is not None:
        check_folder(figures, force)
    overrides = [word for word in words if is_override(word)]
    result = compare([word for word in words if not is_override(word)], overrides, **options)
    written = result.write(out, force=force)
    if figures is not None:
        written += result.write_figures(figures, force=force)
    return result, written


def _free_name() -> Path:
    number = 1
    while True:
        name = "compare" if number == 1 else f"compare-{number}"
        if not any(Path(f"{name}.{kind}").exists() for kind in ("html", "csv")):
            return Path(f"{name}.html")
        number += 1


def show(found: Mapping[str, Any], written: Sequence[Path], display: Display) -> None:
    """Print the table of runs, what differs in their recipes, and how to read it."""
    rows = [_cells(row) for row in shown(found)]
    accuracy, cost = _accuracy_columns(found), _cost_columns(found)
    if display.console.width >= WIDE:
        display.table(make_table(rows, [*accuracy, *cost]))
    else:
        display.table(make_table(rows, accuracy))
        display.table(make_table(rows, [accuracy[0], *cost]))
    _show_recipe(found, display)
    for line in [*found["notes"], *sentences(found)]:
        display.message(line)
    page, table, *rest = written
    display.message(f"page: {page}, table: {table}" + (f", figures: {rest[0].parent}/" if rest else ""))


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with numbers and their intervals in one cell."""
    top1 = None if row["top1"] is None else f"{row['top1']:.2f} [{row['top1_interval']}]"
    change = row["difference_interval"]
    if row["difference"] is not None:
        change = f"{row['difference']:+.2f} [{interval(row, 'difference', '+.2f')}]"
    return {**row, "top1_text": top1, "difference_text": change}


def _accuracy_columns(found: Mapping[str, Any]) -> Columns:
    percent = f"{100 * found['confidence']:g} %"
    columns: Columns = [("label", "run", "")]
    columns += [("model", "model", "")] if differing(found["rows"], ["model"]) else []
    columns += [("gate", "gate", ""), ("epochs_text", "epochs", ""), ("top1_text", f"top-1 % [{percent}]", "")]
    if found["paired"]:
        columns += [("difference_text", f"difference [{percent}]", ""), ("p_text", "p", "")]
        columns += [("p_holm_text", "Holm's p", "")] if len(found["paired"]) > 2 else []
    return columns


def _cost_columns(found: Mapping[str, Any]) -> Columns:
    columns: Columns = [("params_m", "params(M)", ".3f"), ("gmacs", "GMACs", ".3f")]
    columns += [
        ("images_per_second", "training img/s", ",.0f"),
        ("ms_per_step", "training ms/step", ".1f"),
        ("memory_gb", "GB", ".2f"),
    ]
    conditions = {"device": "device", "devices": "devices", "batch_size": "batch size", "trained_in": "precision"}
    return columns + [(key, conditions[key], "") for key in differing(found["rows"], list(conditions))]


def _show_recipe(found: Mapping[str, Any], display: Display) -> None:
    if not found["recipe"]:
        return
    rows = [{"key": row["key"], **{f"v{i}": v for i, v in enumerate(row["values"])}} for row in found["recipe"]]
    columns: Columns = [("key", "recipe", "")]
    columns += [(f"v{i}", row["label"], "") for i, row in enumerate(found["rows"])]
    display.table(make_table(rows, columns))
