"""Bytes of image files of every format: pixels of the asked size, or one sentence; never more than max_pixels allow."""

import io
import struct
import zlib
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from excite.data import jpeg
from excite.data.decode import BadImageError, Jpeg, check_image, largest_value, load_image, open_picture, reading
from excite.data.formats import FORMATS, open_image
from excite.data.preprocessing import Preprocessing
from excite.data.resize import random_resized_crop

from .harness import Case, Surface, found
from .mutations import mutated

#: So that a bomb is one that needs more than this allows: 1 megapixel takes 4 MB, a few times.
MOST_PIXELS = 1_000_000
SIZE = 8
EVALUATION = {
    channels: Preprocessing(SIZE, 0.875, "bicubic", (0.5,) * channels, (0.5,) * channels, channels)
    for channels in (1, 3)
}
BANDS = {
    channels: Preprocessing((SIZE, 5), 1.0, "bicubic", (0.5,) * channels, (0.5,) * channels, channels, fit="letterbox")
    for channels in (2, 4, 5)
}


def _pixels(mode: str, side: int = 20) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (side, side + 3, 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(values[..., 0].astype(np.int32) * 200)
    return Image.fromarray(values).convert(mode)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _deep_png(channels: int) -> bytes:
    """16 bits per channel in colour, which Pillow does not write."""
    rows = np.random.default_rng(0).integers(0, 256, (20, 1 + 23 * channels * 2), np.uint8)
    rows[:, 0] = 0

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 23, 20, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows.tobytes()))
        + chunk(b"IEND", b"")
    )


#: Format of Pillow's -> its modes, and options for saving.
_MADE: dict[str, tuple[tuple[str, ...], tuple[dict[str, object], ...]]] = {
    "JPEG": (("RGB", "L", "CMYK"), ({}, {"progressive": True}, {"subsampling": 2, "quality": 30})),
    "PNG": (("RGB", "L", "P", "RGBA", "LA", "1", "I;16"), ({}, {"transparency": 3})),
    "GIF": (("P", "L"), ({}, {"transparency": 3})),
    "WEBP": (("RGB", "RGBA"), ({}, {"lossless": True})),
    "TIFF": (
        ("RGB", "L", "RGBA", "CMYK", "I;16", "1", "I", "YCbCr"),
        ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}),
    ),
    "BMP": (("RGB", "L", "P", "1"), ({},)),
    "PPM": (("RGB", "L", "1", "I;16"), ({},)),
    "AVIF": (("RGB", "RGBA"), ({},)),
    "JPEG2000": (("RGB", "L", "RGBA", "I;16"), ({}, {"irreversible": True})),
    "QOI": (("RGB", "RGBA"), ({},)),
    "DDS": (("RGB", "RGBA", "L"), ({},)),
    "ICO": (("RGBA",), ({},)),
    "HEIF": (("RGB", "RGBA", "L"), ({},)),
    "TGA": (("RGB", "RGBA", "L", "P"), ({}, {"compression": "tga_rle"})),
    "PCX": (("RGB", "L", "P", "1"), ({},)),
    "SGI": (("RGB", "RGBA", "L"), ({},)),
    "DIB": (("RGB", "L"), ({},)),
}
_ENDINGS = {"TGA": ".tga", "PCX": ".pcx", "SGI": ".sgi", "DIB": ".dib"}


def originals() -> list[tuple[str, bytes]]:
    """(ending, bytes) of small images in every format and mode; ending "" where the content says what it is."""
    with suppress(UnidentifiedImageError), open_image(b"x"):
        pass  # this registers HEIF
    sun = struct.pack(">8I", 0x59A66A95, 23, 20, 24, 20 * 70, 1, 0, 0) + bytes(range(70)) * 20
    found: list[tuple[str, bytes]] = [("", sun)]
    for kind in FORMATS:
        modes, options = _MADE.get(kind, ((), ()))
        for mode in modes:
            for option in options:
                try:
                    found.append((_ENDINGS.get(kind, ""), _saved(_pixels(mode), kind, **option)))
                except (OSError, ValueError, KeyError, SystemError, TypeError):
                    continue  # not every mode has every option
    exif = Image.Exif()
    exif[0x0112] = 6
    found.append(("", _saved(_pixels("RGB"), "JPEG", exif=exif)))
    found += [("", _deep_png(channels)) for channels in (1, 2, 3, 4)]
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 5000, zip=True)
    found.append(("", _saved(_pixels("RGB"), "PNG", pnginfo=text)))
    return found


@pytest.fixture(scope="module")
def images() -> list[tuple[str, bytes]]:
    made = originals()
    kinds = set()
    for _, content in made:
        with Image.open(io.BytesIO(content)) as image:
            kinds.add(image.format)
    assert kinds >= set(FORMATS), "a format is not fuzzed"
    return made


def check(case: Case, ending: str, content: bytes) -> None:
    """Whatever reads an image reads this one, and agrees with the others."""
    path = case.file(f"image{ending or '.jpg'}", content)
    source = path if ending or case.rng.random() < 0.5 else content
    read = load_image(source, max_pixels=MOST_PIXELS)
    assert read.mode == "RGB"
    assert 0 < read.width * read.height <= MOST_PIXELS
    assert read.tobytes()
    check_image(source, max_pixels=MOST_PIXELS)  # what can be read is never refused
    level = largest_value(source, max_pixels=MOST_PIXELS)
    assert level is None or isinstance(level, int)
    for channels, preprocessing in EVALUATION.items():
        pixels = preprocessing.load(source, MOST_PIXELS)
        assert pixels.shape == (channels, SIZE, SIZE)
        assert pixels.dtype is torch.uint8
    load_image(source, "L", MOST_PIXELS, enough=4)


