"""Where an artefact came from: what is written into it as JSON, under the key ``excite``."""

import hashlib
import json
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from excite.inference import Predictor
from excite.training.run_folder import git_state, versions

KEY = "excite"
_RUNTIMES = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


def describe(predictor: Predictor, path: Path, source: str, kind: str) -> dict[str, Any]:
    """What the artefact says of itself, JSON-able.

    Args:
        predictor: the trained network.
        path: the weights file, or another system's checkpoint.
        source: what the user named.
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
        "source": str(Path(source).absolute()) if Path(source).exists() else source,
        "weights_sha256": _sha256(path),
        "recipe": meta["recipe"],
        "metrics": meta.get("metrics"),
        "step": meta.get("step"),
        "converted_from": meta.get("converted_from"),
        "training": {"versions": meta.get("versions"), "git": _training_git(path.parent)},
        "export": {
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": versions() | _installed(),
            "git": git_state(),
        },
    }


def _installed() -> dict[str, str]:
    found = {}
    for name in _RUNTIMES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _training_git(folder: Path) -> Any:
    """Commit that the run was made with, from its environment.json."""
    for run in (folder, *folder.parents[1:2]):
        try:
            return json.loads((run / "environment.json").read_text(encoding="utf-8"))["git"]
        except (OSError, KeyError, ValueError):
            continue
    return None
