"""The image formats that are read: by extension when a folder is searched, by first bytes when a file is opened.

Every image file is opened by `open_image`, with an explicit list of formats. Otherwise Pillow would try all it knows,
including EPS, which starts Ghostscript, and stubs that pass a file to any registered handler. The contents decide, not
the extension. Formats without unmistakable first bytes are only tried for files with their extension, because Pillow
would take damaged photographs for one of them.

Nothing heavy is imported here, so that listing files does not need torch.
"""

import importlib.util
import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import IO

from PIL import Image, ImageFile, features

from excite.data.packed import Bytes, Member, open_bytes
from excite.errors import install_line

# Pillow's name of a format -> file extensions.
_BY_CONTENT: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "QOI": (".qoi",),
    "DDS": (".dds",),
    "ICO": (".ico",),
    "SUN": (".ras",),
}
_BY_ENDING: dict[str, tuple[str, ...]] = {
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "PCX": (".pcx",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "DIB": (".dib",),
}
_CODECS = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # Pillow may have been built without these
_HEIF = (".heic", ".heics", ".heif", ".heifs", ".hif")
_HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None

_MISSING = tuple(k for k, codec in _CODECS.items() if codec not in features.get_supported())
_CONTENT = tuple(kind for kind in _BY_CONTENT if kind not in _MISSING) + (("HEIF",) if _HAS_HEIF else ())
_ENDING = {ending: kind for kind, endings in _BY_ENDING.items() for ending in endings}

#: Formats that are opened, by Pillow's names; the last few only if the extension says so.
FORMATS: tuple[str, ...] = (*_CONTENT, *_BY_ENDING)

#: Extensions of the files that are read, in lower case, with the dot.
EXTENSIONS: frozenset[str] = frozenset(
    [e for kind in _CONTENT for e in _BY_CONTENT.get(kind, _HEIF)] + [e for ends in _BY_ENDING.values() for e in ends]
)


def endings_of(kind: str) -> tuple[str, ...]:
    """The file extensions of a format, by Pillow's name for it, in lower case with the dot; () if it is not known."""
    kind = {"MPO": "JPEG"}.get(kind, kind)
    return {**_BY_CONTENT, **_BY_ENDING, "HEIF": _HEIF}.get(kind, ())


# Image formats that are not read; if a folder holds such files, the user is told that they are left out.
_NEVER = (
    ".3fr .ai .arw .blp .cdr .cin .cr2 .cr3 .crw .cur .cut .cxr .czi .dcm .dcr .dcx .dicom .djvu .dng .dpx .emf "
    ".eps .erf .exr .fit .fits .fli .flif .fts .h5 .hdf5 .hdr .icns .iiq .im .img .indd .jbig .jbig2 .jng .jpm "
    ".jxl .jxr .kdc .kra .lif .lsm .mef .mha .mhd .mng .mos .mrw .mrxs .msp .nd2 .ndpi .nef .nii .npy .npz .nrrd "
    ".nrw .oib .oif .orf .pam .pcd .pct .pdf .pef .pfm .pic .pict .ps .psb .psd .pxr .raf .raw .rw2 .rwl .scn "
    ".sr2 .srf .srw .svg .svgz .svs .vsi .wbmp .wdp .wmf .wpg .x3f .xbm .xcf .xpm"
)

#: Extensions of images that are not read here -> the line to type that changes it, "" if there is none.
UNREAD: dict[str, str] = (
    dict.fromkeys(_NEVER.split(), "")
    | ({} if _HAS_HEIF else dict.fromkeys(_HEIF, install_line("heif")))
    | {ending: "pip install --upgrade pillow" for kind in _MISSING for ending in _BY_CONTENT[kind]}
)

# (offset, bytes) of what is often found in files with an image's name, for which Pillow only says "cannot identify".
_KNOWN_BY: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%!PS", "it is PostScript (EPS), a program"),
    (0, b"\xc5\xd0\xd3\xc6", "it is PostScript (EPS), a program"),
    (0, b"%PDF", "it is a PDF document"),
    (0, b"8BPS", "it is a Photoshop document"),
    (0, b"\xd7\xcd\xc6\x9a", "it is a Windows metafile"),
    (0, b"\xff\x0a", "it is JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "it is JPEG XL"),
    (0, b"v/1\x01", "it is OpenEXR"),
    (0, b"#?RADIANCE", "it is Radiance HDR"),
    (0, b"SIMPLE  =", "it is FITS"),
    (0, b"\x93NUMPY", "it is a NumPy array"),
    (0, b"\x89HDF", "it is HDF5"),
    (128, b"DICM", "it is DICOM"),
    (0, b"<svg", "it is SVG"),
    (0, b"<?xml", "it is XML, perhaps SVG"),
    (0, b"<!DOCTYPE", "it is a web page"),
    (0, b"<html", "it is a web page"),
    (0, b"version https://git-lfs", "it is a Git LFS pointer; type: git lfs pull"),
    (0, b"PK\x03\x04", "it is a ZIP archive"),
    (0, b"\x1f\x8b", "it is gzip-compressed"),
    (0, b"MM\0+", "it is an unsupported kind of BigTIFF"),
    (0, b"II+\0", "it is an unsupported kind of BigTIFF"),
)

# warnings.catch_warnings is not thread-safe before Python 3.14; only headers are read while this is held.
_OPEN = threading.Lock()


def open_image(source: Bytes) -> ImageFile.ImageFile:
    """Read the header of an image file (or its bytes), trying only the formats above. Pixels are read on loading.

    Pillow's warning about large images is silenced: `data.max_pixels` replaces it. Raises what Pillow raises:
    UnidentifiedImageError for any other format, OSError, and nearly anything on damaged bytes.
    """
    _register_heif()
    if isinstance(source, bytes):
        # Bytes have no extension; of the formats without first bytes, only TGA can be recognised (by its end).
        return _opened(io.BytesIO(source), (*_CONTENT, "TGA") if source.endswith(b"TRUEVISION-XFILE.\0") else _CONTENT)
    kind = _ENDING.get(os.path.splitext(source)[1].lower())
    file = open_bytes(source)
    try:
        image = _opened(file, _CONTENT if kind is None else (*_CONTENT, kind))
    except BaseException:
        file.close()
        raise
    if not isinstance(source, Member):
        image.filename = os.fspath(source)  # as if Pillow had opened the file: so it can map it
    image._exclusive_fp = True  # it closes the file
    return image


def _opened(file: IO[bytes], tried: tuple[str, ...]) -> ImageFile.ImageFile:
    with quietly():
        image = Image.open(file, formats=tried)
        if image.format == "TIFF":  # its tags are read once more while it is decoded, with warnings about damaged ones
            exif_of(image)
        return image


def exif_of(image: Image.Image) -> Image.Exif:
    """The EXIF data of an image, as far as it is intact: damage there does no harm to the pixels."""
    with suppress(Exception):
        return image.getexif()
    return Image.Exif()


@contextmanager
def quietly() -> Iterator[None]:
    """Silence Pillow's warnings, which name no file: what they warn of is harmless or reported as a bad image."""
    with _OPEN, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _register_heif() -> None:
    """Register the HEIC plug-in with Pillow, once per process."""
    if _HAS_HEIF:
        import pillow_heif

        pillow_heif.register_heif_opener()


def what_it_is(head: bytes) -> str | None:
    """A clause on what a file is that `open_image` cannot identify, from its first 150 or more bytes; None: unknown."""
    if head[4:8] == b"ftyp":
        brand = head[8:12].decode("latin-1")
        if brand in ("avif", "avis"):
            return "it is AVIF" + ("; type: pip install --upgrade pillow" if "AVIF" in _MISSING else ", but damaged")
        if brand[:3] in ("hei", "hev", "mif", "msf"):
            return "it is HEIC" + (", but damaged" if _HAS_HEIF else f"; type: {install_line('heif')}")
        return f"it is a video or another file of brand {brand.strip()!a}"
    for kind, start in (("WEBP", b"RIFF"), ("JPEG2000", b"\0\0\0\x0cjP  ")):
        if kind in _MISSING and head.startswith(start):
            return f"it is {kind}, which this Pillow was built without; type: pip install --upgrade pillow"
    return next((said for at, start, said in _KNOWN_BY if head[at:].startswith(start)), None)
