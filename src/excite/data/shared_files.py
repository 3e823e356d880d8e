"""Lists of image files for worker processes: paths and labels of a large set exist once, not in every worker.

Shapes: N images, K classes.
"""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from excite.data.images import FileImages
from excite.data.packed import Packed
from excite.data.watched import LoaderFailed, sharing

#: Sets of fewer images are sent to each worker: a copy takes a few MB, shared memory a few file descriptors.
LEAST = 20_000


class SharedPaths(Sequence[str]):
    """Strings in one piece of memory: uint8 (bytes,), and where each ends, int64 (N,)."""

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # raises IndexError
        begin = int(self.ends[index - 1]) if index else 0
        return self.text[begin : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")


class SharedFiles(FileImages):
    """The same images, sent to another process as handles of shared memory. There, ``weights`` are missing."""

    _shared: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self._shared,)


def _received(state: dict[str, Any]) -> FileImages:
    paths = SharedPaths(state["text"].numpy(), state["ends"].numpy())
    packed = None
    if state["packed"] is not None:
        files, columns = state["packed"]
        packed = Packed(files, *(_array(column) for column in columns))
    return FileImages(paths, _array(state["labels"]), state["white"], packed)  # type: ignore[arg-type]


def _tensor(array: np.ndarray) -> tuple[Tensor, str]:
    """The bytes of an array in shared memory, and its type."""
    flat = np.ascontiguousarray(array)
    return torch.from_numpy(flat.view(np.uint8)).clone().share_memory_(), flat.dtype.str


def _array(shared: tuple[Tensor, str]) -> np.ndarray:
    tensor, kind = shared
    return tensor.numpy().view(kind)


def shared(files: FileImages) -> FileImages:
    """The images as worker processes should get them: as they are if they are few, or if there is no room."""
    if len(files) < LEAST:
        return files
    names = [path.encode("utf-8", "surrogateescape") for path in files.paths]
    ends = np.cumsum([len(name) for name in names], dtype=np.int64)
    packed = files.packed
    try:
        with sharing():
            state = {
                "text": torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8).share_memory_(),
                "ends": torch.from_numpy(ends).share_memory_(),
                "labels": _tensor(np.asarray(files.labels)),
                "white": files.white,
                "packed": packed and (packed.files, [_tensor(getattr(packed, column)) for column in Packed.COLUMNS]),
            }
    except LoaderFailed:  # it is said when batches have no room either
        return files
    sent = SharedFiles(files.paths, files.labels, files.white, packed, files.weights)
    sent._shared = state
    return sent
