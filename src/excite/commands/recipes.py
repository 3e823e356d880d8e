"""``excite recipes``"""

import sys
from typing import Annotated

import typer

from excite.commands.common import Json
from excite.text import columns, print_json, show, with_fitting_comments


def _complete_recipe(incomplete: str) -> list[str]:
    from excite.recipe import list_recipes

    return [name for name in list_recipes() if name.startswith(incomplete)]


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="Print this recipe in full.", autocompletion=_complete_recipe, show_default=False),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema for recipes, for use in editors.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the recipes, or print one.

    Examples:

      excite recipes

      excite recipes cifar10-seresnet20 > mine.yaml

      excite recipes --schema > excite-recipe.schema.json
    """
    from excite.recipe import json_schema, list_recipes, load_recipe, recipe_text, recipe_title

    if schema:
        show(json_schema().rstrip("\n"))
        return
    if name is not None:
        if as_json:
            print_json(load_recipe(name).model_dump(mode="json"))
        else:
            text, width = recipe_text(name)[0].rstrip("\n"), columns(sys.stdout)
            show(text if width is None else with_fitting_comments(text, width))
        return
    rows = []
    for each in list_recipes():
        recipe = load_recipe(each)
        what = recipe_title(each)
        rows.append({"recipe": each, "model": recipe.model.name, "epochs": recipe.train.epochs, "what": what})
    if as_json:
        print_json(rows)
        return
    from excite.console import Display, make_table

    shown = [("recipe", "recipe", ""), ("model", "model", ""), ("epochs", "epochs", "d"), ("what", "what", "")]
    Display().table(make_table(rows, shown, prose=["what"]))
