"""Detects truncated image files without decoding them.

Downloads and copies break off. Decoding finds that out, too, but costs a thousand times as much as looking at the last
bytes.
"""

import io
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from PIL import Image


def reaches_its_end(image: Image.Image, file: BinaryIO) -> bool:
    """Whether the file of an image whose header was read certainly extends to the end of its (first) image.

    False means that it may be truncated or has an unusual end, such as padding; then only decoding can tell. Changed
    bytes in a file of the right length are not detected.
    """
    check = _CHECKS.get(image.format or "")
    if check is None:
        return False
    size = file.seek(0, io.SEEK_END)
    try:
        return check(image, file, size)
    except (struct.error, IndexError, KeyError, TypeError, ValueError, OSError):
        return False


def missing_end(image: Image.Image, file: BinaryIO) -> bool:
    """Whether a JPEG 2000 file is certainly truncated. (Its decoder may not complain about a truncated file.)"""
    if image.format != "JPEG2000":
        return False
    end, size = _codestream_end(file), file.seek(0, io.SEEK_END)
    if end > size or _last(file, end, 2) == b"\xff\xd9":
        return end > size
    file.seek(0)
    data = file.read(end)  # something follows the end: the marker never occurs in compressed pixels
    return b"\xff\xd9" not in data[data.find(b"\xff\x93") :]


def _last(file: BinaryIO, end: int, count: int) -> bytes:
    file.seek(max(0, end - count))
    return file.read(min(count, end))


def _jpeg(image: Image.Image, file: BinaryIO, size: int) -> bool:
    # The end marker cannot occur within the compressed pixels; their header has already been read.
    return _last(file, size, 2) == b"\xff\xd9"


def _png(image: Image.Image, file: BinaryIO, size: int) -> bool:
    return _last(file, size, 12) == b"\0\0\0\0IEND\xaeB`\x82"


def _webp(image: Image.Image, file: BinaryIO, size: int) -> bool:
    file.seek(4)
    return struct.unpack("<I", file.read(4))[0] + 8 <= size


def _gif(image: Image.Image, file: BinaryIO, size: int) -> bool:
    """Go from block to block up to the end of the first image (the trailer's byte can occur anywhere)."""
    file.seek(0)
    data = file.read()
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while data[at] == 0x21:
        at = _after_blocks(data, at + 2)
    if data[at] != 0x2C:
        return False
    at += 10 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
    return _after_blocks(data, at + 1) <= size


def _after_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += data[at] + 1
    return at + 1


def _raw_rows(image: Image.Image, file: BinaryIO, size: int) -> bool:
    """Uncompressed rows of known length."""
    tiles: list[Any] = getattr(image, "tile", [])
    for tile in tiles:
        stride = tile.args[1] if tile.codec_name == "raw" else 0
        if stride <= 0 or tile.offset + stride * (tile.extents[3] - tile.extents[1]) > size:
            return False
    return bool(tiles)


def _tiff(image: Image.Image, file: BinaryIO, size: int) -> bool:
    """All strips or tiles of the first page, and all its tags, which may follow them."""
    file.seek(0)
    order = {b"II*\0": "<", b"MM\0*": ">"}[file.read(4)]
    file.seek(struct.unpack(order + "I", file.read(4))[0])
    (entries,) = struct.unpack(order + "H", file.read(2))
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    if len(tags) != entries:  # Pillow leaves out tags that it could not read
        return False
    offsets, lengths = (tags[273], tags[279]) if 273 in tags else (tags[324], tags[325])
    return 0 < len(offsets) == len(lengths) and all(
        length > 0 and offset + length <= size for offset, length in zip(offsets, lengths, strict=True)
    )


def _boxes(file: BinaryIO) -> dict[bytes, tuple[int, int]]:
    """Type -> (start, end) of the content of the outermost boxes of an ISO base media or JPEG 2000 file."""
    size, at = file.seek(0, io.SEEK_END), 0
    found: dict[bytes, tuple[int, int]] = {}
    while at < size and len(found) < 64:
        file.seek(at)
        header = file.read(16)
        length, kind = struct.unpack(">I4s", header[:8])
        first = at + 8
        if length == 1:
            length, first = struct.unpack(">Q", header[8:16])[0], at + 16
        end = size if length == 0 else at + length
        if end < first:
            raise ValueError("a box shorter than its header")
        found[kind] = (first, end)
        at = end
    return found


def _iso_media(image: Image.Image, file: BinaryIO, size: int) -> bool:
    boxes = _boxes(file)
    return b"meta" in boxes and b"mdat" in boxes and all(end <= size for _, end in boxes.values())


def _codestream_end(file: BinaryIO) -> int:
    file.seek(0)
    if file.read(4) == b"\xff\x4f\xff\x51":  # bare, without boxes around it
        return file.seek(0, io.SEEK_END)
    return _boxes(file)[b"jp2c"][1]


def _jpeg2000(image: Image.Image, file: BinaryIO, size: int) -> bool:
    end = _codestream_end(file)
    return end <= size and _last(file, end, 2) == b"\xff\xd9"


_CHECKS: dict[str, Callable[[Image.Image, BinaryIO, int], bool]] = {
    "JPEG": _jpeg,
    "MPO": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _raw_rows,
    "TIFF": _tiff,
    "AVIF": _iso_media,
    "HEIF": _iso_media,
    "JPEG2000": _jpeg2000,
}
