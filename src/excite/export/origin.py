"""What an artefact says of itself: where it came from and how it computes, written into it as JSON under ``excite``."""

from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from excite.errors import ExciteError
from excite.files import read_json
from excite.runtime.environment import git_state, versions
from excite.trained.predictor import Predictor
from excite.weights.locate import Located

KEY = "excite"
_RUNTIMES = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


def describe(predictor: Predictor, located: Located, kind: str) -> dict[str, Any]:
    """What the float32 artefact says of itself, JSON-able; :func:`describe_int8` makes it an int8 one's.

    Args:
        predictor: the trained network.
        located: where it came from.
        kind: ``uint8`` or ``float``, see ``Deployable``.
    """
    size, channels = predictor.preprocessing.image_size, predictor.preprocessing.in_chans
    shape = ["N", "H", "W", channels] if kind == "uint8" else ["N", channels, size, size]
    meta = predictor.meta
    return {
        "model": meta["model"],
        "classes": predictor.classes,
        "input": {"name": "image", "dtype": "uint8" if kind == "uint8" else "float32", "shape": shape}
        | {"range": [0, 255] if kind == "uint8" else [0, 1], "colour": "gray" if channels == 1 else "RGB"},
        "output": {"name": "logits", "dtype": "float32", "shape": ["N", len(predictor.classes)]},
        "preprocessing": predictor.preprocessing.to_dict(),
        "source": str(Path(located.source).absolute()) if Path(located.source).exists() else located.source,
        "weights_sha256": located.digest() or None,
        "precision": "fp32",
        "quantisation": None,
        "recipe": meta["recipe"],
        "metrics": meta.get("metrics"),
        "step": meta.get("step"),
        "converted_from": meta.get("converted_from"),
        "training": {"versions": meta.get("versions"), "git": _training_git(located.path.parent)},
        "export": {
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": versions() | _installed(),
            "git": git_state(),
        },
    }


def describe_int8(
    meta: Mapping[str, Any], tool: str, with_gates: bool, layers: Mapping[str, int], calibration: Mapping[str, Any]
) -> dict[str, Any]:
    """What the int8 artefact made of a float32 one says of itself.

    Args:
        meta: what the float32 artefact says.
        tool: the package that quantised.
        with_gates: whether the gates were quantised, too.
        layers: how many operators of each kind take int8 inputs.
        calibration: ``images`` (where they are from), ``count``, ``sha256`` of their prepared pixels.
    """
    about = {
        "tool": tool,
        "version": meta["export"]["versions"].get(tool),
        "gates": "int8" if with_gates else "float32",
        "layers": dict(layers),
        "weights": "int8, a scale for each output channel",
        "calibration": dict(calibration),
    }
    return {**meta, "precision": "int8", "quantisation": about}


def _installed() -> dict[str, str]:
    found = {}
    for name in _RUNTIMES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _training_git(folder: Path) -> Any:
    """Commit that the run was made with, from its environment.json."""
    for run in (folder, *folder.parents[1:2]):
        try:
            return read_json(run / "environment.json")["git"]
        except (ExciteError, KeyError):
            continue
    return None
