"""Colour and geometry changes per image, on batches, with kornia: RandAugment, TrivialAugment, jitter, rotation.

Shapes: B images in a batch, C channels (1 or 3), H x W pixels; images are float32 in 0..1.

RandAugment and TrivialAugment choose an operation for each image. The choice is drawn on the CPU, so that selecting the
images of an operation never waits for the device, and each operation runs once, on its part of the batch. Magnitudes
are torchvision's, on a scale of 0..30:

    operation                RandAugment at m             TrivialAugment (wide) at bin 0..30
    identity                 -                            -
    shear x, y               +-0.3 * m / 30               +-0.99 * bin / 30
    translate x, y           +-150 / 331 * side * m / 30  +-32 pixels * bin / 30
    rotate                   +-30 degrees * m / 30        +-135 degrees * bin / 30
    brightness, colour,
      contrast, sharpness    1 +- 0.9 * m / 30            1 +- 0.99 * bin / 30
    posterize (bits kept)    8 - round(4 * m / 30)        8 - round(6 * bin / 30)
    solarize (threshold)     1 - m / 30                   1 - bin / 30
    autocontrast, equalize   -                            -

Geometric operations are bilinear; torchvision's take the nearest pixel. In both, pixels from outside are black. Colour
does not change one-channel images, and sharpness does not change images narrower than 3 pixels.
"""

import math
from collections.abc import Callable, Sequence

import kornia.enhance as enhance
import torch
from kornia.geometry.transform import rotate as kornia_rotate
from kornia.geometry.transform import warp_affine

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
GEOMETRIC = OPERATIONS[1:6]


def rand_augment(images: torch.Tensor, n: int, m: float) -> torch.Tensor:
    """`n` operations per image, drawn with replacement, each at magnitude `m` (0..30) with a random sign.

    float32 (B, C, H, W) in 0..1 -> the same. Cubuk et al., arXiv 1909.13719.
    """
    side = 150 / 331
    reach = {"shear": 0.3, "translate": side, "rotate": 30.0, "blend": 0.9, "bits": 4.0}
    for _ in range(n):
        operation = torch.randint(0, len(OPERATIONS), (len(images),))
        images = _apply(images, operation, torch.full((len(images),), m / 30), reach, relative_translation=True)
    return images


def trivial_augment(images: torch.Tensor) -> torch.Tensor:
    """One operation per image at one of 31 strengths, both uniform (Mueller and Hutter, 2021, the wide space).

    float32 (B, C, H, W) in 0..1 -> the same.
    """
    reach = {"shear": 0.99, "translate": 32.0, "rotate": 135.0, "blend": 0.99, "bits": 6.0}
    operation = torch.randint(0, len(OPERATIONS), (len(images),))
    strength = torch.randint(0, 31, (len(images),)) / 30
    return _apply(images, operation, strength, reach, relative_translation=False)


