"""``excite scale``"""

from typing import Annotated

import typer

from excite.commands.beforehand import begin
from excite.commands.common import Json, complete_key, complete_recipe, complete_run
from excite.text import print_json, tell


def scale(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A recipe's name, a YAML file or a run folder.", autocompletion=complete_recipe
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Changes to it.", show_default=False, autocompletion=complete_key
        ),
    ] = None,
    devices: Annotated[str, typer.Option(metavar="N,...", help="How many, to plan for.")] = "1,8,64,1024",
    batch_per_device: Annotated[
        int | None,
        typer.Option(min=1, help="Let the batch grow with the devices (and scale the rate); else it is the recipe's."),
    ] = None,
    measured: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN", autocompletion=complete_run, help="A finished run to set beside; may be given several times."
        ),
    ] = None,
    measure: Annotated[
        str | None, typer.Option(metavar="N,...", help="Time steps on this machine in so many processes, such as 1,2.")
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="With --measure: steps timed of each.")] = 10,
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images, for the hours.", show_default=False)
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a device for an hour, for the cost.")] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another assumption than those listed; may be given several times."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict how a recipe scales to many devices, with measurements beside, before you rent them.

    Examples:

      excite scale imagenet-seresnet50-100ep --devices 8,64,1024

      excite scale imagenet-seresnet50-100ep --batch-per-device 128 --assume tflops=60 --assume network_gb_s=50

      excite scale cifar10-seresnet20 --measure 1,2 --batch-per-device 32

      excite scale imagenet-seresnet50-100ep --measured runs/one --measured runs/eight
    """
    from excite.recipe import load_recipe
    from excite.scaling import plan, plan_tables

    checked = load_recipe(recipe, overrides or [])
    begin(f"scaling {recipe}")
    result = plan(
        checked,
        devices=devices,
        batch_per_device=batch_per_device,
        measured=measured or [],
        measure_on=measure,
        steps=steps,
        images=images,
        price=price,
        assume=assume or [],
        progress=tell,
    )
    if as_json:
        print_json(result)
        return
    from excite.console import Display

    display = Display()
    for table in plan_tables(result):
        display.table(table)
    for note in result["notes"]:
        display.message(note)
