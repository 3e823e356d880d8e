"""``excite export``"""

from pathlib import Path
from typing import Annotated

import typer

from excite.choices import INPUTS
from excite.commands.beforehand import begin, check_changes, check_new_file, check_read, choice
from excite.commands.common import Json, Trained, complete_data_key, complete_format, one_of, teller
from excite.export.formats import MODULES
from excite.text import print_json


def export(
    source: Trained,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="onnx, openvino or pt2.",
            callback=choice("--format", MODULES),
            autocompletion=complete_format,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Images for verification: data.part=test, data.root=PATH.",
            show_default=False,
            callback=check_changes,
            autocompletion=complete_data_key,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file to write.  [default: next to the weights]",
            show_default=False,
            callback=check_new_file,
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise to int8 with gates in float; also with int8 gates, for comparison.")
    ] = False,
    int8_gates: Annotated[
        bool, typer.Option("--int8-gates", help="Like --int8, but write the model with int8 gates.")
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Calibration images for --int8.  [default: the run's training images]",
            callback=check_read,
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Images for verification.  [default: the run's validation images]", callback=check_read
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Use at most this many of them; 0: all.")] = 2000,
    input_kind: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="KIND",
            help="uint8: images of any size; float: preprocessed images, 0 to 1.",
            callback=choice("--input", INPUTS),
            autocompletion=one_of(*INPUTS),
        ),
    ] = "uint8",
    opset: Annotated[int, typer.Option(min=18, help="ONNX opset.")] = 20,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference allowed between logits, relative to the largest logit.")
    ] = 1e-3,
    max_drop: Annotated[float, typer.Option(min=0, metavar="POINTS", help="Top-1 that int8 may cost.")] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Export a network to one file that runs without this package, written only if it computes the same.

    Examples:

      excite export runs/my-run --format onnx

      excite export runs/my-run --format openvino --int8 --out model.int8.xml

      excite export runs/my-run --format onnx --int8-gates --calibrate photos/train --verify photos/val

      excite export model.safetensors --format pt2 --verify photos/ --input float
    """
    begin(f"exporting {source} as {format}")
    from excite.console import Display, ProgressBar, make_table
    from excite.export import export as run_export

    display = Display()
    with ProgressBar() as progress:
        result = run_export(
            source,
            format,
            overrides or [],
            out=out,
            int8=int8,
            int8_gates=int8_gates,
            calibrate=calibrate,
            verify=verify,
            images=images,
            input=input_kind,  # type: ignore[arg-type]
            opset=opset,
            tolerance=tolerance,
            max_drop=max_drop,
            force=force,
            say=progress.beside(teller(display, as_json)),
            progress=progress,
        )
    if as_json:
        print_json(result)
        return
    rows = [{**row, "what": f"{'-> ' if row['written'] else ''}{row['what']}"} for row in result["rows"]]
    columns = [("what", "what", ""), ("largest_difference", "logits differ by up to", ".2g")]
    if "map" in rows[0]:
        columns += [("agreement", "same labels / images, %", ".2f"), ("map", "mAP", ".2f")]
    else:
        columns += [("agreement", "same top-1 / images, %", ".2f"), ("top1", "acc@top1", ".2f")]
    columns += [("ms_1", "ms, batch 1", ".2f"), ("ms_16", "ms, batch 16", ".2f")]
    display.table(make_table(rows, columns))
    display.message(result["timed"])
    display.message(f"{result['artefact']}  {result['bytes'] / 1e6:.2f} MB  (how to run it: docs/export.md)")
