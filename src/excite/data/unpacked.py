"""Images whose bytes cannot be read where they are (Parquet, Arrow) are copied once into a file in the cache folder.

    unpacked/KEY/images.bin     the bytes of all images, one after the other
    unpacked/KEY/index.npz      where each begins, and how long it is

Images are then read in any order by any process, as those in a tar file are.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from excite.data.packed import PLAIN, Container, Packed
from excite.files import cache_folder, told, written_aside
from excite.progress import Progress
from excite.storage.staging import locked


def unpacked(key: str, images: Iterable[bytes], count: int, what: str, progress: Progress | None) -> tuple[Packed, int]:
    """Where the copied images are, and how many bytes they have in all.

    Args:
        key: names exactly these images; what is there under it is used.
        images: the bytes of each; they are only gone through if there is nothing yet.
        count: how many there are.
        what: what is copied, for the progress display.
        progress: called during the work.

    Raises:
        ExciteError: the disk is full.
    """
    place = cache_folder() / "unpacked" / key
    with locked(place):
        lengths = _lengths(place, count)
        if lengths is None:
            with written_aside(place, over=True) as aside:
                lengths = _copy(aside, images, count, what, progress)
    ends = np.cumsum(lengths)
    file, kind, check = np.zeros(count, np.int32), np.full(count, PLAIN, np.uint8), np.zeros(count, np.uint32)
    packed = Packed([Container.of(place / "images.bin")], file, ends - lengths, lengths, lengths, kind, check)
    return packed, int(lengths.sum())


def _lengths(place: Path, count: int) -> np.ndarray | None:
    """Bytes of each image that is there, int64 (N,); None if they are not all there."""
    try:
        with np.load(place / "index.npz", allow_pickle=False) as file:
            lengths = file["lengths"].astype(np.int64)
        whole = (place / "images.bin").stat().st_size
    except Exception:  # only a cache: a damaged index can raise nearly anything
        return None
    return lengths if len(lengths) == count and lengths.sum() == whole else None


def _copy(place: Path, images: Iterable[bytes], count: int, what: str, progress: Progress | None) -> np.ndarray:
    lengths = np.zeros(count, np.int64)
    with told(place, "EXCITE_CACHE"):
        place.mkdir()
        with (place / "images.bin").open("wb") as file:
            for i, image in enumerate(images):
                file.write(image)
                lengths[i] = len(image)
                if progress is not None and (i % 256 == 255 or i + 1 == count):
                    progress(f"copying {what}", i + 1, count)
        np.savez(place / "index.npz", lengths=lengths)
    return lengths
