"""``excite predict``"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from excite.commands.beforehand import begin, check_file, check_images, check_precision
from excite.commands.common import Augmented, Device, Fold, Json, Trained, complete_precision
from excite.errors import ExciteError
from excite.text import print_json, tell

if TYPE_CHECKING:
    from excite.data.views import Tta


def predict(
    source: Trained,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE|FOLDER|GLOB...", help="What to classify.", callback=check_images)
    ],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes to show for each image.")] = 3,
    grid: Annotated[
        Path | None,
        typer.Option(help="Draw the first 50 images with their predicted class in this PNG file.", callback=check_file),
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, bf16, fp16, or auto (chosen for the device).",
            callback=check_precision,
            autocompletion=complete_precision,
        ),
    ] = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    fold: Fold = None,
    tta: Augmented = None,
    as_json: Json = False,
) -> None:
    """Classify images: print the names of the most likely classes.

    Images that cannot be read, or for which the network has no finite logits, are listed, and the exit status is 1.

    Examples:

      excite predict runs/my-run photo.jpg

      excite predict runs/my-run "photos/*.jpg" --json

      excite predict runs/my-run photos/ --grid out.png
    """
    begin(f"classifying with {source}")
    from functools import partial

    from excite.console import Display, ProgressBar, make_table
    from excite.logits import sentence
    from excite.trained.classify import predict as run_prediction
    from excite.trained.predictor import to_rows

    with ProgressBar("classifying") as progress:
        progress("loading the network", 0, 0)
        result = run_prediction(
            source,
            images,
            top_k=top_k,
            grid=grid,
            device=device,
            precision=precision,
            batch_size=batch_size,
            fold=fold,
            tta=cast("Tta | None", tta),
            say=progress.beside(tell),
            progress=partial(progress, "classifying"),
        )
    found, bad = result.readable, [f"cannot read image {path}: {reason}" for path, reason in result.bad]
    if as_json:
        print_json(to_rows(found))
    else:
        rows = [{"image": p.path, "top": p.text()} for p in found]
        several = any(len(p.top) > top_k for p in found) or any(p.answered and not p.top for p in found)
        Display().table(
            make_table(rows, [("image", "image", ""), ("top", "classes" if several else f"top {top_k}", "")])
        )
    without = [p.path for p in found if not p.answered]
    if told := sentence(len(without), len(found), without[0] if without else None, about="not classified"):
        bad.append(told)
    if bad:
        raise ExciteError("; ".join(bad))
