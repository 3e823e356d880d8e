import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from stats import binomial_ok, chi_square_ok, ks_ok, ks_same, uniform

from excite.data import AugmentConfig, BatchAugment, RandAugmentConfig
from excite.data import augment as augment_module
from excite.data.augment import beta, crop_and_resize, cutmix, cutout, flip, mixup, pad_crop_flip, random_erasing
from excite.errors import ExciteError


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def ops():
    from excite.data import kornia_ops

    return kornia_ops


def coordinates(count: int, size: int = 32) -> torch.Tensor:
    """Images whose pixels tell where they came from: channel 0 is column + 1, channel 1 row + 1, channel 2 full."""
    line = torch.arange(1, size + 1, dtype=torch.uint8)
    full = torch.full((size, size), 255, dtype=torch.uint8)
    return torch.stack([line.expand(size, size), line[:, None].expand(size, size), full]).expand(count, -1, -1, -1)


def pixels_of(config: AugmentConfig, images: torch.Tensor) -> torch.Tensor:
    """What BatchAugment makes of images, without the normalisation."""
    out, _ = BatchAugment(config, (0, 0, 0), (1 / 255,) * 3, 10)(images, torch.zeros(len(images), dtype=torch.int64))
    return out


# --- the whole -------------------------------------------------------------------------------------------------------


def test_nothing_asked_for_is_only_normalised():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(5)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out, targets = BatchAugment(AugmentConfig(hflip=0), mean, std, 10)(images, labels)
    expected = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(out, expected, atol=1e-5)
    assert targets is labels


EVERYTHING = {
    "crop": "pad",
    "color_jitter": [0.4, 0.4, 0.4, 0.1],
    "rotation": 10,
    "cutout": 8,
    "random_erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
    "rand_augment": {"n": 2, "m": 9},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 32])
def test_everything_at_once_gives_finite_images_of_the_wanted_form(channels: int, size: int):
    config = AugmentConfig.model_validate(EVERYTHING)
    make = BatchAugment(
        config, (0.5,) * channels, (0.25,) * channels, 7, dtype=torch.bfloat16, memory_format=torch.channels_last
    )
    images = torch.randint(0, 256, (6, 1, size, size), dtype=torch.uint8).expand(-1, channels, -1, -1)
    before = images.clone()
    out, targets = make(images, torch.arange(6))
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.shape == images.shape
    assert out.isfinite().all()
    assert torch.allclose(targets.sum(1), torch.ones(6))
    assert torch.equal(images, before), "the stored images must not change"


def test_the_global_seed_decides_everything():
    make = BatchAugment(AugmentConfig.model_validate(EVERYTHING), (0.5,) * 3, (0.25,) * 3, 10)
    images, labels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8), torch.arange(8)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(make(images, labels))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize(
    ("asked", "operation"),
    [
        ({"rand_augment": {"n": 2, "m": 20}}, lambda ops, x: ops.rand_augment(x, 2, 20)),
        ({"trivial_augment": True}, lambda ops, x: ops.trivial_augment(x)),
        ({"rotation": 40.0}, lambda ops, x: ops.random_rotation(x, 40.0)),
        ({"color_jitter": [0.4, 0.3, 0.2, 0.1]}, lambda ops, x: ops.color_jitter(x, [0.4, 0.3, 0.2, 0.1])),
    ],
    ids=["RandAugment", "TrivialAugment", "rotation", "jitter"],
)
def test_what_is_asked_for_is_done(asked: dict, operation, ops):
    images = coordinates(16, 12)
    torch.manual_seed(3)
    out = pixels_of(AugmentConfig.model_validate({"hflip": 0, **asked}), images)
    torch.manual_seed(3)
    assert torch.allclose(out, operation(ops, images.float() / 255) * 255, atol=1e-3)
    assert not torch.allclose(out, images.float(), atol=1)


