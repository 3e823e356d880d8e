"""Test-time augmentation: the views of an image, and how the answers for them become one.

- flip: the image and its mirror image.
- five: the centre and the four corners of an image with a margin, as in Krizhevsky et al. (2012), section 4.1.
- shift: the image, and it moved by a thirty-second of its size up and left, and down and right, with a mirrored margin;
  each of the three and its mirror image. The two that are not moved count as much as the four others together (Jordan,
  arXiv 2404.00498, section 3.5).

Shapes: B images, C channels, H x W pixels of the network's images, H' x W' with the margin, K classes.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from excite.choices import TTA
from excite.data.decode import Opened
from excite.data.geometry import Fit, Interpolation, crop_offset
from excite.data.resize import eval_transform
from excite.errors import ExciteError
from excite.size import Size, by_text

#: The names in :data:`excite.choices.TTA`.
Tta = Literal["flip", "five", "shift"]
#: Size of the network's images relative to those with a margin, for images that are not cropped anyway: as in the usual
#: ``data.crop_pct``.
USUAL = 0.875


def margin_size(size: Size, crop_pct: float = 1.0, fit: Fit = "crop") -> Size:
    """Height and width of images with the margin that `five` takes its views from.

    With fit "crop", it is what evaluation cuts off: floor(size / crop_pct) pixels in all, as if `crop_pct` were 0.875
    where nothing is cut off (crop_pct 1, other fits, images that already have the network's size).

    Raises:
        ExciteError: `size` is too small for a margin.
    """
    share = crop_pct if fit == "crop" and crop_pct <= USUAL else USUAL
    height, width = math.floor(size[0] / share), math.floor(size[1] / share)
    if height == size[0] or width == size[1]:
        raise ExciteError(f"tta=five needs images of at least 7 x 7 pixels, not {by_text(size)}; use tta=flip")
    return height, width


def with_margin(image: Opened, size: Size, crop_pct: float, interpolation: Interpolation, fit: Fit) -> np.ndarray:
    """`eval_transform`, with a margin: uint8 (H', W', C). Where evaluation cuts nothing off, it is a mirrored one."""
    wanted = margin_size(size, crop_pct, fit)
    if fit == "crop" and crop_pct <= USUAL and (image.height, image.width) != size:
        return eval_transform(image, wanted, 1.0, interpolation)
    pixels = eval_transform(image, size, crop_pct, interpolation, fit)
    rows, columns = (_reflected(have, want) for have, want in zip(size, wanted, strict=True))
    return pixels[rows][:, columns]


def views(images: Tensor, tta: Tta, size: Size) -> list[Tensor]:
    """The views of images: uint8 (B, C, H, W) each.

    Args:
        images: uint8 (B, C, H, W), or (B, C, H', W') with a margin.
        tta: "flip", "five" or "shift".
        size: H and W. Images of that size get a mirrored margin for ``five``.

    Raises:
        ExciteError: images are too small for a margin.
    """
    if tta == "flip":
        return [images, images.flip(3)]
    if tta == "shift":
        moved = [images, *(_moved(images, sign) for sign in (1, -1))]
        return [view for each in moved for view in (each, each.flip(3))]
    if tuple(images.shape[2:]) == size:
        rows, columns = (_reflected(*each).to(images.device) for each in zip(size, margin_size(size), strict=True))
        images = images[:, :, rows][:, :, :, columns]
    down, across = (have - want for have, want in zip(images.shape[2:], size, strict=True))
    corners = [(0, 0), (0, across), (down, 0), (down, across)]
    return [images[:, :, top : top + size[0], left : left + size[1]] for top, left in [_centre(down, across), *corners]]


def centre(images: Tensor, size: Size) -> Tensor:
    """The network's ordinary view: uint8 (..., H', W') -> (..., H, W)."""
    top, left = _centre(images.shape[-2] - size[0], images.shape[-1] - size[1])
    return images[..., top : top + size[0], left : left + size[1]]


#: What each view counts, where they do not all count the same.
WEIGHTS: dict[Tta, list[float]] = {"shift": [2.0, 2.0, 1.0, 1.0, 1.0, 1.0]}


def _moved(images: Tensor, sign: int) -> Tensor:
    """Images moved by a thirty-second of their size, at least a pixel, up and left (1) or down and right (-1)."""
    rows, columns = (
        _moved_line(length, sign * min(length - 1, max(1, round(length / 32)))) for length in images.shape[2:]
    )
    return images[:, :, rows.to(images.device)][:, :, :, columns.to(images.device)]


def combined(logits: list[Tensor], several: bool, weights: Sequence[float] | None = None) -> Tensor:
    """The logits of the mean of the views' probabilities: float32 (B, K) of each view -> (B, K).

    Probabilities are averaged, as in Krizhevsky et al. (2012), not logits: then every view has one vote, however large
    its logits are. For one class an image these are the logarithms of the mean softmax probabilities; with several
    labels, log(p / (1 - p)) of the mean sigmoid probabilities p. Rows with a logit that is not finite stay so. With
    ``weights``, a view counts so much (:data:`WEIGHTS`).
    """
    stacked = torch.stack(logits)
    counts = [1.0] * len(logits) if weights is None else weights
    shares = torch.tensor(counts, device=stacked.device).log()[:, None, None]
    if several:
        yes, no = F.logsigmoid(stacked), F.logsigmoid(-stacked)
        return torch.logsumexp(yes + shares, 0) - torch.logsumexp(no + shares, 0)
    return torch.logsumexp(F.log_softmax(stacked, 2) + shares, 0) - math.log(sum(counts))


def told(tta: Tta, several: bool) -> str:
    """A sentence for the user about numbers that were measured with test-time augmentation."""
    what = {
        "flip": "the image and its mirror image",
        "five": "the centre and the four corners of the image",
        "shift": "the image, and it moved a little both ways, each with its mirror image",
    }[tta]
    kind = "sigmoid" if several else "softmax"
    return f"test-time augmentation (tta={tta}): the mean {kind} probabilities of {TTA[tta]} views, {what}"


def _centre(down: int, across: int) -> tuple[int, int]:
    return crop_offset(down, 0), crop_offset(across, 0)


def _moved_line(length: int, by: int) -> Tensor:
    """int64 (length,): the pixels of a line that begins `by` pixels later, continued by its mirror image."""
    place = torch.arange(by, by + length)
    return torch.where(place < 0, -place, torch.where(place < length, place, 2 * (length - 1) - place))


def _reflected(length: int, wanted: int) -> Tensor:
    """int64 (wanted,): the pixels of a line of `length`, continued on both sides by its mirror image."""
    lead, period = crop_offset(wanted, length), max(1, 2 * (length - 1))
    place = torch.arange(-lead, wanted - lead) % period
    return torch.where(place < length, place, period - place)
