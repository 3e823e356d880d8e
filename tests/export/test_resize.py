"""The resize inside the graph is Pillow's, pixel for pixel."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from excite.data.resize import eval_transform
from excite.export.resize import fitted

# Across first and down first; enlarged and shrunk; S x S; one pixel wide; odd and even spare rows.
SHAPES = [(375, 500), (500, 375), (32, 32), (33, 32), (600, 40), (40, 600), (20, 37), (31, 31), (1, 7), (401, 300)]
SHAPES += [(1, 1), (2, 2), (5, 31)]


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("size", "crop_pct"), [(32, 0.875), (31, 0.9), (64, 1.0), ((24, 40), 0.875), ((40, 24), 1.0), ((7, 64), 0.9)]
)
def test_it_is_pillows_to_the_last_pixel(interpolation, size, crop_pct, fit):
    rng = np.random.default_rng(0)
    for height, width in [*SHAPES, (24, 40), (40, 24), (7, 64), (1, 500), (500, 1)]:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        wanted = eval_transform(Image.fromarray(image), size, crop_pct, interpolation, fit)
        got = fitted(torch.from_numpy(image).permute(2, 0, 1)[None], size, crop_pct, interpolation, fit)
        np.testing.assert_array_equal(got[0].permute(1, 2, 0).numpy(), wanted, err_msg=f"{height} x {width}")


@pytest.mark.parametrize("shape", [(1, 6000), (6000, 1), (3, 4000)])
def test_a_strip_is_exact_and_takes_no_memory_for_what_the_crop_does_not_see(shape):
    """A dense product with the whole strip would hold tensors of its length; its window has a few pixels."""
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    wanted = eval_transform(Image.fromarray(image), 32, 0.875, "bicubic")
    largest = Largest()
    with largest:
        got = fitted(torch.from_numpy(image).permute(2, 0, 1)[None], 32, 0.875, "bicubic")
    np.testing.assert_array_equal(got[0].permute(1, 2, 0).numpy(), wanted)
    # Weights for all of a strip would be 64 rows a direction, each as long as it.
    assert largest.elements <= 12 * image.size


class Largest(TorchDispatchMode):
    """How many elements the largest tensor of other memory than an input's has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("size", [31, 32, 224])
def test_an_image_of_the_networks_size_comes_out_as_it_is(size):
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, 3, size, size), dtype=np.uint8))
    assert torch.equal(fitted(images, size, 0.875, "bicubic"), images.float())


def test_a_photo_shrunk_fifty_times_is_exact_too():
    image = np.random.default_rng(1).integers(0, 256, (1600, 1700, 1), dtype=np.uint8)
    wanted = eval_transform(Image.fromarray(image[:, :, 0]), 32, 1.0, "bicubic")
    got = fitted(torch.from_numpy(image).permute(2, 0, 1)[None], 32, 1.0, "bicubic")
    np.testing.assert_array_equal(got[0].permute(1, 2, 0).numpy(), wanted)