def _apply(
    images: torch.Tensor,
    operation: torch.Tensor,
    strength: torch.Tensor,
    reach: dict[str, float],
    relative_translation: bool,
) -> torch.Tensor:
    """Apply an operation to each image. `operation` int64 (B,) and `strength` float (B,) in 0..1 are on the CPU."""
    signed = strength * (torch.randint(0, 2, (len(images),)) * 2 - 1)
    out = images.clone()
    geometric = (operation >= 1) & (operation <= len(GEOMETRIC))
    parts: list[tuple[torch.Tensor, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = [
        (
            geometric.nonzero()[:, 0],
            lambda part, at: _warp(part, operation[at], signed[at], reach, relative_translation),
        )
    ]
    for number, name in enumerate(OPERATIONS):
        if name in PHOTOMETRIC:
            change = PHOTOMETRIC[name]
            amounts = (strength, signed, reach)
            parts.append(((operation == number).nonzero()[:, 0], _bind(change, *amounts)))
    for index, change_part in parts:
        if len(index):
            on_device = index.to(images.device, non_blocking=True)
            out.index_copy_(0, on_device, change_part(images.index_select(0, on_device), index))
    return out


def _bind(
    change: Callable[..., torch.Tensor], strength: torch.Tensor, signed: torch.Tensor, reach: dict[str, float]
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda part, at: change(part, _to(part, strength[at]), _to(part, signed[at]), reach)


def _to(like: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return values.to(like.device, non_blocking=True)


def _warp(
    images: torch.Tensor, operation: torch.Tensor, signed: torch.Tensor, reach: dict[str, float], relative: bool
) -> torch.Tensor:
    """Shear, translate and rotate different images in one warp, by their source-to-target pixel matrices."""
    height, width = images.shape[2:]
    kind = [operation == OPERATIONS.index(name) for name in GEOMETRIC]
    angle = torch.where(kind[4], signed * math.radians(reach["rotate"]), 0.0)
    shear_x = torch.where(kind[0], signed * reach["shear"], 0.0)
    shear_y = torch.where(kind[1], signed * reach["shear"], 0.0)
    shift_x = torch.where(kind[2], signed * reach["translate"] * (width if relative else 1), 0.0)
    shift_y = torch.where(kind[3], signed * reach["translate"] * (height if relative else 1), 0.0)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    cos, sin = angle.cos(), angle.sin()
    # Rotation is about the centre, shear about the corner of the top left pixel, as Pillow's and torchvision's are.
    shift_x, shift_y = shift_x + shear_x / 2, shift_y + shear_y / 2
    matrix = torch.stack(
        [
            torch.stack([cos, shear_x - sin, shift_x + centre_x - cos * centre_x + sin * centre_y], 1),
            torch.stack([shear_y + sin, cos, shift_y + centre_y - sin * centre_x - cos * centre_y], 1),
        ],
        1,
    )
    return warp_affine(images, _to(images, matrix), (height, width), mode="bilinear", padding_mode="zeros")


def _posterize(images: torch.Tensor, strength: torch.Tensor, _: torch.Tensor, reach: dict[str, float]) -> torch.Tensor:
    return enhance.posterize(images, (8 - (strength * reach["bits"]).round_()).long())


def _autocontrast(images: torch.Tensor, *_: object) -> torch.Tensor:
    """Stretch every channel to 0..1. (kornia's normalize_min_max would turn a constant channel black.)"""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)


def _sharpness(images: torch.Tensor, _: torch.Tensor, signed: torch.Tensor, reach: dict[str, float]) -> torch.Tensor:
    if min(images.shape[2:]) < 3:
        return images
    return enhance.sharpness(images, 1 + signed * reach["blend"])


#: name -> change(images, strength in 0..1, strength with a random sign, largest magnitude of each kind)
PHOTOMETRIC: dict[str, Callable[..., torch.Tensor]] = {
    "brightness": lambda x, _, signed, reach: enhance.adjust_brightness_accumulative(x, 1 + signed * reach["blend"]),
    "color": lambda x, _, signed, reach: enhance.adjust_saturation_with_gray_subtraction(
        x, 1 + signed * reach["blend"]
    ),
    "contrast": lambda x, _, signed, reach: enhance.adjust_contrast_with_mean_subtraction(
        x, 1 + signed * reach["blend"]
    ),
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": lambda x, strength, *_: enhance.solarize(x, 1 - strength),
    "autocontrast": _autocontrast,
    "equalize": lambda x, *_: enhance.equalize(x),
}


def random_rotation(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate each image about its centre by an angle uniform in +-`degrees`; bilinear, black outside."""
    angle = torch.empty(len(images), device=images.device).uniform_(-degrees, degrees)
    return kornia_rotate(images, angle, mode="bilinear", padding_mode="zeros")


def color_jitter(images: torch.Tensor, strengths: Sequence[float]) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue of each image by random factors, in a random order per batch.

    Factors are uniform in max(0, 1 - s)..1 + s; hue is rotated by a fraction of the circle uniform in -s..s. This is
    torchvision's rule, except that torchvision draws an order per image. Saturation and hue of one-channel images do
    not change.
    """
    brightness, contrast, saturation, hue = strengths
    factors = torch.rand(4, len(images), device=images.device)
    for change in torch.randperm(4).tolist():
        strength = (brightness, contrast, saturation, hue)[change]
        if not strength or (change >= 2 and images.shape[1] == 1):
            continue
        if change == 3:
            images = enhance.adjust_hue(images, (factors[3] * 2 - 1) * (strength * 2 * math.pi))
            continue
        low = max(0.0, 1 - strength)
        factor = low + factors[change] * (1 + strength - low)
        images = (
            enhance.adjust_brightness_accumulative,
            enhance.adjust_contrast_with_mean_subtraction,
            enhance.adjust_saturation_with_gray_subtraction,
        )[change](images, factor)
    return images
