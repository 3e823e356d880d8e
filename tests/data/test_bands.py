"""Images of 2 and of 4 to 16 bands, read as numbers."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from excite.data import bands as bands_module
from excite.data import open_data
from excite.data.bands import Bands
from excite.data.config import DataConfig
from excite.data.decode import BadImageError, check_image, largest_value, load_picture
from excite.data.images import FileImages
from excite.data.loader import EvalLoader
from excite.data.preprocessing import Preprocessing
from excite.data.resize import eval_transform, random_resized_crop
from excite.errors import ExciteError
from excite.pages.pictures import bands_shown, visible
from excite.recipe import load_recipe

RNG = np.random.default_rng(0)


def values(bands: int, kind: str = "uint16", most: int = 4096) -> np.ndarray:
    return RNG.integers(0, min(most, np.iinfo(kind).max + 1), (30, 40, bands)).astype(kind)


def tiff(pixels: np.ndarray, planes: bool = False, **options: object) -> bytes:
    file = io.BytesIO()
    data = np.moveaxis(pixels, -1, 0).copy() if planes else pixels
    kind: dict[str, object] = {"photometric": "minisblack", "metadata": None}
    if pixels.ndim > 2:
        kind["planarconfig"] = "separate" if planes else "contig"
    tifffile.imwrite(file, data, **{**kind, **options})
    return file.getvalue()


def read(content: bytes | Path, bands: int, white: int = 65535) -> np.ndarray:
    return np.asarray(load_picture(content, bands, white=white))


def scaled(pixels: np.ndarray, white: int) -> np.ndarray:
    return np.floor(np.minimum(pixels, white) * (255 / white) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("bands", [2, 4, 5, 13, 16])
def test_every_band_of_a_tiff_is_its_own_numbers(bands, planes, kind):
    pixels = values(bands, kind)
    options = [{}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16)}, {"byteorder": ">"}]
    for content in (tiff(pixels, planes, **option) for option in options):
        expected = pixels if kind == "uint8" else scaled(pixels, 4095)
        assert np.array_equal(read(content, bands, 4095), expected)
        check_image(content, in_chans=bands)
        assert largest_value(content, in_chans=bands) == (None if kind == "uint8" else pixels.max())


def test_a_fourth_band_is_a_number_whatever_the_file_calls_it(tmp_path):
    pixels = values(4, "uint8", 256)
    for extra in ("unspecified", "assocalpha", "unassalpha"):
        content = tiff(pixels, photometric="rgb", extrasamples=[extra])
        assert np.array_equal(read(content, 4), pixels), extra
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    assert np.array_equal(read(out.getvalue(), 4), pixels)
    assert np.array_equal(
        read(tiff(values(4) * 16, photometric="rgb", extrasamples=["unspecified"]), 4)[0, 0].shape, (4,)
    )
    Image.fromarray(pixels[..., :2]).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", 2), pixels[..., :2])
    assert np.array_equal(np.asarray(load_picture(Image.open(tmp_path / "a.png"), 2)), pixels[..., :2])


def test_bands_may_be_pages_and_are_upright():
    pixels = values(5)
    file = io.BytesIO()
    tifffile.imwrite(file, np.moveaxis(pixels, -1, 0).copy(), photometric="minisblack", metadata=None)
    file.seek(0)
    assert len(tifffile.TiffFile(file).pages) == 5
    assert np.array_equal(read(file.getvalue(), 5, 4095), scaled(pixels, 4095))
    for orientation, upright in ((6, np.rot90(pixels, -1)), (3, pixels[::-1, ::-1]), (5, pixels.transpose(1, 0, 2))):
        turned = tiff(pixels, extratags=[(274, "H", 1, orientation, True)])
        assert np.array_equal(read(turned, 5, 4095), scaled(upright, 4095))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (tiff(values(4)), "it has 4 bands, but the network takes 5"),
        (tiff(values(1)[..., 0]), "it has 1 band, but the network takes 5"),
        (tiff(values(6)), "it has 6 bands, but the network takes 5"),
        (tiff(values(5).astype(np.float32)), "float32 pixels have no defined white level"),
        (tiff(values(5, "int16", 9) - np.int16(3)), "it has pixels below 0"),
        (tiff(values(5))[:-500], "it is truncated"),
        (b"", "the file is empty"),
        (b"hello", "it is not an image in a known format"),
        (b"II*\0\xff\xff\xff\xff", ""),
    ],
    ids=range(9),
)
def test_what_is_not_five_bands_is_one_bad_image(content, why):
    with pytest.raises(BadImageError) as raised:
        load_picture(content, 5)
    assert why in raised.value.reason
    assert len(str(raised.value).splitlines()) == 1
    if "below" not in why:  # only all its pixels tell
        with pytest.raises(BadImageError):
            check_image(content, in_chans=5)


def test_colours_and_pages_of_another_number_are_refused():
    out = io.BytesIO()
    Image.fromarray(values(3, "uint8", 256)).save(out, "PNG")
    with pytest.raises(BadImageError, match=r"it has 3 bands \(RGB\), but the network takes 5"):
        load_picture(out.getvalue(), 5)
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((7, 9, 8), np.uint8), photometric="minisblack", metadata=None)
    with pytest.raises(BadImageError, match="it has 1 band in each of 7 pages, but the network takes 5"):
        load_picture(file.getvalue(), 5)
    with pytest.raises(BadImageError, match="it has 4 bands, but the network takes 5"):
        load_picture(values(4), 5)
    with pytest.raises(BadImageError, match="it has 5 channels, but the network takes 3"):
        load_picture(values(5), 3)
    with pytest.raises(BadImageError, match="40 x 30 pixels, more than max_pixels = 1199"):
        load_picture(tiff(values(5)), 5, 1199)


def test_a_deflate_bomb_is_refused_before_it_goes_off(monkeypatch):
    monkeypatch.setattr(bands_module, "_HARMLESS", 16)
    import zlib

    honest = tiff(np.zeros((30, 40, 5), np.uint8), compression="zlib")
    strip = zlib.compress(bytes(30 * 40 * 5))
    bomb = zlib.compress(bytes(10_000_000))
    file = io.BytesIO(honest + bomb)
    with tifffile.TiffFile(file) as opened:
        page = opened.pages[0]
        assert page.databytecounts[0] in (len(strip), page.databytecounts[0])
        offset, count = page.tags["StripOffsets"].valueoffset, page.tags["StripByteCounts"].valueoffset
        kinds = page.tags["StripOffsets"].dtype, page.tags["StripByteCounts"].dtype
    content = bytearray(honest + bomb)
    for place, kind, value in ((offset, kinds[0], len(honest)), (count, kinds[1], len(bomb))):
        size = 2 if kind == 3 else 4
        content[place : place + size] = value.to_bytes(size, "little")
    with pytest.raises(BadImageError, match="become more than it has room for"):
        load_picture(bytes(content), 5)


def test_without_tifffile_the_line_to_type_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadImageError, match=r"reading its bands needs tifffile: pip install .*bands\]"):
        load_picture(tiff(values(5)), 5)


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
def test_each_band_is_resized_as_a_grey_image_is(fit):
    pixels = values(5, "uint8", 256)
    for size in ((20, 50), 64):
        found = eval_transform(Bands(pixels), size, 0.9, "bicubic", fit)
        expected = [eval_transform(Image.fromarray(pixels[..., k]), size, 0.9, "bicubic", fit) for k in range(5)]
        assert np.array_equal(found, np.concatenate(expected, 2))
    crop = random_resized_crop(Bands(pixels), np.random.default_rng(1), (0.3, 0.6), (0.7, 1.4), 16, "bicubic")
    one = random_resized_crop(
        Image.fromarray(pixels[..., 4]), np.random.default_rng(1), (0.3, 0.6), (0.7, 1.4), 16, "bicubic"
    )
    assert np.array_equal(crop[..., 4:], one)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "set" / name / f"{i}.tif").write_bytes(tiff(values(6), i % 2 == 0))
    return tmp_path / "set"


def config(root: Path, **options: object) -> DataConfig:
    base = {"source": "folder", "root": str(root), "image_size": [12, 16], "in_chans": 6, "val_fraction": 0.3}
    return DataConfig.model_validate({**base, "workers": 0, **options})


def test_memory_and_stream_agree_and_measure_the_bands(folder):
    opened = {mode: open_data(config(folder, mode=mode), check=True) for mode in ("memory", "stream")}
    one, other = (data.preprocessing for data in opened.values())
    assert one.white == other.white == 4095
    assert one.mean == pytest.approx(other.mean)  # all of ten are the sample
    assert len(one.mean) == len(one.std) == 6
    assert all(0.4 < mean < 0.6 for mean in one.mean)
    assert any("mean and standard deviation of the 6 channels are those of" in note for note in opened["stream"].notes)
    pixels = []
    for mode, data in opened.items():
        loader = EvalLoader(data.val, batch_size=9, device="cpu", data_config=config(folder, mode=mode, white=4095))
        pixels.append(sorted(image.numpy().tobytes() for batch, *_ in loader for image in batch))
    assert pixels[0] == pixels[1]


def test_a_file_of_another_number_of_bands_is_skipped_or_stops(folder):
    (folder / "a" / "odd.tif").write_bytes(tiff(values(4)))
    data = open_data(config(folder, mode="stream", on_bad_val="skip"), check=True)
    assert any("1 broken images will be skipped" in note for note in data.notes)
    with pytest.raises(BadImageError, match=r"odd\.tif: it has 4 bands, but the network takes 6"):
        open_data(config(folder, on_bad_train="stop"), check=True)
    colours = open_data(config(folder, in_chans=3, mean=[0.5] * 3, std=[0.5] * 3, mode="stream"), check=False)
    assert isinstance(colours.train, FileImages)
    with pytest.raises(BadImageError, match=r"it has 6 bands, .*data\.in_chans=6 trains on all of them"):
        Preprocessing(8, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3, 3).load(colours.train.paths[0])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["in_chans=17"], "in_chans"),
        (["in_chans=0"], "in_chans"),
        (["in_chans=5"], r"mean has 3 values, but in_chans is 5; data.mean=null data.std=null takes them from the"),
        (["source=digits", "root=null", "in_chans=5", "mean=null", "std=null"], "in_chans=5 is only for source=folder"),
        (["in_chans=5", "mean=null", "std=null", "augment.color_jitter=[0.1,0.1,0.1,0.1]"], "color_jitter changes col"),
        (["in_chans=5", "mean=null", "std=null", "rand_augment={n: 1}"], "rand_augment changes colours"),
        (["in_chans=2", "mean=null", "std=null", "trivial_augment=true"], "trivial_augment changes colours"),
    ],
)
def test_what_bands_cannot_do_is_said_by_the_recipe(words, why):
    base = ["data.root=x", "augment.color_jitter=null", "mean=[0.5,0.5,0.5]", "std=[0.5,0.5,0.5]"]
    with pytest.raises(ExciteError, match=why):
        load_recipe("folder-small", [*base, *words])


def test_geometry_works_on_bands():
    from excite.data.augment import BatchAugment

    recipe = load_recipe(
        "folder-small",
        ["data.root=x", "augment.color_jitter=null", "in_chans=5", "mean=null", "std=null"],
    ).changed(
        ["rotation=20", "augment.crop=pad", "cutout=3", "random_erasing=0.5", "cutmix=1.0", "mixup=0.2", "vflip=0.5"]
    )
    augment = BatchAugment(recipe.augment, (0.5,) * 5, (0.2,) * 5, 3)
    for count in (2, 5, 16):
        augment.mean, augment.std = (0.5,) * count, (0.2,) * count
        images = torch.from_numpy(RNG.integers(0, 256, (4, count, 12, 18), dtype=np.uint8))
        out, targets = augment(images, torch.tensor([0, 1, 2, 0]))
        assert out.shape == images.shape
        assert out.isfinite().all()
        assert targets.shape == (4, 3)


def test_people_see_three_bands():
    pixels = values(5, "uint8", 256)
    assert np.array_equal(visible(pixels), pixels[..., :3])
    assert np.array_equal(visible(pixels[..., :2]), pixels[..., 0])
    assert visible(pixels[..., :1]).shape == (30, 40)
    assert [bands_shown(k) is None for k in (1, 2, 3, 4)] == [True, False, True, False]
