"""The headers of weights files: a strict schema of their contents.

A header is text in a file from anywhere. Nothing in it is used before its types and sizes have been checked;
``excite.weights.own.build_network`` builds the network that it describes.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, overload

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypedDict  # the standard library's has no model in pydantic before Python 3.12

from excite.data.stored import KnownPreprocessing, PreprocessingValues
from excite.errors import ExciteError, explain, shown, shown_text
from excite.files import from_json
from excite.recipe import is_plain_name, plain_name

if TYPE_CHECKING:
    from torch import Tensor

#: In characters. The class names of ImageNet-21k take half a million.
LONGEST = 16 << 20
LONGEST_NAME = 10_000
#: Nesting levels of lists and tables; a recipe has 5.
DEEPEST = 12
#: An integer among a model's arguments is a number of channels, layers, pixels or classes. It must not exceed this or
#: the sizes of the file's tensors. A number with a fraction is a rate or an epsilon.
LARGEST = 4096
#: Arguments of timm's ``create_model`` that download or read another file; our files contain their weights.
_FETCHING = ("pretrained", "checkpoint_path", "cache_dir")

_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


def _short(text: str) -> str:
    if len(text) > LONGEST_NAME:
        raise ValueError(f"a name has {len(text):,} characters, and at most {LONGEST_NAME:,} are read")
    return text


#: A name from a disk, such as that of a class. Bytes that are not UTF-8 become lone surrogates (PEP 383), which
#: pydantic refuses in a text with a length limit.
_FileName = Annotated[str, AfterValidator(_short)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Side = Annotated[int, Field(ge=1, le=LARGEST)]


class _Part(BaseModel):
    """Base class: unknown keys are kept, because a later version may have written them."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, protected_namespaces=())


class ModelHeader(_Part):
    """The network: ``create_model(name, **args)``."""

    name: _Name
    args: dict[str, Any]

    @model_validator(mode="after")
    def _builds_one_classifier(self) -> "ModelHeader":
        for key, value in self.args.items():
            if key.startswith(_FETCHING):
                raise ValueError(f"model.args.{shown_text(key)} would download other weights")
            if key == "features_only" and value is not False:
                raise ValueError("model.args.features_only gives no classifier")
        for key in ("num_classes", "in_chans"):
            if key in self.args and (type(self.args[key]) is not int or not 0 <= self.args[key] < 1 << 31):
                raise ValueError(f"model.args.{key} is {shown(self.args[key])}, but should be a number")
        return self


class PreprocessingHeader(_Part):
    """The preprocessing of images; see :class:`excite.data.Preprocessing`."""

    image_size: _Side | Annotated[list[_Side], Field(min_length=2, max_length=2)]
    crop_pct: Annotated[_Finite, Field(gt=0, le=1)]
    mean: Annotated[list[_Finite], Field(min_length=1, max_length=LARGEST)]
    std: Annotated[list[Annotated[_Finite, Field(gt=0)]], Field(min_length=1, max_length=LARGEST)]
    in_chans: Annotated[int, Field(ge=1, le=LARGEST)]
    interpolation: Literal["bicubic", "bilinear"]
    white: Annotated[int, Field(ge=1, le=65535)] = 65535  # of images with 16 bits a channel
    fit: Literal["crop", "letterbox", "stretch"] = "crop"

    @model_validator(mode="after")
    def _lengths_fit(self) -> "PreprocessingHeader":
        for key in ("mean", "std"):
            if len(getattr(self, key)) != self.in_chans:
                raise ValueError(
                    f"preprocessing.{key} has {len(getattr(self, key))} values, but in_chans is {self.in_chans}"
                )
        return self


class _TrainSection(_Part):
    norm_precision: Literal["auto", "fp32", "same"] = "auto"  # 0.1 files lack it


class RecipeHeader(_Part):
    """The recipe that it was trained with. It is only checked as a recipe when used as one, because other versions have
    other keys."""

    name: Any = ""
    model: dict[str, Any]
    data: dict[str, Any]
    train: _TrainSection


class MetricsHeader(_Part):
    """Validation results of the weights; a measure is absent if the run diverged."""

    top1: float | None = None
    top5: float | None = None
    threshold: Annotated[_Finite, Field(ge=0, le=1)] | None = None
    loss: float | None = None
    images: _Count | None = None


