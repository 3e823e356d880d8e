"""A picture of predictions: a grid of images with their classes."""

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
    in_chans: int = 3,
) -> Path:
    """Draw images with their most likely class and its probability into a PNG file.

    Args:
        predictions: images and their predictions.
        path: the PNG file.
        columns: images per row.
        limit: the most images to draw.
        white: the white level of 16-bit images, as in the network's ``preprocessing.white``.
        in_chans: the network's number of channels; images are read in colour unless these are bands.

    Returns:
        The path of the file.
    """
    from matplotlib.figure import Figure

    from excite.data.decode import load_shown
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
            axis.imshow(load_shown(image.open(), in_chans, white=white))
            name, probability = prediction.top[0] if prediction.top else (NO_ANSWER, None)
            percent = "" if probability is None else f"{100 * probability:.1f} %"
            axis.set_title(f"{shortened(name, 22)}\n{percent}", fontsize=9)
        return write(figure, path, dpi=100)
