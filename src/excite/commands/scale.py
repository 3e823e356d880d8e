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
            metavar="RECIPE", help="A recipe name, a YAML file or a run folder.", autocompletion=complete_recipe
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Changes to the recipe.", show_default=False, autocompletion=complete_key
        ),
    ] = None,
    devices: Annotated[str, typer.Option(metavar="N,...", help="Numbers of devices to plan for.")] = "1,8,64,1024",
    batch_per_device: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Batch per device; the total grows with the devices.  [default: keep the recipe's total]",
        ),
    ] = None,
    measured: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN", autocompletion=complete_run, help="A finished run to show alongside; may be repeated."
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Time steps on this machine with these numbers of processes, such as 1,2."),
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="With --measure: timed steps for each number.")] = 10,
    images: Annotated[
        int | None, typer.Option(min=1, help="Number of training images, for the training time.", show_default=False)
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of one device for one hour, for the cost.")] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Change one of the listed assumptions; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict how a recipe scales to many devices, next to measurements, before you rent them.

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
