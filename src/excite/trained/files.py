"""Image files that somebody names, and a picture of what a network says of them."""

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from excite.data.formats import EXTENSIONS
from excite.data.walk import look_at, walk
from excite.errors import ExciteError
from excite.storage import expand, in_place, is_remote, local_file
from excite.trained.predictor import NO_ANSWER, Prediction


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
        elif os.path.lexists(source):
            file, reason = look_at(source)
            if file is None:
                raise ExciteError(f"{source!r} cannot be read: {reason}")
            files = [source]
        else:
            files = sorted(f for f in glob.glob(source, recursive=True) if look_at(f)[0] is not None)
        if not files:
            what = "holds no images" if path.is_dir() else "is neither a file, a folder nor a pattern that matches any"
            raise ExciteError(f"{source!r} {what}" + (f" ({left_out})" if left_out else ""))
        if left_out is not None:
            say(f"{source}: {left_out}")
        found.update(dict.fromkeys(files))
    return list(found)


def draw_grid(
    predictions: Sequence[Prediction], path: str | Path, columns: int = 5, limit: int = 50, white: int = 65535
) -> Path:
    """Draw the images with their best class and its probability into a PNG; at most ``limit`` of them.

    ``white`` is the value that is white in images of 16 bits a channel: the network's ``preprocessing.white``.
    """
    from matplotlib.figure import Figure

    from excite.data.decode import load_image
    from excite.pages.figures import shortened, style, write

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
