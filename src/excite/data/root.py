"""Where the data of a source lie: ``data.root``, checked. Nothing heavy is imported, so that it is told at once."""

import os
from pathlib import Path

from excite.data.catalog import SOURCES
from excite.data.config import DataConfig
from excite.data.parts import class_names, find_layout
from excite.errors import ExciteError, nearest
from excite.storage.address import is_remote


def find_root(data: DataConfig) -> Path | None:
    """The source's path, checked; None where the data come with the package.

    Raises:
        ExciteError: it is not set, is not there, is no folder where one is needed, or may not be read; or the source
            needs none.
    """
    facts = SOURCES[data.source]
    if facts.root is None and data.root is not None:
        raise ExciteError(
            f"data.root={data.root} is not read by data.source={data.source}, whose images come with excite: name the "
            "source of yours, too, such as data.source=folder, or leave data.root out"
        )
    if facts.root is None:
        return None
    if data.root is None:
        raise ExciteError(
            f"data.root is not set: give the path of the {data.source} data, as in data.root=/path/to/data"
        )
    root = existing(data.root)
    if facts.root == "folder" and not root.is_dir():
        raise ExciteError(f"data.root={data.root} is a file, but source={data.source} needs a folder")
    return root


def existing(data_root: str) -> Path:
    """A path on this machine, whatever the source. Raises ExciteError where nothing is there, or may not be read."""
    root = Path(data_root).expanduser()
    if not root.exists():
        parent = next(p for p in root.absolute().parents if p.exists())
        missing = root.absolute().relative_to(parent).parts[0]
        names = [entry.name for entry in os.scandir(parent)] if parent.is_dir() else []
        raise ExciteError(f"data.root={data_root} does not exist: {parent} has no {missing!r}{nearest(missing, names)}")
    if not os.access(root, os.R_OK | (os.X_OK if root.is_dir() else 0)):
        raise ExciteError(f"data.root={data_root} cannot be read: you have no permission")
    return root


def check_root(data: DataConfig) -> None:
    """What :func:`find_root` says of data on this machine, and whether class folders are there; no file is listed."""
    if data.root is not None and is_remote(data.root) and SOURCES[data.source].root is not None:
        return
    root = find_root(data)
    if root is not None and SOURCES[data.source].class_folders:
        class_names(find_layout(root))


def is_images(word: str) -> bool:
    """Whether a first word of ``excite train`` is a folder of images, and neither a recipe nor a run."""
    path = Path(word).expanduser()
    return path.is_dir() and not (path / "recipe.yaml").is_file()
