"""Five image corruptions at five severities, after Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness
to Common Corruptions and Perturbations" (arXiv 1903.12261).

Strengths are those of ImageNet-C, or for small images of CIFAR-10-C, which the authors chose for 32x32 pixels. The
corruptions are applied to the network's input, after resizing and cropping. Unlike in the published data sets, results
are not stored as JPEG, and values are rounded to 8 bits instead of truncated; otherwise blur, noise, JPEG, contrast and
brightness are the same.

Notation: B images, C channels (1 or 3), H x W pixels.
"""

import io
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

#: The largest image side, in pixels, with the strengths of CIFAR-10-C.
SMALL = 64
#: Corruption -> (meaning of its strength, the five strengths of ImageNet-C, those of CIFAR-10-C).
STRENGTHS: dict[str, tuple[str, tuple[float, ...], tuple[float, ...]]] = {
    "gaussian_noise": ("sd, of the range 0 to 1", (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "gaussian_blur": ("sd, pixels", (1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1)),
    "jpeg_compression": ("quality", (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
    "contrast": ("factor", (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": ("added to V of HSV", (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
}
SEVERITIES = (1, 2, 3, 4, 5)


def definition(image_size: int) -> str:
    """The data set whose strengths apply to images of this longer side: "CIFAR-10-C" or "ImageNet-C"."""
    return "CIFAR-10-C" if image_size <= SMALL else "ImageNet-C"


def strength(name: str, severity: int, image_size: int) -> float:
    """The strength of a corruption at a severity from 1 to 5, in the unit of :data:`STRENGTHS`."""
    _, large, small = STRENGTHS[name]
    return (small if image_size <= SMALL else large)[severity - 1]


def corrupter(name: str, severity: int, image_size: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A function that corrupts images: uint8 (B, C, H, W) -> uint8 of the same shape, on the CPU.

    Noise comes from one random stream per severity, so that it depends on the order of the images but not on the batch
    size.
    """
    value = strength(name, severity, image_size)
    if name == "gaussian_noise":
        stream = np.random.default_rng((seed, severity))
        return lambda images: _noise(images, value, stream)
    plain = {
        "gaussian_blur": _blur,
        "jpeg_compression": _jpeg,
        "contrast": _contrast,
        "brightness": _brightness,
    }[name]
    return lambda images: plain(images, value)


def _to_bytes(values: Tensor) -> Tensor:
    """Floats in 0..1 -> uint8."""
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def _noise(images: Tensor, sd: float, stream: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(stream.standard_normal(tuple(images.shape), dtype=np.float32))
    return _to_bytes(images / 255 + sd * noise)


def _blur(images: Tensor, sd: float) -> Tensor:
    from kornia.filters import gaussian_blur2d

    # Like the original's filter (scikit-image), it extends to 4 sd and repeats the border pixels.
    side = 2 * math.ceil(4 * sd) + 1
    return _to_bytes(gaussian_blur2d(images / 255, (side, side), (sd, sd), border_type="replicate"))


def _jpeg(images: Tensor, quality: float) -> Tensor:
    from PIL import Image

    from excite.data.decode import load_image

    out = torch.empty_like(images)
    for i, image in enumerate(images):
        pixels = image.permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(file, "JPEG", quality=int(quality))
        mode: Literal["RGB", "L"] = "RGB" if pixels.shape[2] == 3 else "L"
        decoded = torch.from_numpy(np.array(load_image(file.getvalue(), mode)))
        out[i] = decoded.permute(2, 0, 1) if decoded.ndim == 3 else decoded
    return out


def _contrast(images: Tensor, factor: float) -> Tensor:
    values = images / 255
    mean = values.mean((2, 3), keepdim=True)
    return _to_bytes((values - mean) * factor + mean)


def _brightness(images: Tensor, added: float) -> Tensor:
    from kornia.color import hsv_to_rgb, rgb_to_hsv

    if images.shape[1] == 1:  # gray: V is the pixel value
        return _to_bytes(images / 255 + added)
    hsv = rgb_to_hsv(images / 255)
    hsv[:, 2] = (hsv[:, 2] + added).clamp(0, 1)
    return _to_bytes(hsv_to_rgb(hsv))
