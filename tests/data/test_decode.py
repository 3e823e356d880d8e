import io
import json
import math
import pickle
import struct
import tarfile
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from stats import ks_ok, ks_same, uniform

from excite.data.decode import BadImageError, BadImagesError, load_image
from excite.data.geometry import random_box, random_boxes, resized_shape
from excite.data.preprocessing import Preprocessing
from excite.data.resize import eval_transform, eval_transform_tensor, random_resized_crop, resize_tensor
from excite.errors import ExciteError

RNG = np.random.default_rng(0)
PICTURE = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)
)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(load_image(data, mode)).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_rgb_is_read_exactly(kind: str, tmp_path):
    path = tmp_path / "a.img"
    Image.fromarray(PICTURE).save(path, kind)
    assert (np.asarray(load_image(path)) == PICTURE).all()


def test_webp_lossless_and_gif_first_frame():
    image = Image.fromarray(PICTURE)
    assert (pixels(saved(image, "WEBP", lossless=True)) == PICTURE).all()
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    gif = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(gif) == (255, 0, 0)).all()


def test_gray_one_bit_and_palette():
    gray = Image.fromarray(PICTURE[:, :, 0])
    assert (pixels(saved(gray, "PNG")) == PICTURE[:, :, :1]).all()
    assert (pixels(saved(gray, "PNG"), "L") == PICTURE[:, :, 0]).all()
    bits = gray.point(lambda v: 255 * (v > 127)).convert("1")
    assert (pixels(saved(bits, "PNG"), "L") == (PICTURE[:, :, 0] > 127) * 255).all()
    palette = Image.fromarray(PICTURE).quantize(16)
    assert (pixels(saved(palette, "PNG")) == np.asarray(palette.convert("RGB"))).all()
    assert (pixels(saved(palette, "PNG"), "L") == np.asarray(palette.convert("RGB").convert("L"))).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_cmyk_jpeg_keeps_its_colours(mode: str):
    flat = Image.new("RGB", (16, 16), (200, 60, 90))
    # Pillow writes CMYK JPEGs with Adobe's marker, hence inverted: read wrongly, the colours would be the negative.
    data = saved(flat.convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(pixels(data, mode) - np.asarray(flat.convert(mode)).astype(int)).max() <= 3


def test_transparency_is_laid_over_white():
    alpha = np.linspace(0, 255, 40).round().astype(np.uint8) * np.ones((30, 1), np.uint8)
    data = saved(Image.fromarray(np.dstack([PICTURE, alpha])), "PNG")
    expected = 255 + (PICTURE.astype(float) - 255) * alpha[:, :, None] / 255
    assert np.abs(pixels(data) - expected).max() <= 1
    gray_alpha = Image.fromarray(PICTURE[:, :, 0]).convert("LA")
    gray_alpha.putalpha(0)
    assert (pixels(saved(gray_alpha, "PNG")) == 255).all()


def test_palette_and_key_colour_transparency():
    palette = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "L").convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    one = saved(palette, "PNG", transparency=0)
    assert pixels(one).tolist() == [[[255] * 3, [0, 255, 0]], [[0, 0, 255], [255] * 3]]
    graded = saved(palette, "PNG", transparency=bytes([255, 0, 255]))
    assert pixels(graded).tolist() == [[[255, 0, 0], [255] * 3], [[0, 0, 255], [255, 0, 0]]]
    keyed = saved(Image.new("RGB", (2, 2), (10, 20, 30)), "PNG", transparency=(10, 20, 30))
    assert (pixels(keyed) == 255).all()
    assert (pixels(saved(palette, "GIF", transparency=0))[0, 0] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_not_clipped(kind: str):
    values = np.array([[0, 128, 129, 256], [1000, 32768, 65000, 65535]], np.uint16)
    expected = np.round(values / 65535 * 255).astype(int)
    data = saved(Image.fromarray(values), kind)
    assert (pixels(data, "L") == expected).all()
    assert (pixels(data) == expected[:, :, None]).all()
    naive = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert kind == "TIFF" or (naive != expected).any() or naive.max() == 255


def test_float_pixels_are_refused():
    with pytest.raises(BadImageError, match="no defined white level"):
        load_image(saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation: int, kind: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = saved(Image.fromarray(PICTURE), kind, exif=exif, **quality)
    upright = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.transpose(1, 0, 2),
        6: np.rot90(PICTURE, -1),
        7: PICTURE[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PICTURE),
    }[orientation]
    got = pixels(data)
    assert got.shape == upright.shape
    assert np.abs(got - upright).max() <= (4 if kind == "JPEG" else 0)


def test_damaged_exif_does_not_lose_the_picture():
    data = saved(Image.fromarray(PICTURE), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert pixels(data).shape == PICTURE.shape


def png_with_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture at all", "not an image"),
        (saved(Image.fromarray(PICTURE), "JPEG")[:400], "truncated|unrecognized|broken|damaged"),
        (saved(Image.fromarray(PICTURE), "PNG")[:300], "truncated|broken|damaged"),
        (saved(Image.fromarray(PICTURE), "WEBP")[:60], "."),
        (png_with_header(60000, 60000), "more than max_pixels = 178956970 pixels"),
    ],
)
def test_broken_images_name_the_path_and_the_reason(data: bytes, reason: str, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's DecompressionBombWarning must not leak
        with pytest.raises(BadImageError, match=reason) as caught:
            load_image(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, ExciteError)
    copy = pickle.loads(pickle.dumps(caught.value))  # crosses from a worker to the main process
    assert (copy.path, copy.reason) == (caught.value.path, caught.value.reason)


def test_all_images_that_stop_a_run_are_named_up_to_a_number():
    mend = "; repair or remove them, or skip them with data.on_bad_val=skip"
    for count, begins, ends in (
        (1, "cannot read image 0.png: why 0" + mend, mend),
        (20, "cannot read 20 images: 0.png: why 0; 1.png: why 1; ", "; 19.png: why 19" + mend),
        (2021, "cannot read 2,021 images: 0.png", "; 19.png: why 19; and 2,001 more" + mend),
    ):
        error = BadImagesError([(f"{i}.png", f"why {i}") for i in range(count)], "data.on_bad_val")
        copy = pickle.loads(pickle.dumps(error))  # crosses from a worker to the main process
        for one in (error, copy):
            assert str(one).startswith(begins)
            assert str(one).endswith(ends)
            assert (one.path, one.reason, one.key, len(one.bad)) == ("0.png", "why 0", "data.on_bad_val", count)


def test_missing_file_and_pixel_limit(tmp_path):
    with pytest.raises(BadImageError, match="no such file"):
        load_image(tmp_path / "none.png")
    data = saved(Image.fromarray(PICTURE), "PNG")
    with pytest.raises(BadImageError, match="40 x 30 pixels"):
        load_image(data, max_pixels=1199)
    load_image(data, max_pixels=1200)


def test_large_jpegs_may_be_decoded_smaller():
    large = Image.fromarray(PICTURE).resize((400, 300), Image.Resampling.BICUBIC)
    jpeg = saved(large, "JPEG", quality=95)
    assert [load_image(jpeg, enough=n).size for n in (301, 300, 150, 75, 1)] == [
        (400, 300),
        (400, 300),
        (200, 150),
        (100, 75),
        (50, 38),
    ]
    half = np.asarray(load_image(jpeg, enough=150)).astype(int)
    assert np.abs(half - np.asarray(large.resize((200, 150), Image.Resampling.BOX))).mean() < 2
    assert load_image(saved(large, "PNG"), enough=1).size == (400, 300)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(saved(large, "JPEG", exif=exif), enough=150).size == (150, 200)


def test_large_image_within_the_limit_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImageError, match="10000 x 10000 pixels, more than max_pixels = 99999999"):
            load_image(png_with_header(10000, 10000), max_pixels=99_999_999)
        image = Image.new("1", (10000, 9000))  # above Pillow's warning, below our limit
        assert load_image(saved(image, "PNG"), "L").size == (10000, 9000)


