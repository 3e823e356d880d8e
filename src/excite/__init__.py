"""Image classifiers with Squeeze-and-Excitation and Gather-Excite gates: train, evaluate, explain, ship.

Nothing heavy is imported until a name is used.
"""

from excite.children import forget_current_folder

forget_current_folder()  # before the imports that a file there could stand in for

from importlib import import_module  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    __version__: str
    from excite.errors import ExciteError as ExciteError
    from excite.gates import list_gates as list_gates
    from excite.grafting import graft as graft
    from excite.grafting import ungraft as ungraft
    from excite.models import create_model as create_model
    from excite.models import fold as fold
    from excite.models import list_models as list_models
    from excite.models import resize_gates as resize_gates
    from excite.recipe import Recipe as Recipe
    from excite.recipe import list_recipes as list_recipes
    from excite.recipe import load_recipe as load_recipe
    from excite.trained.accuracy import validate as validate
    from excite.trained.predictor import Predictor as Predictor
    from excite.trained.predictor import load as load
    from excite.training import train as train
    from excite.twins import run_twins as run_twins
    from excite.weights.convert import load_weights as load_weights

_HOMES = {
    "ExciteError": "excite.errors",
    "Predictor": "excite.trained.predictor",
    "load": "excite.trained.predictor",
    "validate": "excite.trained.accuracy",
    "create_model": "excite.models",
    "fold": "excite.models",
    "list_models": "excite.models.catalog",
    "resize_gates": "excite.models",
    "list_gates": "excite.gates",
    "graft": "excite.grafting",
    "ungraft": "excite.grafting",
    "Recipe": "excite.recipe",
    "list_recipes": "excite.recipe",
    "load_recipe": "excite.recipe",
    "train": "excite.training",
    "run_twins": "excite.twins",
    "load_weights": "excite.weights.convert",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "explain":  # a package: `excite.explain.explain(run)`
        return import_module("excite.explain")
    if name == "__version__":  # 0.07 s, of every command, to look it up
        from importlib import metadata

        return metadata.version("excite")
    raise AttributeError(f"module 'excite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
