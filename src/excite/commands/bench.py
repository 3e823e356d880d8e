"""``excite bench``"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excite.commands.beforehand import begin, check_file, check_recipe
from excite.commands.common import Device, Json, complete_model, complete_recipe
from excite.errors import ExciteError
from excite.runtime.job import rank
from excite.text import print_json

if TYPE_CHECKING:
    from excite.bench.build import Measured
    from excite.bench.pipeline import Pipeline
    from excite.bench.report import Sheet


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL[,OPTION=VALUE]...",
            help="Models: NAME, timm:NAME, mindcv:NAME; with --data: changes to the recipe, such as data.workers=4.",
            autocompletion=complete_model,
            show_default=False,
        ),
    ] = None,
    train: Annotated[bool, typer.Option("--train/--infer", help="Time training steps or forward passes.")] = True,
    batch: Annotated[
        str | None, typer.Option(metavar="N,...", help="Images per step and device (default: 16 on a CPU, else 128).")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="S,...", help="Side length in pixels, or HxW (default: the model's own).")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="P,...", help="auto, fp32, bf16, fp16 (default: auto).")
    ] = None,
    compile_mode: Annotated[
        str | None,
        typer.Option("--compile", metavar="C,...", help="off, default, reduce-overhead, max-autotune (default: off)."),
    ] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last/--no-channels-last", help="Memory layout of weights and images.")
    ] = True,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all).")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements per row; the rows take turns.")] = 3,
    warm_up: Annotated[
        int | None, typer.Option(min=2, help="Untimed steps at the start (default: 3 on a CPU, else 10).")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps per round (default: as many as fit into --seconds).")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Approximate duration of one round of a row.")] = 5.0,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the rows to this file.", callback=check_file)
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write traces for Perfetto or Chrome, and list the top operators."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            autocompletion=complete_recipe,
            help="Measure a recipe's input pipeline, its training step, and both together.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure speed and memory: compare models, libraries and settings, or data loading with compute.

    Every row runs in its own process, in rounds that take turns. The table shows medians and quartiles over all timed
    steps, and the ratio to the first row.

    Examples:

      excite bench seresnet50 resnet50

      excite bench seresnet50 --infer --batch 1,16 --precision fp32,bf16 --json

      excite bench seresnet50 timm:seresnet50 timm:seresnet50,precision=fp32,channels_last=false --csv bench.csv

      excite bench cifar_seresnet110 --compile off,default --profile traces

      excite bench --data cifar10-seresnet20 data.root=cifar-10-python.tar.gz

      torchrun --nproc-per-node 8 -m excite bench seresnet50 --batch 128
    """
    from excite.bench.settings import settle

    asked: dict[str, Any] = {
        "train": train,
        "batch": batch,
        "image_size": image_size,
        "precision": precision,
        "compile_mode": compile_mode,
        "channels_last": channels_last,
        "device": device,
        "threads": threads,
        "warm_up": warm_up,
        "steps": steps,
        "seconds": seconds,
        "csv": csv,
        "profile": profile,
        "data": data,
    }
    settle(models or [], **asked)
    if data is not None:
        from excite.recipe import load_recipe

        check_recipe(load_recipe(data, models or []))
    begin(f"measuring {data or ', '.join(models or [])}")
    from excite.bench.build import bench as run_bench

    found = run_bench(models or [], rounds=rounds, **asked)
    if rank() != 0:
        return
    if "waiting" in found:
        show_pipeline(found, as_json)
    else:
        show_measured(found, as_json)


def show_pipeline(found: "Pipeline", as_json: bool) -> None:
    """Print the time of a recipe's input pipeline and training step, as a table (Markdown) or JSON."""
    from excite.bench.pipeline import pipeline_lines, pipeline_sheet, stage_lines, verdict
    from excite.console import Display

    if as_json:
        print_json(found)
        return
    _show(pipeline_lines(found), pipeline_sheet(found))
    Display().message("")
    for line in [*stage_lines(found), verdict(found)]:
        Display().message(line)


def show_measured(found: "Measured", as_json: bool) -> None:
    """Print the rows as a table (Markdown) or JSON. Raises ExciteError if any of them failed."""
    from excite.bench.report import caption, floor_caption, floor_sheet, operator_sheet, speed_sheet

    rows, profiles = found["rows"], found.get("profiles", {})
    if as_json:
        print_json({"rows": rows, **({"profiles": profiles} if profiles else {})})
    else:
        _show([caption(rows)] if caption(rows) else [], speed_sheet(rows))
        for trace, seen in profiles.items():
            _show(
                ["", f"{trace} (open it in https://ui.perfetto.dev or chrome://tracing)"],
                operator_sheet(seen["operators"]),
            )
            if seen["floors"]:
                _show(["", floor_caption(seen["floors"])], floor_sheet(seen["floors"]))
    failed = [f"{row['model']}: {row['error']}" for row in rows if "error" in row] + found.get("unprofiled", [])
    if failed:
        raise ExciteError("; ".join(dict.fromkeys(failed)))


def _show(lines: Sequence[str], sheet: "Sheet") -> None:
    """Print lines and a table below them."""
    from excite.console import Display

    display = Display()
    for line in lines:
        display.message(line)
    if lines:
        display.message("")
    display.pasted(sheet.markdown(), *sheet)
