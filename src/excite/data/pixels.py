"""Interprets the values of an opened image: bands that are not colours, and more than 8 bits per channel.

Pillow silently gets both wrong. Of colours with 16 bits per channel it keeps the upper 8 bits, which leaves 16 levels
of 12-bit colours. It leaves 16-bit grey with white at zero negative. Bands without a meaning it drops, or takes for
transparency.

Shapes: H x W pixels. Everything here raises ValueError with a reason that does not name the file.
"""

import sys
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from excite.data.formats import open_image, quietly
from excite.data.packed import Bytes, open_bytes
from excite.text import counted

#: The largest 16-bit value, which is the white level unless the recipe or the data gives another.
FULL_WHITE = 65535

# Tags of TIFF 6.0.
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA, _SAMPLE_FORMAT = 258, 262, 277, 284, 338, 339
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3}  # PhotometricInterpretation -> bands of colour
_ALPHA = (1, 2, 999)  # ExtraSamples that mean transparency; Corel Draw writes 999

# Rawmodes with 16 bits per channel, of which Pillow keeps the upper byte. Reading them in the other byte order gives
# the lower one. The four bytes of grey and alpha look like four channels.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_DEEP_COLOURS, _DEEP_GRAY_ALPHA = ("RGB;16", "RGBA;16"), "LA;16B"


def refuse_bands(image: Image.Image) -> None:
    """Raise ValueError if an image's header says that its pixels cannot be converted to grey or RGB correctly."""
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no defined white level; save it with 8 or 16 bits per channel")
    if image.mode == "LAB":
        raise ValueError("its colours are CIELAB, which is not supported; save it as RGB")
    if image.format != "TIFF":
        return
    tags = _tags(image)
    if tags.get(_SAMPLE_FORMAT, (1,))[0] == 2 and tags.get(_BITS, (1,))[0] == 8:
        raise ValueError("its 8-bit pixels are signed, so black and white are undefined; save it as unsigned")
    colours = _COLOURS.get(tags.get(_PHOTOMETRIC, 1), 1)
    meaning, samples = tags.get(_EXTRA), tags.get(_SAMPLES, colours)
    extra = samples - colours
    if extra > 0 and not (extra == 1 and (meaning is None or meaning[0] in _ALPHA)):
        raise ValueError(_too_many(samples, colours))
    if tags.get(_PLANAR) != 2:
        return
    bits = max(tags.get(_BITS, (1,)))
    if bits > 8 and colours > 1:
        raise ValueError("it has 16-bit colours in separate planes, which is not supported; save them interleaved")
    # When Pillow unpacks planes itself, it cuts the rawmode down to a letter: grey with white at zero ("L;I") would
    # come out negative, and 16 bits ("I;16") not at all.
    decoded = samples > 1 or (bits == 8 and tags.get(_PHOTOMETRIC) != 0)
    if not decoded and any(tile.codec_name != "libtiff" for tile in image.tile):  # type: ignore[attr-defined]
        raise ValueError("its only band is stored as a plane, which is not supported; save it interleaved")


def _tags(image: Image.Image) -> Any:
    return image.tag_v2  # type: ignore[attr-defined]  # of TIFF images only


def bands_unsaid(image: Image.Image) -> bool:
    """Whether a fourth band may or may not be transparency: the file does not say, so its values have to decide."""
    return image.format == "TIFF" and image.mode == "RGBA" and _EXTRA not in _tags(image)


def _too_many(samples: int, colours: int) -> str:
    """The sentence for bands that are neither colour nor transparency."""
    kind = {1: "gray", 3: "RGB"}.get(colours, "colours")
    kept = "-b 1 -b 2 -b 3 -colorinterp red,green,blue" if samples > 2 else "-b 1"
    return (
        f"it has {samples} bands, {colours} of {kind} and {samples - colours} that the file does not call transparency "
        f"(near infrared?); data.in_chans={samples} trains on all of them, or keep only 1 or 3, as with "
        f"gdal_translate {kept} IN.tif OUT.tif"
    )


def tiff_bands(source: Bytes) -> str | None:
    """Why a TIFF that Pillow has no mode for is not read; None if the file is not a TIFF with a complete header."""
    try:
        with quietly(), open_bytes(source) as file:
            header = file.read(8)
            if header[:4] not in (b"II*\0", b"MM\0*"):
                return None
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
            bits, samples = tags.get(_BITS, (1,)), tags.get(_SAMPLES, 1)
            if 256 not in tags or not samples:
                return None
            colours = _COLOURS.get(tags.get(_PHOTOMETRIC, 1))
            sample = {2: "signed ", 3: "float ", 5: "complex ", 6: "complex "}.get(
                tags.get(_SAMPLE_FORMAT, (1,))[0], ""
            )
    except Exception:  # a damaged file, which is reported elsewhere
        return None
    if colours is not None and samples > colours + 1:
        return _too_many(samples, colours)
    bands = f"{counted(samples, 'band')} of {max(bits)} {sample}bits"
    kind = tags.get(_PHOTOMETRIC)
    return (
        f"it is a TIFF with {bands} (photometric {kind}), which is not supported; save it as grey or RGB, 8 or 16 bits"
    )


