"""What somebody gives to be looked at: files, folders, patterns and addresses by name, or images that are in memory."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL import Image

from excite.data.decode import ImageSource, name_of
from excite.errors import shown
from excite.storage import local_file
from excite.trained.find import find_images as find_images

#: One thing that stands for images: a file, a folder, a pattern such as "photos/*.jpg" or an address; an image of
#: Pillow's; uint8 or uint16 pixels (H, W), (H, W, C), or several (N, H, W, C); the bytes of an image file.
Given = str | os.PathLike[str] | Image.Image | np.ndarray | bytes | bytearray | memoryview
WHAT = (
    "the path of an image, a folder, a pattern such as 'photos/*.jpg', an address, a PIL image, a uint8 array "
    "(H, W, C), the bytes of an image file, or a list of these"
)


@dataclass(frozen=True)
class GivenImage:
    """One image: what a person calls it, and where its pixels come from."""

    name: str
    source: ImageSource

    def open(self) -> ImageSource:
        """What :func:`excite.data.decode.load_image` takes: of an address, the local copy."""
        return local_file(self.source) if isinstance(self.source, str) else self.source


def given_images(given: Given | Iterable[Given], say: Callable[[str], None] = lambda line: None) -> list[GivenImage]:
    """Every image that is meant, in order; those in memory without a name are called "#0", "#1" by their places.

    Args:
        given: see :data:`WHAT`. A string is a name, and never a list of letters.
        say: gets a sentence on what was left out of each folder, with counts.

    Raises:
        TypeError: it is nothing of the kind.
        ExciteError: there is no such file, or no image in a folder.
    """
    found: list[GivenImage] = []
    for each in _each(given):
        if isinstance(each, str | os.PathLike):
            found += [GivenImage(path, path) for path in find_images(each, say)]
        else:
            found += [GivenImage(name_of(image) or f"#{len(found) + i}", image) for i, image in enumerate(_held(each))]
    return found


def _each(given: Given | Iterable[Given]) -> Iterator[Given]:
    if _is_one(given):
        yield cast(Given, given)
        return
    # A tensor or a mapping could be gone through, too, and would give no images.
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
    """The images that are in memory."""
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
            remedy = "; of values from 0 to 1 give (255 * array).round().astype('uint8')"
        raise TypeError(f"pixels are uint8 or uint16 (H, W, C), not {what}{remedy}")
    if array.ndim not in (2, 3, 4) or (array.ndim > 2 and array.shape[-1] not in (1, 2, 3, 4)) or 0 in array.shape:
        first = array.ndim > 2 and array.shape[-3] in (1, 3, 4)
        remedy = "; channels come last: np.moveaxis(array, -3, -1)" if first else ""
        raise TypeError(f"pixels are (H, W), (H, W, C) or (N, H, W, C) with 1 to 4 channels, not {what}{remedy}")
