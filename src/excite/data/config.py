"""What a recipe says about data: where it comes from (`DataConfig`) and how it is augmented (`AugmentConfig`).

Pure pydantic: nothing heavy is imported, so that reading a recipe or printing its schema stays instant.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from excite.data.catalog import SOURCES, SourceName, formats
from excite.options import NEUTRAL
from excite.storage.address import is_remote, refuse_secrets

#: Pillow refuses larger images (twice Image.MAX_IMAGE_PIXELS) whatever we say, so a larger `max_pixels` would be a lie.
PILLOW_LIMIT = 178_956_970


def _as_list(value: Any) -> Any:
    """Python users write tuples; strict mode would take lists only."""
    return list(value) if isinstance(value, tuple) else value


Numbers = Annotated[list[float], BeforeValidator(_as_list)]
Pair = Annotated[list[float], BeforeValidator(_as_list), Field(min_length=2, max_length=2)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(_Strict):
    """The source of the images, how they are brought to one size, and what happens to broken ones."""

    source: SourceName = Field(description=f"Format of the data: {formats()}.")
    root: Annotated[str | None, NEUTRAL] = Field(
        default=None,
        description="Folder (or, for CIFAR, .tar.gz file) with the data, also at s3:// and the like; not for digits.",
    )
    image_size: int = Field(ge=1, le=4096, description="Side of the square images the network sees, in pixels.")
    in_chans: Literal[1, 3] = Field(
        default=3, description="Channels the network sees: 3 (gray is repeated) or 1 (colour becomes luma)."
    )
    interpolation: Literal["bicubic", "bilinear"] = Field(
        default="bicubic", description="Filter of every resize, in training and in evaluation."
    )
    crop_pct: float = Field(
        default=0.875,
        gt=0.0,
        le=1.0,
        description="Evaluation resizes the shorter side to floor(size / crop_pct), then crops the centre.",
    )
    eval_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Side of the images in evaluation, in pixels, where it differs (folder only); null: image_size.",
    )
    mode: Annotated[Literal["auto", "memory", "stream"], NEUTRAL] = Field(
        default="auto",
        description="Folders only: decode all images once into memory, stream them, or decide by size (2 GiB).",
    )
    workers: Annotated[int | None, NEUTRAL] = Field(
        default=None, ge=0, le=256, description="Decoding processes when streaming; null: from the number of cores."
    )
    val_fraction: float = Field(
        default=0.2, gt=0.0, lt=1.0, description="Share split off for validation where the source has no such part."
    )
    val_from: Literal["auto", "train", "test"] = Field(
        default="auto",
        description="Validation images: split off from training's, or the test part, by which nothing is then chosen; "
        "auto: the source's own, else test for CIFAR and IDX, train for folders.",
    )
    group_by: int | str | None = Field(
        default=None,
        description="Images that the split keeps together (a patient, a burst): level of a folder below the class, or "
        "a regular expression on the path; null: each alone.",
    )
    split_seed: int = Field(default=0, ge=0, description="Seed of that split and of limit_train/limit_val.")
    part: Literal["val", "test", "train"] = Field(
        default="val",
        description="Which images validate, report, compare, explain and prune measure; not for training.",
    )
    class_order: Literal["string", "natural"] | None = Field(
        default=None,
        description="Folders: number classes as strings (1, 10, 2) or naturally (1, 2, 10); null: as strings, but "
        "asked for where weights have no class names and it matters.",
    )
    mean: Numbers | None = Field(
        default=None,
        description="Per-channel mean in 0..1; null: of the training images in memory, ImageNet's when streaming.",
    )
    std: Numbers | None = Field(default=None, description="Per-channel standard deviation in 0..1; null: as for mean.")
    white: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="White in images of 16 bits a channel (folder only); null: by the training images' largest value.",
    )
    max_pixels: Annotated[int, NEUTRAL] = Field(
        default=PILLOW_LIMIT, ge=1, le=PILLOW_LIMIT, description="Larger images count as broken, before decoding."
    )
    on_bad_train: Literal["skip", "stop"] = Field(
        default="skip", description="A broken training image is skipped and listed, or stops the run."
    )
    on_bad_val: Annotated[Literal["skip", "stop"], NEUTRAL] = Field(
        default="stop", description="A broken validation image is skipped and listed, or stops the run."
    )
    limit_train: int | None = Field(
        default=None, ge=1, description="Train on only this many images (seeded, class-balanced), for smoke tests."
    )
    limit_val: int | None = Field(
        default=None, ge=1, description="Validate on only this many images (seeded, class-balanced), for smoke tests."
    )
    class_names: Annotated[list[str] | None, NEUTRAL] = Field(
        default=None, description="Names to show in place of the source's own, in the order of the labels."
    )

    @property
    def evaluation_size(self) -> int:
        """Side of the images in evaluation, in pixels."""
        return self.image_size if self.eval_size is None else self.eval_size

    @model_validator(mode="after")
    def _eval_size_fits(self) -> Self:
        if self.evaluation_size != self.image_size and not SOURCES[self.source].class_folders:
            raise ValueError(f"eval_size is for source=folder: the images of {self.source} are all of one size")
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.group_by is not None and not SOURCES[self.source].class_folders:
            raise ValueError(f"group_by is for source=folder: the images of {self.source} have no paths")
        if isinstance(self.group_by, int) and self.group_by < 1:
            raise ValueError("group_by is a level of at least 1 (the first folder below the class), or a pattern")
        return self

    @model_validator(mode="after")
    def _root_holds_no_secrets(self) -> Self:
        if self.root is not None and is_remote(self.root):
            refuse_secrets(self.root)
        return self

    @model_validator(mode="after")
    def _statistics_fit(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.in_chans:
                raise ValueError(f"{name} has {len(values)} values, but in_chans is {self.in_chans}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")
        return self


class RandAugmentConfig(_Strict):
    """RandAugment: `n` random operations an image, all at magnitude `m`."""

    n: int = Field(default=2, ge=1, le=16, description="Operations applied to each image, one after the other.")
    m: float = Field(default=9.0, ge=0.0, le=30.0, description="Magnitude on the scale 0 (none) to 30 (strongest).")


class AugmentConfig(_Strict):
    """Random changes of the training images; each is independent per image unless it says otherwise."""

    crop: Literal["none", "pad", "random_resized"] = Field(
        default="none", description="No crop; pad the border and crop back to size; or a random part of the image."
    )
    pad: int = Field(default=4, ge=1, le=512, description="crop=pad: pixels added on every side.")
    pad_mode: Literal["zero", "reflect"] = Field(
        default="zero", description="crop=pad: what is added: black (as in the ResNet paper) or a mirror image."
    )
    scale: Pair = Field(default=[0.08, 1.0], description="crop=random_resized: range of the area, as a share of all.")
    ratio: Pair = Field(default=[0.75, 4 / 3], description="crop=random_resized: range of width / height.")
    repeats: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Repeated augmentation: a batch holds so many copies of an image, each changed differently.",
    )
    hflip: float = Field(default=0.5, ge=0.0, le=1.0, description="Probability of mirroring left to right.")
    vflip: float = Field(default=0.0, ge=0.0, le=1.0, description="Probability of mirroring top to bottom.")
    color_jitter: Numbers | None = Field(
        default=None, description="[brightness, contrast, saturation, hue] strengths; 0 turns one off; hue at most 0.5."
    )
    rotation: float = Field(default=0.0, ge=0.0, le=180.0, description="Rotate by up to this many degrees either way.")
    cutout: int = Field(default=0, ge=0, description="Side in pixels of a square set to the mean colour; 0: off.")
    random_erasing: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Probability of setting a random rectangle to the mean colour."
    )
    mixup: float = Field(default=0.0, ge=0.0, description="Alpha of mixup's Beta(alpha, alpha); 0: off.")
    cutmix: float = Field(default=0.0, ge=0.0, description="Alpha of CutMix's Beta(alpha, alpha); 0: off.")
    mix_prob: float = Field(default=1.0, ge=0.0, le=1.0, description="Probability that a batch is mixed at all.")
    switch_prob: float = Field(
        default=0.5, ge=0.0, le=1.0, description="With both mixup and cutmix on: probability of CutMix for a batch."
    )
    rand_augment: RandAugmentConfig | None = Field(default=None, description="RandAugment {n, m}; null: off.")
    trivial_augment: bool = Field(
        default=False, description="TrivialAugment (wide): one random operation at a random strength."
    )

    @property
    def mixes(self) -> bool:
        """Whether labels become soft: (B, K) probabilities instead of (B,) class numbers."""
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
        if self.rand_augment is not None and self.trivial_augment:
            raise ValueError("choose rand_augment or trivial_augment, not both")
        return self
