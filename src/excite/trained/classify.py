"""``excite predict``: classify images."""

from collections.abc import Callable, Iterable
from pathlib import Path

from excite.data.views import Tta, told
from excite.pages.pictures import bands_shown
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
    tta: Tta | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Advance | None = None,
) -> Predicted:
    """Classify images with a trained network. For several calls, load it once with ``excite.load``.

    Args:
        source: a run folder or a checkpoint, as for ``excite.load``.
        images: a path, folder, pattern, address, PIL image, array, bytes, or a list of these, as for a call of
            :class:`~excite.trained.predictor.Predictor`. A file that is named twice is classified once.
        top_k: number of classes per image.
        grid: a PNG file in which to draw the first 50 images with their class.
        device: "auto", "cpu", "cuda" ...
        precision: "fp32", "bf16", "fp16" or "auto" (chosen for the device).
        batch_size: images per batch.
        fold: fold the batch norms into the convolutions; None: only on a CPU, where it is faster.
        tta: test-time augmentation, "flip", "five" or "shift", as for ``excite.load``.
        say: called with a sentence about the test-time augmentation, one about files skipped in each folder, and the
            path of the grid.
        progress: called with (images done, images in total).

    Returns:
        One prediction per image. For an image that cannot be read, ``problem`` is set and there are no classes.

    Raises:
        TypeError: ``images`` is of another type.
        ExciteError: there is no such network or no such image.
    """
    given = _each_file_once(given_images(images, say))  # before the network is loaded
    predictor = load(source, device, precision, fold, tta)
    if tta is not None:
        say(told(tta, predictor.several))
    found = Predicted(predictor.answers(given, top_k, batch_size, progress))
    drawn = [(image, each) for image, each in zip(given, found, strict=True) if each.problem is None]
    if grid is not None and drawn:
        p = predictor.preprocessing
        if shown := bands_shown(p.in_chans):
            say(shown)
        say(f"grid: {draw_grid(drawn, grid, white=p.white, in_chans=p.in_chans)}")
    return found


def _each_file_once(images: Iterable[GivenImage]) -> list[GivenImage]:
    return list({image.name if isinstance(image.source, str) else id(image): image for image in images}.values())
