"""``excite validate``: evaluate a trained network on its validation images, or on other images."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from excite.data.views import Tta, told
from excite.progress import Advance
from excite.recipe import Overrides
from excite.runtime.device import precision_note
from excite.trained.images import left_out
from excite.trained.opened import open_trained
from excite.trained.predictor import Predictor
from excite.training.evaluation import Evaluation


class Validation(NamedTuple):
    """A network and its evaluation: ``predictor, evaluation = excite.validate(...)``."""

    predictor: Predictor
    evaluation: Evaluation

    def _repr_html_(self) -> str:
        return self.evaluation._repr_html_()


def validate(
    source: str | Path,
    overrides: Overrides = (),
    *,
    device: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    fold: bool | None = None,
    tta: Tta | None = None,
    progress: Advance | None = None,
) -> Validation:
    """Evaluate a trained network on the validation images of its recipe, or on others.

    Args:
        source: a run folder, a checkpoint folder, a ``.safetensors`` file, or another library's checkpoint; without
            class names it gets the sorted class folders of the data, if their number is the same.
        overrides: ``data.key=value`` strings, for example ``data.root=/other/images``, and ``eval.metric=NAME``; see
            ``load_recipe``.
        device: "auto", "cpu", "cuda" ...
        precision: "fp32", "bf16", "fp16" or "auto"; None uses that of the training, so that the numbers agree with it.
        batch_size: images per batch; does not affect the result.
        fold: fold the batch norms into the convolutions (see :class:`Predictor`); None: only on a CPU in fp32,
            where it is faster; in lower precisions rounding would change the numbers.
        tta: test-time augmentation, "flip", "five" or "shift", as for ``excite.load``; a sentence in ``notes`` says
            so. With several labels an image, the network's threshold is kept, which was chosen without it.
        progress: called with (images done, images in total) after each batch.

    Returns:
        The network and its evaluation; under a launcher, the same in every process.

    Raises:
        ExciteError: the checkpoint or the data cannot be read, or the data has other classes.
    """
    opened = open_trained(source, overrides, device=device, precision=precision, fold=fold, tta=tta)
    predictor, data = opened.predictor, opened.data
    process = predictor.accelerator
    loader = opened.batches(batch_size, rank=process.process_index, world=process.num_processes)
    batches = _counted(loader, progress, len(data.val)) if progress else loader
    metric = opened.recipe.measure
    result = opened.evaluate(batches=batches, metric=metric)
    slow = precision_note(predictor.precision, predictor.device, "--precision ")
    views = [] if tta is None else [told(tta, predictor.several)]
    notes = (*views, *data.notes, *left_out(data, loader), *([slow] if slow else []))
    return Validation(predictor, replace(result, measured=data.measured, notes=notes, metric=metric))


def _counted(loader: Iterable[Any], progress: Advance, total: int) -> Iterator[Any]:
    done = 0
    for batch in loader:
        yield batch
        done += len(batch[1])
        progress(done, total)
