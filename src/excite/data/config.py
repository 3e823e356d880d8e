"""The data sections of a recipe: where the data comes from (`DataConfig`) and how it is augmented (`AugmentConfig`).

Pure pydantic: nothing heavy is imported, so that reading a recipe or printing its schema stays fast.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from excite.data.catalog import SOURCES, SourceName, formats
from excite.errors import ExciteError, no_path, shown, shown_text
from excite.options import NEUTRAL
from excite.size import Size, as_size, plain_size
from excite.storage.address import is_remote, refuse_secrets

#: Pillow always refuses larger images (twice Image.MAX_IMAGE_PIXELS), so a larger `max_pixels` would have no effect.
PILLOW_LIMIT = 178_956_970
#: The largest side of the images that a network sees, in pixels.
LARGEST = 4096


#: How often an epoch draws each class; see excite.data.sampler.
SamplerName = Literal["balanced", "sqrt", "weights"]


def _as_list(value: Any) -> Any:
    """Accept tuples, which Python users write; strict mode only accepts lists."""
    return list(value) if isinstance(value, tuple) else value


Numbers = Annotated[list[float], BeforeValidator(_as_list)]


def _as_image_size(value: Any, info: ValidationInfo) -> Any:
    """A size as it is stored: a number of pixels, or [height, width] if they differ."""
    name = "train.progressive" if info.field_name == "progressive" else f"data.{info.field_name}"
    sides = _as_list(value)
    sides = sides if isinstance(sides, list) and len(sides) == 2 else [value]
    if any(type(side) is not int or not 1 <= side <= LARGEST for side in sides):
        raise ValueError(
            f"{name} is {shown(value)}, but a size is a number of pixels from 1 to {LARGEST}, or "
            "[height, width], such as [96,160]"
        )
    return plain_size(sides[0] if len(sides) == 1 else sides)


def _as_fold(value: Any) -> Any:
    """A fold as it is stored: [which, of how many], also from the text "1/5"."""
    pair = _as_list(value)
    if isinstance(value, str) and value.count("/") == 1 and all(part.strip().isdecimal() for part in value.split("/")):
        pair = [int(part) for part in value.split("/")]
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or any(type(n) is not int for n in pair)
        or not 1 <= pair[0] <= pair[1] <= MOST_FOLDS
        or pair[1] < 2
    ):
        raise ValueError(
            f"data.fold is {shown(value)}, but a fold is its number and how many there are (2 to {MOST_FOLDS}), as in "
            "data.fold=1/5 for the first of five"
        )
    return pair


#: More folds than anybody trains.
MOST_FOLDS = 1000
#: Which fold, and of how many.
Fold = Annotated[list[int], BeforeValidator(_as_fold)]


#: Height and width in pixels: a number for squares, or [height, width].
_Side = Annotated[int, Field(ge=1, le=LARGEST)]
ImageSize = Annotated[
    _Side | Annotated[list[_Side], Field(min_length=2, max_length=2)], BeforeValidator(_as_image_size)
]
Pair = Annotated[list[float], BeforeValidator(_as_list), Field(min_length=2, max_length=2)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ColumnsConfig(_Strict):
    """The columns of a table. A column that is not named is found by its usual names, and said."""

    path: str | None = Field(default=None, description="column with the path of each image, or with the image itself")
    label: str | list[str] | None = Field(
        default=None, description="column with the class, or the classes; or a list of columns of 0 and 1, one a class"
    )
    separator: str | None = Field(
        default=None,
        min_length=1,
        description="multilabel: what stands between classes; null: | or ; or , or a space",
    )
    none: str | list[str] | None = Field(
        default=None,
        description="multilabel: labels that say that an image has no class, such as No Finding; null: all are classes",
    )
    part: str | Literal[False] | None = Field(
        default=None, description="column with the part (train, val, test, or is_valid: true); false: there is none"
    )
    weight: str | Literal[False] | None = Field(
        default=None,
        description="column with how often training draws an image (sampler=weights); false: there is none",
    )
    group: str | Literal[False] | None = Field(
        default=None, description="column with what the split keeps together, such as a patient; false: there is none"
    )


class DataConfig(_Strict):
    """The source of the images, their size, and the handling of broken files."""

    source: SourceName = Field(description=f"format of the data: {formats()}")
    root: Annotated[str | None, NEUTRAL] = Field(
        default=None,
        description="folder or file with the data, local or at s3:// and the like; not for digits",
    )
    images: Annotated[str | None, NEUTRAL] = Field(
        default=None, description="table: folder that the paths in it start from; null: the folder of the table"
    )
    task: Literal["classes", "multilabel"] = Field(
        default="classes", description="labels of an image: one class, or several (multilabel), maybe none"
    )
    columns: ColumnsConfig | None = Field(
        default=None,
        description="table: names of its columns (path, label, part, ...); shards: keys of their .json files (label, "
        "group, weight); null: the usual ones",
    )
    image_size: ImageSize = Field(
        description="size of the images that the network sees, in pixels: the side of a square, or [height, width]"
    )
    fit: Literal["crop", "letterbox", "stretch"] = Field(
        default="crop",
        description="how images of other shapes are fitted: crop the centre; letterbox: pad with grey, nothing is cut "
        "off; or stretch",
    )
    in_chans: int = Field(
        default=3,
        ge=1,
        le=16,
        description="channels that the network sees: 3 (grey is repeated), 1 (colour becomes luma), or exactly so many "
        "bands of each image (sources of files only)",
    )
    interpolation: Literal["bicubic", "bilinear"] = Field(
        default="bicubic", description="filter for every resize, in training and evaluation"
    )
    crop_pct: float = Field(
        default=0.875,
        gt=0.0,
        le=1.0,
        description="fit=crop: evaluation resizes the shorter side to floor(size / crop_pct), then crops the centre",
    )
    eval_size: ImageSize | None = Field(
        default=None, description="image size in evaluation, if it differs (folder only); null: image_size"
    )
    mode: Annotated[Literal["auto", "memory", "stream"], NEUTRAL] = Field(
        default="auto",
        description="folder: decode all images into memory (or, if it lacks room, a mapped file) once, stream them, or "
        "decide by size (auto: up to 2 GiB)",
    )
    workers: Annotated[int | None, NEUTRAL] = Field(
        default=None, ge=0, le=256, description="decoding workers when streaming; null: by the number of cores"
    )
    worker_kind: Annotated[Literal["auto", "thread", "process"], NEUTRAL] = Field(
        default="auto",
        description="what decoding workers are: auto: threads for up to 4 workers and JPEGs, else processes",
    )
    val_fraction: float = Field(
        default=0.2, gt=0.0, lt=1.0, description="fraction held out for validation if the source has no validation part"
    )
    fold: Fold | None = Field(
        default=None,
        description="cross-validation: validate on this fold of the training images, as in 1/5 for the first of five, "
        "and train on the others; null: as val_fraction says",
    )
    val_from: Literal["auto", "train", "test"] = Field(
        default="auto",
        description="validation images: held out from the training part, or the test part (then nothing is chosen by "
        "them); auto: the source's own, else test for CIFAR and IDX, train for folders",
    )
    group_by: int | str | None = Field(
        default=None,
        description="images that the split keeps together (of a patient, a burst): level of a folder below the class, "
        "or a regular expression on the path; null: none",
    )
    split_seed: int = Field(default=0, ge=0, description="seed of that split and of limit_train and limit_val")
    part: Literal["val", "test", "train"] = Field(
        default="val",
        description="images that validate, report, compare, explain and prune measure; not used in training",
    )
    class_order: Literal["string", "natural"] | None = Field(
        default=None,
        description="folder: sort classes as strings (1, 10, 2) or naturally (1, 2, 10); null: as strings, but must be "
        "set if it matters and the weights have no class names",
    )
    mean: Numbers | None = Field(
        default=None,
        description="per-channel mean in 0..1; null: of the training images in memory, or when streaming ImageNet's "
        "(other than 1 or 3 channels: of a sample)",
    )
    std: Numbers | None = Field(default=None, description="per-channel standard deviation in 0..1; null: as for mean")
    white: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="white level of 16-bit images (folder only); null: from the largest value in the training images",
    )
    max_pixels: Annotated[int, NEUTRAL] = Field(
        default=PILLOW_LIMIT, ge=1, le=PILLOW_LIMIT, description="larger images count as broken and are not decoded"
    )
    on_bad_train: Literal["skip", "stop"] = Field(
        default="skip", description="a broken training image is skipped and listed, or stops the run"
    )
    on_bad_val: Annotated[Literal["skip", "stop"], NEUTRAL] = Field(
        default="stop", description="a broken validation image is skipped and listed, or stops the run"
    )
    limit_train: int | None = Field(
        default=None, ge=1, description="train on only this many images (seeded, class-balanced), for smoke tests"
    )
    limit_val: int | None = Field(
        default=None, ge=1, description="validate on only this many images (seeded, class-balanced), for smoke tests"
    )
    sampler: SamplerName | None = Field(
        default=None,
        description="how often an epoch draws each class: equally (balanced) or in proportion to the square root of "
        "its number of images (sqrt); weights: each image as a table's column says; null: every image once",
    )
    class_names: Annotated[list[str] | None, NEUTRAL] = Field(
        default=None, description="class names to show instead of the source's own, in the order of the labels"
    )

    @property
    def training_size(self) -> Size:
        """Height and width of the images in training, in pixels."""
        return as_size(self.image_size)

    @property
    def evaluation_size(self) -> Size:
        """Height and width of the images in evaluation, in pixels."""
        return as_size(self.image_size if self.eval_size is None else self.eval_size)

    @model_validator(mode="after")
    def _eval_size_fits(self) -> Self:
        if self.evaluation_size != self.training_size and not SOURCES[self.source].files:
            raise ValueError(f"eval_size is only for source=folder: the images of {self.source} all have the same size")
        return self

    @model_validator(mode="after")
    def _channels_fit(self) -> Self:
        if self.in_chans not in (1, 3) and not SOURCES[self.source].files:
            raise ValueError(f"in_chans={self.in_chans} is only for source=folder: {self.source} has no such images")
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.group_by is not None and not SOURCES[self.source].files:
            raise ValueError(f"group_by is only for source=folder: the images of {self.source} have no paths")
        if isinstance(self.group_by, int) and self.group_by < 1:
            raise ValueError("group_by must be a level of at least 1 (the first folder below the class), or a pattern")
        return self

    @model_validator(mode="after")
    def _folds_fit(self) -> Self:
        if self.fold is None:
            return self
        if self.val_from == "test":
            raise ValueError(
                f"data.fold={self.fold[0]}/{self.fold[1]} validates on training images, not on the test part; give "
                "data.val_from=auto"
            )
        if self.val_fraction != type(self).model_fields["val_fraction"].default:
            raise ValueError(
                f"data.fold={self.fold[0]}/{self.fold[1]} holds out a share of 1/{self.fold[1]}, so "
                f"data.val_fraction={self.val_fraction:g} has no effect; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _tables_fit(self) -> Self:
        if self.task == "multilabel" and not SOURCES[self.source].several:
            raise ValueError(
                f"task=multilabel is not for source={self.source}, whose images have one class each: give "
                "data.source=table with data.root=labels.csv (or a folder of lists), or shards packed from one"
            )
        if self.sampler == "weights" and self.source not in ("table", "webdataset"):
            raise ValueError("sampler=weights is only for tables with a column of weights, and shards packed from them")
        if self.sampler not in (None, "weights") and self.task == "multilabel":
            raise ValueError("sampler draws classes, so it needs images of one class each, not task=multilabel")
        if self.task != "multilabel" and self.columns is not None and self.columns.none is not None:
            raise ValueError("columns.none is only for task=multilabel, where images may have no class")
        named = self.columns not in (None, ColumnsConfig())
        if self.source != "table" and (self.images is not None or (named and self.source != "webdataset")):
            key = "images" if self.images is not None else "columns"
            raise ValueError(f"{key} is only for source=table: data.{key}=null leaves it out")
        if self.source == "webdataset" and self.columns is not None:
            for key in ("path", "part") if not isinstance(self.columns.label, list) else ("label",):
                if getattr(self.columns, key) is not None:
                    raise ValueError(
                        f"columns.{key} is only for source=table; of shards, columns.label, group and weight name keys "
                        "of the .json files"
                    )
        return self

    @model_validator(mode="after")
    def _root_holds_no_secrets(self) -> Self:
        if self.root is not None and is_remote(self.root):
            refuse_secrets(self.root)
        return self

    @model_validator(mode="after")
    def _root_can_be_a_path(self) -> Self:
        if self.root is not None and not is_remote(self.root) and (why := no_path(self.root)) is not None:
            raise ValueError(f"data.root={shown_text(self.root)} {why}")
        return self

    @model_validator(mode="after")
    def _statistics_fit(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.in_chans:
                raise ValueError(
                    f"{name} has {len(values)} values, but in_chans is {self.in_chans}; data.mean=null data.std=null "
                    "takes them from the images"
                )
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"every value of std must be above 0, got {self.std}")
        return self


def check_fit(data: DataConfig, augment: "AugmentConfig") -> None:
    """Raise ExciteError for a way to train whose images evaluation would pad, although training never does."""
    if data.fit == "letterbox" and augment.crop == "random_resized":
        raise ExciteError(
            "data.fit=letterbox pads images, but augment.crop=random_resized trains on parts of them without padding, "
            "so evaluation would show the network other images than training; give augment.crop=pad or "
            "augment.crop=none, or data.fit=crop"
        )


class RandAugmentConfig(_Strict):
    """RandAugment (arXiv 1909.13719): `n` random operations per image, all at magnitude `m`."""

    n: int = Field(default=2, ge=1, le=16, description="operations applied to each image, one after the other")
    m: float = Field(default=9.0, ge=0.0, le=30.0, description="magnitude on a scale from 0 (none) to 30 (strongest)")


class AugmentConfig(_Strict):
    """Random changes of the training images, drawn for each image separately unless stated otherwise."""

    crop: Literal["none", "pad", "random_resized"] = Field(
        default="none", description="none; pad the border and crop back to size; or crop a random part of the image"
    )
    pad: int = Field(default=4, ge=1, le=512, description="crop=pad: pixels added on every side")
    pad_mode: Literal["zero", "reflect"] = Field(
        default="zero", description="crop=pad: add black pixels (as in the ResNet paper) or a mirror image"
    )
    scale: Pair = Field(
        default=[0.08, 1.0], description="crop=random_resized: range of the cropped area, as a fraction of the image"
    )
    ratio: Pair = Field(
        default=[0.75, 4 / 3],
        description="crop=random_resized: range of width / height, relative to that of image_size",
    )
    repeats: int = Field(
        default=1,
        ge=1,
        le=64,
        description="repeated augmentation: copies of each image in a batch, each augmented differently",
    )
    hflip: float = Field(default=0.5, ge=0.0, le=1.0, description="probability of a horizontal flip")
    hflip_mode: Literal["random", "alternate"] = Field(
        default="random",
        description="random: flips are drawn for each image and epoch; alternate: only for the first epoch, and an "
        "image is then flipped in every other one (hflip=0.5)",
    )
    vflip: float = Field(default=0.0, ge=0.0, le=1.0, description="probability of a vertical flip")
    color_jitter: Numbers | None = Field(
        default=None, description="strengths of [brightness, contrast, saturation, hue]; 0: off; hue at most 0.5"
    )
    rotation: float = Field(default=0.0, ge=0.0, le=180.0, description="rotate by up to this many degrees either way")
    cutout: int = Field(default=0, ge=0, description="side in pixels of a square set to the mean colour; 0: off")
    random_erasing: float = Field(
        default=0.0, ge=0.0, le=1.0, description="probability of setting a random rectangle to the mean colour"
    )
    mixup: float = Field(default=0.0, ge=0.0, description="alpha of mixup's Beta(alpha, alpha); 0: off")
    cutmix: float = Field(default=0.0, ge=0.0, description="alpha of CutMix's Beta(alpha, alpha); 0: off")
    mix_prob: float = Field(default=1.0, ge=0.0, le=1.0, description="probability that a batch is mixed at all")
    switch_prob: float = Field(
        default=0.5, ge=0.0, le=1.0, description="with both mixup and cutmix on: probability of CutMix for a batch"
    )
    rand_augment: RandAugmentConfig | None = Field(default=None, description="RandAugment {n, m}; null: off")
    trivial_augment: bool = Field(
        default=False, description="TrivialAugment (wide): one random operation of random strength"
    )

    @property
    def mixes(self) -> bool:
        """Whether labels become soft: class probabilities (B, K) instead of class indices (B,)."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _ranges_fit(self) -> Self:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale must be [low, high] with 0 < low <= high <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be [low, high] with 0 < low <= high, got {self.ratio}")
        if self.color_jitter is not None:
            jitter = self.color_jitter
            if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
                raise ValueError(f"color_jitter must be four strengths >= 0, the last (hue) <= 0.5, got {jitter}")
        if self.hflip_mode == "alternate" and self.hflip != 0.5:
            raise ValueError(
                f"hflip_mode=alternate flips every image in half of the epochs, so hflip={self.hflip:g} has "
                "no effect: give hflip=0.5"
            )
        if self.rand_augment is not None and self.trivial_augment:
            raise ValueError("choose rand_augment or trivial_augment, not both")
        return self
