"""The metadata of an artefact: its origin and how it computes, stored in it as JSON under the key ``excite``."""

from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from excite.data.stored import PreprocessingValues
from excite.errors import ExciteError
from excite.runtime.environment import GitState, git_state, read_environment, versions
from excite.trained.predictor import Predictor
from excite.weights.header import ModelMeta, RecipeMeta, Summary
from excite.weights.locate import Located

KEY = "excite"
_RUNTIMES = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


class PortMeta(TypedDict):
    """An input or output: its name, type and shape (numbers, or letters for variable sizes).

    Attributes:
        range: range of the values of images.
        colour: order of the channels of images.
    """

    name: str
    dtype: str
    shape: list[str | int]
    range: NotRequired[list[int]]
    colour: NotRequired[str]


class CalibrationMeta(TypedDict):
    """The images used for int8 calibration; ``sha256`` is that of their prepared pixels."""

    images: str
    count: int
    sha256: str


class QuantisationMeta(TypedDict):
    """How an artefact was quantised; ``layers``: number of operators with int8 inputs, by kind."""

    tool: str
    version: str | None
    gates: str
    layers: dict[str, int]
    weights: str
    calibration: CalibrationMeta


class TrainingMeta(TypedDict):
    """Versions and git state of the training."""

    versions: Mapping[str, str | None] | None
    git: GitState | None


class ExportMeta(TypedDict):
    """Time, versions and git state of the export."""

    created: str
    versions: dict[str, str]
    git: GitState | None


class ArtefactMeta(TypedDict):
    """The metadata of an artefact; keys shared with :class:`excite.weights.header.Meta` have the same meaning.

    Attributes:
        task: "classes" if an image has one class: that of the largest logit. "multilabel" if it may have several: those
            whose sigmoid is at least ``threshold``, which is None for one class.
        source: the exported run or checkpoint.
        weights_sha256: SHA-256 of its weights, in hexadecimal.
    """

    model: ModelMeta
    classes: list[str]
    task: Literal["classes", "multilabel"]
    threshold: float | None
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
    """The metadata of a float32 artefact, ready for JSON; :func:`describe_int8` changes them to those of an int8 one.

    Args:
        predictor: the trained network.
        located: its origin.
        kind: ``uint8`` or ``float``, see ``Deployable``.
    """
    channels, height, width = predictor.preprocessing.shape
    image: PortMeta = {
        "name": "image",
        "dtype": "uint8" if kind == "uint8" else "float32",
        "shape": ["N", "H", "W", channels] if kind == "uint8" else ["N", channels, height, width],
        "range": [0, 255] if kind == "uint8" else [0, 1],
        "colour": {1: "gray", 3: "RGB"}.get(channels, f"{channels} bands"),
    }
    meta = predictor.meta
    return {
        "model": meta["model"],
        "classes": predictor.classes,
        "task": "multilabel" if predictor.several else "classes",
        "threshold": predictor.threshold if predictor.several else None,
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
    """The metadata of an int8 artefact.

    Args:
        meta: the metadata of the float32 artefact.
        tool: the package that quantised it.
        with_gates: whether the gates were quantised, too.
        layers: number of operators with int8 inputs, by kind.
        calibration: the calibration images.
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
    """The git state of the training, from the run's environment.json."""
    for run in (folder, *folder.parents[1:2]):
        try:
            return read_environment(run / "environment.json")["git"]
        except (ExciteError, KeyError):
            continue
    return None
