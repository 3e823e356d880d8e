"""``export``: write an artefact to a temporary place, verify it, then move it into place."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch

from excite.choices import INPUTS, check_choice
from excite.data.pixels import FULL_WHITE
from excite.errors import ExciteError, first_line
from excite.export import formats, runtimes
from excite.export.deployable import Deployable, InputKind
from excite.export.formats import check
from excite.export.formats.base import OPSET, Format
from excite.export.images import Part, Samples, open_samples, prepare
from excite.export.origin import ArtefactMeta, CalibrationMeta, describe, describe_int8
from excite.export.sessions import open_in
from excite.export.verify import BATCH, Comparison, Outcome, compare_logits, measure_artefacts, sentence, to_input
from excite.files import check_writable, flush, told
from excite.leaving import unbroken
from excite.owners import aside_of, remove, sweep_once
from excite.progress import Progress
from excite.recipe import Overrides, override_words
from excite.trained.opened import Opened
from excite.trained.predictor import Predictor
from excite.weights.checkpoint import read_checkpoint
from excite.weights.locate import locate

#: The largest difference of logits, relative to the largest logit, that counts as rounding.
TOLERANCE = 1e-3
#: Cost allowed for int8: percentage points of top-1; or, if the classes are unknown, least agreement in percent.
MAX_DROP, INT8_AGREEMENT = 0.5, 95.0
CALIBRATION = 300


class ExportRow(TypedDict):
    """The PyTorch model or one of the networks measured with it.

    Attributes:
        what: its name.
        written: whether it is the artefact written.
        largest_difference: the largest difference of logits from PyTorch's.
        relative_difference: the same relative to the largest logit.
        agreement: percent of the images with the same class as PyTorch.
        top1: accuracy in percent; None if the classes are unknown. With several labels an image there is ``map``, the
            mean average precision in percent, in its place, and ``agreement`` counts the images with exactly the same
            classes from the threshold on.
        ms_1, ms_16: milliseconds for a batch of 1 and of 16.
    """

    what: str
    written: bool
    largest_difference: float | None
    relative_difference: float | None
    agreement: float | None
    top1: NotRequired[float | None]
    map: NotRequired[float | None]
    ms_1: float
    ms_16: float


class Exported(TypedDict):
    """The result of ``excite export``.

    Attributes:
        artefact: path of the file.
        bytes: size of all its files.
        format: its format.
        runtime: the runtime of the format, with its version.
        images: the images used for verification.
        threads: CPU threads.
        tolerance: largest difference allowed, relative to the largest logit.
        runtimes: results of all runtimes for the float32 artefact and the one written.
        timed: a sentence on what was timed.
        rows: one row per network, the PyTorch model first.
    """

    artefact: str
    bytes: int
    format: str
    runtime: str
    images: str
    threads: int
    tolerance: float
    runtimes: list[runtimes.Verdict]
    timed: str
    rows: list[ExportRow]


def export(
    source: str | Path,
    format: str,
    overrides: Overrides = (),
    *,
    out: str | Path | None = None,
    int8: bool = False,
    int8_gates: bool = False,
    calibrate: str | None = None,
    verify: str | None = None,
    images: int = 2000,
    input: InputKind = "uint8",
    opset: int = OPSET,
    tolerance: float = TOLERANCE,
    max_drop: float = MAX_DROP,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda what, done, total: None,
) -> Exported:
    """Export a trained network, and verify that the artefact computes the same.

    Args:
        source: a run folder, a checkpoint folder or a weights file, also of another library (see ``excite.load``).
        format: ``onnx``, ``openvino`` or ``pt2`` (torch.export).
        overrides: changes of the images for verification, as for ``excite validate``: ``data.part=test``,
            ``data.root=...`` (see ``load_recipe``).
        out: the file; None: ``model.onnx``, ``model.int8.xml`` and the like, next to the weights.
        int8: quantise to int8 (onnx and openvino). Both variants are measured, with the gates in float and with
            quantised gates; the former is written.
        int8_gates: like ``int8``, but write the variant with quantised gates.
        calibrate: images for int8 calibration; None: the run's training images.
        verify: images for verification, see ``excite.export.images.open_samples``; None: the run's validation images.
        images: the most images for verification, drawn with a fixed seed; 0: all.
        input: ``uint8``: (N, h, w, C) of any size, preprocessed inside; ``float``: (N, C, H, W) in 0..1, as resized.
        opset: ONNX opset.
        tolerance: largest difference of logits allowed, relative to the largest logit.
        max_drop: top-1 accuracy (mAP with several labels an image) that int8 may cost, in percentage points.
        force: overwrite an existing file.
        say: called with one sentence at a time for the user.
        progress: called with (current step, units done, units in total).

    Returns:
        The values that ``excite export --json`` prints.

    Raises:
        ExciteError: bad arguments, missing packages, or an artefact that does not agree; ``out`` is then unchanged.
    """
    int8, overrides = int8 or int8_gates, override_words(overrides)
    check(format, int8)
    _check_arguments(input, calibrate, int8, overrides, verify)
    chosen, located = formats.get(format), locate(source)
    target = _target(located.path, chosen, int8, out, force)
    predictor = Predictor(read_checkpoint(located), "cpu", "fp32")
    white = predictor.preprocessing.white
    if white != FULL_WHITE:
        given = f"round(255 * value / {white}), at most 255, as uint8" + (
            ", divided by 255" if input == "float" else ""
        )
        say(f"of 16-bit images the file takes {given} (data.white={white})")
    meta = describe(predictor, located, input)  # before a network without class names gets those of the data
    opened = Opened(located, predictor, overrides, train=int8 and calibrate is None)
    samples = _samples(opened, verify, "val", images, say, "verified on")
    threads = torch.get_num_threads()
    with _put_in_place(target, chosen) as aside:
        deployable = Deployable(predictor.model, predictor.preprocessing, input)
        progress("writing", 0, 1)
        fp32 = _beside(aside, "fp32") if int8 else aside
        _write(chosen, deployable, fp32, meta, opset)
        paths = {f"{format} fp32": fp32}
        if int8:
            own = Opened(located, predictor, train=True) if overrides else opened  # overrides are for verification only
            calibration = _calibrate_on(own, calibrate, say, input, progress)
            paths |= _quantised(chosen, fp32, aside, int8_gates, calibration, meta)
        progress("testing every runtime", 0, 1)
        asked = _ask_all(format, paths, aside, predictor, input, tolerance, say)
        artefacts = {name: open_in(chosen.runtime, path, threads) for name, path in paths.items()}
        reference, outcomes = measure_artefacts(predictor, artefacts, samples, input, partial(progress, "verifying"))
        timed = sentence(predictor, reference, input, threads)
        written = next(outcome for outcome in outcomes if paths[outcome.name] == aside)
        threshold = predictor.threshold if predictor.several else None
        _judge_fp32(reference, outcomes[0], tolerance, samples, threshold)
        if int8:
            _judge_int8(reference, written, max_drop, samples, threshold)
        del artefacts  # OpenVINO maps the file
        size = sum(f.stat().st_size for f in chosen.files(aside))
    return {
        "artefact": str(target),
        "bytes": size,
        "format": format,
        "runtime": f"{chosen.runtime} {meta['export']['versions'].get(chosen.runtime)}",
        "images": samples.name,
        "threads": threads,
        "tolerance": tolerance,
        "runtimes": asked,
        "timed": timed,
        "rows": [
            _row(reference, None, False, threshold),
            *(
                _row(o, compare_logits(reference.logits, o.logits, threshold), o is written, threshold)
                for o in outcomes
            ),
        ],
    }


def _check_arguments(
    input: str, calibrate: str | None, int8: bool, overrides: Sequence[str], verify: str | None
) -> None:
    check_choice("--input", input, INPUTS)
    if calibrate is not None and not int8:
        raise ExciteError("--calibrate is only for --int8; float32 needs no calibration")
    if overrides and verify is not None:
        raise ExciteError("give either --verify DATA or changes such as data.part=test, not both")


def _write(format: Format, deployable: Deployable, path: Path, meta: ArtefactMeta, opset: int) -> None:
    try:
        format.write(deployable.trace(), path, meta, opset)
    except (ExciteError, OSError):
        raise
    except Exception as error:  # torch's exporters raise dozens of kinds
        others = " or ".join(other for other in formats.MODULES if other != format.name)
        raise ExciteError(
            f"this network cannot be written in the format {format.name} ({type(error).__name__}: "
            f"{first_line(error)[:200]}); nothing was written; try --format {others}"
        ) from error


def _target(weights: Path, format: Format, int8: bool, out: str | Path | None, force: bool) -> Path:
    suffix = format.suffix
    if out is None and not os.path.exists(weights) and not os.path.isdir(weights.parent):  # at a hub
        weights = Path(weights.name)
    target = weights.with_name(f"{weights.stem}{'.int8' if int8 else ''}{suffix}") if out is None else Path(out)
    if target.suffix != suffix:
        raise ExciteError(f"--out {target}: the file name for format {format.name} must end in {suffix}")
    for file in format.files(target):  # before minutes of work
        check_writable(file)
    there = [file for file in format.files(target) if file.exists()]
    if there and not force:
        raise ExciteError(f"{there[0]} already exists; name another file with --out, or overwrite it with --force")
    return target


@contextmanager
def _put_in_place(target: Path, format: Format) -> Iterator[Path]:
    """Yield a path in a temporary folder; the files of the artefact are moved to ``target`` if the block succeeds.

    On any error ``target`` is unchanged, and nothing else is left. A kill at any moment leaves the old artefact or the
    new one, both of which can be read.
    """
    folder = aside_of(target)
    final = folder / "final" / target.name
    try:
        with told(target):
            sweep_once(target.parent)
            final.parent.mkdir(parents=True)
            yield final
            flush(final.parent)
            with unbroken():
                format.replace(final, target)
    finally:
        with unbroken():
            remove(folder)


def _beside(aside: Path, folder: str) -> Path:
    """The artefact's name in a separate folder, which is removed when the block of ``_put_in_place`` ends."""
    path = aside.parent.with_name(folder) / aside.name
    path.parent.mkdir()
    return path