@pytest.mark.parametrize("asked", [{"cutout": 4}, {"random_erasing": 1.0}])
def test_what_is_cut_out_becomes_the_mean_colour(asked: dict):
    make = BatchAugment(AugmentConfig.model_validate({"hflip": 0, **asked}), (0.5,), (0.25,), 2)
    out, _ = make(torch.full((64, 1, 9, 9), 255, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    assert torch.allclose(out.unique(), torch.tensor([0.0, 2.0]))


def test_kornia_is_imported_only_when_asked_for():
    code = (
        "import sys, torch; from excite.data import *; x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)\n"
        "def run(**k): BatchAugment(AugmentConfig(**k), (0,) * 3, (1,) * 3, 2)(x, torch.zeros(2, dtype=torch.int64))\n"
        "run(crop='pad', cutout=4, random_erasing=1.0, mixup=1.0); assert 'kornia' not in sys.modules\n"
        "run(rotation=5.0); assert 'kornia' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- flip and crop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.5, 0.2])
@pytest.mark.parametrize("crop", ["none", "pad"])
def test_flip_rate(p: float, crop: str):
    count = 6000
    out = pixels_of(AugmentConfig(crop=crop, hflip=p, pad=1), coordinates(count, 8))
    flipped = out[:, 0, 4, 3] > out[:, 0, 4, 4]
    assert binomial_ok(int(flipped.sum()), count, p)
    assert not binomial_ok(int(flipped.sum()), count, p + 0.1)
    assert binomial_ok(int((flipped[1:] & flipped[:-1]).sum()), count - 1, p * p), "images flip independently"


def test_flip_mirrors_the_whole_image():
    images = torch.randint(0, 256, (64, 3, 5, 6), dtype=torch.uint8)
    out = flip(images, 0.5)
    for image, got in zip(images, out, strict=True):
        assert torch.equal(got, image) or torch.equal(got, image.flip(2))
    assert torch.equal(flip(images, 1.0), images.flip(3))


@pytest.mark.parametrize("crop", ["none", "pad"])
def test_vertical_flip(crop: str):
    """Top to bottom, whatever is done left to right, at its own rate; off, it draws no random number."""
    count = 4000
    out = pixels_of(AugmentConfig(crop=crop, pad=1, hflip=0.0, vflip=0.3), coordinates(count, 8))
    down = out[:, 1, 3, 4] > out[:, 1, 4, 4]
    assert binomial_ok(int(down.sum()), count, 0.3)
    assert not binomial_ok(int(down.sum()), count, 0.4)
    images = coordinates(3, 8)
    assert torch.equal(
        pixels_of(AugmentConfig(hflip=0.0, vflip=1.0), images), pixels_of(AugmentConfig(hflip=0.0), images.flip(2))
    )
    assert torch.equal(
        pixels_of(AugmentConfig(hflip=1.0, vflip=1.0), images), pixels_of(AugmentConfig(hflip=0.0), images.flip(2, 3))
    )


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_pad_crop_is_a_crop_of_the_padded_image(mode: str):
    images = torch.randint(1, 256, (40, 3, 9, 7), dtype=torch.uint8)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode={"zero": "constant", "reflect": "reflect"}[mode])
    out = pad_crop_flip(images, 2, mode, 0.5)
    for source, got in zip(padded, out, strict=True):
        crops = [source[:, y : y + 9, x : x + 7] for y in range(5) for x in range(5)]
        assert any(torch.equal(got, crop) or torch.equal(got, crop.flip(2)) for crop in crops)


def test_crop_offsets_are_uniform_extremes_included():
    count, pad = 12000, 4
    out = pad_crop_flip(coordinates(count), pad, "zero", 0.0)
    x, y = out[:, 0, 16, 16].long() - 17 + pad, out[:, 1, 16, 16].long() - 17 + pad
    joint = torch.zeros(2 * pad + 1, 2 * pad + 1).index_put_((y, x), torch.ones(count), accumulate=True)
    assert chi_square_ok(joint.numpy())
    assert joint.min() > 0
    # The usual mistake, an offset that never reaches the far end, and a bell-shaped one are noticed.
    wrong = torch.randint(0, 2 * pad, (2, count))
    counts = np.bincount(wrong[0] * 9 + wrong[1], minlength=81)
    assert not chi_square_ok(counts)
    bell = (torch.randint(0, pad + 1, (2, count)) + torch.randint(0, pad + 1, (2, count))).numpy()
    assert not chi_square_ok(np.bincount(bell[0] * 9 + bell[1], minlength=81))


def test_reflecting_more_than_there_is_says_so():
    with pytest.raises(ExciteError, match=r"augment\.pad=8 is too large to reflect 8 x 8"):
        pad_crop_flip(coordinates(2, 8), 8, "reflect", 0.0)


def test_crop_and_resize_takes_the_box():
    images = coordinates(3, 32)
    boxes = np.array([[0, 0, 32, 32], [8, 4, 16, 16], [0, 16, 32, 16]])
    whole, part, wide = crop_and_resize(images, boxes, 32, "bilinear").long()
    assert torch.equal(whole, images[0].long())
    assert (part[0, 16, 15], part[1, 15, 16]) == (16, 12)
    assert part[0].min() >= 8
    assert part[0].max() <= 25
    assert torch.equal(wide[0, 0], images[0, 0, 0].long())
    assert wide[1].min() >= 16


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_box_of_the_wanted_size_is_copied_from_images_that_are_not_square(interpolation: str):
    images = torch.randint(0, 256, (3, 3, 20, 41), dtype=torch.uint8)
    boxes = np.array([[0, 0, 8, 8], [33, 12, 8, 8], [5, 3, 8, 8]])
    out = crop_and_resize(images, boxes, 8, interpolation)
    for image, got, (left, top, _, _) in zip(images, out, boxes, strict=True):
        assert torch.equal(got, image[:, top : top + 8, left : left + 8])
    even = torch.full((3, 1, 20, 41), 77, dtype=torch.uint8)
    assert (crop_and_resize(even, boxes, 30, interpolation) == 77).all()  # nothing dark comes in over the border


# --- cutout and erasing -----------------------------------------------------------------------------------------------


def rectangles(mask: torch.Tensor) -> np.ndarray:
    """Top, bottom, left, right (far ends exclusive) of the True part of (B, H, W), checked to be a full rectangle."""
    mask = mask.numpy()
    rows, columns = mask.any(2), mask.any(1)
    top, left = rows.argmax(1), columns.argmax(1)
    bottom, right = rows.shape[1] - rows[:, ::-1].argmax(1), columns.shape[1] - columns[:, ::-1].argmax(1)
    assert (mask.sum((1, 2)) == (bottom - top) * (right - left)).all()
    return np.stack([top, bottom, left, right], 1)


def test_cutout_centre_is_uniform_and_what_sticks_out_is_lost():
    count, size, side = 20000, 16, 6
    out = cutout(torch.ones(count, 2, size, size), side)
    assert torch.equal(out[:, 0], out[:, 1])
    top, bottom, left, right = rectangles(out[:, 0] == 0).T
    assert (bottom - top).max() == side
    assert (bottom - top).min() == side // 2  # centre on the edge

    def centre(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        return np.where(first > 0, first + side // 2, last - side + side // 2)

    joint = np.zeros((size, size))
    np.add.at(joint, (centre(top, bottom), centre(left, right)), 1)
    assert chi_square_ok(joint)
    inside = np.random.default_rng(0).integers(side // 2, size - side // 2, (count, 2))  # squares that never stick out
    wrong = np.zeros((size, size))
    np.add.at(wrong, tuple(inside.T), 1)
    assert not chi_square_ok(wrong)


def reference_erasing(rng: np.random.Generator, size: int, p: float) -> tuple[int, int, int, int] | None:
    """Random erasing as timm and torchvision spell it, one image at a time: height, width, top, left."""
    if rng.random() >= p:
        return None
    for _ in range(10):
        area = size * size * rng.uniform(0.02, 1 / 3)
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < size and w < size:
            return h, w, int(rng.integers(0, size - h + 1)), int(rng.integers(0, size - w + 1))
    return None


def test_random_erasing_rate_area_shape_and_place():
    count, size, p = 5000, 48, 0.6
    out = random_erasing(torch.ones(count, 1, size, size), p)
    mask = out[:, 0] == 0
    hit = mask.any(2).any(1)
    assert binomial_ok(int(hit.sum()), count, p)
    assert not binomial_ok(int(hit.sum()), count, p - 0.1)
    top, bottom, left, right = rectangles(mask[hit]).T
    rng = np.random.default_rng(1)
    drawn = np.array([box for box in (reference_erasing(rng, size, 1.0) for _ in range(4000)) if box])
    h, w, y, x = drawn.T
    jitter = np.random.default_rng(2)

    def relative(first: np.ndarray, room: np.ndarray) -> np.ndarray:
        return (first + jitter.random(len(first))) / (room + 1)

    assert ks_same((bottom - top) * (right - left), h * w)
    assert ks_same((bottom - top) / (right - left), h / w)
    assert ks_same(relative(top, size - (bottom - top)), relative(y, size - h))
    assert ks_same(relative(left, size - (right - left)), relative(x, size - w))
    assert not ks_same((bottom - top) * (right - left), h * w * 0.8)
    assert not ks_same((right - left) / (bottom - top) * 1.3, h / w)


def test_every_place_of_an_image_that_is_not_square_is_cut_out_and_erased():
    pixel = cutout(torch.ones(6000, 1, 4, 9), 1)[:, 0] == 0
    assert chi_square_ok(pixel.sum(0).numpy())
    assert pixel.sum() == 6000  # the centre is always inside
    for shape in ((8, 64), (64, 8)):
        mask = random_erasing(torch.ones(3000, 1, *shape), 1.0)[:, 0] == 0
        top, bottom, left, right = rectangles(mask[mask.any(2).any(1)]).T
        assert (top.min(), left.min(), bottom.max(), right.max()) == (0, 0, *shape)
        assert (bottom - top).max() < shape[0]
        assert (right - left).max() < shape[1]


# --- mixing ----------------------------------------------------------------------------------------------------------


def beta_cdf(alpha: float):
    """Of Beta(alpha, alpha), integrated over s = x^alpha, which takes the pole at 0 away; symmetric about 1/2."""
    s = np.linspace(0, 0.5**alpha, 20001)
    density = (1 - s ** (1 / alpha)) ** (alpha - 1)
    total = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    half = total / (2 * total[-1])
    return lambda x: np.where(x < 0.5, np.interp(x**alpha, s, half), 1 - np.interp((1 - x) ** alpha, s, half))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_mixing_share_is_beta_distributed(alpha: float):
    drawn = np.array([beta(alpha) for _ in range(3000)])
    assert ks_ok(drawn, beta_cdf(alpha))
    assert not ks_ok(drawn, beta_cdf(alpha * 1.6))
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(drawn.mean() - 0.5) < 5 * math.sqrt(variance / 3000)
    assert abs(drawn.var() - variance) < 0.15 * variance


def test_mixup_mixes_images_and_targets_alike():
    images = torch.rand(5, 3, 4, 4)
    out, share = mixup(images, 1.0)
    assert torch.allclose(out, share * images + (1 - share) * images.roll(1, 0), atol=1e-6)
    make = BatchAugment(AugmentConfig(hflip=0, mixup=0.5), (0,), (1 / 255,), 5)
    labels = torch.tensor([0, 1, 2, 2, 4])
    pictures = (labels * 10).to(torch.uint8).view(5, 1, 1, 1).expand(-1, 1, 4, 4)
    out, targets = make(pictures, labels)
    assert targets.shape == (5, 5)
    assert targets[3, 2] == 1  # its neighbour has the same label: the shares add up
    assert torch.allclose(out[:, 0, 0, 0], (targets * torch.arange(5) * 10).sum(1), atol=1e-3)


def test_cutmix_targets_are_the_share_of_pixels():
    make = BatchAugment(AugmentConfig(hflip=0, cutmix=1.0), (0,), (1 / 255,), 4)
    labels = torch.arange(4)
    pictures = labels.to(torch.uint8).view(4, 1, 1, 1).expand(-1, 1, 11, 13)
    for _ in range(300):
        out, targets = make(pictures, labels)
        for own in range(4):
            origin = torch.bincount(out[own].round().long().flatten(), minlength=4) / (11 * 13)
            assert torch.allclose(targets[own], origin, atol=1e-5)


def test_cutmix_boxes_follow_the_paper():
    size, count = 32, 3000
    images = torch.stack([torch.zeros(1, size, size), torch.ones(1, size, size)])
    masks = torch.stack([cutmix(images, 1.0)[0][0, 0] for _ in range(count)]) == 1
    pasted = masks.sum((1, 2)).numpy()
    rng = np.random.default_rng(0)

    def reference(centred: bool) -> int:
        side = int(size * math.sqrt(1 - rng.beta(1.0, 1.0)))
        corner = [(size // 2 if centred else int(rng.integers(0, size))) - side // 2 for _ in range(2)]
        tall, wide = (min(c + side, size) - max(c, 0) for c in corner)
        return tall * wide

    assert ks_same(pasted, np.array([reference(False) for _ in range(count)]))
    assert not ks_same(pasted, np.array([reference(True) for _ in range(count)]))  # boxes that never stick out
    everywhere = masks.float().mean(0)
    assert everywhere.min() > 0.1  # corners are pasted too


def test_mix_probability_and_switch(monkeypatch):
    calls = {"mixup": 0, "cutmix": 0}

    def counted(name: str):
        def fake(images: torch.Tensor, alpha: float) -> tuple[torch.Tensor, float]:
            calls[name] += 1
            return images, 0.25

        return fake

    for name in calls:
        monkeypatch.setattr(augment_module, name, counted(name))
    config = AugmentConfig(mixup=0.2, cutmix=1.0, mix_prob=0.7, switch_prob=0.4, hflip=0)
    make = BatchAugment(config, (0,), (1,), 3)
    images, labels = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 2])
    hard = 0
    for _ in range(3000):
        _, targets = make(images, labels)
        hard += int(targets[0, 0] == 1)
        assert torch.allclose(targets.sum(1), torch.ones(2))
    assert binomial_ok(hard, 3000, 0.3)
    assert binomial_ok(calls["cutmix"], 3000, 0.7 * 0.4)
    assert binomial_ok(calls["mixup"], 3000, 0.7 * 0.6)
    assert not binomial_ok(calls["mixup"], 3000, 0.7 * 0.5)


# --- colour and rotation ---------------------------------------------------------------------------------------------


def test_brightness_contrast_and_saturation_factors_are_uniform(ops):
    count = 4000
    plain = torch.full((count, 3, 2, 2), 0.3)
    brightness = ops.color_jitter(plain, [0.4, 0, 0, 0])[:, 0, 0, 0] / 0.3
    halves = torch.cat([torch.full((count, 3, 2, 1), 0.45), torch.full((count, 3, 2, 1), 0.55)], 3)
    contrasted = ops.color_jitter(halves, [0, 0.6, 0, 0])
    contrast = (contrasted[:, 0, 0, 1] - contrasted[:, 0, 0, 0]) / 0.1
    coloured = torch.tensor([0.5, 0.4, 0.45]).view(1, 3, 1, 1).expand(count, -1, 2, 2)
    saturated = ops.color_jitter(coloured, [0, 0, 0.8, 0])
    saturation = (saturated[:, 0, 0, 0] - saturated[:, 1, 0, 0]) / 0.1
    for factor, strength in ((brightness, 0.4), (contrast, 0.6), (saturation, 0.8)):
        assert ks_ok(factor.numpy(), uniform(1 - strength, 1 + strength))
        assert not ks_ok(factor.numpy(), uniform(1 - strength * 0.8, 1 + strength * 0.8))
    assert ks_ok(ops.color_jitter(plain, [1.5, 0, 0, 0])[:, 0, 0, 0].numpy() / 0.3, uniform(0, 2.5))


def test_hue_turns_uniformly(ops):
    import colorsys

    images = torch.tensor([0.6, 0.3, 0.3]).view(1, 3, 1, 1).expand(3000, -1, 1, 1)
    turned = ops.color_jitter(images, [0, 0, 0, 0.1])[:, :, 0, 0].tolist()
    hue = np.array([(colorsys.rgb_to_hsv(*rgb)[0] + 0.5) % 1 - 0.5 for rgb in turned])
    assert ks_ok(hue, uniform(-0.1, 0.1))
    assert not ks_ok(hue, uniform(-0.12, 0.12))
    assert np.allclose([max(rgb) for rgb in turned], 0.6, atol=1e-5)


def test_rotation_angles_are_uniform_about_the_centre(ops):
    size, count = 17, 3000
    line = torch.arange(size).float() - size // 2
    images = torch.stack([line.expand(size, size), line[:, None].expand(size, size)]).expand(count, -1, -1, -1)
    out = ops.random_rotation(images, 30.0)
    assert out[:, :, 8, 8].abs().max() < 1e-4, "the centre stays"
    x, y = out[:, 0, 8, 12], out[:, 1, 8, 12]  # what lies 4 right of the centre came from (x, y)
    assert torch.allclose(x**2 + y**2, torch.full((count,), 16.0), atol=1e-3)
    angle = torch.rad2deg(torch.atan2(y, x)).numpy()
    assert ks_ok(angle, uniform(-30, 30))
    assert not ks_ok(angle, uniform(-34, 34))
    assert not ks_ok(np.abs(angle), uniform(-30, 30))


# --- RandAugment and TrivialAugment -----------------------------------------------------------------------------------


def recorded(monkeypatch, ops) -> list[tuple]:
    calls: list[tuple] = []

    def fake(images, operation, strength, reach, relative_translation):
        calls.append((operation, strength, reach, relative_translation))
        return images

    monkeypatch.setattr(ops, "_apply", fake)
    return calls


def test_rand_augment_draws_operations_independently_per_image(monkeypatch, ops):
    calls = recorded(monkeypatch, ops)
    kinds = len(ops.OPERATIONS)
    ops.rand_augment(torch.zeros(8000, 1, 1, 1), 2, 9.0)
    assert len(calls) == 2
    (first, strength, reach, relative), (second, *_) = calls
    assert relative
    assert reach == {"shear": 0.3, "translate": 150 / 331, "rotate": 30, "blend": 0.9, "bits": 4}  # torchvision's
    assert torch.allclose(strength, torch.full((8000,), 0.3))
    assert chi_square_ok(np.bincount(first, minlength=kinds))
    assert chi_square_ok(np.bincount(first * kinds + second, minlength=kinds**2)), "rounds are independent"
    assert chi_square_ok(np.bincount(first[1:] * kinds + first[:-1], minlength=kinds**2)), "images are independent"
    assert not chi_square_ok(np.bincount(first * kinds + first, minlength=kinds**2))  # one draw used twice
    assert not chi_square_ok(np.bincount(torch.randint(0, kinds - 1, (8000,)), minlength=kinds))


def test_trivial_augment_draws_operation_and_strength_uniformly(monkeypatch, ops):
    calls = recorded(monkeypatch, ops)
    kinds = len(ops.OPERATIONS)
    ops.trivial_augment(torch.zeros(12000, 1, 1, 1))
    ((operation, strength, reach, relative),) = calls
    assert not relative
    assert reach == {"shear": 0.99, "translate": 32, "rotate": 135, "blend": 0.99, "bits": 6}  # the paper's wide space
    joint = np.bincount(operation * 31 + (strength * 30).round().long(), minlength=kinds * 31)
    assert chi_square_ok(joint)
    assert not chi_square_ok(np.bincount(operation * 31 + torch.randint(0, 30, (12000,)), minlength=kinds * 31))


def test_geometry_knows_height_from_width(ops):
    """Shifts and half turns of images that are not square, which are exact."""
    images = torch.rand(6, 1, 20, 40)
    names = ["translate_x", "translate_x", "translate_y", "translate_y", "rotate", "rotate"]
    operation = torch.tensor([ops.OPERATIONS.index(name) for name in names])
    for relative, reach, steps in ((True, 0.25, (10, 5)), (False, 3.0, (3, 3))):
        out = ops._apply(images, operation, torch.ones(6), {"shear": 9, "translate": reach, "rotate": 180}, relative)
        for i in range(4):
            step = steps[i // 2]
            pads = [(a, -a) if i < 2 else (0, 0, a, -a) for a in (step, -step)]  # either way
            shifted = [torch.nn.functional.pad(images[i], pad) for pad in pads]
            assert any(torch.allclose(out[i], one, atol=1e-4) for one in shifted)
        assert torch.allclose(out[4:], images[4:].flip(2, 3), atol=1e-3)


def smooth_images(count: int, size: int = 24) -> torch.Tensor:
    small = torch.randint(0, 256, (count, 3, 5, 5), generator=torch.Generator().manual_seed(3)).float()
    return torch.nn.functional.interpolate(small, (size, size), mode="bicubic").round().clamp(0, 255) / 255


def pillow_result(name: str, image: Image.Image, m: float, sign: int) -> Image.Image:
    """The operation as torchvision defines it for RandAugment at strength m (0..1), done by Pillow."""
    size, signed = image.width, m * sign
    level = {"shear": 0.3, "translate": 150 / 331 * size, "rotate": 30.0, "blend": 0.9}
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    blends = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in blends:
        return blends[name](image).enhance(1 + signed * level["blend"])
    table = {
        "identity": lambda: image,
        "rotate": lambda: image.rotate(-signed * level["rotate"], bilinear),
        "shear_x": lambda: image.transform(image.size, affine, (1, -signed * level["shear"], 0, 0, 1, 0), bilinear),
        "shear_y": lambda: image.transform(image.size, affine, (1, 0, 0, -signed * level["shear"], 1, 0), bilinear),
        "translate_x": lambda: image.transform(
            image.size, affine, (1, 0, -signed * level["translate"], 0, 1, 0), bilinear
        ),
        "translate_y": lambda: image.transform(
            image.size, affine, (1, 0, 0, 0, 1, -signed * level["translate"]), bilinear
        ),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * m)),
        "solarize": lambda: ImageOps.solarize(image, 255 * (1 - m)),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }
    return table[name]()


@pytest.mark.parametrize("m", [0.0, 0.3, 0.7])
def test_each_operation_does_what_pillow_does(m: float, ops):
    """All operations in one batch, in both signs: each image gets its own, none another's."""
    kinds = len(ops.OPERATIONS)
    images = smooth_images(2 * kinds)
    operation = torch.arange(2 * kinds) % kinds
    reach = {"shear": 0.3, "translate": 150 / 331, "rotate": 30.0, "blend": 0.9, "bits": 4.0}
    signs = torch.cat([torch.ones(kinds), -torch.ones(kinds)]).long()
    draws = torch.randint
    torch.randint = lambda *a, **k: (signs + 1) // 2
    try:
        out = ops._apply(images, operation, torch.full((2 * kinds,), m), reach, relative_translation=True)
    finally:
        torch.randint = draws
    for i, image in enumerate(images):
        name = ops.OPERATIONS[operation[i]]
        source = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        expected = torch.from_numpy(np.array(pillow_result(name, source, m, int(signs[i])))).permute(2, 0, 1) / 255
        gap = (out[i] - expected).abs()
        if name in ops.GEOMETRIC:
            # Pillow cuts off at the border of the source, where we blend with black: look at the inside only.
            black = torch.nn.functional.pad((expected == 0).all(0).float()[None, None], (1, 1, 1, 1), value=1)
            inside = torch.nn.functional.max_pool2d(black, 5, 1, 1)[0, 0] == 0
            assert inside.float().mean() > 0.2
            gap = gap * inside
        if name == "solarize":  # pixels exactly at the threshold may fall to either side
            assert (gap > 2 / 255).float().mean() < 0.02
        else:
            assert gap.max() <= (3 if name != "equalize" else 12) / 255, (name, gap.max() * 255)


def test_constant_images_survive_every_operation(ops):
    for value in (0.0, 0.5, 1.0):
        images = torch.full((len(ops.OPERATIONS) * 4, 3, 8, 8), value)
        out = ops.trivial_augment(images)
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1


def test_rand_augment_leaves_gray_images_gray():
    config = AugmentConfig(rand_augment=RandAugmentConfig(n=3, m=15))
    images = torch.randint(0, 256, (32, 1, 12, 12), dtype=torch.uint8)
    out, _ = BatchAugment(config, (0.5,), (0.5,), 2)(images, torch.zeros(32, dtype=torch.int64))
    assert out.shape == (32, 1, 12, 12)
    assert out.isfinite().all()
