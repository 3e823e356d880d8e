"""Partial decoding of JPEGs: the same pixels as Pillow's, whole decode and resize, or left to Pillow."""

import io
import os
import shutil
import struct
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from excite.data import FileImages, jpeg, packed
from excite.data.config import AugmentConfig, DataConfig
from excite.data.decode import FILTERS, BadImageError, Jpeg, load_image, open_picture, reading
from excite.data.decoder import FileDecoder, Request
from excite.data.geometry import box_ratio, random_boxes
from excite.data.resize import eval_transform, random_resized_crop
from excite.data.views import with_margin

pytestmark = pytest.mark.skipif(not jpeg.available(), reason=f"no kernels for JPEG: {jpeg.why_not()}")

SCALE, RATIO = [0.08, 1.0], [3 / 4, 4 / 3]


def picture(width, height, seed=0, noise=25):
    """Smooth colours with noise and edges: every coefficient, and chroma that differs from pixel to pixel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / a + y / b) for a, b in ((9, 30), (25, -14), (-17, 11))]
    pixels = 128 + 90 * np.stack(waves, 2) + rng.normal(0, noise, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def saved(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def opened(data, in_chans=3) -> Jpeg:
    found = open_picture(data, in_chans)
    assert isinstance(found, Jpeg)
    return found


def boxes(image, count, size, seed=0):
    rng = np.random.default_rng(seed)
    found = random_boxes(rng, count, image.height, image.width, SCALE, box_ratio(RATIO, size)).tolist()
    edges = [[0, 0, image.width, image.height], [image.width - 1, image.height - 1, 1, 1], [0, 0, 1, 1]]
    return found if count == 1 else found + edges


def assert_equals_pillow(data, count, sizes=((32, 32),), in_chans=3, fits=("crop", "letterbox", "stretch")):
    """Crops decoded at their full size, and evaluation, from the kernels and from Pillow."""
    image, whole = opened(data, in_chans), load_image(data, "RGB" if in_chans == 3 else "L")
    assert image.by_kernel
    assert (image.width, image.height) == whole.size
    for size in sizes:
        for number, (left, top, width, height) in enumerate(boxes(image, count, size)):
            if width >= 2 * size[1] and height >= 2 * size[0]:
                width, height = min(width, 2 * size[1] - 1), min(height, 2 * size[0] - 1)
            kind = ("bilinear", "bicubic")[number % 2]
            got = image.cropped((left, top, width, height), size, kind)
            want = whole.resize(size[::-1], FILTERS[kind], box=(left, top, left + width, top + height))
            assert np.array_equal(got.squeeze(), np.asarray(want)), (image.width, left, top, width, height)
        for fit in fits:
            for change in (eval_transform, with_margin):
                got, want = (change(each, size, 0.875, "bicubic", fit) for each in (image, whole))
                assert np.array_equal(got, want), (change, fit, size)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "grey"])
def test_the_pixels_are_those_of_pillow(subsampling, progressive):
    for width, height in ((97, 61), (64, 48), (33, 150), (16, 16), (7, 5), (1, 1), (301, 40)):
        image = picture(width, height)
        options = {"quality": 83, "progressive": progressive}
        if subsampling == "grey":
            image = image.convert("L")
        else:
            options["subsampling"] = subsampling
        data = saved(image, **options)
        assert_equals_pillow(data, 8, ((24, 24), (17, 40)))
        assert_equals_pillow(data, 2, ((16, 16),), in_chans=1)


def test_restart_markers_rgb_without_a_transform_and_large_factors():
    image = picture(150, 110)
    assert_equals_pillow(saved(image, restart_marker_blocks=3), 8)
    assert_equals_pillow(saved(image, keep_rgb=True), 8)
    assert_equals_pillow(saved(image, quality=100, subsampling=0), 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for width, height in ((90, 61), (61, 90)):
        data = saved(picture(width, height), exif=exif, quality=90)
        assert_equals_pillow(data, 6)
        assert opened(data).orientation == orientation


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_large_boxes_are_decoded_smaller_with_and_without_kernels_alike(orientation, options, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(1215, 903, noise=0)
    data = saved(image, exif=exif, quality=95, **options)
    fast, whole = opened(data), load_image(data)
    slow = replace(fast, by_kernel=False)
    asked = []
    monkeypatch.setattr(Jpeg, "whole", lambda self, d=1, own=Jpeg.whole: asked.append(d) or own(self, d))
    cases = {1: (10, 20, 47, 300), 2: (31, 5, 301, 48), 4: (5, 3, 127, 96), 8: (11, 17, 700, 600)}
    for denominator, box in cases.items():
        left, top, width, height = box
        for kind in ("bilinear", "bicubic"):
            got = fast.cropped(box, (24, 24), kind)
            assert not asked
            assert np.array_equal(got, slow.cropped(box, (24, 24), kind))
            assert asked.pop() == denominator
            full = whole.resize((24, 24), FILTERS[kind], box=(left, top, left + width, top + height))
            assert np.abs(got.astype(int) - np.asarray(full)).mean() < 1.2


def test_a_crop_is_drawn_before_anything_is_decoded():
    """The box depends on the generator and on the size in the header alone."""
    data = saved(picture(150, 110))
    whole = load_image(data)
    for seed in range(5):
        both = [
            random_resized_crop(each, np.random.default_rng(seed), SCALE, RATIO, 96, "bicubic")
            for each in (opened(data), whole)
        ]
        assert np.array_equal(*both)


def test_numbers_are_drawn_as_numpy_draws_them():
    for number in range(3000):
        seed = (1, number % 7, (number << 29) + number, number)[: 1 + number % 4] or (0,)
        rng = np.random.default_rng(number)
        below = [1, 2, 5, 1 << 31, (1 << 32) - 1, 3_000_000_000, *rng.integers(1, 1 << 32, 9).tolist()]
        got, want = jpeg.draws(seed, 20, below), np.random.default_rng(seed)
        assert np.array_equal(got[0], want.uniform(0.0, 1.0, 20)), seed
        assert got[1].tolist() == [int(want.integers(0, each)) for each in below], seed


def crops_of(sources, numbers, made, seed=(1, 5, 2)):
    """What the kernels make of several files, and which they can read."""
    out = np.zeros((len(sources), *made.size, made.channels), np.uint8)
    beat = np.array([-1, 0])
    done = made.read(sources, seed, numbers, out, beat, numbers)
    assert beat.tolist() == [-1, len(sources)]
    return out, done


def one_by_one(source, number, made, seed=(1, 5, 2)):
    image = open_picture(source, made.channels, made.max_pixels)
    kind = "bicubic" if made.cubic else "bilinear"
    rng = np.random.default_rng((*seed, number))
    return random_resized_crop(image, rng, made.scale, made.ratio, made.size, kind)


@pytest.mark.parametrize("packed_up", [False, True])
@pytest.mark.parametrize("channels", [3, 1])
def test_whole_files_are_cropped_in_one_call(tmp_path, channels, packed_up):
    shapes = [(97, 61), (640, 480), (33, 150), (16, 16), (7, 5), (1, 1), (301, 40), (20, 900), (900, 20)]
    files = []
    for number, shape in enumerate(shapes):
        files += [
            saved(picture(*shape, number), quality=83, progressive=bool(number % 2)),
            saved(picture(*shape), quality=99),
        ]
    exif = Image.Exif()
    exif[0x0112] = 6
    left = [
        saved(picture(40, 30), exif=exif),
        saved(picture(40, 30).convert("CMYK")),
        files[2][:-2],
        b"",
        b"\xff\xd8\xff\xff\xd9",
    ]
    sources = [str(tmp_path / f"{i}.jpg") for i in range(len(files + left))]
    for path, data in zip(sources, files + left, strict=True):
        Path(path).write_bytes(data)
    if packed_up:
        with tarfile.open(tmp_path / "all.tar", "w") as archive:
            for path in sources:
                archive.add(path, Path(path).name)
        with tarfile.open(tmp_path / "all.tar") as archive:
            container = packed.Container.of(tmp_path / "all.tar")
            sources = [packed.Member(each.name, container, each.offset_data, each.size, each.size) for each in archive]
    for cubic, size in ((True, (24, 24)), (False, (17, 40))):
        made = jpeg.RandomCrops(SCALE, RATIO, size, cubic, channels, 1 << 20)
        for start in (0, 1000, (1 << 32) - len(sources)):
            numbers = range(start, start + len(sources))
            got, done = crops_of(sources, numbers, made)
            assert done.tolist() == [True] * len(files) + [False] * len(left)
            for source, number, crop in zip(sources[: len(files)], numbers, got, strict=False):
                assert np.array_equal(crop, one_by_one(source, number, made)), (source, number)


def test_what_the_call_for_whole_files_leaves_to_others(tmp_path):
    made = jpeg.RandomCrops(SCALE, RATIO, (8, 8), False, 3, 600)
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    for name, shape in (("large", (31, 20)), ("small", (30, 20))):
        (tmp_path / f"{name}.jpg").write_bytes(saved(picture(*shape)))
    names = ("large.jpg", "none.jpg", "folder.jpg", "fifo.jpg", "small.jpg", "\udcff.jpg")
    container = packed.Container(str(tmp_path / "small.jpg"), 1, 1)
    changed = packed.Member("changed", container, 0, 10, 10)
    compressed = packed.Member(
        "compressed", packed.Container.of(tmp_path / "small.jpg"), 0, 10, 10, packed.ZIP_DEFLATED
    )
    done = crops_of([*(str(tmp_path / name) for name in names), changed, compressed], range(8), made)[1]
    assert done.tolist() == [False] * 4 + [True] + [False] * 3


def test_what_is_not_for_the_kernels_is_tried_once(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 3
    paths = [str(tmp_path / f"{i}.{'png' if i == 2 else 'jpg'}") for i in range(6)]
    for number, path in enumerate(paths):
        picture(40, 30, number).save(path, **({"exif": exif} if number == 4 else {}))
    files = FileImages(paths, [0] * 6)
    data = DataConfig(source="folder", image_size=16, workers=0)
    decoder = FileDecoder(files, data, AugmentConfig(crop="random_resized"), 0)
    given, own = [], jpeg.RandomCrops.read
    monkeypatch.setattr(jpeg.RandomCrops, "read", lambda self, sources, *rest: (
        given.append([source is not None for source in sources]), own(self, sources, *rest))[1])  # fmt: skip
    for epoch in range(2):
        got = decoder[Request(epoch, list(range(6)))]
        monkeypatch.setattr(jpeg, "available", lambda: False)
        assert torch.equal(
            got.pixels, FileDecoder(files, data, decoder.augment, 0)[Request(epoch, list(range(6)))].pixels
        )
        monkeypatch.setattr(jpeg, "available", lambda: True)
    assert given == [[True] * 6, [True, True, False, True, False, True]]
    decoder[Request(2, [4, 2, 2 + 6])]
    assert len(given) == 2, "none of them is for the kernels"


def test_boxes_of_any_shape_are_those_of_the_single_crop(tmp_path):
    """Also where no box fits, where NumPy draws fewer numbers, and where a side is between two lengths."""
    path = tmp_path / "a.jpg"
    for width, height in ((5, 400), (400, 5), (37, 23)):
        path.write_bytes(saved(picture(width, height)))
        for scale, ratio in (
            (SCALE, RATIO),
            ([1.0, 1.0], [1.0, 1.0]),
            ([0.3, 0.3], [0.5, 0.5]),
            ([0.01, 0.02], [3.0, 9.0]),
        ):
            made = jpeg.RandomCrops(scale, ratio, (6, 9), True, 3, 1 << 20)
            got, done = crops_of([str(path)] * 60, range(60), made)
            for number in np.flatnonzero(done):
                assert np.array_equal(got[number], one_by_one(str(path), int(number), made))
            assert done.mean() > 0.9 or (scale, ratio) == ([1.0, 1.0], [1.0, 1.0])


def test_what_may_differ_is_left_to_pillow():
    image = picture(60, 40)
    data = saved(image)
    assert opened(data).by_kernel
    left = {
        "CMYK": saved(image.convert("CMYK")),
        "bytes after the end": data + b"\0",
        "no end": data[:-2],
    }
    for what, each in left.items():
        assert jpeg.header(each) is None, what
        assert not opened(each).by_kernel
    assert np.array_equal(
        eval_transform(opened(left["CMYK"]), 32, 0.875, "bicubic"),
        eval_transform(load_image(left["CMYK"]), 32, 0.875, "bicubic"),
    )
    with pytest.raises(BadImageError, match="truncated"), reading(left["no end"]):
        eval_transform(opened(data[: len(data) // 2]), 32, 0.875, "bicubic")
    with pytest.raises(BadImageError, match="it has 60 x 40 pixels, more than max_pixels = 2399"):
        open_picture(data, 3, max_pixels=2399)


def test_damage_is_judged_as_without_kernels():
    """Bytes are changed anywhere: an image is refused with and without kernels, or has the same pixels with both."""
    data = saved(picture(120, 90), quality=70)
    rng = np.random.default_rng(0)
    refused = kept = 0
    for _ in range(400):
        damaged = np.frombuffer(data, np.uint8).copy()
        at = rng.integers(0, len(data), rng.integers(1, 4))
        damaged[at] = rng.integers(0, 256, len(at))
        results = [outcome(damaged.tobytes(), by_kernel) for by_kernel in (True, False)]
        assert np.array_equal(*results), at
        refused, kept = refused + (results[0] is None), kept + (results[0] is not None)
    assert refused > 20
    assert kept > 100


def outcome(data, by_kernel):
    try:
        with reading(data):
            image = open_picture(data, 3)
            if isinstance(image, Jpeg):
                image = replace(image, by_kernel=image.by_kernel and by_kernel)
            return eval_transform(image, 64, 1.0, "bilinear")
    except BadImageError:
        return None


def lossless(width, height, channels):
    """A lossless JPEG of noise around 128, which Pillow cannot write: differences of 0, -1 and 1."""
    rng = np.random.default_rng(0)
    bits = "".join(rng.choice(["0", "100", "101"], width * height * channels))
    bits += "1" * (-len(bits) % 8)
    code = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    numbers = range(1, channels + 1)
    segments = (
        (0xEE, b"Adobe\0\x64\0\0\0\0\0"),  # no transform of colours
        (0xC3, struct.pack(">BHHB", 8, height, width, channels) + b"".join(bytes([n, 0x11, 0]) for n in numbers)),
        (0xC4, bytes([0, 1, 1, *[0] * 14, 0, 1])),
        (0xDA, bytes([channels, *(b for n in numbers for b in (n, 0)), 1, 0, 0])),
    )
    start = b"".join(b"\xff" + struct.pack(">BH", kind, len(body) + 2) + body for kind, body in segments)
    return b"\xff\xd8" + start + code + jpeg.END


@pytest.mark.parametrize("by_kernel", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_files_are_decoded_at_their_full_size(channels, by_kernel):
    """libjpeg cannot decode them smaller, and Pillow fails if it is asked to."""
    data = lossless(150, 130, channels)
    image, whole = replace(opened(data), by_kernel=by_kernel), load_image(data)
    for box in ((0, 0, 150, 130), (31, 7, 80, 90), (149, 129, 1, 1)):
        left, top, width, height = box
        want = whole.resize((20, 24), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        assert np.array_equal(image.cropped(box, (24, 20), "bicubic"), np.asarray(want))
    assert np.array_equal(eval_transform(image, 32, 0.875, "bicubic"), eval_transform(whole, 32, 0.875, "bicubic"))
    assert load_image(data, enough=16).size == (150, 130)
    assert load_image(saved(whole), enough=16).size == (19, 17)


def test_nothing_larger_than_an_image_can_be_is_read(tmp_path, monkeypatch):
    """Neither a file nor a member of an archive: a header may claim any length."""
    data = saved(picture(20, 20))
    path = tmp_path / "images.tar"
    path.write_bytes(data)
    member = packed.Member("a.jpg", packed.Container.of(path), 0, len(data), len(data))
    assert packed.whole_if(path, jpeg.START) == packed.whole_if(member, jpeg.START) == data
    monkeypatch.setattr(packed, "LARGEST", len(data) - 1)
    assert packed.whole_if(path, jpeg.START) is packed.whole_if(member, jpeg.START) is None


def test_memory_is_given_back_after_a_large_image_that_fails():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(saved(Image.new("L", (4000, 3000), 128), exif=exif, restart_marker_rows=1))
    last = data.rindex(b"\xff\xd7")
    data[last + 1] = 0xD3  # the wrong restart marker: a warning, after most of the image has been decoded
    data = bytes(data)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def fails():
        axes = jpeg.Axis(0, 3000, 32, 0, 32), jpeg.Axis(0, 4000, 32, 0, 32)
        assert jpeg.header(data) is not None
        assert jpeg.part(data, 1, 6, *axes, False, 3) is None

    before = resident()
    fails()
    assert resident() - before < 24 << 20, "a region of 48 MB"


def test_a_libjpeg_that_does_not_fit_is_refused(tmp_path):
    """Debian's and conda's own Pillow may use one with the interface of version 8."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    names = "destroy_decompress mem_src save_markers read_header start_decompress crop_scanline skip_scanlines"
    code = "struct Errors { void (*fatal)(void*); };\n"
    code += 'extern "C" Errors* jpeg_std_error(Errors* e) { return e; }\n'
    code += 'extern "C" void jpeg_CreateDecompress(Errors** d, int v, long) { if (v != 80) (*d)->fatal(d); }\n'
    stubs = [f'extern "C" void jpeg_{name}() {{}}\n' for name in [*names.split(), "read_scanlines"]]
    folder = tmp_path / "my project"
    folder.mkdir()
    bind = jpeg._kernels.library.excite_jpeg_bind
    try:
        for kind, content in (("other", code + "".join(stubs)), ("old", code + "".join(stubs[:-1]))):
            (folder / f"{kind}.cpp").write_text(content)
            made = [compiler, "-shared", "-fPIC", str(folder / f"{kind}.cpp"), "-o", str(folder / f"{kind}.so")]
            subprocess.run(made, check=True)
        assert [bind(str(folder / f"{kind}.so").encode()) for kind in ("none", "old", "other")] == [1, 2, 3]
        assert sorted(jpeg._UNFIT) == [1, 2, 3]
    finally:
        assert bind(str(jpeg._decoder()).encode()) == 0
    assert opened(saved(picture(20, 20))).by_kernel


