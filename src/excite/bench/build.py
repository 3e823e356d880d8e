"""`excite bench`: from the words of the command line to tables."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import excite
from excite.bench.report import (
    Row,
    Sheet,
    append_csv,
    caption,
    check_csv,
    floor_caption,
    floor_sheet,
    make_rows,
    operator_sheet,
    speed_sheet,
)
from excite.bench.runner import run_in_turns, run_profile
from excite.bench.settings import Setting
from excite.errors import ExciteError
from excite.recipe import load_recipe
from excite.runtime import git
from excite.runtime.job import rank, world_size
from excite.text import print_json, tell

if TYPE_CHECKING:
    from excite.bench.profile import Profile


def bench_models(
    settings: Sequence[Setting], *, rounds: int, csv: Path | None, profile: Path | None, as_json: bool
) -> None:
    """Measure every setting and print the table (Markdown) or JSON; progress goes to standard error.

    Args:
        settings: the rows.
        rounds: how often each is measured, in turns.
        csv: file that the rows are appended to.
        profile: folder that gets a trace of every row; their most expensive operators are printed.
        as_json: print JSON instead of tables.

    Raises:
        ExciteError: rows failed (after the others were measured and written), or ``csv`` holds something else.
    """
    first = rank() == 0
    if profile is not None and world_size() > 1:
        raise ExciteError("--profile is for one process: run it without torchrun")
    if csv is not None and first:
        check_csv(csv)
    report = tell if first else _keep_quiet
    with tempfile.TemporaryDirectory(prefix="excite-bench-") as cache:
        rows = make_rows(settings, run_in_turns(settings, rounds, report, cache), source_version())
        profiles, unprofiled = ({}, []) if profile is None else _profiles(settings, rows, profile, cache)
    if not first:
        return
    if csv is not None:
        append_csv(csv, rows)
    if as_json:
        print_json({"rows": rows, **({"profiles": profiles} if profiles else {})})
    else:
        _show([caption(rows)] if caption(rows) else [], speed_sheet(rows))
        for trace, found in profiles.items():
            _show(
                ["", f"{trace} (open it in https://ui.perfetto.dev or chrome://tracing)"],
                operator_sheet(found["operators"]),
            )
            if found["floors"]:
                _show(["", floor_caption(found["floors"])], floor_sheet(found["floors"]))
    failed = [f"{row['model']}: {row['error']}" for row in rows if "error" in row] + unprofiled
    if failed:
        raise ExciteError("; ".join(dict.fromkeys(failed)))


def _show(lines: Sequence[str], sheet: Sheet) -> None:
    """Lines, and a table below them."""
    from excite.console import Display

    display = Display()
    for line in lines:
        display.message(line)
    if lines:
        display.message("")
    display.pasted(sheet.markdown(), *sheet)


def _keep_quiet(line: str) -> None:
    pass


def _profiles(
    settings: Sequence[Setting], rows: Sequence[Row], folder: Path, cache: str
) -> "tuple[dict[str, Profile], list[str]]":
    """Trace file -> most expensive operators and floors, of every row that could be measured; and what went wrong."""
    found: dict[str, Profile] = {}
    failed = []
    for setting, row in zip(settings, rows, strict=True):
        if "error" in row:
            continue
        words = [setting.name, setting.mode, f"b{row['batch']}", str(row["image_size"]), row["precision"]]
        words += [] if setting.channels_last else ["contiguous"]
        words += [] if setting.compile == "off" else [setting.compile]
        words += [] if setting.fused == "auto" else [f"fused-{setting.fused}"]
        words += [] if setting.fused_sgd else ["plain-sgd"]
        name = re.sub(r"[^\w.-]+", "-", "-".join(words))
        same = sum(Path(trace).name.startswith(f"{name}.") for trace in found)  # by what names do not tell: threads ...
        trace = folder / (f"{name}.{same + 1}.json" if same else f"{name}.json")
        answer = run_profile(setting, trace, cache)
        if "error" in answer:
            failed.append(f"{setting.name}: {answer['error']}")
        else:
            found[str(trace)] = answer
    return found, failed


def bench_data(recipe: str, overrides: Sequence[str], *, rounds: int, seconds: float, as_json: bool) -> None:
    """Measure a recipe's input pipeline, its training step, and both together; print a table or JSON.

    Raises:
        ExciteError: a wrong recipe, or data that cannot be read.
    """
    checked = load_recipe(recipe, list(overrides))
    from excite.bench.pipeline import measure_pipeline, pipeline_lines, pipeline_sheet, verdict

    result = measure_pipeline(checked, rounds=rounds, seconds=seconds)
    if rank() > 0:
        return
    if as_json:
        print_json(result)
        return
    from excite.console import Display

    _show(pipeline_lines(result), pipeline_sheet(result))
    Display().message("")
    Display().message(verdict(result))


def source_version() -> str:
    """The version of excite, with the commit where it runs from a checkout ("+" if that was changed since)."""
    home = Path(excite.__file__).parent
    # An environment may lie inside of somebody's repository, whose commit says nothing about the package.
    found = git.checkout(home, only=True) if git.knows(home, "__init__.py") else None
    if found is None:
        return excite.__version__
    return f"{excite.__version__}-{found.commit[:10]}" + ("+" if found.changed else "")
