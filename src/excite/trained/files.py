"""Image files that somebody names, and a picture of what a network says of them."""

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from excite.data.formats import EXTENSIONS
from excite.data.walk import look_at, walk
from excite.errors import ExciteError
from excite.storage import expand, in_place, is_remote, local_file

if TYPE_CHECKING:
    from excite.trained.predictor import Prediction


def check_images(sources: Sequence[str]) -> None:
    """Raise ExciteError for a source that is not there; what is in folders is not looked at, and no address asked."""
    for source in map(in_place, sources):
        if not is_remote(source) and not os.path.isdir(source):
            _files(source)


def _files(source: str) -> list[str]:
    """The file of that name, or the files that match; not empty. Raises ExciteError."""
    if os.path.lexists(source):
        file, reason = look_at(source)
        if file is None:
            raise ExciteError(f"{source!r} cannot be read: {reason}")
        return [source]
    if files := sorted(f for f in glob.glob(source, recursive=True) if look_at(f)[0] is not None):
        return files
    raise ExciteError(f"{source!r} is neither a file, a folder nor a pattern that matches any")


def find_images(sources: Sequence[str], say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Image files from files, folders (searched through) and glob patterns, in order, each once.

    Those at an address such as ``s3://bucket/photos`` are staged to the local cache, and keep their address as name.

    Args:
        sources: what to look for.
        say: gets a sentence on what was left out of each folder, with counts.

    Raises:
        ExciteError: a source is not there, holds no images, or is no file (a named pipe would be waited for).
    """
    found: dict[str, None] = {}
    for source in sources:
        source = in_place(source)
        path = Path(source)
        left_out = None
        if is_remote(source):
            files = expand(source, EXTENSIONS)
        elif path.is_dir():
            listed = walk(path)
            files, left_out = [file.path for file in listed.files], listed.ignored()
        else:
            files = _files(source)
        if not files:
            raise ExciteError(f"{source!r} holds no images" + (f" ({left_out})" if left_out else ""))
        if left_out is not None:
            say(f"{source}: {left_out}")
        found.update(dict.fromkeys(files))
    return list(found)


def draw_grid(
    predictions: "Sequence[Prediction]", path: str | Path, columns: int = 5, limit: int = 50, white: int = 65535
) -> Path:
    """Draw the images with their best class and its probability into a PNG; at most ``limit`` of them.

    ``white`` is the value that is white in images of 16 bits a channel: the network's ``preprocessing.white``.
    """
    from matplotlib.figure import Figure

    from excite.data.decode import load_image
    from excite.pages.figures import shortened, style, write
    from excite.trained.predictor import NO_ANSWER

    shown = predictions[:limit]
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    path = Path(path)
    with style():
        figure = Figure(figsize=(2.4 * columns, 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, prediction in zip(axes.flat, shown, strict=False):
            axis.imshow(load_image(local_file(prediction.path), white=white))
            name, probability = prediction.top[0] if prediction.top else (NO_ANSWER, None)
            percent = "" if probability is None else f"{100 * probability:.1f} %"
            axis.set_title(f"{shortened(name, 22)}\n{percent}", fontsize=9)
        return write(figure, path, dpi=100)
