"""Image classifiers with Squeeze-and-Excitation and Gather-Excite gates: train, evaluate, explain, ship.

Heavy modules are only imported when a name that needs them is used.
"""

from excite.children import forget_current_folder

forget_current_folder()  # before imports that a file there could shadow

import sys  # noqa: E402
import warnings  # noqa: E402
from importlib import import_module  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    __version__: str
    from excite.bench.build import bench as _bench
    from excite.compare.written import compare_and_write as _compare
    from excite.datacheck.build import check_data as check_data
    from excite.errors import ExciteError as ExciteError
    from excite.explain.written import explain_and_write as _explain
    from excite.export.build import export as _export
    from excite.gates import list_gates as list_gates
    from excite.grafting import graft as graft
    from excite.grafting import ungraft as ungraft
    from excite.grafting.prune import prune as prune
    from excite.lazy import CalledPackage as _CalledPackage
    from excite.models import create_model as create_model
    from excite.models import fold as fold
    from excite.models import list_models as list_models
    from excite.models import resize_gates as resize_gates
    from excite.recipe import Recipe as Recipe
    from excite.recipe import list_recipes as list_recipes
    from excite.recipe import load_recipe as load_recipe
    from excite.report.after_training import train as train
    from excite.report.build import report as _report
    from excite.trained.accuracy import validate as validate
    from excite.trained.classify import predict as predict
    from excite.trained.predictor import Predictor as Predictor
    from excite.trained.predictor import load as load
    from excite.trained.verify import verify as verify
    from excite.twins import run_twins as run_twins
    from excite.weights.conversion import convert_file as _convert
    from excite.weights.convert import load_weights as load_weights

    convert = _convert
    # Packages that can be called: see excite.lazy.
    bench, compare, explain = _CalledPackage(_bench), _CalledPackage(_compare), _CalledPackage(_explain)
    export, report, twins = _CalledPackage(_export), _CalledPackage(_report), _CalledPackage(run_twins)

if "IPython" in sys.modules:  # Accelerate imports tqdm, which asks there for widgets that nothing here uses
    warnings.filterwarnings("ignore", "IProgress not found")

#: Name -> the module that defines it, or "module:name in it".
_HOMES = {
    "ExciteError": "excite.errors",
    "Predictor": "excite.trained.predictor",
    "check_data": "excite.datacheck.build",
    "convert": "excite.weights.conversion:convert_file",
    "load": "excite.trained.predictor",
    "predict": "excite.trained.classify",
    "prune": "excite.grafting.prune",
    "validate": "excite.trained.accuracy",
    "verify": "excite.trained.verify",
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
    "train": "excite.report.after_training",
    "run_twins": "excite.twins",
    "load_weights": "excite.weights.convert",
}
#: Packages that can also be called: ``excite.report(...)``, ``excite.report.Page`` (see ``excite.lazy``).
_CALLED = ("bench", "compare", "explain", "export", "report", "twins")
__all__ = sorted([*_HOMES, *_CALLED])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, _, own = _HOMES[name].partition(":")
        return getattr(import_module(module), own or name)
    if name in _CALLED:
        return import_module(f"excite.{name}")
    if name == "__version__":  # looked up here, because it takes 0.07 s
        from importlib import metadata

        return metadata.version("excite")
    raise AttributeError(f"module 'excite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