# --- evaluation transform ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "size", "crop_pct", "expected"),
    [
        ((375, 500), 224, 0.875, (256, 341)),
        ((500, 375), 224, 0.875, (341, 256)),
        ((300, 300), 224, 0.95, (235, 235)),
        ((8, 8), 32, 1.0, (32, 32)),
        ((1, 1000), 4, 1.0, (4, 4000)),
    ],
)
def test_resize_rule(shape: tuple, size: int, crop_pct: float, expected: tuple):
    assert resized_shape(*shape, size, crop_pct) == expected


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_tensor_resize_equals_pillow(interpolation: str):
    rng = np.random.default_rng(1)
    kind = Image.Resampling[interpolation.upper()]
    shapes = [
        *rng.integers(1, 130, (30, 4)).tolist(),
        [500, 375, 256, 341],
        [98, 35, 70, 25],
        [1, 1, 7, 9],
        [9, 7, 1, 1],
    ]
    for height, width, new_height, new_width in shapes:
        noise = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255  # the hardest case: overshoot everywhere
        expected = np.asarray(Image.fromarray(noise).resize((new_width, new_height), kind)).astype(int)
        got = resize_tensor(torch.from_numpy(noise).permute(2, 0, 1)[None], new_height, new_width, interpolation)
        assert (got[0].permute(1, 2, 0).numpy() == expected).all(), (height, width, new_height, new_width)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_eval_transform_on_tensors_equals_the_one_on_images(interpolation: str):
    rng = np.random.default_rng(2)
    for height, width, size, crop_pct in [
        (60, 90, 32, 0.875),
        (90, 61, 32, 0.9),
        (20, 20, 32, 1.0),
        (32, 32, 32, 0.875),
    ]:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = eval_transform(Image.fromarray(image), size, crop_pct, interpolation)
        got = eval_transform_tensor(torch.from_numpy(image).permute(2, 0, 1)[None], size, crop_pct, interpolation)
        assert got.shape == (1, 3, size, size)
        assert np.abs(got[0].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def resized_whole(image: Image.Image, size: int, crop_pct: float, interpolation: str) -> np.ndarray:
    """The plain recipe: resize everything, then crop."""
    height, width = resized_shape(image.height, image.width, size, crop_pct)
    image = image.resize((width, height), Image.Resampling[interpolation.upper()])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_only_what_the_crop_needs_gives_the_same_pixels(interpolation: str):
    rng = np.random.default_rng(4)
    shapes = [(1, 2000), (2, 900), (3, 41), (7, 100), (40, 700), (90, 1300), (60, 90), (33, 32), (1, 1), (5, 61)]
    for height, width in [*shapes, *(shape[::-1] for shape in shapes)]:
        for size, crop_pct in ((32, 0.875), (31, 0.9), (8, 1.0), (20, 0.3), (1, 0.5)):
            noise = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
            expected = resized_whole(Image.fromarray(noise), size, crop_pct, interpolation)
            what = f"{height} x {width} to {size} with {crop_pct}"
            got = eval_transform(Image.fromarray(noise), size, crop_pct, interpolation)
            np.testing.assert_array_equal(got, expected, what)
            tensor = torch.from_numpy(noise).permute(2, 0, 1)[None]
            on_tensors = eval_transform_tensor(tensor, size, crop_pct, interpolation)[0].permute(1, 2, 0)
            np.testing.assert_array_equal(on_tensors.numpy(), expected, what)
            gray = eval_transform(Image.fromarray(noise[:, :, 0]), size, crop_pct, interpolation)
            np.testing.assert_array_equal(gray[:, :, 0], expected[:, :, 0], what)


@pytest.mark.parametrize("shape", [(1, 30000), (30000, 1), (2, 3_000_000), (1, 60_000_000)])
def test_thin_images_take_no_more_memory_than_others(shape: tuple[int, int], monkeypatch):
    resize = Image.Image.resize

    def bounded(self, size, *args, **kwargs):
        assert size[0] * size[1] < 1_000_000, size
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", bounded)
    image = Image.new("L", shape, 77)
    assert (eval_transform(image, 224, 0.875, "bicubic") == 77).all()
    assert (
        random_resized_crop(image, np.random.default_rng(0), (0.08, 1.0), (3 / 4, 4 / 3), 224, "bicubic") == 77
    ).all()
    if max(shape) < 100_000:
        tensor = torch.full((1, 1, *shape), 77, dtype=torch.uint8)
        assert (eval_transform_tensor(tensor, 224, 0.875, "bicubic") == 77).all()


@pytest.mark.parametrize(
    "error", [MemoryError(), OverflowError("too large"), ValueError("odd"), RecursionError("deep")]
)
def test_whatever_goes_wrong_with_an_image_is_a_bad_image(error: Exception, tmp_path, monkeypatch):
    from excite.data import decoder as loaders
    from excite.data import preprocessing as prepared
    from excite.data.config import AugmentConfig, DataConfig
    from excite.data.folder import decode_all, refuse_bad
    from excite.data.images import FileImages

    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)

    def fail(*args, **kwargs):
        raise error

    files = FileImages([str(path)], [0])
    data = DataConfig(source="folder", root=str(tmp_path), image_size=16, on_bad_val="skip")
    for module, name in ((prepared, "eval_transform"), (loaders, "eval_transform"), (loaders, "random_resized_crop")):
        monkeypatch.setattr(module, name, fail)
    preprocessing = Preprocessing(16, 0.875, "bicubic", (0.1,), (0.4,), 1)
    with pytest.raises(BadImageError) as caught:
        preprocessing.load(path)
    assert caught.value.path == str(path)
    left, bad = decode_all(files, preprocessing, data.max_pixels)
    assert (len(left), bad[0][0]) == (0, str(path))
    with pytest.raises(ExciteError, match="none of 1 images can be read"):
        refuse_bad(bad, "skip", "data.on_bad_train", len(files))
    for augment in (None, AugmentConfig(crop="random_resized"), AugmentConfig()):
        decoded = loaders.FileDecoder(files, data, augment, 0)[loaders.Request(0, [0])]
        assert decoded.bad[0][0] == str(path)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "load", fail)
        patch.setattr("PIL.ImageFile.ImageFile.load", fail)
        with pytest.raises(BadImageError):
            load_image(path)


