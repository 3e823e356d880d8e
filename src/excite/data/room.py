"""Room for the pixels of a whole data set: memory while there is enough of it, else a file that is mapped into it.

The system reads and drops the pages of such a file as needed, so that a data set may be larger than the memory.
Nothing else changes: batches, fingerprints and results are the same, bit for bit.
"""

import math
import os
from contextlib import suppress
from pathlib import Path

import torch

from excite.errors import ExciteError
from excite.files import cache_folder
from excite.owners import make_scratch, remove
from excite.runtime.memory import memory_left

#: The share of the memory left up to which pixels are held in it: the network, its workers and copies need some, too.
SHARE = 0.5
#: Less is always held in memory: the network needs more.
SMALL = 16 << 20


def room_for(shape: tuple[int, ...]) -> torch.Tensor:
    """A new uint8 tensor, not filled. Raises ExciteError if neither the memory nor the disk has room for it."""
    size = math.prod(shape)
    if size <= SMALL or size <= SHARE * memory_left():
        return torch.empty(shape, dtype=torch.uint8)
    return _mapped(size).view(shape)


def on_disk(pixels: torch.Tensor) -> bool:
    """Whether these pixels are in a mapped file."""
    return pixels.untyped_storage().filename is not None


def _mapped(size: int) -> torch.Tensor:
    place = cache_folder()
    folder: Path | None = None
    try:
        place.mkdir(parents=True, exist_ok=True)
        folder = make_scratch("pixels", place)
        file = folder / "pixels"
        with file.open("wb") as out:
            # Reserved now: a mapped file for which the disk has no room ends the process when it is written.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(out.fileno(), 0, size)
            else:
                out.truncate(size)
        return torch.from_file(str(file), shared=True, size=size, dtype=torch.uint8)
    except OSError as error:
        raise ExciteError(
            f"the decoded images take {size / 1e9:,.1f} GB: more than half of the memory that is left, and a file in "
            f"{place} (EXCITE_CACHE) has no room for them ({error.strerror or error}); use data.mode=stream, a smaller "
            "data.image_size or data.limit_train"
        ) from None
    finally:
        if folder is not None:
            with suppress(OSError):  # the mapping stays; where a mapped file cannot be removed, a later command does it
                remove(folder)
