"""The corruptions are those of the paper."""

import io
from math import erf

import numpy as np
import pytest
import torch
from PIL import Image

from excite.report.corruptions import SEVERITIES, STRENGTHS, corrupter, definition, strength


def gaussian_filter(values: np.ndarray, sd: float) -> np.ndarray:
    """(N, C, H, W), blurred with a kernel of 4 standard deviations to each side; the border goes on as it is."""
    radius = int(4 * sd + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sd) ** 2)
    kernel /= kernel.sum()
    for axis in (2, 3):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(4)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, pad, mode="edge"), len(kernel), axis)
        values = windows @ kernel
    return values


def images(count: int = 6, channels: int = 3, side: int = 32) -> torch.Tensor:
    """Smooth coloured noise, uint8 (N, C, S, S)."""
    rng = np.random.default_rng(3)
    values = gaussian_filter(rng.standard_normal((count, channels, side, side)), 2)
    return torch.from_numpy((128 + 200 * values).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("side", [1, 64, 65, 224])
def test_the_strengths_are_the_published_ones(side):
    """Copied from the authors' make_imagenet_c.py and make_cifar_c.py (github.com/hendrycks/robustness)."""
    published = {
        "gaussian_noise": ([0.08, 0.12, 0.18, 0.26, 0.38], [0.04, 0.06, 0.08, 0.09, 0.10]),
        "gaussian_blur": ([1, 2, 3, 4, 6], [0.4, 0.6, 0.7, 0.8, 1]),
        "jpeg_compression": ([25, 18, 15, 10, 7], [80, 65, 58, 50, 40]),
        "contrast": ([0.4, 0.3, 0.2, 0.1, 0.05], [0.75, 0.5, 0.4, 0.3, 0.15]),
        "brightness": ([0.1, 0.2, 0.3, 0.4, 0.5], [0.05, 0.1, 0.15, 0.2, 0.3]),
    }
    assert set(STRENGTHS) == set(published)
    small = side <= 64  # CIFAR-10-C is of 32 pixels, ImageNet-C of 224
    for name, (large, of_cifar) in published.items():
        assert [strength(name, severity, side) for severity in (1, 2, 3, 4, 5)] == (of_cifar if small else large)
    assert definition(side) == ("CIFAR-10-C" if small else "ImageNet-C")


@pytest.mark.parametrize("side", [32, 80])
def test_blur_contrast_and_brightness(side):
    x = images(side=side)
    values = x.numpy() / 255
    for severity in SEVERITIES:
        sd, factor, added = (strength(n, severity, side) for n in ("gaussian_blur", "contrast", "brightness"))
        blurred = gaussian_filter(values, sd)
        found = corrupter("gaussian_blur", severity, side)(x).numpy()
        assert np.abs(found - 255 * blurred).max() <= 0.55
        mean = values.mean((2, 3), keepdims=True)
        expected = 255 * ((values - mean) * factor + mean).clip(0, 1)
        assert np.abs(corrupter("contrast", severity, side)(x).numpy() - expected).max() <= 0.51
        gray = corrupter("brightness", severity, side)(x[:, :1]).numpy()
        assert np.abs(gray - 255 * np.minimum(values[:, :1] + added, 1)).max() <= 0.51
        bright = corrupter("brightness", severity, side)(x).numpy() / 255
        value = values.max(1)  # hue and saturation stay, so that all three colours grow by one factor
        grown = np.minimum(value + added, 1)
        assert np.abs(bright.max(1) - grown).max() < 0.003
        assert np.abs(bright - values * (grown / value)[:, None]).max() < 0.003


def test_noise_has_its_deviation_and_does_not_depend_on_batches():
    gray = torch.full((8, 3, 32, 32), 128, dtype=torch.uint8)
    noises = []
    for severity in SEVERITIES:
        sd = strength("gaussian_noise", severity, 32)
        found = corrupter("gaussian_noise", severity, 32)(gray).numpy() / 255
        assert found.std() == pytest.approx(sd, rel=0.02)
        noises.append(found.ravel())
        parts = corrupter("gaussian_noise", severity, 32)
        assert np.array_equal(torch.cat([parts(gray[:3]), parts(gray[3:])]).numpy() / 255, found)
        assert not np.array_equal(corrupter("gaussian_noise", severity, 32, seed=1)(gray).numpy() / 255, found)
        for level in (0, 255):  # what goes beyond the range stays at its end
            at_the_end = corrupter("gaussian_noise", severity, 32)(torch.full_like(gray, level)) == level
            assert float(at_the_end.float().mean()) == pytest.approx(0.5 + 0.5 * erf(0.5 / 255 / sd / 2**0.5), abs=0.01)
    assert np.abs(np.corrcoef(noises) - np.eye(5)).max() < 0.05  # a severity's noise is not another's, scaled


@pytest.mark.parametrize("channels", [1, 3])
def test_every_corruption_keeps_the_form_and_jpeg_is_pillows(channels):
    x = images(3, channels)
    for name in STRENGTHS:
        found = corrupter(name, 5, 32)(x)
        assert (found.shape, found.dtype) == (x.shape, torch.uint8)
        assert not torch.equal(found, x)
    file = io.BytesIO()
    Image.fromarray(x[1].permute(1, 2, 0).numpy().squeeze()).save(file, "JPEG", quality=40)
    expected = np.array(Image.open(file)).reshape(32, 32, channels)
    assert np.array_equal(corrupter("jpeg_compression", 5, 32)(x)[1].permute(1, 2, 0).numpy(), expected)


def test_strengths_grow_with_the_severity_and_differ_for_small_images():
    for name in STRENGTHS:
        for side in (32, 224):
            values = [strength(name, severity, side) for severity in SEVERITIES]
            falling = name in ("jpeg_compression", "contrast")
            assert values == sorted(values, reverse=falling)
            assert len(set(values)) == 5
        assert strength(name, 3, 64) != strength(name, 3, 65)
