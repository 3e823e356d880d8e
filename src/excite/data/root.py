"""Checks ``data.root``, the place of a source's data. Nothing heavy is imported, so that errors appear at once."""

import os
import re
import tarfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from excite.data.catalog import SOURCES, TABLES, is_archive
from excite.data.config import DataConfig
from excite.data.parts import class_names, find_layout
from excite.data.walk import is_litter
from excite.errors import ExciteError, absence, expanded
from excite.storage.address import is_remote


def find_root(data: DataConfig) -> Path | None:
    """The source's path, checked; None if the data comes with the package.

    Raises:
        ExciteError: the path is not set, does not exist, is not a folder though one is needed, or cannot be read; or it
            is set for a source that has none.
    """
    facts = SOURCES[data.source]
    if facts.root is None and data.root is not None:
        raise ExciteError(
            f"data.root={data.root} is not used by data.source={data.source}, whose images come with excite: set the "
            "source of your data, too, such as data.source=folder, or leave data.root out"
        )
    if facts.root is None:
        return None
    if data.root is None:
        raise ExciteError(
            f"data.root is not set: give the path of the {data.source} data, as in data.root=/path/to/data"
        )
    if is_hub(data.root):
        return None
    if is_pattern(data.root) and not os.path.exists(data.root):
        return expanded(data.root)
    root = existing(data.root)
    if facts.root == "folder" and not root.is_dir():
        raise ExciteError(f"data.root={data.root} is a file, but source={data.source} needs a folder")
    return root


#: Between several addresses or paths of shards, as WebDataset writes them.
BETWEEN = "::"


def is_pattern(data_root: str) -> bool:
    """Whether ``data.root`` names several shards: ``train-{000..146}.tar``, or paths with :: between."""
    return BETWEEN in data_root or re.search(r"\{[^{}]*\}\.?", data_root) is not None


#: How a data set of the Hugging Face Hub is named in ``data.root``.
HUB = "hf:"


def is_hub(data_root: str | None) -> bool:
    """Whether ``data.root`` is a data set of the Hugging Face Hub."""
    return data_root is not None and data_root.startswith(HUB)


def existing(data_root: str) -> Path:
    """A local path, for any source. Raises ExciteError if it does not exist or cannot be read."""
    root = expanded(data_root)
    if not os.path.exists(root):  # unlike Path.exists, it takes any text
        raise ExciteError(f"data.root={data_root} does not exist: {absence(root)}")
    if not os.access(root, os.R_OK | (os.X_OK if root.is_dir() else 0)):
        raise ExciteError(f"data.root={data_root} cannot be read: you have no permission")
    return root


def check_exists(data_root: str) -> None:
    """Check that a local path exists, for any source. Addresses, the Hub's data sets and patterns are read later.

    Raises:
        ExciteError: as in :func:`existing`.
    """
    if not (is_remote(data_root) or is_hub(data_root) or is_pattern(data_root)):
        existing(data_root)


def check_root(data: DataConfig) -> None:
    """Check local data as :func:`find_root` does, and that there are class folders. No file or archive is listed."""
    if data.root is not None and is_remote(data.root) and SOURCES[data.source].root is not None:
        return
    root = find_root(data)
    if root is not None and data.source == "folder" and root.is_dir():
        class_names(find_layout(root))


def source_of(word: str) -> str | None:
    """The data source that the first argument of ``excite train`` is: a folder of images, an archive, a table, shards.
    None if it is a recipe or a run. Nothing at an address is fetched: there, the ending decides."""
    if is_hub(word):
        return "table"
    path = expanded(word)
    if is_remote(word) or (is_pattern(word) and not os.path.exists(path)):
        return _source_named(word)
    if os.path.isfile(path):
        if path.suffix.lower() == ".tar" and holds_samples(path):
            return "webdataset"
        return _source_named(word) if path.suffix.lower() in TABLES or is_archive(path) else None
    if not os.path.isdir(path) or (path / "recipe.yaml").is_file():
        return None
    folders, files = _listed(path)
    if found := _source_in(path, files, sure=not folders):
        return found
    if not folders and len(files) > 1 and all(name.lower().endswith(".txt") for name in files):
        return "table"  # lists, as in the folder ImageSets/Main of PASCAL VOC
    # One level down, as in the repositories of the Hub (data/train-0.parquet), and shards in parts (train/0.tar).
    inside = (_source_in(path / name, _listed(path / name)[1]) for name in folders[:_LOOKED_INTO])
    return next(filter(None, inside), "folder")


#: Folders that are looked into for shards and Parquet files.
_LOOKED_INTO = 4


def _source_named(word: str) -> str | None:
    """The source that a name without a file on this machine has the ending of."""
    end = os.path.splitext(expand_last(word).lower())[1]
    if end in TABLES:
        return "table"
    if is_pattern(word) or (is_remote(word) and end == ".tar"):
        return "webdataset" if end == ".tar" else None
    return "folder" if is_archive(word) else None


def expand_last(word: str) -> str:
    """The last of several names; see :func:`is_pattern`."""
    return word.rpartition(BETWEEN)[2]


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if not is_litter(entry.name))
    except OSError:  # said when it is opened
        return [], []
    return [name for name, is_dir in found if is_dir], [name for name, is_dir in found if not is_dir]


def _source_in(place: Path, files: Sequence[str], sure: bool = False) -> str | None:
    """The source that a folder's own files are; None for folders of images. ``sure``: its tar files are shards."""
    first = {os.path.splitext(name)[1].lower(): name for name in reversed(files)}
    if ".tar" in first and (sure or holds_samples(place / first[".tar"])):
        return "webdataset"
    return "table" if ".parquet" in first else None


def holds_samples(path: Path) -> bool:
    """Whether a tar file begins like a shard: with files that say the class of an image."""
    try:
        with tarfile.open(path, "r:") as archive:
            return any(member.name.lower().endswith((".cls", ".json")) for member in islice(archive, _FIRST))
    except (OSError, tarfile.TarError, EOFError, ValueError):  # said when it is opened
        return False


#: Files that are looked at to tell a shard from an archive of class folders: two images of a few files each.
_FIRST = 16