class Header(_Part):
    """The header of a checkpoint of this package, ``format_version`` 1."""

    format_version: Literal[1]
    model: ModelHeader
    classes: Annotated[list[_FileName], Field(min_length=1, max_length=1 << 20)]
    preprocessing: PreprocessingHeader
    recipe: RecipeHeader
    metrics: MetricsHeader | None = None
    versions: dict[str, str | None] | None = None
    step: _Count = 0
    epoch: Annotated[_Finite, Field(ge=0)] = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    converted_from: dict[str, str] | None = None
    trained_as: ModelHeader | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Header":
        classes, channels = self.model.args.get("num_classes"), self.model.args.get("in_chans")
        if classes is not None and classes != len(self.classes):
            raise ValueError(f"model.args.num_classes is {classes}, but there are {len(self.classes)} classes")
        if channels is not None and channels != self.preprocessing.in_chans:
            raise ValueError(
                f"model.args.in_chans is {channels}, but preprocessing.in_chans is {self.preprocessing.in_chans}"
            )
        return self


class ModelMeta(TypedDict):
    """``create_model(name, **args)``; the arguments depend on the network."""

    name: str
    args: dict[str, Any]


class RecipeMeta(TypedDict):
    """The values of a recipe by section. Another version may have written them; ``Recipe.from_dict`` checks them."""

    name: str
    model: dict[str, Any]
    data: dict[str, Any]
    train: dict[str, Any]


class Summary(TypedDict):
    """An evaluation in a few numbers; see :class:`excite.training.evaluation.Evaluation`.

    Those from ``balanced`` on were added after 0.1; ``auroc`` and ``map`` are there if a recipe asks for
    them. With several labels an image, there are ``map``, ``micro_f1`` and the ``threshold`` that both F1 are measured
    at. Some evaluations, as in ``excite prune``, only have top-1 and loss.
    """

    images: NotRequired[int]
    loss: float | None
    top1: float
    top5: NotRequired[float]
    balanced: NotRequired[float]
    macro_f1: NotRequired[float]
    auroc: NotRequired[float | None]
    map: NotRequired[float | None]
    micro_f1: NotRequired[float]
    threshold: NotRequired[float]
    not_finite: NotRequired[int]
    first_not_finite: NotRequired[str | None]


def several_labels(meta: "Meta") -> bool:
    """Whether images may have several labels each, maybe none (``task=multilabel``)."""
    return meta["recipe"]["data"].get("task") == "multilabel"


def threshold_of(meta: "Meta") -> float:
    """The probability from which on a class of several is predicted: chosen on the validation images, else 0.5."""
    metrics = meta.get("metrics")
    known = None if metrics is None else metrics.get("threshold")
    return 0.5 if known is None else known


class Meta(TypedDict):
    """The JSON values of a header, checked by :class:`Header`.

    Attributes:
        model: the network.
        trained_as: the network before a change that preserves its output.
        classes: class names, in the order of the logits.
        preprocessing: preprocessing of images.
        recipe: the recipe that it was trained with, with defaults filled in.
        metrics: results of these weights on the validation images; None if they were not evaluated.
        versions: package -> version.
        step, epoch: how long it was trained.
        precision: the precision of the training.
        converted_from: ``source``, ``format`` and ``layout`` of converted weights.
    """

    model: ModelMeta
    classes: list[str]
    preprocessing: PreprocessingValues
    recipe: RecipeMeta
    metrics: Summary | None
    versions: NotRequired[Mapping[str, str | None] | None]
    step: int
    epoch: float
    precision: str
    converted_from: NotRequired[dict[str, str] | None]
    trained_as: NotRequired[ModelMeta | None]


class ConvertedHeader(_Part):
    """The minimum for loading weights into another network: which network they belong to."""

    model: ModelHeader
    preprocessing: dict[str, Any] = {}


class ConvertedMeta(TypedDict):
    """Values checked by :class:`ConvertedHeader`."""

    model: ModelMeta
    preprocessing: NotRequired[KnownPreprocessing]


class PlaceHeader(_Part):
    """A gate in a network of another library; see ``excite.models.grafting.places.Place``."""

    name: Annotated[str, Field(min_length=1, max_length=1000)]
    channels: Annotated[int, Field(ge=1, lt=1 << 31)]
    size: Annotated[list[Annotated[int, Field(ge=1, lt=1 << 31)]], Field(min_length=2, max_length=2)]
    channels_last: bool
    spec: dict[str, Any]