@dataclass(frozen=True)
class Calibration:
    """The images for int8 calibration.

    Attributes:
        name: their origin.
        pixels: prepared images, uint8 (N, S, S, C).
        kind: the input of the artefact.
    """

    name: str
    pixels: np.ndarray
    kind: InputKind

    def batches(self) -> Iterator[np.ndarray]:
        """Batches in the form of the artefact's input; each call starts a new pass."""
        return (to_input(self.pixels[i : i + BATCH], self.kind) for i in range(0, len(self.pixels), BATCH))

    def describe(self) -> CalibrationMeta:
        """The metadata of the images, with the SHA-256 of the pixels, image by image, row by row."""
        digest = hashlib.sha256(self.pixels.tobytes()).hexdigest()
        return {"images": self.name, "count": len(self.pixels), "sha256": digest}


def _samples(
    opened: Opened, where: str | None, part: Part, limit: int, say: Callable[[str], None], what: str
) -> Samples:
    """At most ``limit`` images. Unreadable ones are left out, or an error, as the recipe says. Reports with ``say``."""
    samples, note = open_samples(opened, where, part)
    samples, broken = samples.take(limit).readable(opened.predictor.meta["recipe"]["data"], part)
    for line in [*filter(None, (note, broken)), f"{what} {samples.name}"]:
        say(line)
    return samples


