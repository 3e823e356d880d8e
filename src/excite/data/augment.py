"""Augmentation of whole batches on the device: uint8 images in, normalised float images and targets out.

Shapes: B images in a batch, C channels, H x W pixels, K classes.

All randomness comes from torch's global generators: choices made in Python (which operation, which mix) from the CPU's,
numbers per pixel or image from the device's. The trainer reseeds both before every step, so a resumed run draws the
same numbers as an uninterrupted one. Nothing on the common path (crop, flip, cutout, erasing, mixing) waits for the
device: no `.item()`, no boolean indexing.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from excite.data.config import AugmentConfig
from excite.data.geometry import Interpolation
from excite.data.labels import several
from excite.data.preprocessing import normalize
from excite.errors import ExciteError
from excite.size import Size, as_size

ERASE_SCALE, ERASE_RATIO = (0.02, 1 / 3), (0.3, 3.3)  # the paper's (Zhong et al., 2017), as in timm and torchvision


class BatchAugment:
    """Augment one batch: `augment(images, labels) -> (images, targets)`.

    Takes uint8 images (B, C, H, W) on the device and int64 labels (B,), or uint8 (B, K) of several labels an image, for
    which targets are float32 (B, K) in any case. Returns images in `dtype` and `memory_format`,
    normalised with `mean` and `std` (in 0..1), and targets: int64 (B,), or float32 probabilities (B, K) if the recipe
    mixes images (mixup, CutMix), whether or not this batch was mixed.

    Order: pad-crop and flips, RandAugment or TrivialAugment, rotation, colour jitter, normalisation, cutout, erasing,
    mixup or CutMix; at last, images are made smaller if a `size` (H, W) is given, so that cutout, padding and so on
    cover the same part of an image at every size. The random-resized crop is done in the loader, which crops what it
    decodes; so are alternating flips, because the loader knows which image is which.
    """

    def __init__(
        self,
        augment: AugmentConfig,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        *,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.augment, self.mean, self.std, self.num_classes = augment, tuple(mean), tuple(std), num_classes
        self.dtype, self.memory_format = dtype, memory_format

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, size: Size | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        augment = self.augment
        hflip = augment.hflip if augment.hflip_mode == "random" else 0.0  # else the loader has flipped them
        if augment.crop == "pad":
            images = pad_crop_flip(images, augment.pad, augment.pad_mode, hflip)
        elif hflip > 0:
            images = flip(images, hflip)
        if augment.vflip > 0:
            images = flip(images.transpose(2, 3), augment.vflip).transpose(2, 3)
        if augment.rand_augment or augment.trivial_augment or augment.rotation or augment.color_jitter:
            floats = self._colour_and_geometry(images.float().div_(255)).mul_(255)
        else:
            floats = images.float()
        out = normalize(floats, self.mean, self.std)
        if augment.cutout:
            out = cutout(out, augment.cutout)
        if augment.random_erasing > 0:
            out = random_erasing(out, augment.random_erasing)
        targets = labels = labels.float() if several(labels) else labels
        if augment.mixes:
            out, targets = self._mix(out, labels)
        if size is not None and size != tuple(out.shape[2:]):
            out = F.interpolate(out, size, mode="bilinear", align_corners=False, antialias=True)
        return out.to(self.dtype, memory_format=self.memory_format), targets

    def _colour_and_geometry(self, images: torch.Tensor) -> torch.Tensor:
        """The operations done with kornia: float32 in 0..1, in and out."""
        from excite.data import kornia_ops  # takes 0.4 s to import: only for recipes that need it

        if self.augment.rand_augment is not None:
            images = kornia_ops.rand_augment(images, self.augment.rand_augment.n, self.augment.rand_augment.m)
        if self.augment.trivial_augment:
            images = kornia_ops.trivial_augment(images)
        if self.augment.rotation:
            images = kornia_ops.random_rotation(images, self.augment.rotation)
        if self.augment.color_jitter:
            images = kornia_ops.color_jitter(images, self.augment.color_jitter)
        return images

    def _mix(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix every image with its neighbour in the batch, which is random because the batches are."""
        augment = self.augment
        mixed, use_cutmix = torch.rand(2).tolist()
        if mixed >= augment.mix_prob:
            share = 1.0
        elif augment.cutmix and (not augment.mixup or use_cutmix < augment.switch_prob):
            images, share = cutmix(images, augment.cutmix)
        else:
            images, share = mixup(images, augment.mixup)
        if several(labels):
            return images, share * labels + (1 - share) * labels.roll(1, 0)
        soft = torch.zeros(len(labels), self.num_classes, device=labels.device)
        soft.scatter_(1, labels[:, None], share)
        return images, soft.scatter_add_(1, labels.roll(1)[:, None], soft.new_full((len(labels), 1), 1 - share))


def pad_crop_flip(images: torch.Tensor, pad: int, mode: str, hflip: float) -> torch.Tensor:
    """Pad by `pad`, crop back at a random position, flip with probability `hflip`: uint8 (B, C, H, W), same shape.

    A single gather does all three: 0.4 ms for 128 x 3 x 32 x 32 on two cores, against 0.35 + 0.3 ms for crop and flip.
    """
    count, channels, height, width = images.shape
    if mode == "reflect" and pad >= min(height, width):
        raise ExciteError(
            f"augment.pad={pad} is too large to reflect {height} x {width} images: use a smaller one, or "
            "augment.pad_mode=zero"
        )
    padded = F.pad(images, (pad,) * 4, mode="reflect" if mode == "reflect" else "constant")
    device = images.device
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1), device=device).unbind()
    columns = torch.arange(width, device=device).expand(count, width)
    if hflip > 0:
        mirror = torch.rand(count, 1, device=device) < hflip
        columns = torch.where(mirror, columns.flip(1), columns)
    rows = torch.arange(height, device=device) + top
    index = rows[:, :, None] * (width + 2 * pad) + (columns + left)[:, None, :]
    index = index.view(count, 1, -1).expand(-1, channels, -1)
    return padded.reshape(count, channels, -1).gather(2, index).view(images.shape)


