"""The resize inside the graph is Pillow's, pixel for pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from excite.data.decode import eval_transform
from excite.export.resize import resize_and_crop

# Across first and down first; enlarged and shrunk; S x S; one pixel wide; odd and even spare rows.
SHAPES = [(375, 500), (500, 375), (32, 32), (33, 32), (600, 40), (40, 600), (20, 37), (31, 31), (1, 7), (401, 300)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "crop_pct"), [(32, 0.875), (31, 0.9), (64, 1.0)])
def test_it_is_pillows_to_the_last_pixel(interpolation, size, crop_pct):
    rng = np.random.default_rng(0)
    for height, width in SHAPES:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        wanted = eval_transform(Image.fromarray(image), size, crop_pct, interpolation)
        got = resize_and_crop(torch.from_numpy(image).permute(2, 0, 1)[None], size, crop_pct, interpolation)
        np.testing.assert_array_equal(got[0].permute(1, 2, 0).numpy(), wanted, err_msg=f"{height} x {width}")


@pytest.mark.parametrize("height", [40, 90])
def test_without_a_conditional_it_is_the_same(height):
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (1, 3, height, 60), dtype=np.uint8))
    wanted = resize_and_crop(images, 16, 0.875, "bicubic")
    assert torch.equal(resize_and_crop(images, 16, 0.875, "bicubic"), wanted)


def test_a_photo_shrunk_fifty_times_is_exact_too():
    image = np.random.default_rng(1).integers(0, 256, (1600, 1700, 1), dtype=np.uint8)
    wanted = eval_transform(Image.fromarray(image[:, :, 0]), 32, 1.0, "bicubic")
    got = resize_and_crop(torch.from_numpy(image).permute(2, 0, 1)[None], 32, 1.0, "bicubic")
    np.testing.assert_array_equal(got[0].permute(1, 2, 0).numpy(), wanted)