def eight_bits(source: Bytes, image: Image.Image, white: int) -> Image.Image:
    """Decode `image`, opened from `source`, to 8 bits per channel, in any mode.

    16-bit values become round(v * 255 / white); `white` and above become 255.
    """
    white = white_of(image, white)
    alpha_unsaid = bands_unsaid(image)
    values = deep_values(source, image)
    found = image if values is None else scaled(image, values, white)
    if alpha_unsaid:
        if found.getchannel("A").getextrema() != (255, 255):
            raise ValueError(_too_many(4, 3))
        found = found.convert("RGB")
    return found


def white_of(image: Image.Image, white: int) -> int:
    """The white level of this file: formats that define their own range need no detection."""
    if image.format == "TIFF":
        bits = _tags(image).get(_BITS, (1,))[0]
        return 2**bits - 1 if 8 < bits < 16 else white
    if image.format == "PPM":  # Pillow scales the largest value declared in the file to 65535
        args = _raw(image)
        told = args[-1] if args else None
        return FULL_WHITE if isinstance(told, int) and 255 < told < FULL_WHITE else white
    return white if image.format == "PNG" else FULL_WHITE


def _raw(image: Image.Image) -> tuple[Any, ...]:
    """Arguments of the decoder, the rawmode first; none if the format's own library decodes."""
    tiles = getattr(image, "tile", None)
    args = tiles[0].args if tiles else ()
    return args if isinstance(args, tuple) else (args,)


def deep_values(source: Bytes, image: Image.Image) -> np.ndarray | None:
    """Decode `image`, opened from `source`, to integers (H, W) or (H, W, 2 to 4); None if it has 8 bits per channel.

    Grey may be int32, with negative values or more than 16 bits.
    """
    rawmode = next(iter(_raw(image)), None)
    rawmode = rawmode if isinstance(rawmode, str) else ""
    image.load()
    if image.mode.startswith("I"):
        return np.asarray(image)
    if rawmode[:-1] not in _DEEP_COLOURS and rawmode != _DEEP_GRAY_ALPHA:
        return None
    other = "RGBA" if rawmode == _DEEP_GRAY_ALPHA else rawmode[:-1] + _OTHER_ORDER[rawmode[-1]]
    with open_image(source) as twin:
        tiles: Any = twin
        tiles.tile = [
            tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
            for tile in tiles.tile
        ]
        twin.load()
        low = np.asarray(twin).astype(np.uint16)
    if rawmode == _DEEP_GRAY_ALPHA:
        return (low[..., ::2] << 8) + low[..., 1::2]
    return (np.asarray(image).astype(np.uint16) << 8) + low


def scaled(image: Image.Image, values: np.ndarray, white: int) -> Image.Image:
    """The result of `deep_values` with 8 bits per channel; a key colour becomes transparency."""
    inverted = image.format == "TIFF" and _tags(image).get(_PHOTOMETRIC) == 0
    found = Image.fromarray(eight_bits_of(values, white, inverted))
    key = image.info.get("transparency")
    if isinstance(key, tuple) and values.ndim == 3 and values.shape[2] == len(key):
        found.putalpha(_alpha((values == key).all(2)))
    elif isinstance(key, int) and values.ndim == 2:
        found.putalpha(_alpha(values == key))
    return found


def eight_bits_of(values: np.ndarray, white: int, inverted: bool = False) -> np.ndarray:
    """Integers to uint8: `white` and above become 255. Raises ValueError if a value is not a 16-bit one."""
    if values.size and values.min() < 0:
        raise ValueError("it has pixels below 0, so black is undefined; save it as unsigned, with 8 or 16 bits")
    if values.size and values.max() > FULL_WHITE:
        raise ValueError("32-bit integer pixels have no defined white level; save it with 8 or 16 bits per channel")
    return _levels(white, inverted)[values]


def _alpha(clear: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))


@cache
def _levels(white: int, inverted: bool) -> np.ndarray:
    """Lookup table from 16-bit values, uint8 (65536,). Values above white are clipped."""
    levels = ((np.arange(FULL_WHITE + 1).clip(max=white) * 255 + white // 2) // white).astype(np.uint8)
    return 255 - levels if inverted else levels
