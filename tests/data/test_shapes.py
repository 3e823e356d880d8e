"""Images of any shape, brought to any size in each of three ways, alike as files, arrays and tensors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from excite.data import open_data
from excite.data.config import AugmentConfig, DataConfig
from excite.data.geometry import box_ratio, random_boxes, resized_shape, spans
from excite.data.images import ArrayImages, fitted
from excite.data.loader import EvalLoader, TrainLoader
from excite.data.preprocessing import Preprocessing
from excite.data.resize import PADDING, eval_transform, eval_transform_tensor, random_resized_crop
from excite.errors import ExciteError
from excite.recipe import load_recipe
from excite.size import as_size, by_text, plain_size, size_text

FITS = ["crop", "letterbox", "stretch"]
#: Strips, the wanted sizes themselves, enlarged, shrunk, one pixel.
SHAPES = [(1, 500), (500, 1), (24, 40), (40, 24), (32, 32), (20, 33), (300, 400), (401, 299), (1, 1), (2, 3), (7, 64)]
SIZES = [32, (24, 40), (40, 24), (7, 64), 31, 1]


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """The hardest case: every filter overshoots everywhere."""
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 2, (height, width, channels), dtype=np.uint8) * 255


def plainly(image: Image.Image, size: int | tuple[int, int], crop_pct: float, fit: str) -> np.ndarray:
    """The definitions, with Pillow alone."""
    tall, wide = (size, size) if isinstance(size, int) else size
    if image.size == (wide, tall):
        return np.asarray(image)
    if fit == "stretch":
        return np.asarray(image.resize((wide, tall), Image.Resampling.BICUBIC))
    if fit == "letterbox":
        scale = min(tall / image.height, wide / image.width)
        width, height = (max(1, int(side * scale + 0.5 + 1e-9)) for side in image.size)
        out = Image.new("RGB", (wide, tall), (PADDING,) * 3)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        out.paste(resized, ((wide - width) // 2, (tall - height) // 2))
        return np.asarray(out)
    scale = max(int(tall / crop_pct) / image.height, int(wide / crop_pct) / image.width)
    width, height = (int(side * scale + 1e-9) for side in image.size)
    left, top = round((width - wide) / 2), round((height - tall) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + wide, top + tall)))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_each_way_is_what_its_name_says_in_pillow_and_on_tensors(fit, size):
    for shape in SHAPES:
        pixels = noise(*shape)
        for crop_pct in (0.875, 1.0):
            expected = plainly(Image.fromarray(pixels), size, crop_pct, fit)
            what = f"{shape} to {size}, {fit}, {crop_pct}"
            got = eval_transform(Image.fromarray(pixels), size, crop_pct, "bicubic", fit)
            np.testing.assert_array_equal(got, expected, what)
            tensors = torch.from_numpy(pixels).permute(2, 0, 1)[None]
            found = eval_transform_tensor(tensors, size, crop_pct, "bicubic", fit)
            np.testing.assert_array_equal(found[0].permute(1, 2, 0).numpy(), expected, what)
            assert torch.equal(fitted(tensors, size, crop_pct, "bicubic", fit), found)


def test_a_letterbox_loses_nothing_and_is_as_large_as_it_can_be():
    for height, width in SHAPES:
        for size in SIZES:
            tall, wide = as_size(size)
            down, across = spans(height, width, size, 0.875, "letterbox")
            assert down.resized == tall or across.resized == wide
            exact = min(tall / height, wide / width)
            assert abs(down.resized - height * exact) <= max(0.5, 1 - height * exact)
            assert abs(across.resized - width * exact) <= max(0.5, 1 - width * exact)
            for span in (down, across):
                assert 1 <= span.resized <= span.wanted
                behind = span.wanted - span.resized + span.first
                assert behind + span.first in (0, 1)  # as much before it as behind it


def test_an_absurdly_tall_image_is_refused_before_it_takes_all_memory(monkeypatch):
    monkeypatch.setattr("excite.data.resize.PILLOW_13", False)
    image = Image.new("L", (2, 20_000_000))
    with pytest.raises(ValueError, match="would need 32 x 20000000 in between"):
        eval_transform(image, 32, 1.0, "bicubic", "stretch")


def test_a_cover_covers_in_both_directions():
    assert resized_shape(100, 100, (24, 40), 1.0) == (40, 40)
    assert resized_shape(100, 300, (24, 40), 1.0) == (24, 72)
    assert resized_shape(100, 300, (24, 40), 0.8) == (30, 90)


def test_random_crops_are_distorted_by_the_ratio_in_any_shape():
    assert box_ratio([0.75, 4 / 3], 32) == (0.75, 4 / 3)
    low, high = box_ratio([0.75, 4 / 3], (24, 40))
    assert (low, high) == pytest.approx((1.25, 20 / 9))
    boxes = random_boxes(np.random.default_rng(0), 500, 300, 500, (0.08, 1.0), (low, high))
    aspect = boxes[:, 2] / boxes[:, 3]
    assert 1.2 < aspect.min() < aspect.max() < 2.3
    image = Image.fromarray(noise(300, 500))
    out = random_resized_crop(image, np.random.default_rng(5), (0.3, 0.6), (0.75, 1.33), (24, 40), "bicubic")
    ratio = box_ratio((0.75, 1.33), (24, 40))
    left, top, width, height = random_boxes(np.random.default_rng(5), 1, 300, 500, (0.3, 0.6), ratio)[0].tolist()
    box = (left, top, left + width, top + height)
    assert (out == np.asarray(image.resize((40, 24), Image.Resampling.BICUBIC, box=box))).all()


@pytest.fixture
def wide(tmp_path):
    """Two classes of images of several shapes."""
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i, shape in enumerate([(10, 50), (40, 30), (24, 40), (60, 11)]):
            Image.fromarray(noise(*shape)).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def folder(root, **options) -> DataConfig:
    values = {"source": "folder", "root": str(root), "image_size": [24, 40], "val_fraction": 0.5, "workers": 0}
    return DataConfig.model_validate({**values, **options})


@pytest.mark.parametrize("fit", FITS)
def test_memory_and_stream_give_the_same_images(wide, fit):
    seen = []
    for mode in ("memory", "stream"):
        config = folder(wide, fit=fit, mode=mode, eval_size=[30, 20])
        data = open_data(config)
        assert data.preprocessing.size == (30, 20)
        train = TrainLoader(
            data.train,
            batch_size=len(data.train),
            seed=0,
            device="cpu",
            augment=AugmentConfig(hflip=0.0),
            data_config=config,
        )
        batches = torch.cat([images for images, _ in train.epoch(0)])
        assert batches.shape[1:] == (3, 24, 40)
        val = torch.cat([pixels for pixels, *_ in EvalLoader(data.val, batch_size=4, device="cpu", data_config=config)])
        assert val.shape[1:] == (3, 30, 20)
        seen.append([sorted(image.numpy().tobytes() for image in part) for part in (batches, val)])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_random_crops_have_the_size_in_memory_and_streamed(wide, mode):
    config, augment = folder(wide, mode=mode), AugmentConfig(crop="random_resized")
    data = open_data(config, augment)
    loader = TrainLoader(data.train, batch_size=2, seed=0, device="cpu", augment=augment, data_config=config)
    assert next(loader.epoch(0))[0].shape == (2, 3, 24, 40)
    assert isinstance(data.train, ArrayImages) == (mode == "memory")


def test_a_square_is_a_number_wherever_it_is_stored():
    square = Preprocessing((32, 32), 0.875, "bicubic", (0.5,), (0.5,), 1)  # type: ignore[arg-type]
    assert (square.image_size, square.size, square.shape) == (32, (32, 32), (1, 32, 32))
    assert square.to_dict() == {  # as before there were other shapes: stored predictions are compared with this
        "image_size": 32,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": [0.5],
        "std": [0.5],
        "in_chans": 1,
    }
    assert Preprocessing.from_dict(square.to_dict()) == square
    wide = Preprocessing((24, 40), 0.875, "bicubic", (0.5,), (0.5,), 1, fit="letterbox")
    stored = json.loads(json.dumps(wide.to_dict()))
    assert (stored["image_size"], stored["fit"]) == ([24, 40], "letterbox")
    assert Preprocessing.from_dict(stored) == wide
    assert (plain_size((5, 5)), plain_size([5, 6]), by_text(5), size_text((5, 6))) == (5, [5, 6], "5x5", "5 x 6 pixels")
    assert folder(".", image_size=[9, 9]).image_size == 9


@pytest.mark.parametrize(
    "value", ["[96]", "[0, 5]", "[96, 160, 3]", "96x160", "true", "96.5", "[9, 5000]", "null", "0"]
)
def test_a_size_that_is_none_is_one_sentence(value):
    with pytest.raises(
        ExciteError, match=r"data.image_size is .*, but a size is a number of pixels from 1 to 4096"
    ) as e:
        load_recipe("cifar10-resnet20", [f"data.image_size={value}"])
    assert len(str(e.value).splitlines()) == 1


def test_sizes_are_typed_as_lists():
    recipe = load_recipe("folder-small", ["data.root=x", "data.image_size=[96,160]", "data.eval_size=[48, 80]"])
    assert (recipe.data.training_size, recipe.data.evaluation_size) == ((96, 160), (48, 80))
