"""``excite predict``: images in, their classes out."""

from collections.abc import Callable, Iterable
from pathlib import Path

from excite.progress import Advance
from excite.trained.files import draw_grid
from excite.trained.given import Given, GivenImage, given_images
from excite.trained.predictor import Predicted, load


def predict(
    source: str | Path,
    images: Given | Iterable[Given],
    *,
    top_k: int = 3,
    grid: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 64,
    fold: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Advance | None = None,
) -> Predicted:
    """Classify images with a trained network; ``excite.load`` keeps one for several calls.

    Args:
        source: a run folder or a checkpoint, as for ``excite.load``.
        images: what a call of a :class:`~excite.trained.predictor.Predictor` takes: a path, folder, pattern, address,
            PIL image, array, bytes, or a list of these. A file that is named twice is classified once.
        top_k: how many classes to give for each.
        grid: a PNG file, into which the first 50 images are drawn with their class.
        device: "auto", "cpu", "cuda" ...
        precision: "fp32", "bf16", "fp16" or "auto": what suits the device.
        batch_size: images at a time.
        fold: fold the batch norms into the convolutions; None: on a CPU, where it is faster.
        say: gets a sentence on what was left out of each folder, and where the grid is.
        progress: called with (images done, images in all).

    Returns:
        One prediction for each image. One that cannot be read has a ``problem`` in place of classes.

    Raises:
        TypeError: ``images`` is nothing of the kind.
        ExciteError: no network there, or no such image.
    """
    given = _each_file_once(given_images(images, say))  # before the network is loaded
    predictor = load(source, device, precision, fold)
    found = Predicted(predictor.answers(given, top_k, batch_size, progress))
    drawn = [(image, each) for image, each in zip(given, found, strict=True) if each.problem is None]
    if grid is not None and drawn:
        say(f"grid: {draw_grid(drawn, grid, white=predictor.preprocessing.white)}")
    return found


def _each_file_once(images: Iterable[GivenImage]) -> list[GivenImage]:
    return list({image.name if isinstance(image.source, str) else id(image): image for image in images}.values())
