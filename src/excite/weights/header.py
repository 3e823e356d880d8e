"""The headers of weights files: a strict model of what stands in them.

A header is text in a file that came from anywhere. Nothing in it is used before it was found to have the types and
sizes that it should have; ``excite.training.checkpoint.build_network`` makes a network of what it says.
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

#: Characters. ImageNet-21k's names of classes take half a million.
LONGEST = 16 << 20
LONGEST_NAME = 10_000
#: Levels of lists and tables: a recipe has 5.
DEEPEST = 12
#: An integer among a model's arguments is a number of channels, layers, pixels or classes, which is not above this or
#: above what the tensors of the file have; a number with a fraction is a rate or an epsilon.
LARGEST = 4096
#: Arguments of timm's ``create_model`` that fetch or read another file; a network of ours is stored with its weights.
_FETCHING = ("pretrained", "checkpoint_path", "cache_dir")

_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


def _short(text: str) -> str:
    if len(text) > LONGEST_NAME:
        raise ValueError(f"a name has {len(text):,} characters, and at most {LONGEST_NAME:,} are read")
    return text


#: A name from a disk, that of a class, too: of bytes that are no UTF-8 there are lone surrogates in it (PEP 383), which
#: pydantic refuses in a text whose length it is to check.
_FileName = Annotated[str, AfterValidator(_short)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Part(BaseModel):
    """Keys that this version does not know are kept: a later one may have written them."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, protected_namespaces=())


class ModelHeader(_Part):
    """Which network: ``create_model(name, **args)``."""

    name: _Name
    args: dict[str, Any]

    @model_validator(mode="after")
    def _builds_one_classifier(self) -> "ModelHeader":
        for key, value in self.args.items():
            if key.startswith(_FETCHING):
                raise ValueError(f"model.args.{shown_text(key)} would fetch other weights than these")
            if key == "features_only" and value is not False:
                raise ValueError("model.args.features_only gives no classifier")
        for key in ("num_classes", "in_chans"):
            if key in self.args and (type(self.args[key]) is not int or not 0 <= self.args[key] < 1 << 31):
                raise ValueError(f"model.args.{key} is {shown(self.args[key])}, but should be a number")
        return self


class PreprocessingHeader(_Part):
    """How images become the network's input, see :class:`excite.data.Preprocessing`."""

    image_size: Annotated[int, Field(ge=1, le=LARGEST)]
    crop_pct: Annotated[_Finite, Field(gt=0, le=1)]
    mean: Annotated[list[_Finite], Field(min_length=1, max_length=LARGEST)]
    std: Annotated[list[Annotated[_Finite, Field(gt=0)]], Field(min_length=1, max_length=LARGEST)]
    in_chans: Annotated[int, Field(ge=1, le=LARGEST)]
    interpolation: Literal["bicubic", "bilinear"]
    white: Annotated[int, Field(ge=1, le=65535)] = 65535  # of images with 16 bits a channel

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
    """What it was trained by; checked as a recipe where it is used as one, as other versions have other keys."""

    name: Any = ""
    model: dict[str, Any]
    data: dict[str, Any]
    train: _TrainSection


class MetricsHeader(_Part):
    """Validation of the weights; a measure is absent where the run diverged."""

    top1: float | None = None
    top5: float | None = None
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
    """``create_model(name, **args)``; which arguments there are depends on the network."""

    name: str
    args: dict[str, Any]


class RecipeMeta(TypedDict):
    """A recipe's values, section by section, as another version may have written them: ``Recipe.from_dict`` checks."""

    name: str
    model: dict[str, Any]
    data: dict[str, Any]
    train: dict[str, Any]


class Summary(TypedDict):
    """One evaluation in a few numbers, see :class:`excite.training.evaluation.Evaluation`.

    The last three came after 0.1; what was measured in passing, as by ``excite prune``, is top-1 and loss alone.
    """

    images: NotRequired[int]
    loss: float | None
    top1: float
    top5: NotRequired[float]
    balanced: NotRequired[float]
    not_finite: NotRequired[int]
    first_not_finite: NotRequired[str | None]


class Meta(TypedDict):
    """What :class:`Header` has checked, as it is written and read: the values of JSON.

    Attributes:
        model: which network; trained_as: which one it was before a change that keeps its answers.
        classes: their names, in the order of the logits.
        preprocessing: how images become its input.
        recipe: what it was trained by, defaults filled in.
        metrics: of these weights on the validation images; None where they were not evaluated.
        versions: of packages, by name.
        step, epoch: how long it was trained.
        precision: in which it was trained.
        converted_from: ``source``, ``format``, ``layout`` of weights from elsewhere.
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
    """As little as weights need that are taken over into another network: which network they are of."""

    model: ModelHeader
    preprocessing: dict[str, Any] = {}


class ConvertedMeta(TypedDict):
    """What :class:`ConvertedHeader` has checked."""

    model: ModelMeta
    preprocessing: NotRequired[KnownPreprocessing]


class PlaceHeader(_Part):
    """A gate in a network of another library, see ``excite.models.grafting.places.Place``."""

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
    """What :class:`PlaceHeader` has checked; ``spec`` is the gate's table."""

    name: str
    channels: int
    size: list[int]
    channels_last: bool
    spec: dict[str, Any]


class GraftMeta(TypedDict):
    """What :class:`GraftHeader` has checked."""

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
    """The header of a file of this package, checked; keys that old files lack have the value that they stood for.

    Args:
        text: what stands in the file.
        path: for messages.
        model: what must be in it.

    Raises:
        ExciteError: it is damaged, or of another format.
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
        raise damaged(f"it is no JSON ({shown_text(str(error))})") from None
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
    """What no header has: levels without end, numbers that are no numbers or that torch could not hold."""
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
    """Raise ExciteError for a number among a model's arguments that the tensors do not bear out."""
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