def test_an_image_of_the_right_size_is_left_alone():
    assert (eval_transform(Image.fromarray(PICTURE[:30, :30]), 30, 0.5, "bicubic") == PICTURE[:30, :30]).all()


def test_real_photographs_agree_with_the_plain_pillow_recipe(real_data, tmp_path):
    preprocessing = Preprocessing(224, 0.875, "bicubic", (0.5,) * 3, (0.5,) * 3, 3)
    with tarfile.open(real_data / "imagenet_sample.tar") as tar:
        members = [m for m in tar if m.isfile()]
        assert len(members) == 200
        for member in members[::8]:
            data = tar.extractfile(member).read()
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
            width, height = image.size
            short = min(width, height)
            image = image.resize((int(256 * width / short), int(256 * height / short)), Image.Resampling.BICUBIC)
            left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
            expected = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1)
            got = preprocessing.load(data)
            assert (got.int() - expected.int()).abs().max() <= 1
            full = torch.from_numpy(np.array(load_image(data))).permute(2, 0, 1)[None]
            on_device = eval_transform_tensor(full, 224, 0.875, "bicubic")[0]
            assert (on_device.int() - expected.int()).abs().max() <= 1


# --- random resized crop ---------------------------------------------------------------------------------------------


def torchvision_box(rng: np.random.Generator, height: int, width: int, scale: tuple, ratio: tuple) -> tuple:
    """The algorithm of the Inception paper as torchvision spells it, one image at a time."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


def features(boxes: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    left, top, w, h = boxes.T.astype(float)
    rng = np.random.default_rng(9)  # spreads integer positions so that they compare as continuous ones
    spread = rng.random(len(boxes)), rng.random(len(boxes))
    return {
        "area": w * h / (height * width),
        "log ratio": np.log(w / h),
        "x": (left + spread[0]) / (width - w + 1),
        "y": (top + spread[1]) / (height - h + 1),
    }


def test_one_box_is_the_first_of_many():
    """Also of shapes into which hardly any box fits."""
    for seed in range(300):
        height, width = np.random.default_rng(seed).integers(1, 40, 2).tolist()
        for ratio in ((3 / 4, 4 / 3), (0.1, 0.2)):
            one = random_box(np.random.default_rng(seed), height, width, (0.08, 1.0), ratio)
            assert random_boxes(np.random.default_rng(seed), 1, height, width, (0.08, 1.0), ratio)[0].tolist() == [*one]


@pytest.mark.parametrize(("height", "width"), [(300, 400), (500, 120)])
def test_random_boxes_have_the_papers_distribution(height: int, width: int):
    scale, ratio, n = (0.08, 1.0), (3 / 4, 4 / 3), 6000
    boxes = random_boxes(np.random.default_rng(0), n, height, width, scale, ratio)
    left, top, w, h = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (w >= 1).all()
    assert (h >= 1).all()
    assert (left + w <= width).all()
    assert (top + h <= height).all()
    rng = np.random.default_rng(1)
    reference = np.array([torchvision_box(rng, height, width, scale, ratio) for _ in range(n)])
    got, expected = features(boxes, height, width), features(reference, height, width)
    for name in got:
        assert ks_same(got[name], expected[name]), name
    wrong = random_boxes(np.random.default_rng(2), n, height, width, (0.2, 1.0), (1 / 2, 2.0))
    assert not ks_same(features(wrong, height, width)["area"], expected["area"])
    assert not ks_same(features(wrong, height, width)["log ratio"], expected["log ratio"])


def test_small_boxes_are_uniform_in_area_log_uniform_in_ratio_and_anywhere():
    boxes = random_boxes(np.random.default_rng(3), 6000, 4000, 4000, (0.1, 0.4), (0.5, 2.0))
    got = features(boxes, 4000, 4000)
    assert ks_ok(got["area"], uniform(0.1, 0.4))
    assert ks_ok(got["log ratio"], uniform(-math.log(2), math.log(2)))
    assert ks_ok(got["x"], uniform(0, 1))
    assert ks_ok(got["y"], uniform(0, 1))
    assert not ks_ok(np.sqrt(got["area"]), uniform(math.sqrt(0.1), math.sqrt(0.4)))  # the side is not the uniform one
    assert not ks_ok(np.exp(got["log ratio"]), uniform(0.5, 2.0))


def test_random_resized_crop_is_one_pillow_resize_of_the_box():
    image = Image.fromarray(PICTURE)
    out = random_resized_crop(image, np.random.default_rng(5), (0.3, 0.6), (0.75, 1.33), 16, "bicubic")
    left, top, w, h = random_boxes(np.random.default_rng(5), 1, 30, 40, (0.3, 0.6), (0.75, 1.33))[0].tolist()
    expected = image.resize((16, 16), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    assert (out == np.asarray(expected)).all()


# --- preprocessing that travels --------------------------------------------------------------------------------------


def test_preprocessing_round_trip_and_errors(tmp_path):
    one = Preprocessing(16, 0.875, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 3)
    assert Preprocessing.from_dict(one.to_dict()) == one
    with pytest.raises(ExciteError, match="did you mean 'crop_pct'"):
        Preprocessing.from_dict({**one.to_dict(), "crop_pc": 1})
    with pytest.raises(ExciteError, match="lacks mean"):
        Preprocessing.from_dict({k: v for k, v in one.to_dict().items() if k != "mean"})
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    loaded = one.load(path)
    assert loaded.dtype == torch.uint8
    assert loaded.shape == (3, 16, 16)
    got = one.normalize(loaded[None])
    expected = (loaded.double() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.4, 0.5, 0.6]
    ).view(3, 1, 1)
    assert (got[0] - expected).abs().max() < 1e-5
    assert one.normalize(loaded[None, :1].repeat(2, 1, 1, 1)).shape == (2, 3, 16, 16)
    assert one.normalize(loaded[None], torch.bfloat16).dtype == torch.bfloat16
    assert one.normalize(loaded[None].to("meta")).is_meta  # its constants follow the images to their device
    assert json.loads(json.dumps(one.to_dict())) == one.to_dict()  # what a report stored is compared with this
    gray = Preprocessing(30, 1.0, "bicubic", (0.1,), (0.4,), 1)
    square = Image.fromarray(PICTURE[:, :30])
    assert (gray.load(saved(square, "PNG"))[0].numpy() == np.asarray(square.convert("L"))).all()
    with pytest.raises(BadImageError, match="30 x 30 pixels, more than max_pixels = 899"):
        gray.load(saved(square, "PNG"), 899)
