"""Verification: compare the written artefact, in its own runtime, with the PyTorch model on the same images.

Notation: N images, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from excite.data.labels import several
from excite.export.deployable import InputKind
from excite.export.images import Samples, prepare
from excite.export.sessions import Run
from excite.logits import NO_CLASS, hits, predicted
from excite.measures import mean_average_precision, predicted_at
from excite.models.timm_models import is_timm_model
from excite.progress import Advance
from excite.runtime.timing import in_turns
from excite.text import counted
from excite.trained.predictor import Predictor

BATCH = 16
#: Seconds for timing one batch size; least and most rounds.
TIMING_SECONDS, ROUNDS = 3.0, (5, 50)


@dataclass(frozen=True)
class Outcome:
    """The result of the PyTorch model or of an artefact.

    Attributes:
        name: its name in tables and messages.
        logits: float32 (N, K).
        accuracy: top-1 in percent, or with several labels an image mAP; None if the classes are unknown.
        ms: batch size -> median milliseconds per batch.
    """

    name: str
    logits: np.ndarray
    accuracy: float | None
    ms: dict[int, float]


@dataclass(frozen=True)
class Comparison:
    """Comparison of an artefact with the PyTorch model.

    Attributes:
        largest: the largest absolute difference of logits; NaN if any are not finite.
        scale: the largest absolute logit of the PyTorch model.
        agreement: percent of the images with the same top-1 class, or with several labels an image exactly the same
            classes from the threshold on; images without finite logits do not agree.
        not_finite: numbers of images without finite logits: (from the artefact, from the model).
    """

    largest: float
    scale: float
    agreement: float
    not_finite: tuple[int, int] = (0, 0)

    @property
    def relative(self) -> float:
        """``largest`` / max(1, ``scale``)."""
        return self.largest / max(1.0, self.scale)


def compare_logits(reference: np.ndarray, logits: np.ndarray, threshold: float | None = None) -> Comparison:
    """Compare two arrays of logits (N, K) of the same images. ``threshold``: the probability from which on a class
    counts as predicted, if an image may have several labels."""
    if reference.shape != logits.shape:
        return Comparison(float("nan"), float(np.abs(reference).max()), 0.0)
    ours, theirs = predicted(torch.from_numpy(reference)), predicted(torch.from_numpy(logits))
    same = ours == theirs
    if threshold is not None:
        same = torch.from_numpy((predicted_at(reference, threshold) == predicted_at(logits, threshold)).all(1))
    agreement = 100 * float((same & (ours != NO_CLASS) & (theirs != NO_CLASS)).double().mean())
    without = int((theirs == NO_CLASS).sum()), int((ours == NO_CLASS).sum())
    with np.errstate(invalid="ignore"):  # inf - inf
        largest = float(np.abs(reference - logits).max())
    return Comparison(largest, float(np.abs(reference).max()), agreement, without)


def to_input(pixels: np.ndarray, kind: InputKind) -> np.ndarray:
    """Convert uint8 images (N, H, W, C) to the input of an artefact of this kind."""
    if kind == "uint8":
        return np.ascontiguousarray(pixels)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def reference_logits(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """Images prepared by Pillow, uint8 (N, H, W, C) -> logits float32 (N, K), as in ``excite predict``."""
    return predictor.logits(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))).cpu().numpy()


def measure_artefacts(
    predictor: Predictor,
    artefacts: dict[str, Run],
    samples: Samples,
    kind: InputKind,
    progress: Advance,
) -> tuple[Outcome, list[Outcome]]:
    """Run the PyTorch model and every artefact on all images, then time them in turns.

    A uint8 artefact gets the original images and resizes them itself; a float artefact gets prepared images.
    Consecutive images of the same size share a batch. Logits are compared with those of the model as built; for timing,
    the model has the form that ``excite predict`` runs on a CPU, folded if possible, like the artefacts.

    Args:
        predictor: the network.
        artefacts: name -> session.
        samples: the images.
        kind: the input of the artefacts.
        progress: called with (images done, images in total).

    Returns:
        The outcome of the PyTorch model, and those of the artefacts.
    """
    logits: dict[str, list[np.ndarray]] = {name: [] for name in ["", *artefacts]}
    for batch in _batches(samples, kind, predictor):
        prepared = np.stack([prepare(image, predictor.preprocessing) for image in batch])
        logits[""].append(reference_logits(predictor, prepared))
        images = to_input(np.stack(batch) if kind == "uint8" else prepared, kind)
        for name, run in artefacts.items():
            logits[name].append(run(images))
        progress(sum(map(len, logits[""])), len(samples))
    ms = _time(predictor.as_predicting(), artefacts, samples, kind)
    outcomes = []
    for name, parts in logits.items():
        whole = np.concatenate(parts)
        title = name or f"PyTorch fp32, {'folded' if _folds(predictor) else 'not folded'}"
        outcomes.append(Outcome(title, whole, _accuracy(whole, samples.labels), ms[name]))
    return outcomes[0], outcomes[1:]


def _folds(predictor: Predictor) -> bool:
    return not is_timm_model(predictor.model)


def sentence(predictor: Predictor, reference: Outcome, kind: InputKind, threads: int) -> str:
    """A sentence on what was timed, for the model and the artefacts."""
    height, width = predictor.preprocessing.size
    norms = "batch norms folded on both sides" if _folds(predictor) else "batch norms folded only in the artefact"
    resize = "" if kind == "float" else ", including the artefact's resize to the same size"
    return (
        f"ms: median, measured in turns, {counted(threads, 'thread')}, from prepared "
        f"{height} x {width} pixels to logits{resize}; {reference.name}: as excite predict runs it on a CPU; {norms}"
    )


def _batches(samples: Samples, kind: InputKind, predictor: Predictor) -> Iterator[list[np.ndarray]]:
    pending: list[np.ndarray] = []
    for i in range(len(samples)):
        image = samples.read(i)
        if kind == "float":
            image = prepare(image, predictor.preprocessing)
        if pending and (len(pending) == BATCH or image.shape != pending[0].shape):
            yield pending
            pending = []
        pending.append(image)
    if pending:
        yield pending


def _accuracy(logits: np.ndarray, labels: Sequence[int] | np.ndarray | None) -> float | None:
    """Top-1 in percent; of images with several labels, mAP."""
    if labels is None:
        return None
    if several(np.asarray(labels)):
        return mean_average_precision(logits, np.asarray(labels))
    return 100 * float(hits(torch.from_numpy(logits), torch.from_numpy(np.asarray(labels))).double().mean())


def _time(
    predictor: Predictor, artefacts: dict[str, Run], samples: Samples, kind: InputKind
) -> dict[str, dict[int, float]]:
    """Median ms per batch of prepared images, measured in turns, so that a busy machine slows all equally."""
    found: dict[str, dict[int, float]] = {name: {} for name in ["", *artefacts]}
    for size in (1, BATCH):
        one = [prepare(samples.read(i % len(samples)), predictor.preprocessing) for i in range(size)]
        pixels = np.stack(one)
        images = to_input(pixels, kind)
        calls: dict[str, Callable[[], Any]] = {"": partial(reference_logits, predictor, pixels)}
        calls |= {name: partial(run, images) for name, run in artefacts.items()}
        # Threads of ONNX Runtime keep spinning for a while after a run: on 2 cores the next pass took 3.3 times as
        # long. The first pass of each turn is therefore not timed.
        timed = in_turns(calls, predictor.device, seconds=TIMING_SECONDS, rounds=ROUNDS, passes=3, cold=1)
        for name, taken in timed.items():
            found[name][size] = taken.median_ms
    return found
