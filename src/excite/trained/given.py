"""Images given by users: files, folders, patterns and addresses by name, or images in memory."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from excite.data.archive import open_archive
from excite.data.catalog import is_archive
from excite.data.decode import ImageSource, name_of
from excite.errors import ExciteError, shown
from excite.storage import local_file
from excite.trained.find import find_images as find_images

#: One source of images: a file, a folder, a zip or tar file, a pattern such as "photos/*.jpg" or an address; a PIL
#: image; uint8 or uint16 pixels (H, W), (H, W, C), or (N, H, W, C) for several images; the bytes of an image file.
Given = str | os.PathLike[str] | Image.Image | np.ndarray | bytes | bytearray | memoryview
#: The most channels of a network.
MOST_CHANNELS = 16
WHAT = (
    "the path of an image, a folder, an archive, a pattern such as 'photos/*.jpg', an address, a PIL image, a uint8 "
    "array (H, W, C), the bytes of an image file, or a list of these"
)


@dataclass(frozen=True)
class GivenImage:
    """One image: its name for display, and the source of its pixels."""

    name: str
    source: ImageSource

    def open(self) -> ImageSource:
        """The argument for :func:`excite.data.decode.load_image`; for an address, the local copy."""
        return local_file(self.source) if isinstance(self.source, str) else self.source


def given_images(given: Given | Iterable[Given], say: Callable[[str], None] = lambda line: None) -> list[GivenImage]:
    """All images, in order; unnamed images in memory are called "#0", "#1" ... by their positions.

    Args:
        given: see :data:`WHAT`. A string is one name.
        say: called with a sentence about files skipped in each folder, with counts.

    Raises:
        TypeError: ``given`` is of another type.
        ExciteError: there is no such file, or a folder contains no images.
    """
    found: list[GivenImage] = []
    for each in _each(given):
        if isinstance(each, str | os.PathLike):
            found += _in_archive(each, say) if _is_archive(each) else [GivenImage(p, p) for p in find_images(each, say)]
        else:
            found += [GivenImage(name_of(image) or f"#{len(found) + i}", image) for i, image in enumerate(_held(each))]
    return found


def _is_archive(given: str | os.PathLike[str]) -> bool:
    return is_archive(given) and os.path.isfile(given)


def _in_archive(path: str | os.PathLike[str], say: Callable[[str], None]) -> list[GivenImage]:
    """All images in an archive."""
    archive = open_archive(Path(path))
    found = archive.below(path)
    if (left_out := found.ignored()) is not None:
        say(f"{shown(os.fspath(path))}: {left_out}")
    if not found.files:
        raise ExciteError(f"{shown(os.fspath(path))} contains no images")
    packed = archive.packed([file.path for file in found.files])
    return [GivenImage(file.path, packed.member(i, file.path)) for i, file in enumerate(found.files)]


def _each(given: Given | Iterable[Given]) -> Iterator[Given]:
    if _is_one(given):
        yield cast(Given, given)
        return
    # Tensors and mappings are iterable, too, but do not yield images.
    if not isinstance(given, Iterable) or isinstance(given, Mapping) or hasattr(given, "detach"):
        raise TypeError(f"give {WHAT}; {_kind(given)} is none of them{_remedy(given)}")
    for each in given:
        if not _is_one(each):
            raise TypeError(f"give {WHAT}; {_kind(each)} in a {type(given).__name__} is none of them{_remedy(each)}")
        yield cast(Given, each)


def _is_one(given: object) -> bool:
    return isinstance(given, str | os.PathLike | Image.Image | np.ndarray | bytes | bytearray | memoryview)


def _kind(given: object) -> str:
    if isinstance(given, int | float | None):
        return shown(given)
    kind = type(given).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def _remedy(given: object) -> str:
    return ": give tensor.permute(1, 2, 0).numpy(), uint8" if hasattr(given, "detach") else ""


def _held(given: Given) -> Iterator[ImageSource]:
    """Images in memory."""
    if isinstance(given, bytearray | memoryview):
        yield bytes(given)
    elif isinstance(given, np.ndarray):
        _check_array(given)
        yield from given if given.ndim == 4 else [given]
    elif isinstance(given, bytes | Image.Image):
        yield given


def _check_array(array: np.ndarray) -> None:
    what = f"an array of {array.dtype} {array.shape}"
    if array.dtype not in (np.uint8, np.uint16):
        remedy = ""
        if array.dtype.kind == "f":
            remedy = "; convert values from 0 to 1 with (255 * array).round().astype('uint8')"
        raise TypeError(f"pixels must be uint8 or uint16 (H, W, C), not {what}{remedy}")
    many = array.ndim > 2 and array.shape[-1] > MOST_CHANNELS
    first = array.ndim > 2 and array.shape[-1] > 4
    first = first and array.shape[-3] in (range(MOST_CHANNELS + 1) if many else (1, 3, 4))
    if array.ndim not in (2, 3, 4) or first or many or 0 in array.shape:
        remedy = "; channels come last: np.moveaxis(array, -3, -1)" if first else ""
        shapes = f"(H, W), (H, W, C) or (N, H, W, C) with 1 to {MOST_CHANNELS} channels"
        raise TypeError(f"pixels must be {shapes}, not {what}{remedy}")
