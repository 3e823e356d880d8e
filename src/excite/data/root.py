"""Checks ``data.root``, the place of a source's data. Nothing heavy is imported, so that errors appear at once."""

import os
import re
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


def check_root(data: DataConfig) -> None:
    """Check local data as :func:`find_root` does, and that there are class folders. No file or archive is listed."""
    if data.root is not None and is_remote(data.root) and SOURCES[data.source].root is not None:
        return
    root = find_root(data)
    if root is not None and data.source == "folder" and root.is_dir():
        class_names(find_layout(root))


def source_of(word: str) -> str | None:
    """The data source that the first argument of ``excite train`` is: a folder of images, an archive, a table, shards.
    None if it is a recipe or a run."""
    if is_hub(word):
        return "table"
    path = expanded(word)
    if os.path.isfile(path):
        if path.suffix.lower() in TABLES:
            return "table"
        return "folder" if is_archive(path) else None
    if not os.path.isdir(path) or (path / "recipe.yaml").is_file():
        return None
    names = [entry.name.lower() for entry in os.scandir(path) if not is_litter(entry.name)]
    if any(name.endswith(".tar") for name in names):
        return "webdataset"
    return "table" if any(name.endswith(".parquet") for name in names) else "folder"
