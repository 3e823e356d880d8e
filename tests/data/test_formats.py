"""Which files are read, and what the numbers in them mean."""

import contextlib
import io
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from excite.data import formats
from excite.data import white as white_module
from excite.data.config import DataConfig
from excite.data.decode import BadImageError, check_image, largest_value, load_image
from excite.data.formats import EXTENSIONS, FORMATS, UNREAD, open_image, what_it_is
from excite.data.images import FileImages
from excite.data.preprocessing import Preprocessing
from excite.data.sources import open_data
from excite.data.white import with_white
from excite.errors import install_line

RNG = np.random.default_rng(0)
PICTURE = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)
)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def deep_png(values: np.ndarray, key: tuple[int, ...] = ()) -> bytes:
    """uint16 (H, W, C): a PNG with 16 bits a channel, which Pillow writes for gray only."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    return b"\x89PNG\r\n\x1a\n" + head + transparent + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(
    values: np.ndarray,
    photometric: int,
    extra: tuple[int, ...] | None = None,
    planes: bool = False,
    deflate: bool = False,
) -> bytes:
    """(H, W, C) of any dtype: a TIFF of one strip (or one a plane) with exactly these tags."""
    height, width, bands = values.shape
    tags = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    tags[256], tags[257], tags[258], tags[259] = width, height, (values.dtype.itemsize * 8,) * bands, 1
    tags[262], tags[277], tags[278], tags[284] = photometric, bands, height, 2 if planes else 1
    tags[339] = ({"u": 1, "i": 2, "f": 3}[values.dtype.kind],) * bands
    if extra is not None:
        tags[338] = extra
        tags.tagtype[338] = 3
    parts = [np.ascontiguousarray(values[..., i]) for i in range(bands)] if planes else [values]
    content = [part.astype(part.dtype.newbyteorder("<")).tobytes() for part in parts]
    if deflate:
        content, tags[259] = [zlib.compress(part) for part in content], 8
    tags[279] = tuple(len(part) for part in content)
    # Pillow adds the length of the directory.
    tags[273] = tuple(int(start) for start in np.cumsum([0] + [len(part) for part in content[:-1]]))
    head = io.BytesIO(b"II*\0\x08\0\0\0")
    head.seek(8)
    tags.save(head)
    return head.getvalue() + b"".join(content)


def _big_endian(values: np.ndarray) -> bytes:
    height, width, bands = values.shape
    behind = 8 + 2 + 8 * 12 + 4
    shorts = {256: width, 257: height, 259: 1, 262: 2, 277: bands}
    entries = [(tag, 3, 1, value << 16) for tag, value in shorts.items()]
    entries = sorted([*entries, (258, 3, 3, behind), (273, 4, 1, behind + 6), (279, 4, 1, values.nbytes)])
    head = b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHII", *e) for e in entries)
    return head + bytes(4) + struct.pack(">3H", 16, 16, 16) + values.astype(">u2").tobytes()


def entry(data: bytes, number: int, *, tag: int | None = None, value: int | None = None) -> bytes:
    """What `tiff` made, with another tag or value in the entry of this number."""
    at = next(at for at in range(10, len(data), 12) if data[at : at + 2] == struct.pack("<H", number))
    head = struct.pack("<H", number if tag is None else tag) + data[at + 2 : at + 8]
    return data[:at] + head + (data[at + 8 : at + 12] if value is None else struct.pack("<I", value)) + data[at + 12 :]


def scaled(values: np.ndarray, white: int = 65535) -> np.ndarray:
    return np.floor(np.minimum(values, white) * (255 / white) + 0.5).astype(int)


def pixels(data: bytes | os.PathLike, mode: str = "RGB", white: int = 65535) -> np.ndarray:
    return np.asarray(load_image(data, mode, white=white)).astype(int)


# --- formats ---------------------------------------------------------------------------------------------------------


def test_listed_formats_are_known_to_pillow_and_none_starts_a_program():
    Image.init()
    assert set(FORMATS) - {"HEIF"} <= set(Image.OPEN)
    assert not {"EPS", "PDF", "WMF", "FITS", "HDF5", "GRIB", "BUFR", "MPEG", "PSD", "ICNS"} & set(FORMATS)
    assert not EXTENSIONS & set(UNREAD)
    assert {".jpg", ".png", ".avif", ".jp2", ".tga", ".pcx"} <= EXTENSIONS
    assert {".eps", ".pdf", ".nef", ".dcm", ".npy"} <= set(UNREAD)


def test_listing_formats_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import excite.data.formats, excite.data.pixels, excite.data.whole"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("end", "options"),
    [
        ("jp2", {}), ("j2k", {"no_jp2": True}), ("tga", {}), ("tga", {"compression": "tga_rle"}), ("pcx", {}),
        ("sgi", {}), ("dds", {}), ("dib", {}), ("apng", {}), ("pnm", {}), ("jpe", {}),
        ("avif", {}), ("mpo", {}),
        ("ico", {"sizes": [(40, 30)]}),
    ],
)  # fmt: skip
def test_formats_of_pillow_are_read(end: str, options: dict, tmp_path):
    assert f".{end}" in EXTENSIONS
    kind = {"apng": "PNG", "pnm": "PPM", "jpe": "JPEG", "j2k": "JPEG2000"}.get(end)
    path = tmp_path / f"picture.{end}"
    Image.fromarray(PICTURE).save(path, kind, **options)
    lossy = {"avif": 60, "jpe": 60, "mpo": 60}.get(end, 0)
    assert np.abs(pixels(path) - PICTURE).max() <= lossy
    check_image(path)


def test_content_decides_and_not_the_ending_but_only_where_it_is_unmistakable(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(Image.fromarray(PICTURE), "PNG"))
    assert (pixels(path) == PICTURE).all()
    path.write_bytes(saved(Image.fromarray(PICTURE), "TGA")[:-26])  # without its footer: anything looks like a TGA
    with pytest.raises(BadImageError, match="not an image in a known format"):
        load_image(path)


@pytest.mark.parametrize("read", [load_image, check_image, open_image])
def test_an_eps_named_jpg_starts_nothing(read, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    with pytest.raises(Exception, match=r"PostScript|cannot identify"):
        read(path)


def test_nothing_else_in_the_package_opens_images():
    import excite

    root = os.path.dirname(excite.__file__)
    for folder, _, files in os.walk(root):
        for name in files:
            if name.endswith(".py") and (os.path.basename(folder), name) != ("data", "formats.py"):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    assert "Image.open(" not in file.read(), (folder, name)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"%PDF-1.7", "PDF"), (b"8BPS\0\1", "Photoshop"), (b"\x93NUMPY", "NumPy"), (bytes(128) + b"DICM", "DICOM"),
        (b"\0\0\0\x18ftypheic", "HEIC"), (b"version https://git-lfs.github.com", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\0\0\0\x18ftypisom", "video"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named(head: bytes, said: str):
    assert said in what_it_is(head + bytes(200))
    with pytest.raises(BadImageError, match=said):
        load_image(head + bytes(200))


def test_bytes_are_a_tga_where_their_end_says_so():
    whole = saved(Image.fromarray(PICTURE), "TGA")
    assert whole.endswith(b"TRUEVISION-XFILE.\0")
    assert (np.asarray(open_image(whole).convert("RGB")) == PICTURE).all()
    for other in (whole[:-18] + b"truevision-xfile.\0", whole[:-26]):
        with pytest.raises(OSError, match="cannot identify"):
            open_image(other)


@pytest.mark.parametrize("missing", [True, False])
def test_what_this_pillow_was_built_without_is_named_with_the_line_to_type(missing, monkeypatch):
    monkeypatch.setattr(formats, "_MISSING", ("WEBP", "AVIF", "JPEG2000") if missing else ())
    monkeypatch.setattr(formats, "_HAS_HEIF", not missing)
    newer = "; type: pip install --upgrade pillow" if missing else ", but damaged"
    for brand in (b"avif", b"avis"):
        assert what_it_is(b"\0\0\0\x18ftyp" + brand + b"x" * 200) == f"it is AVIF{newer}"
    heif = f"; type: {install_line('heif')}" if missing else ", but damaged"
    for brand in (b"heic", b"hevc", b"mif1", b"msf1"):
        assert what_it_is(b"\0\0\0\x18ftyp" + brand + b"x" * 200) == f"it is HEIC{heif}"
    for kind, start in (("WEBP", b"RIFF"), ("JPEG2000", b"\0\0\0\x0cjP  ")):
        said = f"it is {kind}, which this Pillow was built without; type: pip install --upgrade pillow"
        assert what_it_is(start + bytes(200)) == (said if missing else None)
    assert what_it_is(b"\0\0\0\x18ftypmp42" + bytes(200)) == "it is a video or another file of brand 'mp42'"
    assert what_it_is(bytes(200)) is None


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: no HEIC to read")
    path = tmp_path / "phone.HEIC"
    pillow_heif.from_pillow(Image.fromarray(PICTURE)).save(path, quality=95)
    assert np.abs(pixels(path) - PICTURE).mean() < 10
    assert ".heic" in EXTENSIONS
    for length in range(0, path.stat().st_size, 37):
        (tmp_path / "cut.heic").write_bytes(path.read_bytes()[:length])
        with pytest.raises(BadImageError):
            check_image(tmp_path / "cut.heic")


# --- what is no file, and what was cut off ---------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("read", [load_image, check_image, Preprocessing(8, 1.0, "bicubic", (0,), (1,), 1).load])
def test_what_is_no_regular_file_is_never_opened(read, tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name, said in (("a", "FIFO"), ("link", "FIFO"), ("folder", "folder"), ("loop", "."), ("none", "no such file")):
        with pytest.raises(BadImageError, match=said) as caught:
            read(tmp_path / f"{name}.png")
        assert caught.value.path == str(tmp_path / f"{name}.png")
    with pytest.raises(BadImageError, match="device"):
        read("/dev/zero")
    with pytest.raises(BadImageError, match="null"):
        read("a\0b.png")


CUT = {
    "jpeg": saved(Image.fromarray(PICTURE), "JPEG"),
    "progressive": saved(Image.fromarray(PICTURE), "JPEG", progressive=True),
    "png": saved(Image.fromarray(PICTURE), "PNG"),
    "webp": saved(Image.fromarray(PICTURE), "WEBP"),
    "gif": saved(Image.fromarray(PICTURE), "GIF"),
    "bmp": saved(Image.fromarray(PICTURE), "BMP"),
    "tiff": saved(Image.fromarray(PICTURE), "TIFF"),
    "tiff lzw": saved(Image.fromarray(PICTURE), "TIFF", compression="tiff_lzw"),
    "avif": saved(Image.fromarray(PICTURE), "AVIF"),
    "jp2": saved(Image.fromarray(PICTURE), "JPEG2000"),
    "j2k": saved(Image.fromarray(PICTURE), "JPEG2000", no_jp2=True),
    "ppm": saved(Image.fromarray(PICTURE), "PPM"),
}


@pytest.mark.parametrize("kind", CUT)
def test_files_cut_off_anywhere_are_found_and_whole_ones_are_not_refused(kind: str, tmp_path):
    data, path = CUT[kind], tmp_path / "a.bin"
    for length in {*range(0, len(data), max(1, len(data) // 120)), *range(len(data) - 12, len(data))}:
        path.write_bytes(data[:length])
        try:
            load_image(path)
        except BadImageError:
            with pytest.raises(BadImageError):
                check_image(path)
        else:  # all pixels are there: only the end marker is missing
            assert length >= len(data) - 12, length
            check_image(path)
    for whole in (data, data + bytes(600), data + b"\nappended by some program"):
        path.write_bytes(whole)
        check_image(path)
        load_image(path)


def unusual_forms() -> dict[str, bytes]:
    """Whole files as other programs than Pillow write them."""
    gif, box = CUT["gif"], CUT["jp2"].index(b"jp2c") - 4
    table = 3 << (gif[10] & 7) + 1
    at = 13 + table  # the only image's descriptor
    own = gif[:10] + bytes([gif[10] & 0x7F]) + gif[11:13] + gif[at : at + 9] + bytes([gif[at + 9] | 0x80 | gif[10] & 7])
    length = struct.unpack(">I", CUT["jp2"][box : box + 4])[0]
    comment = b"!\xfe\x03two\x06blocks\0"
    tiles = entry(entry(tiff(PICTURE, 2), 278, tag=323), 284, tag=322, value=40)
    return {
        "gif with comments": gif[:at] + comment * 2 + gif[at:],
        "gif with a table of its own": own + gif[13:at] + gif[at + 10 :],
        "jp2 up to the end": CUT["jp2"][:box] + bytes(4) + CUT["jp2"][box + 4 :],
        "jp2 of 64 bits": CUT["jp2"][:box] + struct.pack(">I4sQ", 1, b"jp2c", length + 8) + CUT["jp2"][box + 8 :],
        "tiff of tiles": entry(entry(tiles, 273, tag=324), 279, tag=325),
        "tiff big": _big_endian(PICTURE * np.uint16(257)),
    }


def test_whole_files_are_not_decoded_to_find_out(tmp_path, monkeypatch):
    from PIL import ImageFile

    def refuse(self):
        raise AssertionError("decoded")

    usual = ("jpeg", "progressive", "png", "webp", "gif", "bmp", "tiff", "tiff lzw", "avif", "jp2", "j2k")
    for data in (*(CUT[kind] for kind in usual), *unusual_forms().values()):
        (tmp_path / "a").write_bytes(data)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile.ImageFile, "load", refuse)
            check_image(tmp_path / "a")


@pytest.mark.parametrize("kind", unusual_forms())
def test_unusual_forms_are_read_and_found_where_they_are_cut_off(kind: str):
    data = unusual_forms()[kind]
    assert np.abs(pixels(data) - (pixels(CUT["gif"]) if "gif" in kind else PICTURE)).max() == 0
    for length in range(len(data) // 2, len(data) - 2, len(data) // 50):
        for read in (load_image, check_image):
            with pytest.raises(BadImageError):
                read(data[:length])


def test_check_looks_at_the_size_and_at_what_the_header_says(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(CUT["png"])
    with pytest.raises(BadImageError, match="more than max_pixels"):
        check_image(path, 1199)
    path.write_bytes(tiff(PICTURE[..., [0, 1, 2, 0]], 2, (0,)))
    with pytest.raises(BadImageError, match="4 bands"):
        check_image(path)


@pytest.mark.parametrize("kind", [*CUT, "tga", "pcx", "sgi", "dds", "ico", "qoi"])
def test_damaged_bytes_raise_nothing_but_bad_image_error(kind: str, tmp_path):
    rng = np.random.default_rng(len(kind))
    if kind == "qoi" and "QOI" not in Image.SAVE:
        pytest.skip("this Pillow writes no QOI")
    data = CUT.get(kind) or saved(Image.fromarray(PICTURE), kind.upper())
    path = tmp_path / f"a.{kind.replace(' ', '')}"
    for _ in range(60):
        damaged = bytearray(data)
        for at in rng.integers(0, min(len(data), int(rng.choice([64, len(data)]))), rng.integers(1, 6)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        for read in (load_image, check_image, largest_value):
            with contextlib.suppress(BadImageError):
                read(path, max_pixels=1_000_000)


# --- bands -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("photometric", "bands", "extra", "planes"),
    [(2, 4, (0,), False), (2, 5, (0, 0), False), (2, 5, (2, 0), False), (1, 5, (0,) * 4, False), (1, 6, (0,) * 5, True),
     (2, 6, (0, 0, 0), True), (1, 2, (0,), False), (5, 5, (0,), False), (2, 4, None, False), (1, 4, None, False)],
)  # fmt: skip
def test_bands_without_a_meaning_are_never_taken_for_colour_or_transparency(photometric, bands, extra, planes, dtype):
    data = tiff(RNG.integers(0, 255, (30, 40, bands)).astype(dtype), photometric, extra, planes)
    colours, kind = {1: (1, "gray"), 2: (3, "RGB"), 5: (4, "colours")}[photometric]
    said = f"{bands} bands"
    if dtype == np.uint8:  # of 16 bits Pillow knows some not at all, and then this is all that is said
        kept = "-b 1 -b 2 -b 3 -colorinterp red,green,blue" if bands > 2 else "-b 1"  # to be copied and run
        said += f", {colours} of {kind} and {bands - colours} that .* gdal_translate {kept} IN.tif OUT.tif$"
    for read in (load_image, check_image):
        with pytest.raises(BadImageError, match=said):
            read(data)


def test_bands_that_are_transparency_are():
    alpha = RNG.integers(0, 256, (30, 40, 1), dtype=np.uint8)
    expected = 255 + (PICTURE.astype(float) - 255) * alpha / 255
    assert np.abs(pixels(tiff(np.dstack([PICTURE, alpha]), 2, (2,))) - expected).max() <= 1
    opaque = np.dstack([PICTURE, np.full((30, 40, 1), 255, np.uint8)])
    assert (pixels(tiff(opaque, 2)) == PICTURE).all()  # says nothing, but has nothing to say
    check_image(tiff(opaque, 2))


@pytest.mark.parametrize(
    ("values", "photometric", "said"),
    [
        (np.zeros((4, 4, 3), np.float32), 2, "float"),
        (np.zeros((4, 4, 1), np.int8), 1, "sign"),
        (np.full((4, 4, 1), -5, np.int16), 1, "below 0"),
        (np.full((4, 4, 1), 70000, np.int32), 1, "no defined white level"),
        (np.zeros((4, 4, 3), np.uint8), 8, "CIELAB"),
        (np.zeros((4, 4, 3), np.uint32), 2, "3 bands of 32 bits"),
    ],
)
def test_numbers_without_an_agreed_meaning_are_refused_with_the_reason(values, photometric, said, tmp_path):
    data, path = tiff(values, photometric), tmp_path / "a.tif"
    path.write_bytes(data)
    for source in (data, path):
        for read in (load_image, check_image):
            with pytest.raises(BadImageError, match=said):
                read(source)


def test_a_tiff_that_pillow_knows_no_mode_for_is_described():
    gray = tiff(np.zeros((4, 4, 1), np.uint8), 4)
    deep = _big_endian(np.zeros((4, 4, 3), np.uint16))
    for data, said in (
        (gray, "1 band of 8 bits (photometric 4)"),
        (entry(entry(gray, 258, tag=65000), 277, tag=65001), "1 band of 1 bits (photometric 4)"),  # as TIFF means it
        (deep.replace(struct.pack(">3H", 16, 16, 16), struct.pack(">3H", 32, 32, 32)), "3 bands of 32 bits"),
        (tiff(np.zeros((4, 4, 2), np.float64), 1), "2 bands of 64 float bits (photometric 1)"),
        (entry(gray, 256, tag=255), "its header is damaged"),
    ):
        with pytest.raises(BadImageError, match=re.escape(said)):
            load_image(data)


@pytest.mark.parametrize("deflate", [False, True])
def test_bands_in_planes_of_their_own_are_read_right_or_refused(deflate: bool):
    gray = PICTURE[..., :1]
    assert (pixels(tiff(PICTURE, 2, planes=True, deflate=deflate)) == PICTURE).all()
    assert (pixels(tiff(gray, 1, planes=True, deflate=deflate), "L") == gray[..., 0]).all()
    deep = tiff(gray * np.uint16(257), 1, planes=True, deflate=deflate)
    negative = tiff(255 - gray, 0, planes=True, deflate=deflate)
    refused = {"16-bit colours in separate planes": tiff(PICTURE * np.uint16(257), 2, planes=True, deflate=deflate)}
    if deflate:  # libtiff knows what a single plane means, Pillow's own decoder does not
        assert (pixels(deep, "L") == gray[..., 0]).all()
        assert (pixels(negative, "L") == gray[..., 0]).all()
    else:
        refused |= {"only band is stored as a plane": deep, "only band is stored as": negative}
    for said, data in refused.items():
        for read in (load_image, check_image):
            with pytest.raises(BadImageError, match=said):
                read(data)


# --- 16 bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("white", [65535, 4095])
@pytest.mark.parametrize("order", ["PNG", "TIFF little", "TIFF big", "TIFF deflate"])
def test_sixteen_bit_colours_keep_all_their_levels(order: str, white: int):
    values = RNG.integers(0, 65536 if white == 65535 else 5000, (30, 40, 3)).astype(np.uint16)
    data = {
        "PNG": lambda: deep_png(values),
        "TIFF little": lambda: tiff(values, 2),
        "TIFF big": lambda: _big_endian(values),
        "TIFF deflate": lambda: tiff(values, 2, deflate=True),  # libtiff reads this one
    }[order]()
    assert (pixels(data, white=white) == scaled(values, white)).all()
    assert largest_value(data) == values.max()
    clear = np.where(RNG.random((30, 40, 1)) < 0.5, 0, 65535).astype(np.uint16)
    if order in ("PNG", "TIFF little"):
        alpha = np.dstack([values, clear])
        data = deep_png(alpha) if order == "PNG" else tiff(alpha, 2, (2,))
        assert (pixels(data, white=white) == np.where(clear == 0, 255, scaled(values, white))).all()
        assert largest_value(data) == values.max()  # how opaque it is says nothing about what is white


def test_sixteen_bit_gray_of_every_kind():
    values = RNG.integers(0, 4096, (30, 40, 1)).astype(np.uint16)
    for white in (65535, 4095):
        levels = scaled(values[..., 0], white)
        assert (pixels(deep_png(values), "L", white) == levels).all()
        assert (pixels(tiff(values, 1), "L", white) == levels).all()
        assert (pixels(tiff(values, 0), "L", white) == 255 - levels).all()  # zero is white, as in radiographs
        assert (pixels(saved(Image.fromarray(values[..., 0]), "PPM"), "L", white) == levels).all()
    clear = np.where(RNG.random((30, 40, 1)) < 0.5, 0, 65535).astype(np.uint16)
    assert largest_value(deep_png(np.dstack([values, clear]))) == values.max()
    got = pixels(deep_png(np.dstack([values, clear])), "L", 4095)
    assert (got == np.where(clear[..., 0] == 0, 255, scaled(values[..., 0], 4095))).all()


def test_formats_that_tell_their_white_are_left_alone():
    twelve = b"P5 2 2 4095\n" + np.array([0, 1000, 2000, 4095], ">u2").tobytes()
    for white in (65535, 4095, 255):
        assert pixels(twelve, "L", white).ravel().tolist() == [0, 62, 125, 255]
    assert largest_value(twelve) is None
    values = RNG.integers(0, 4096, (2, 4)).astype(np.uint16)
    bits = "".join(f"{value:012b}" for value in values.ravel())  # two values in three bytes
    packed = entry(entry(tiff(np.zeros((2, 6, 1), np.uint8), 1), 256, value=4), 258, value=12)
    packed = packed[:-12] + int(bits, 2).to_bytes(12, "big")
    wavelets = saved(Image.fromarray(values), "JPEG2000")
    for data, most in ((packed, 4095), (wavelets, 65535)):
        for white in (65535, 255):
            assert (pixels(data, "L", white) == scaled(values, most)).all()
        assert largest_value(data) is None
    assert largest_value(CUT["png"]) is None


def test_a_tiff_without_a_number_of_bits_has_one_a_pixel():
    rows = RNG.integers(0, 256, (4, 2, 1), dtype=np.uint8)
    data = entry(entry(tiff(rows, 1), 256, value=16), 258, tag=65000)
    assert (pixels(data, "L") == 255 * np.unpackbits(rows[..., 0], axis=1)).all()
    check_image(data)
    assert largest_value(data) is None


def test_a_key_colour_of_sixteen_bits_is_transparent_and_its_neighbours_are_not():
    gray = np.array([[[1000], [1001]]], np.uint16)
    assert pixels(deep_png(gray, (1000,)), "L").tolist() == [[255, 4]]
    colours = np.array([[[1000, 2000, 3000], [1000, 2000, 3001]]], np.uint16)
    assert pixels(deep_png(colours, (1000, 2000, 3000))).tolist() == [[[255] * 3, [4, 8, 12]]]


def folder(root, levels: int, suffix: str = "png") -> DataConfig:
    rng = np.random.default_rng(1)
    for part, count in (("train", 6), ("val", 3)):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                values = rng.integers(0, levels, (8, 8), dtype=np.uint16)
                values[0, 0] = levels - 1
                Image.fromarray(values).save(root / part / name / f"{i}.{suffix}")
    return DataConfig(source="folder", root=str(root), image_size=8, crop_pct=1.0)


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize(("levels", "white"), [(4081, 4095), (256, 255), (900, 1023), (16000, 16383), (40000, 65535)])
def test_the_datas_largest_value_decides_what_is_white_and_it_is_said(levels, white, mode, tmp_path):
    config = folder(tmp_path, levels)
    opened = open_data(config.model_copy(update={"mode": mode}))
    assert opened.preprocessing.white == white
    said = [note for note in opened.notes if "data.white" in note]
    if white == 65535:
        assert said == []
    else:
        assert len(said) == 1
        assert f"values up to {levels - 1} of 65535" in said[0]
        assert f"data.white={white})" in said[0]
        assert "data.white=65535 turns this off" in said[0]
    path = tmp_path / "val" / "a" / "0.png"
    alone = opened.preprocessing.load(path)
    with Image.open(path) as image:
        assert (alone[0].numpy() == scaled(np.asarray(image), white)).all()
    if mode == "memory":
        assert any((alone[:1] == image[:1]).all() for image in opened.val.images)
    else:
        assert opened.train.white == opened.val.white == opened.val.take(np.array([0])).white == white


def test_streamed_images_are_decoded_with_the_white_that_was_found(tmp_path):
    from excite.data import AugmentConfig, EvalLoader, TrainLoader

    config = folder(tmp_path, 4081).model_copy(update={"mode": "stream", "workers": 0})
    opened = open_data(config)
    for pixels_of, _, index in EvalLoader(opened.val, batch_size=2, device="cpu", data_config=config):
        for image, i in zip(pixels_of, index.tolist(), strict=True):
            assert (image == opened.preprocessing.load(opened.val.paths[i])).all()
    for crop in ("none", "random_resized"):
        augment = AugmentConfig(crop=crop)
        loader = TrainLoader(opened.train, batch_size=4, seed=0, device="cpu", augment=augment, data_config=config)
        assert next(iter(loader.epoch(0)))[0].float().mean() > 100  # about 8 if 65535 were white


def test_a_given_white_is_taken_without_looking(tmp_path, monkeypatch):
    import excite.data.white as module

    config = folder(tmp_path, 4081)
    monkeypatch.setattr(module, "largest_value", None)
    opened = open_data(config.model_copy(update={"white": 65535}))
    assert (opened.preprocessing.white, opened.notes) == (65535, [])


def test_a_sample_of_streamed_images_is_called_one(tmp_path, monkeypatch):
    import excite.data.white as module

    config = folder(tmp_path, 4081)
    paths = sorted(str(path) for path in (tmp_path / "train").rglob("*.png"))
    train, val = FileImages(paths, [0] * len(paths)), FileImages(paths[:2], [0, 0])
    monkeypatch.setattr(module, "DECODED", 5)
    assert "a sample of 5 16-bit training images" in with_white(config, train, val)[1][0]
    assert "12 16-bit training images" in with_white(config, train, val, every=True)[1][0]
    monkeypatch.setattr(module, "LOOKED_AT", 3)
    assert "a sample of 3" in with_white(config, train, val)[1][0]


def test_white_is_found_in_every_format_with_16_bits_and_evenly_among_many(tmp_path, monkeypatch):
    import excite.data.white as module

    config = DataConfig(source="folder", root=str(tmp_path), image_size=8)

    def white(*contents: bytes) -> int | None:
        paths = [tmp_path / f"{i:02}" for i in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        files = FileImages([str(path) for path in paths], [0] * len(paths))
        return with_white(config, files, files)[0].white

    values = np.full((4, 4, 1), 4000, np.uint16)
    gray = Image.fromarray(values[..., 0])
    bright = deep_png(values)
    for content in (bright, tiff(values, 1), _big_endian(np.dstack([values] * 3)), saved(gray, "TIFF", big_tiff=True),
                    saved(gray, "PPM"), b"P2 2 1 65535 9 4000"):  # fmt: skip
        assert white(content, CUT["jpeg"], CUT["png"]) == 4095
    dark = deep_png(values // 5)
    unfit = [tiff(np.full((4, 4, 1), -5, np.int16), 1), tiff(np.full((4, 4, 1), 70000, np.int32), 1)]
    assert white(dark, *unfit) == 1023  # these are refused when they are met
    assert white(*unfit) == 65535
    monkeypatch.setattr(module, "DECODED", 3)
    for at in range(7):
        contents = [dark] * 7
        contents[at] = bright
        assert white(*contents) == (4095 if at in (0, 3, 6) else 1023)


def test_broken_and_black_images_say_nothing_about_white(tmp_path):
    paths = [tmp_path / name for name in ("black.png", "broken.png", "none.png")]
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(paths[0])
    paths[1].write_bytes(paths[0].read_bytes()[:40])
    files = FileImages([str(path) for path in paths], [0] * 3)
    config = DataConfig(source="folder", root=str(tmp_path), image_size=4)
    found, said = with_white(config, files, files)
    assert (found.white, said) == (65535, [])


def test_white_travels_and_old_checkpoints_have_none():
    one = Preprocessing(16, 0.875, "bilinear", (0.1,), (0.4,), 1, 4095)
    assert Preprocessing.from_dict(one.to_dict()) == one
    plain = Preprocessing(16, 0.875, "bilinear", (0.1,), (0.4,), 1)
    assert "white" not in plain.to_dict()
    assert Preprocessing.from_dict(plain.to_dict()).white == 65535


@pytest.mark.parametrize("white", [65535, 4095])
def test_a_trained_network_keeps_its_white_whatever_images_come(white: int, tmp_path):
    from pathlib import Path

    from excite.models import create_model
    from excite.recipe import load_recipe
    from excite.trained.images import open_images
    from excite.trained.predictor import Predictor
    from excite.weights.own import Checkpoint

    model = create_model("cifar_resnet20", num_classes=2)
    config = folder(tmp_path, 900)  # would be taken for 10 bits
    values = load_recipe("cifar10-resnet20").model_dump(mode="json")
    values["data"] |= {"source": "folder", "root": config.root, "image_size": 8, "white": None}
    del values["data"]["white"]  # as in files written before there was a choice
    meta = {
        "model": {"name": model.model_name, "args": model.model_args},
        "classes": ["a", "b"],
        "preprocessing": Preprocessing(8, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3, 3, white).to_dict(),
        "recipe": values,
    }
    predictor = Predictor(Checkpoint(Path(tmp_path), model.state_dict(), meta), device="cpu")
    recipe, again = open_images(predictor, "test")
    assert again.preprocessing.white == recipe.data.white == predictor.preprocessing.white == white
    _, asked = open_images(predictor, "test", ["data.white=255"])
    assert asked.preprocessing.white == 255


def deep_files(root, values) -> FileImages:
    """One 16-bit image of 4x4 pixels for each value, all of which it has."""
    for i, value in enumerate(values):
        (root / f"{i}.png").write_bytes(deep_png(np.full((4, 4, 1), value, np.uint16)))
    return FileImages([str(root / f"{i}.png") for i in range(len(values))], [0] * len(values))


@pytest.mark.parametrize(
    ("most", "white"),
    [
        *((255, 255), (256, 1023), (1023, 1023), (1024, 4095), (4095, 4095), (4096, 16383), (16384, 65535)),
        *((65534, 65535), (65535, 65535)),
        (0, 65535),  # black images tell nothing
    ],
)
def test_the_smallest_depth_that_holds_the_largest_value_and_one_image_is_enough(most, white, tmp_path):
    train, val = deep_files(tmp_path, [min(most, 200), most, min(most, 100)]), FileImages([], [])
    config = DataConfig(source="folder", root=str(tmp_path), image_size=8)
    found, said = with_white(config, train, val)
    assert (found.white, train.white, val.white) == (white,) * 3
    assert [line.partition(":")[0] for line in said] == (
        [] if white == 65535 else [f"3 16-bit training images use values up to {most} of 65535"]
    )


def test_a_sample_is_said_to_be_one_and_every_image_is_looked_at_where_that_is_asked(tmp_path, monkeypatch):
    """The largest value is in an image that a sample of these passes by."""
    config = DataConfig(source="folder", root=str(tmp_path), image_size=8)
    monkeypatch.setattr(white_module, "DECODED", 3)
    values = [100, 4000, 100, 100, 100, 100]
    found, said = with_white(config, deep_files(tmp_path, values), FileImages([], []))
    assert found.white == 255
    assert said[0].startswith("a sample of 3 16-bit training images uses values up to 100 of 65535: using 255 as white")
    found, said = with_white(config, deep_files(tmp_path, values), FileImages([], []), every=True)
    assert found.white == 4095
    assert said[0].startswith("6 16-bit training images use values up to 4000 of 65535")
    monkeypatch.setattr(white_module, "LOOKED_AT", 4)
    monkeypatch.setattr(white_module, "DECODED", 4)
    assert with_white(config, deep_files(tmp_path, values), FileImages([], []))[1][0].startswith("a sample of 4 ")
    assert with_white(config, deep_files(tmp_path, values), FileImages([], []), every=True)[0].white == 4095
    assert with_white(config, deep_files(tmp_path, [100] * 4), FileImages([], []))[1][0].startswith("4 16-bit")


def test_images_beyond_the_limit_of_pixels_tell_no_white(tmp_path):
    config = DataConfig(source="folder", root=str(tmp_path), image_size=8, max_pixels=15)
    assert with_white(config, deep_files(tmp_path, [4000]), FileImages([], []))[0].white == 65535


@pytest.mark.parametrize(
    ("head", "deep"),
    [
        *((b"II*\0", True), (b"MM\0*", True), (b"II+\0", True), (b"MM\0+", True), (b"P5 ", True), (b"P2\n", True)),
        *((b"P6 ", False), (b"\xff\xd8\xff", False), (b"", False)),
    ],
)
def test_which_files_may_have_more_than_eight_bits(head, deep, tmp_path):
    (tmp_path / "x").write_bytes(head + bytes(40) if head else b"")
    assert white_module.has_16_bits(str(tmp_path / "x")) is deep
    assert white_module.has_16_bits(str(tmp_path / "none")) is False