def jpegs() -> list[bytes]:
    """JPEGs with every kind of chroma, coefficients of one scan or of several, turned ones, with restarts."""
    made, exif = [], Image.Exif()
    exif[0x0112] = 6
    for side in (20, 150):
        for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"exif": exif}, {"keep_rgb": True}):
            for subsampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
                if "keep_rgb" not in options or subsampling == "4:4:4":
                    made.append(_saved(_pixels("RGB", side), "JPEG", subsampling=subsampling, **options))
        made += [_saved(_pixels(mode, side), "JPEG") for mode in ("L", "CMYK")]
    return made


def _crop(source: bytes, seed: int, size: int, by_kernel: bool) -> np.ndarray | None:
    """A random crop, by the kernels or by Pillow; None if it cannot be read."""
    with suppress(BadImageError), reading(source):
        image = open_picture(source, 3, MOST_PIXELS)
        if isinstance(image, Jpeg) and not by_kernel:
            image = replace(image, by_kernel=False)
        return random_resized_crop(image, np.random.default_rng(seed), (0.05, 1.0), (0.5, 2.0), size, "bicubic")
    return None


def _crop_at_once(path: object, seed: int, size: int) -> np.ndarray | None:
    """The same from the call for whole files; None if it leaves this one to others."""
    made = jpeg.RandomCrops((0.05, 1.0), (0.5, 2.0), (size, size), True, 3, MOST_PIXELS)
    out, beat = np.empty((1, size, size, 3), np.uint8), np.zeros(2, np.int64)
    return out[0] if jpeg.available() and made.read([str(path)], (), [seed], out, beat, [0])[0] else None


def test_parts_of_jpegs():
    """Refused with and without the kernels, or the same pixels."""
    made = jpegs()

    def one(case: Case) -> None:
        damaged = mutated(case.rng, case.rng.choice(made), made, head=700)
        seed, size = case.rng.randrange(1000), case.rng.choice((8, 20, 60))
        got, want = (_crop(damaged, seed, size, by_kernel) for by_kernel in (True, False))
        assert (got is None) == (want is None)
        at_once = _crop_at_once(case.file("image.jpg", damaged), seed, size)
        assert at_once is None or np.array_equal(at_once, want)
        if got is None:
            raise BadImageError("image", "refused both ways")
        assert np.array_equal(got, want)

    surface = Surface("parts of JPEGs", seconds=10, megabytes=256)
    surface.run(one, test="test_images.py::test_parts_of_jpegs", expected=(BadImageError,))
    assert surface.refused < surface.cases


def bands() -> list[bytes]:
    """Small TIFFs of 2, 4 and 5 bands in every arrangement, and of pages."""
    made = []
    for count in BANDS:
        for kind in (np.uint8, np.uint16):
            values = np.random.default_rng(count).integers(0, 256, (19, 23, count)).astype(kind)
            plain = {"photometric": "minisblack", "metadata": None}
            planes = {"planarconfig": "separate", **plain}
            for options in ({}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16)}, {"byteorder": ">"}):
                for pixels, how in (
                    (values, {"planarconfig": "contig", **plain}),
                    (np.moveaxis(values, -1, 0), planes),
                ):
                    file = io.BytesIO()
                    tifffile.imwrite(file, np.ascontiguousarray(pixels), **how, **options)
                    made.append(file.getvalue())
            file = io.BytesIO()
            tifffile.imwrite(file, np.ascontiguousarray(np.moveaxis(values, -1, 0)), **plain)
            made.append(file.getvalue())
    return made


def test_bytes_of_bands(images):
    """Refused in a sentence, or read as so many bands; what can be read is never refused."""
    made = bands()
    others = [content for _, content in images]

    def one(case: Case) -> None:
        content = case.rng.choice(made if case.rng.random() < 0.8 else others)
        damaged = mutated(case.rng, content, [*made, *others], head=200)
        source = case.file("image.tif", damaged) if case.rng.random() < 0.5 else damaged
        channels = case.rng.choice(list(BANDS))
        pixels = BANDS[channels].load(source, MOST_PIXELS)
        assert pixels.shape == (channels, SIZE, 5)
        check_image(source, MOST_PIXELS, channels)
        level = largest_value(source, MOST_PIXELS, channels)
        assert level is None or isinstance(level, int)

    surface = Surface("bands", seconds=10, megabytes=256)
    surface.run(one, test="test_images.py::test_bytes_of_bands", expected=(BadImageError,))
    assert surface.refused < surface.cases


def test_image_bytes(images):
    def one(case: Case) -> None:
        ending, content = case.rng.choice(images)
        check(case, ending, mutated(case.rng, content, [b for _, b in images], head=200))

    surface = Surface("images", seconds=10, megabytes=256)
    surface.run(one, test="test_images.py::test_image_bytes", expected=(BadImageError,))
    assert surface.refused > surface.cases // 10


@pytest.mark.parametrize("path", found("images"), ids=lambda path: path.name)
def test_corpus(path):
    def one(case: Case) -> None:
        case.rng.random = lambda: 1.0 if case.index else 0.0  # once by its path, once as bytes
        check(case, "", path.read_bytes())

    surface = Surface("images", seconds=10, megabytes=256, cases=2)
    surface.run(one, test=f"test_images.py::test_corpus[{path.name}]", expected=(BadImageError,))
