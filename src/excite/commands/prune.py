"""``excite prune``"""

from pathlib import Path
from typing import Annotated

import typer

from excite.commands.beforehand import begin, check_data, check_new_folder
from excite.commands.common import Device, Json, OtherImages, Trained, teller
from excite.text import print_json


def prune(
    source: Trained,
    overrides: OtherImages = None,
    max_drop: Annotated[
        float, typer.Option(min=0, metavar="POINTS", help="Top-1 that pruning may cost, in percentage points.")
    ] = 0.0,
    tolerance: Annotated[
        float, typer.Option(min=0, help="A scale that stays this close to its mean counts as constant.")
    ] = 1e-4,
    calibration: Annotated[int, typer.Option(min=1, help="Training images used to measure the scales.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Batch size for timing.")] = 16,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write model.safetensors, prune.json and prune.png to it.", callback=check_new_folder
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Remove gates, least useful first, folding in their mean scale; report accuracy and time after each removal.

    Examples:

      excite prune runs/my-run --out pruned

      excite prune runs/my-run data.root=/other/images --max-drop 0.2 --out pruned
    """
    check_data(source, overrides)
    begin(f"pruning {source}")
    from excite.console import Display, make_table
    from excite.grafting.prune import prune as run_prune

    display = Display()
    result = run_prune(
        source,
        overrides,
        tolerance=tolerance,
        max_drop=max_drop,
        calibration=calibration,
        batch=batch,
        out=out,
        device=device,
        say=teller(display, as_json),
    )
    if as_json:
        print_json(result.to_dict())
        return
    rows = [
        {**row, "place": ("-> " if i == result.chosen else "") + (row["place"] or "as it was")}
        for i, row in enumerate(result.to_dict()["points"])
    ]
    several = "map" in rows[0]
    measure = "mAP" if several else "top-1"
    columns = [
        ("place", "gate removed", ""),
        ("gates", "gates left", "d"),
        ("effect", f"{measure} points lost if only this gate is removed", "+.2f"),
    ]
    columns += [
        ("map", "mAP", ".2f") if several else ("top1", "acc@top1", ".2f"),
        ("loss", "loss", ".4f"),
        ("ms", f"ms/{batch} images, {result.timed}", ".2f"),
    ]
    display.table(make_table(rows, [*columns, ("parameters", "parameters", ",d")]))
    if out is not None:
        display.message(f"{out}/: model.safetensors (the row with the arrow), prune.json, prune.png")
