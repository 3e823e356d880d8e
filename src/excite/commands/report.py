"""``excite report``"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excite.commands.beforehand import begin, check_changes, check_data, check_file, check_new_folder
from excite.commands.common import Device, Json, Trained, complete_report_key, tell_not_finite
from excite.measures import uneven
from excite.text import print_json

if TYPE_CHECKING:
    from excite.report.contents import LabelNumbers, Numbers


def report(
    source: Trained,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Use other images: data.root=PATH, data.part=test; or set report.KEY=VALUE.",
            show_default=False,
            callback=check_changes,
            autocompletion=complete_report_key,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page.  [default: report.html in the run folder]", callback=check_file),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write every figure as PNG and SVG.", callback=check_new_folder),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Use at most this many validation images (class-balanced).  [default: all]"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure robustness and gates on 200 images only, at severities 1, 3 and 5.")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write a self-contained HTML page about a trained network; its numbers also go to results.json.

    Accuracy with its interval, curves, confusion matrix, classes, calibration, most confident mistakes, robustness,
    gates, speed, and how to reproduce it. `excite train` writes it at the end of a run, unless report.write=false.

    Examples:

      excite report runs/my-run

      excite report runs/my-run data.root=/other/images --quick --out report.html

      excite report model.safetensors --images 500 --figures figures --json
    """
    check_data(source, overrides)
    begin(f"reporting on {source}")
    from excite.console import Display, ProgressBar
    from excite.report.build import report as write_report
    from excite.report.contents import mean_of, not_finite_of

    with ProgressBar() as progress:
        numbers, path = write_report(
            source,
            overrides or [],
            out=out,
            figures=figures,
            images=images,
            quick=quick,
            device=device,
            progress=progress,
        )
    about, robust = numbers["about"], numbers["robustness"]
    not_finite = not_finite_of(numbers)
    warning = about["warning"], not_finite < about["validation_images"]
    if as_json:
        print_json({**numbers, "file": str(path)})
        tell_not_finite(*warning)
        return
    lines = [
        _told(numbers),
        *([f"under corruptions {mean_of(robust):.2f} % of {robust['images']:,} images"] if robust else []),
        *about["notes"],
        f"{path}  {path.stat().st_size / 1e6:.2f} MB",
    ]
    for line in lines:
        Display().message(line)
    tell_not_finite(*warning)


def _told(numbers: "Numbers | LabelNumbers") -> str:
    """The measures with their intervals, in one line."""
    images = f"of {numbers['about']['validation_images']:,} images ({numbers['about']['measured']})"
    if "labels" in numbers:
        from excite.report.label_page import with_interval

        found, calibration = numbers["labels"]["accuracy"], numbers["labels"]["calibration"]
        told = f"mAP {with_interval(found, 'map', joined=' (95 %: {} to {})')} {images}, micro F1 "
        told += f"{with_interval(found, 'micro_f1')} at the threshold {found['threshold']:.3f}"
        return told + ("" if calibration["ece"] is None else f", calibration error {calibration['ece']:.2f} %")
    accuracy, ece, classes = numbers["accuracy"], numbers["calibration"]["ece"], numbers["classes"]
    balanced = f", balanced accuracy {classes['macro']['recall']:.2f} %"
    return (
        f"top-1 {accuracy['top1']:.2f} % (95 %: {accuracy['top1_low']:.2f} to {accuracy['top1_high']:.2f}) {images}"
        + (balanced if uneven([row["support"] for row in classes["rows"]]) else "")
        + ("" if ece is None else f", calibration error {ece:.2f} %")
    )
