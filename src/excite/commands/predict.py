"""``excite predict``"""

from pathlib import Path
from typing import Annotated

import typer

from excite.commands.common import Device, Fold, Json, Trained, check_precision, complete_precision
from excite.errors import ExciteError
from excite.text import print_json, tell


def predict(
    source: Trained,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE|FOLDER|GLOB...", help="What to classify.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes to show for each image.")] = 3,
    grid: Annotated[Path | None, typer.Option(help="Draw the first 50 images with their class into this PNG.")] = None,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(autocompletion=complete_precision, help="fp32, bf16, fp16, or auto: what suits the device.")
    ] = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    fold: Fold = None,
    as_json: Json = False,
) -> None:
    """Classify images: the most likely classes by name. Unreadable images are named, and make the exit status 1.

    So do images for which the network has no finite logits.

    Examples:

      excite predict runs/my-run photo.jpg

      excite predict runs/my-run "photos/*.jpg" --json

      excite predict runs/my-run photos/ --grid out.png
    """
    from excite.console import Display, ProgressBar, make_table
    from excite.data.decode import BadImageError
    from excite.logits import sentence
    from excite.trained.files import draw_grid, find_images
    from excite.trained.predictor import NO_ANSWER, Prediction, load, to_rows

    files = find_images(images, tell)
    predictor = load(source, device, check_precision(precision) or "fp32", fold)
    found: list[Prediction] = []
    bad: list[str] = []
    with ProgressBar("classifying") as progress:
        for start in range(0, len(files), batch_size):
            part = files[start : start + batch_size]
            try:
                found += predictor.predict(part, top_k, batch_size)
            except BadImageError:
                for file in part:  # one by one, so that a broken image costs only itself
                    try:
                        found += predictor.predict([file], top_k)
                    except BadImageError as error:
                        bad.append(str(error))
            progress("classifying", start + len(part), len(files))
    if as_json:
        print_json(to_rows(found))
    else:
        rows = [
            {"image": p.path, "top": "  ".join(f"{c} {100 * v:.1f} %" for c, v in p.top) or NO_ANSWER} for p in found
        ]
        Display().table(make_table(rows, [("image", "image", ""), ("top", f"top {top_k}", "")]))
    if grid is not None and found:
        tell(f"grid: {draw_grid(found, grid, white=predictor.preprocessing.white)}")
    without = [p.path for p in found if not p.top]
    if told := sentence(len(without), len(found), without[0] if without else None, about="not classified"):
        bad.append(told)
    if bad:
        raise ExciteError("; ".join(bad))
