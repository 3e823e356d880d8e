"""Find image files from files, folders, patterns and addresses.

Nothing heavy is imported, so that a missing file is reported at once.
"""

import glob
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from excite.data.catalog import TABLES
from excite.data.formats import EXTENSIONS
from excite.data.walk import look_at, walk
from excite.errors import ExciteError, absence, no_path, shown
from excite.storage import expand, in_place, is_remote, is_staged

_NOTHING = "is neither a file, a folder nor a pattern that matches a file"


def check_images(sources: Sequence[str]) -> None:
    """Raise ExciteError for a source that does not exist; folders are not searched, and addresses not contacted."""
    for source in map(in_place, sources):
        if not is_remote(source) and not os.path.isdir(source):
            _files(source)


def _files(source: str) -> list[str]:
    """The file of that name, or the files that match; never empty. Raises ExciteError."""
    if no_path(source) is not None:
        raise ExciteError(f"{shown(source)} {_NOTHING}: {absence(source)}")
    if os.path.splitext(source)[1].lower() in TABLES:
        raise ExciteError(
            f"{source!r} is a table, not an image: give the images that it names; or measure the network on them: "
            f"excite validate RUN data.root={shlex.quote(source)}"
        )
    if os.path.lexists(source):
        file, reason = look_at(source)
        if file is None:
            raise ExciteError(f"{source!r} cannot be read: {reason}")
        return [source]
    if files := sorted(f for f in glob.glob(source, recursive=True) if look_at(f)[0] is not None):
        return files
    why = "" if glob.has_magic(source) else f": {absence(source)}"
    raise ExciteError(f"{source!r} {_NOTHING}{why}")


def find_images(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    say: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Image files from files, folders (searched recursively) and glob patterns, in order and without duplicates.

    Files at an address such as ``s3://bucket/photos`` are copied to the local cache, and keep their address as name.

    Args:
        sources: one source, or several.
        say: called with a sentence about files skipped in each folder, with counts.

    Raises:
        ExciteError: a source does not exist, contains no images, or is not a regular file (such as a named pipe).
    """
    found: dict[str, None] = {}
    for given in [sources] if isinstance(sources, str | os.PathLike) else sources:
        source = in_place(os.fspath(given))
        path = Path(source)
        left_out = None
        if is_staged(source):
            files = [source]
        elif is_remote(source):
            files = expand(source, EXTENSIONS)
        elif os.path.isdir(path):
            listed = walk(path)
            files, left_out = [file.path for file in listed.files], listed.ignored()
        else:
            files = _files(source)
        if not files:
            what = "contains no images" if os.path.isdir(path) else _NOTHING
            shards = f"; to classify the images in its shards, name them: {shlex.quote(source)}/*.tar"
            what += shards if left_out and ".tar" in left_out.split() else ""
            raise ExciteError(f"{source!r} {what}" + (f" ({left_out})" if left_out else ""))
        if left_out is not None:
            say(f"{source}: {left_out}")
        found.update(dict.fromkeys(files))
    return list(found)