def flip(images: torch.Tensor, probability: float) -> torch.Tensor:
    """Flip each image horizontally with this probability."""
    return mirrored(images, torch.rand(len(images), 1, device=images.device) < probability)


def mirrored(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Flip some images horizontally: those where bool (B, 1) is true.

    It gathers columns, in a third of the time of torch.where(which, images.flip(3), images) for 32 x 3 x 224 x 224.
    """
    columns = torch.arange(images.shape[3], device=images.device)
    index = torch.where(which, columns.flip(0), columns)
    return images.gather(3, index[:, None, None, :].expand(images.shape))


def cutout(images: torch.Tensor, size: int) -> torch.Tensor:
    """Set a square of each image to 0 (the mean colour, after normalising). It may extend beyond the image.

    As in DeVries and Taylor (2017): the centre is any pixel, and the square covers
    [centre - size // 2, centre - size // 2 + size).
    """
    count, _, height, width = images.shape
    device = images.device
    top = torch.randint(0, height, (count, 1), device=device) - size // 2
    left = torch.randint(0, width, (count, 1), device=device) - size // 2
    return images.masked_fill(_rectangle(images, top, left, top + size, left + size), 0)


def random_erasing(images: torch.Tensor, probability: float) -> torch.Tensor:
    """Set a random rectangle of each image to 0 (the mean colour) with this probability.

    The area is uniform in 2..33 % of the image, height / width log-uniform in 0.3..3.3, the position uniform. If ten
    attempts do not fit, the image is left as it is (Zhong et al., 2017; as in timm and torchvision). kornia's
    RandomErasing draws its boxes differently and takes twice as long (0.86 against 0.42 ms for 128 x 3 x 32 x 32 on two
    cores).
    """
    count, _, height, width = images.shape
    attempts, device = 10, images.device
    area = height * width * torch.empty(count, attempts, device=device).uniform_(*ERASE_SCALE)
    aspect = torch.empty(count, attempts, device=device).uniform_(*map(math.log, ERASE_RATIO)).exp_()
    tall, wide = (area * aspect).sqrt_().round_(), (area / aspect).sqrt_().round_()
    fits = (tall < height) & (wide < width)
    pick = fits.int().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, pick), wide.gather(1, pick)
    place = torch.rand(2, count, 1, device=device)
    top, left = (place[0] * (height - tall + 1)).floor_(), (place[1] * (width - wide + 1)).floor_()
    chosen = (torch.rand(count, 1, device=device) < probability) & fits.any(1, keepdim=True)
    inside = _rectangle(images, top, left, top + tall * chosen, left + wide)
    return images.masked_fill(inside, 0)


def _rectangle(
    images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, bottom: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """Mask (B, 1, H, W) of one rectangle per image; the bounds are (B, 1), with `bottom` and `right` exclusive."""
    row = torch.arange(images.shape[2], device=images.device)
    column = torch.arange(images.shape[3], device=images.device)
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def mixup(images: torch.Tensor, alpha: float) -> tuple[torch.Tensor, float]:
    """share * image + (1 - share) * neighbour, with one share ~ Beta(alpha, alpha) per batch (Zhang et al., 2018)."""
    share = beta(alpha)
    return torch.lerp(images.roll(1, 0), images, share), share


def cutmix(images: torch.Tensor, alpha: float) -> tuple[torch.Tensor, float]:
    """Paste one rectangle of the neighbour into every image (Yun et al., 2019).

    The rectangle has 1 - lambda of the area, lambda ~ Beta(alpha, alpha), before it is clipped to the image. Returned
    with the images: the share of pixels that actually remain.
    """
    height, width = images.shape[2:]
    side = math.sqrt(1 - beta(alpha))
    tall, wide = int(height * side), int(width * side)
    top = int(torch.randint(0, height, ())) - tall // 2
    left = int(torch.randint(0, width, ())) - wide // 2
    rows = slice(max(top, 0), min(top + tall, height))
    columns = slice(max(left, 0), min(left + wide, width))
    mixed = images.clone()
    mixed[:, :, rows, columns] = images.roll(1, 0)[:, :, rows, columns]
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - pasted / (height * width)


def beta(alpha: float) -> float:
    """Draw one number ~ Beta(alpha, alpha) from the CPU's global generator."""
    a = torch.tensor(alpha, dtype=torch.float64)
    return float(torch.distributions.Beta(a, a, validate_args=False).sample())


def crop_and_resize(
    images: torch.Tensor, boxes: np.ndarray, size: int | Sequence[int], interpolation: Interpolation
) -> torch.Tensor:
    """Resize one box (left, top, width, height) of each image to `size`: uint8 (B, C, h, w) -> uint8 (B, C, H, W).

    There is no antialiasing: it is for arrays, whose images are at most as large as the result.
    """
    height, width = images.shape[2:]
    left, top, wide, tall = torch.from_numpy(boxes).to(images.device, torch.float32, non_blocking=True).unbind(1)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = wide / width, (2 * left + wide) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = tall / height, (2 * top + tall) / height - 1
    grid = F.affine_grid(theta, [len(images), images.shape[1], *as_size(size)], align_corners=False)
    out = F.grid_sample(images.float(), grid, mode=interpolation, padding_mode="border", align_corners=False)
    return out.round_().clamp_(0, 255).to(torch.uint8)
