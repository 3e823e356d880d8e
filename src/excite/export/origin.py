"""What an artefact says of itself: where it came from and how it computes, written into it as JSON under ``excite``."""

from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import NotRequired, TypedDict

from excite.data.stored import PreprocessingValues
from excite.errors import ExciteError
from excite.runtime.environment import GitState, git_state, read_environment, versions
from excite.trained.predictor import Predictor
from excite.weights.header import ModelMeta, RecipeMeta, Summary
from excite.weights.locate import Located

KEY = "excite"
_RUNTIMES = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


class PortMeta(TypedDict):
    """An input or output: its name, type and shape (numbers, or letters for what varies).

    Attributes:
        range: of the values of images; colour: order of their channels.
    """

    name: str
    dtype: str
    shape: list[str | int]
    range: NotRequired[list[int]]
    colour: NotRequired[str]


class CalibrationMeta(TypedDict):
    """Images that int8 ranges were taken from; sha256 of their prepared pixels."""

    images: str
    count: int
    sha256: str


class QuantisationMeta(TypedDict):
    """How an artefact was made int8; ``layers``: how many operators of each kind take int8 inputs."""

    tool: str
    version: str | None
    gates: str
    layers: dict[str, int]
    weights: str
    calibration: CalibrationMeta


class TrainingMeta(TypedDict):
    """With what it was trained."""

    versions: Mapping[str, str | None] | None
    git: GitState | None


class ExportMeta(TypedDict):
    """When and with what it was exported."""

    created: str
    versions: dict[str, str]
    git: GitState | None


class ArtefactMeta(TypedDict):
    """What an artefact says of itself; the keys that it shares with :class:`excite.weights.header.Meta` mean the same.

    Attributes:
        source: where it came from; weights_sha256: hexadecimal.
    """

    model: ModelMeta
    classes: list[str]
    input: PortMeta
    output: PortMeta
    preprocessing: PreprocessingValues
    source: str
    weights_sha256: str | None
    precision: str
    quantisation: QuantisationMeta | None
    recipe: RecipeMeta
    metrics: Summary | None
    step: int
    converted_from: dict[str, str] | None
    training: TrainingMeta
    export: ExportMeta


def describe(predictor: Predictor, located: Located, kind: str) -> ArtefactMeta:
    """What the float32 artefact says of itself, JSON-able; :func:`describe_int8` makes it an int8 one's.

    Args:
        predictor: the trained network.
        located: where it came from.
        kind: ``uint8`` or ``float``, see ``Deployable``.
    """
    size, channels = predictor.preprocessing.image_size, predictor.preprocessing.in_chans
    image: PortMeta = {
        "name": "image",
        "dtype": "uint8" if kind == "uint8" else "float32",
        "shape": ["N", "H", "W", channels] if kind == "uint8" else ["N", channels, size, size],
        "range": [0, 255] if kind == "uint8" else [0, 1],
        "colour": "gray" if channels == 1 else "RGB",
    }
    meta = predictor.meta
    return {
        "model": meta["model"],
        "classes": predictor.classes,
        "input": image,
        "output": {"name": "logits", "dtype": "float32", "shape": ["N", len(predictor.classes)]},
        "preprocessing": predictor.preprocessing.to_dict(),
        "source": str(Path(located.source).absolute()) if Path(located.source).exists() else located.source,
        "weights_sha256": located.digest() or None,
        "precision": "fp32",
        "quantisation": None,
        "recipe": meta["recipe"],
        "metrics": meta["metrics"],
        "step": meta["step"],
        "converted_from": meta.get("converted_from"),
        "training": {"versions": meta.get("versions"), "git": _training_git(located.path.parent)},
        "export": {
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": versions() | _installed(),
            "git": git_state(),
        },
    }


def describe_int8(
    meta: ArtefactMeta, tool: str, with_gates: bool, layers: Mapping[str, int], calibration: CalibrationMeta
) -> ArtefactMeta:
    """What the int8 artefact made of a float32 one says of itself.

    Args:
        meta: what the float32 artefact says.
        tool: the package that quantised.
        with_gates: whether the gates were quantised, too.
        layers: how many operators of each kind take int8 inputs.
        calibration: the images that its ranges were taken from.
    """
    about: QuantisationMeta = {
        "tool": tool,
        "version": meta["export"]["versions"].get(tool),
        "gates": "int8" if with_gates else "float32",
        "layers": dict(layers),
        "weights": "int8, a scale for each output channel",
        "calibration": calibration,
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


def _training_git(folder: Path) -> GitState | None:
    """Commit that the run was made with, from its environment.json."""
    for run in (folder, *folder.parents[1:2]):
        try:
            return read_environment(run / "environment.json")["git"]
        except (ExciteError, KeyError):
            continue
    return None
