"""A picture of what a network says of images."""

from collections.abc import Sequence
from pathlib import Path

from excite.trained.given import GivenImage
from excite.trained.predictor import NO_ANSWER, Prediction


def draw_grid(
    predictions: Sequence[tuple[GivenImage, Prediction]],
    path: str | Path,
    columns: int = 5,
    limit: int = 50,
    white: int = 65535,
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
        for axis, (image, prediction) in zip(axes.flat, shown, strict=False):
            axis.imshow(load_image(image.open(), white=white))
            name, probability = prediction.top[0] if prediction.top else (NO_ANSWER, None)
            percent = "" if probability is None else f"{100 * probability:.1f} %"
            axis.set_title(f"{shortened(name, 22)}\n{percent}", fontsize=9)
        return write(figure, path, dpi=100)