class GraftHeader(_Part):
    """The header of a network of another library with grafted gates, ``format_version`` 1."""

    format_version: Literal[1]
    source: _FileName
    network: Annotated[str, Field(max_length=1000)]
    places: Annotated[list[PlaceHeader], Field(min_length=1, max_length=100_000)]


class PlaceMeta(TypedDict):
    """Values checked by :class:`PlaceHeader`; ``spec`` is the gate's table."""

    name: str
    channels: int
    size: list[int]
    channels_last: bool
    spec: dict[str, Any]


class GraftMeta(TypedDict):
    """Values checked by :class:`GraftHeader`."""

    format_version: int
    source: str
    network: str
    places: list[PlaceMeta]


@overload
def read_header(text: str, path: str | Path) -> Meta: ...
@overload
def read_header(text: str, path: str | Path, model: type[ConvertedHeader]) -> ConvertedMeta: ...
@overload
def read_header(text: str, path: str | Path, model: type[GraftHeader]) -> GraftMeta: ...
def read_header(text: str, path: str | Path, model: type[_Part] = Header) -> Any:
    """Check the header of a file of this package. Keys that old files lack get the value that applied then.

    Args:
        text: the header as in the file.
        path: the file, for messages.
        model: the schema.

    Raises:
        ExciteError: it is damaged, or has another format version.
    """

    def damaged(why: str) -> ExciteError:
        return ExciteError(
            f"{path} says that excite wrote it, but its header is damaged: {why}; get or write the file again"
        )

    if len(text) > LONGEST:
        raise damaged(f"it has {len(text)} characters")
    try:
        meta = from_json(text)
    except ValueError as error:
        raise damaged(f"it is not JSON ({shown_text(str(error))})") from None
    if not isinstance(meta, dict):
        raise damaged(f"it is a {type(meta).__name__}")
    if why := _implausible(meta):
        raise damaged(why)
    version = meta.get("format_version")
    if type(version) is int and version != 1 and "format_version" in model.model_fields:
        if model is GraftHeader:
            raise ExciteError(f"{path} has format {shown(version)}; this version reads 1")
        raise ExciteError(f"{path} has checkpoint format {shown(version)}; this version of excite reads 1")
    try:
        model.model_validate(meta)
    except ValidationError as error:
        raise damaged("; ".join(explain(e) for e in error.errors()[:3])) from None
    if model is Header:
        name = meta["recipe"].get("name")
        if isinstance(name, str) and not is_plain_name(name):  # 0.1 took any
            meta["recipe"]["name"] = plain_name(name)
        meta.setdefault("precision", "fp32")
        for key, value in (("metrics", None), ("step", 0), ("epoch", 0.0)):
            meta.setdefault(key, value)
    return meta


def _implausible(value: Any) -> str | None:
    """What no valid header has: endless nesting, or numbers that are not finite or that torch cannot hold."""
    level: list[tuple[str, Any]] = [("it", value)]
    for _ in range(DEEPEST):
        inner: list[tuple[str, Any]] = []
        for where, one in level:
            if isinstance(one, dict):
                inner += [(str(key), each) for key, each in one.items()]
            elif isinstance(one, list):
                inner += [(where, each) for each in one]
            elif isinstance(one, float) and not math.isfinite(one):
                return f"{shown_text(where)} is {one}"
            elif isinstance(one, int) and abs(one) >= 1 << 63:
                return f"{shown_text(where)} is {shown(one)}"
        level = inner
        if not level:
            return None
    return f"it is nested more than {DEEPEST} deep"


def check_arguments(path: str | Path, args: Any, tensors: "Mapping[str, Tensor]") -> None:
    """Raise ExciteError for a number among a model's arguments that the tensors contradict."""
    most = max([LARGEST, len(tensors), *(size for tensor in tensors.values() for size in tensor.shape)])

    def walk(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for inner, each in value.items():
                walk(f"{key}.{inner}", each)
        elif isinstance(value, list):
            for each in value:
                walk(key, each)
        elif isinstance(value, int | float) and abs(value) > most:
            raise ExciteError(
                f"{path} says that {shown_text(key)} of its model is {shown(value)}, but no tensor in it is larger "
                f"than {most}: its header is damaged; get or write the file again"
            )

    walk("args", args)