def _calibrate_on(
    opened: Opened, calibrate: str | None, say: Callable[[str], None], kind: InputKind, progress: Progress
) -> Calibration:
    samples = _samples(opened, calibrate, "train", CALIBRATION, say, "int8 calibrated on")
    prepared = []
    for i in range(len(samples)):
        progress("reading calibration images", i, len(samples))
        prepared.append(prepare(samples.read(i), opened.predictor.preprocessing))
    return Calibration(samples.name, np.stack(prepared), kind)


def _quantised(
    format: Format, fp32: Path, aside: Path, int8_gates: bool, calibration: Calibration, meta: ArtefactMeta
) -> dict[str, Path]:
    """Write both int8 artefacts: the requested one to ``aside``, the other one elsewhere, to be measured."""
    assert format.int8 is not None  # checked at the beginning
    quantiser, paths = format.int8.quantiser, {}
    for with_gates in (False, True):
        path = aside if with_gates == int8_gates else _beside(aside, "other")

        def about(layers: Counter[str], with_gates: bool = with_gates) -> ArtefactMeta:
            return describe_int8(meta, quantiser, with_gates, layers, calibration.describe())

        format.int8.make(fp32, path, calibration.batches, with_gates, about)
        paths[f"{format.name} int8, gates {'too' if with_gates else 'in float'}"] = path
    return paths


