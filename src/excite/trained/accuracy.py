"""``excite validate``: a trained network's accuracy again, or on other images."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from excite.progress import Advance
from excite.recipe import Overrides
from excite.runtime.device import precision_note
from excite.trained.images import left_out
from excite.trained.opened import open_trained
from excite.trained.predictor import Predictor
from excite.training.evaluation import Evaluation


class Validation(NamedTuple):
    """A network and what was measured with it: ``predictor, evaluation = excite.validate(...)``."""

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
    progress: Advance | None = None,
) -> Validation:
    """Evaluate a trained network on the validation images of its recipe, or on others.

    Args:
        source: a run folder, a checkpoint folder, a ``.safetensors`` file, or another system's checkpoint; one without
            class names is taken to have the sorted class folders of the data, if it has as many.
        overrides: ``data.key=value`` strings, for example ``data.root=/other/images``; see ``load_recipe``.
        device: "auto", "cpu", "cuda" ...
        precision: None takes what it was trained with, so that the numbers are those of the training.
        batch_size: images at a time; has no influence on the result.
        fold: fold the batch norms into the convolutions (see :class:`Predictor`); None: on a CPU, where it is faster,
            but not in bf16, whose rounding would show in the numbers.
        progress: called with (images done, images in all) after each batch.

    Returns:
        The network, and what it does on the images; under a launcher, the same in every process.

    Raises:
        ExciteError: the checkpoint or the data cannot be read, or the data has other classes.
    """
    opened = open_trained(source, overrides, device=device, precision=precision, fold=fold)
    predictor, data = opened.predictor, opened.data
    process = predictor.accelerator
    loader = opened.batches(batch_size, rank=process.process_index, world=process.num_processes)
    batches = _counted(loader, progress, len(data.val)) if progress else loader
    result = opened.evaluate(batches=batches)
    slow = precision_note(predictor.precision, predictor.device, "--precision ")
    notes = (*data.notes, *left_out(data, loader), *([slow] if slow else []))
    return Validation(predictor, replace(result, measured=data.measured, notes=notes))


def _counted(loader: Iterable[Any], progress: Advance, total: int) -> Iterator[Any]:
    done = 0
    for batch in loader:
        yield batch
        done += len(batch[1])
        progress(done, total)