def test_every_photograph_at_hand_in_one_call(real_data):
    container = packed.Container.of(real_data / "imagenet_sample.tar")
    with tarfile.open(container.path) as archive:
        files = [each for each in archive if each.isfile()]
    sources = [packed.Member(each.name, container, each.offset_data, each.size, each.size) for each in files]
    made = jpeg.RandomCrops(SCALE, RATIO, (64, 64), True, 3, 1 << 26)
    got, done = crops_of(sources, range(len(sources)), made)
    assert done.mean() > 0.8
    for number in np.flatnonzero(done):
        assert np.array_equal(got[number], one_by_one(sources[number], int(number), made)), sources[number]


def test_every_photograph_at_hand(real_data):
    with tarfile.open(real_data / "imagenet_sample.tar") as tar:
        files = [tar.extractfile(each).read() for each in tar if each.name.lower().endswith((".jpeg", ".jpg"))]
    assert len(files) == 200
    left = 0
    for number, data in enumerate(files):
        if opened(data).by_kernel:
            assert_equals_pillow(data, 1, ((224, 224),), fits=() if number % 5 else ("crop",))
        else:
            left += 1
    assert left <= 2


def test_the_layout_of_libjpegs_structs(tmp_path):
    """Every field that the kernels use is where ``jpeglib.h`` has it."""
    compiler = shutil.which("g++")
    if compiler is None or not Path("/usr/include/jpeglib.h").exists():
        pytest.skip("needs g++ and jpeglib.h; type: apt install g++ libjpeg-dev")
    fields = {
        "errors": "err",
        "source": "src",
        "progressive": "progressive_mode",
        "known": "coef_bits",
        "width": "image_width",
        "height": "image_height",
        "components": "num_components",
        "colours": "jpeg_color_space",
        "wanted_colours": "out_color_space",
        "scale": "scale_num",
        "denominator": "scale_denom",
        "out_width": "output_width",
        "out_height": "output_height",
        "line": "output_scanline",
        "bits": "data_precision",
        "markers": "marker_list",
        "most_across": "max_h_samp_factor",
        "most_down": "max_v_samp_factor",
        "block": "min_DCT_scaled_size",
    }
    errors = {"fatal": "error_exit", "message": "emit_message", "code": "msg_code", "warnings": "num_warnings"}
    source = (Path(jpeg.__file__).parent / "jpeg_kernels.cpp").read_text()
    structs = source[source.index("struct Errors") : source.index("constexpr int VERSION")]
    constants = {"GREY": "JCS_GRAYSCALE", "RGB": "JCS_RGB", "YCC": "JCS_YCbCr", "RGBX": "JCS_EXT_RGBX"}
    checks = [
        f"static_assert(offsetof(Decoder, {a}) == offsetof(jpeg_decompress_struct, {b}));" for a, b in fields.items()
    ]
    checks += [f"static_assert(offsetof(Errors, {a}) == offsetof(jpeg_error_mgr, {b}));" for a, b in errors.items()]
    checks += ["static_assert(offsetof(Source, left) == offsetof(jpeg_source_mgr, bytes_in_buffer));"]
    checks += [
        f"static_assert(sizeof({a}) == sizeof({b}));"
        for a, b in (("Decoder", "jpeg_decompress_struct"), ("Errors", "jpeg_error_mgr"))
    ]
    numbers = source[source.index("constexpr int VERSION") :].split(";")[0]
    checks += [f"static_assert(own::{a} == {b});" for a, b in constants.items()]
    checks += ["static_assert(own::VERSION == JPEG_LIB_VERSION);", "static_assert(own::EXIF_OR_XMP == JPEG_APP0 + 1);"]
    code = tmp_path / "layout.cpp"
    code.write_text(
        "#include <cstddef>\n#include <cstdio>\n#include <cstdint>\n#include <jpeglib.h>\n"
        f"{structs}\nnamespace own {{ {numbers}; }}\n" + "\n".join(checks)
    )
    done = subprocess.run([compiler, "-std=c++17", "-fsyntax-only", str(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
