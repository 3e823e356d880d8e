"""``excite convert``"""

from pathlib import Path
from typing import Annotated

import typer

from excite.commands.beforehand import begin, check_read, check_weights
from excite.commands.common import Json, complete_model, one_of, teller
from excite.text import print_json


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint of MindSpore, TensorFlow, Caffe, PyTorch or excite; https://, hf:owner/name, timm:name.",
            callback=check_weights,
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DESTINATION", help="The file to write.")],
    arch: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The network, if it cannot be recognised.", autocompletion=complete_model),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="NPZ|IMAGE",
            help="Compare with the input and outputs in an .npz file, or classify an image.",
            callback=check_read,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Compare layer by layer with another checkpoint.", callback=check_weights),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference allowed, relative to the largest value.")] = 1e-4,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Load what fits, and list what does not.")
    ] = False,
    to: Annotated[
        str,
        typer.Option(
            metavar="LIBRARY",
            autocompletion=one_of("excite", "timm", "torchvision"),
            help="Write for excite, timm or torchvision.",
        ),
    ] = "excite",
    classes: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names, one per line.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Convert weights from another library, or write ours for it. Format and network are recognised.

    Examples:

      excite convert seresnet18.ckpt seresnet18.safetensors --verify outputs.npz

      excite convert seresnet110.ckpt cifar.safetensors

      excite convert timm:seresnet50.ra2_in1k seresnet50.safetensors --classes imagenet.txt

      excite convert runs/my-run seresnet50.pth --to timm
    """
    from excite.weights.destination import check_destination

    check_destination(destination, to, force)
    begin(f"converting {source}")
    from excite.console import Display, ProgressBar, make_table
    from excite.weights.conversion import convert_file

    display = Display()
    columns = [
        ("place", "place", ""),
        ("shape", "shape", ""),
        ("relative", "largest difference / largest value", ".2e"),
    ]
    with ProgressBar() as progress:
        result = convert_file(
            source,
            destination,
            arch=arch,
            verify=verify,
            against=against,
            tolerance=tolerance,
            allow_partial=allow_partial,
            to=to,
            classes=classes,
            force=force,
            say=progress.beside(teller(display, as_json)),
            show=None if as_json else progress.beside(lambda rows: display.table(make_table(rows, columns))),
            progress=progress,
        )
    if as_json:
        print_json(result)
