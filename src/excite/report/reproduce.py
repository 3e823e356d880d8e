"""The command that reproduces a run."""

import shlex

from excite.errors import ExciteError
from excite.recipe import Recipe, as_yaml, list_recipes, load_recipe
from excite.runtime.environment import Environment

#: File name for a recipe that is neither shipped nor in a run folder.
RECIPE_FILE = "recipe.yaml"


def reproducing_command(recipe: Recipe, environment: Environment | None, run: str | None) -> str:
    """The command line that trains the recipe again, in the same number of processes.

    It names the shipped recipe and the changes to it, and is checked to give the same recipe. If the recipe is not
    shipped, it names the run folder, or without one :data:`RECIPE_FILE`.

    Args:
        recipe: the recipe of the run.
        environment: the contents of ``environment.json``, if there is one.
        run: path of the run folder, if there is one.
    """
    words = ["excite", "train", *_recipe_words(recipe, run)]
    processes = (environment or {}).get("processes", 1)
    if processes > 1 and recipe.train.devices == 1:  # another launcher started them
        words = ["torchrun", "--nproc-per-node", str(processes), "-m", *words]
    return shlex.join(words)


def _recipe_words(recipe: Recipe, run: str | None) -> list[str]:
    if recipe.name in list_recipes():
        words = [recipe.name, *overrides_between(load_recipe(recipe.name), recipe)]
        try:
            if load_recipe(words[0], words[1:]) == recipe:
                return words
        except ExciteError:  # a combination that is only checked as a whole
            pass
    return [run or RECIPE_FILE]


def overrides_between(before: Recipe, after: Recipe) -> list[str]:
    """``section.key=value`` for every key of ``after`` that differs from ``before``, with values as YAML."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    words = []
    for section, values in new.items():
        if not isinstance(values, dict):
            words += [] if values == old[section] else [f"{section}={as_yaml(values)}"]
            continue
        words += [f"{section}.{key}={as_yaml(value)}" for key, value in values.items() if value != old[section][key]]
    return words