def _ask_all(
    format: str,
    paths: dict[str, Path],
    written: Path,
    predictor: Predictor,
    kind: InputKind,
    tolerance: float,
    say: Callable[[str], None],
) -> list[runtimes.Verdict]:
    """Test the float32 artefact, and the one to be written if different, in every installed runtime.

    Raises:
        ExciteError: a runtime disagrees.
    """
    cases, macs = runtimes.make_cases(predictor, kind), runtimes.macs_of(predictor)
    found = []
    for name, path in paths.items():
        is_fp32 = name == f"{format} fp32"
        if not is_fp32 and path != written:
            continue
        asked = runtimes.ask(format, path, cases, torch.get_num_threads(), macs)
        judge = runtimes.judge_fp32 if is_fp32 else runtimes.judge_int8
        worst = judge(name, asked, cases, tolerance)
        for line in runtimes.sentences(name, asked, cases, worst):
            say(line)
        found.append(runtimes.to_dict(name, asked, cases, worst))
    return found


def _judge_fp32(reference: Outcome, fp32: Outcome, tolerance: float, samples: Samples, threshold: float | None) -> None:
    """Raise ExciteError if the float32 artefact does not compute the same as the model."""
    found = compare_logits(reference.logits, fp32.logits, threshold)
    if any(found.not_finite):
        raise ExciteError(
            f"no finite logits on {samples.name}: for {found.not_finite[1]:,} of {len(samples):,} from the PyTorch "
            f"model, for {found.not_finite[0]:,} from {fp32.name}; nothing was written"
        )
    what = "top-1 agrees" if threshold is None else "labels agree"
    if not found.relative <= tolerance:  # not `>`: NaN must fail
        raise ExciteError(
            f"{fp32.name} disagrees with the PyTorch model: on {samples.name} logits differ by up to "
            f"{found.largest:.3g} ({found.relative:.2g} of the largest; {tolerance:g} is tolerated), {what} on "
            f"{found.agreement:.2f} %; nothing was written"
        )


def _judge_int8(reference: Outcome, int8: Outcome, max_drop: float, samples: Samples, threshold: float | None) -> None:
    """Raise ExciteError if int8 costs too much accuracy (or, without labels, agreement)."""
    if not np.isfinite(int8.logits).all():
        raise ExciteError(f"{int8.name} outputs logits that are not finite; nothing was written")
    if reference.accuracy is not None and int8.accuracy is not None:
        lost, measure = reference.accuracy - int8.accuracy, "top-1" if threshold is None else "mAP"
        if not lost <= max_drop:
            raise ExciteError(
                f"{int8.name} loses {lost:.2f} points of {measure} ({reference.accuracy:.2f} to {int8.accuracy:.2f} % "
                f"of {samples.name}), more than --max-drop {max_drop:g}; nothing was written"
            )
        return
    agreement = compare_logits(reference.logits, int8.logits, threshold).agreement
    if not samples.random and agreement < INT8_AGREEMENT:
        raise ExciteError(
            f"{int8.name} agrees with the PyTorch model on only {agreement:.2f} % of {samples.name}, less than "
            f"{INT8_AGREEMENT:g} %; nothing was written"
        )


def _row(outcome: Outcome, comparison: Comparison | None, written: bool, threshold: float | None) -> ExportRow:
    return {
        "what": outcome.name,
        "written": written,
        "largest_difference": None if comparison is None else comparison.largest,
        "relative_difference": None if comparison is None else comparison.relative,
        "agreement": None if comparison is None else comparison.agreement,
        **({"top1": outcome.accuracy} if threshold is None else {"map": outcome.accuracy}),  # type: ignore[typeddict-item]
        "ms_1": outcome.ms[1],
        "ms_16": outcome.ms[16],
    }
