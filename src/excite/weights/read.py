"""Chooses the reader for a file, whose format is recognised by its content."""

from __future__ import annotations

import os
from pathlib import Path

from excite.errors import ExciteError
from excite.untrusted.raw import Damaged, map_file
from excite.weights import caffe, mindspore, pytorch, safetensors, tensorflow
from excite.weights.leveldb import is_table
from excite.weights.stored import Stored

#: First bytes of files that are often mistaken for checkpoints, and what to do about them.
_MISTAKEN = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself: run `git lfs pull` where it came from"),
    (b"<!", "is a web page, perhaps an error page, instead of the file: download it again"),
    (b"<html", "is a web page, perhaps an error page, instead of the file: download it again"),
    (b"<?xml", "is XML, perhaps an error page, instead of the file: download it again"),
    (b'{"', "is JSON; the weights are in another file"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"BZh", "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x89HDF", "is HDF5 (Keras), which is not supported"),
    (b"GGUF", "is GGUF, which is not supported"),
    (b"\xff\xd8\xff", "is a JPEG image, not a checkpoint"),
    (b"\x89PNG", "is a PNG image, not a checkpoint"),
    (b"\x93NUMPY", "is a single NumPy array, not a checkpoint"),
)
_KNOWN = "MindSpore .ckpt, safetensors, TensorFlow .index, Caffe .caffemodel, PyTorch .pth/.pt/.bin"
#: Files that hold the weights in a folder, as on the Hugging Face hub.
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")


def read_weights(path: str | Path, part: str | None = None) -> Stored:
    """Read a checkpoint. Its format is recognised by its content.

    Formats: MindSpore ``.ckpt``, safetensors (also MindSpore's), TensorFlow V2 (the prefix, one of its files, or the
    folder with the ``checkpoint`` file), Caffe ``.caffemodel``, PyTorch ``.pth``, ``.pth.tar``, ``.pt``, ``.bin``.

    Nothing in the file is executed. Sizes are checked against the file before memory is allocated, and all checksums of
    the format are verified.

    Args:
        path: a file, a TensorFlow prefix, or a folder that holds one checkpoint.
        part: for PyTorch, the key of the weights in a training script's dictionary ("state_dict_ema"); None: choose.

    Raises:
        ExciteError: the file is missing, in an unknown format, damaged or encrypted, or asks for code to be run.
    """
    path = Path(path)
    try:
        return _read(path, part)
    except Damaged as error:
        raise ExciteError(f"{path} is damaged: {error}; get or write it again") from None
    except OSError as error:
        raise ExciteError(f"{path} cannot be read: {error.strerror or error}") from None


def _read(path: Path, part: str | None) -> Stored:
    prefix = tensorflow.find_prefix(path)
    if prefix is not None:
        return tensorflow.read(prefix)
    path = _in_folder(path) if os.path.isdir(path) else path
    if not os.path.exists(path):  # unlike Path.exists, it takes any text
        raise ExciteError(f"there is no checkpoint {str(path)!r}")
    data = map_file(path)
    head = bytes(data[:512])
    if head.startswith((pytorch.ZIP_MAGIC, pytorch.STREAM_MAGIC)):
        return pytorch.read(path, part)
    if part is not None:
        raise ExciteError(f"{path} is not a PyTorch checkpoint, so it has no part {part!r}")
    if safetensors.looks_like(head, len(data)):
        return safetensors.read(path)
    if mindspore.is_encrypted(head) or mindspore.looks_like(data):
        return mindspore.read(path, data)
    if caffe.looks_like(data):
        return caffe.read(path, data)
    raise ExciteError(f"{path} {_what_it_is(data, head)}")


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise ExciteError(f"{folder} is a folder without a checkpoint: give the path of the file")


def _what_it_is(data: memoryview, head: bytes) -> str:
    """What a file that no reader accepts is, and what to do about it."""
    if not head:
        return "is empty: get or write it again"
    for beginning, what in _MISTAKEN:
        if head.lstrip().startswith(beginning):
            return what
    if not any(head):
        return "is full of zeros, perhaps from an interrupted download: get it again"
    if is_table(data):
        return "is a TensorFlow index without its name, or a V1 checkpoint: name it NAME.index, or save it again as V2"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "is a bare pickle, which could run code: save the weights with torch.save or as safetensors"
    if all(32 <= byte < 127 or byte in b"\t\n\r\f" for byte in head):
        return "is a text file, not a checkpoint"
    return f"is in an unknown format, or damaged at its beginning (known: {_KNOWN})"
