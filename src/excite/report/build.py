"""``excite report``: from a run to its numbers and its page."""

import itertools
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import torch

from excite.data.bands import COLOURS
from excite.errors import ExciteError
from excite.explain import Explanation, explain, foreign_gates, outer_gates
from excite.explain.run import SCALARS
from excite.files import check_new_folder, check_writable, read_json, write_json
from excite.logits import finite, hits
from excite.measures import MeasureName, mean_average_precision, measure_of, named
from excite.models import describe
from excite.models.folding import form_of
from excite.owners import scratch_folder
from excite.pages.inline import show_table
from excite.progress import Advance, Progress
from excite.recipe import Overrides, Recipe
from excite.report.contents import (
    KEY,
    LABEL_SUMMARY,
    SUMMARY,
    About,
    Common,
    GateNumbers,
    Gates,
    LabelNumbers,
    Numbers,
    RobustMeasure,
    Robustness,
    RobustnessRow,
    Speed,
    SpeedRow,
    Study,
)
from excite.report.corruptions import SEVERITIES, STRENGTHS, corrupter, definition, strength
from excite.report.label_page import LabelMeasure, with_interval
from excite.report.labels import label_mistakes, study_labels
from excite.report.render import is_uneven, make_page, write_figures
from excite.report.reproduce import reproducing_command
from excite.report.study import Curves, curves, study_predictions
from excite.runtime.device import device_name
from excite.runtime.environment import Environment, read_environment, versions
from excite.runtime.rows import Rows
from excite.runtime.timing import in_turns, inference_step, quartiles
from excite.size import by_text
from excite.storage import is_remote, local_file
from excite.trained.opened import Opened, open_trained
from excite.trained.predictions import Predictions, pictures, predictions_of
from excite.trained.predictor import Predictor
from excite.training.results import Results, read_results
from excite.training.run_folder import read_metrics

#: The most points kept of a curve; longer curves are averaged over this many segments.
POINTS = 200
QUICK_IMAGES = 200
#: Approximate time for timing one batch size.
_TIMING_SECONDS = 1.0
_RUN_FILES = ("results.json", "metrics.jsonl", "environment.json")

_Point = TypeVar("_Point", bound=Mapping[str, object])


class Reported(NamedTuple):
    """The numbers of a report (docs/report.md), and the file of its page: ``numbers, path = excite.report(...)``."""

    numbers: Numbers | LabelNumbers
    path: Path

    def _repr_html_(self) -> str:
        about = self.numbers["about"]
        rows = [
            *told_briefly(self.numbers),
            ("images", f"{about['validation_images']:,} ({about['measured']})"),
            ("page", str(self.path)),
        ]
        return show_table(("", ""), rows, title=f"report on {about['source']}", notes=about["notes"])


def told_briefly(numbers: Numbers | LabelNumbers) -> list[tuple[str, str]]:
    """The measures of the network with their intervals, by name."""
    if "labels" in numbers:
        found = numbers["labels"]["accuracy"]
        names: list[tuple[LabelMeasure, str]] = [("map", "mAP"), ("micro_f1", "micro F1"), ("macro_f1", "macro F1")]
        return [(label, with_interval(found, name)) for name, label in names]
    accuracy = numbers["accuracy"]
    told = [("top-1", f"{accuracy['top1']:.2f} % ({accuracy['top1_low']:.2f} to {accuracy['top1_high']:.2f})")]
    return told + ([("balanced", f"{numbers['classes']['macro']['recall']:.2f} %")] if is_uneven(numbers) else [])


def report(
    source: str | Path,
    overrides: Overrides = (),
    *,
    out: str | Path | None = None,
    figures: str | Path | None = None,
    images: int | None = None,
    quick: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Reported:
    """Study a trained network and write a page about it, replacing an existing one.

    The numbers also go into the run's ``results.json`` under ``"report"``, unless they are of other images.

    Args:
        source: a run folder or a checkpoint, also at an address.
        overrides: ``data.key=value`` for other data, ``report.key=value`` for what to measure; see ``load_recipe``.
        out: the file. None: ``report.html`` in the run folder (for other images, with the start of their fingerprint in
            its name); ``NAME-report.html`` next to a checkpoint, or in the current folder for an address.
        figures: a new folder for every figure of the page as PNG and SVG; None: do not write them.
        images: the most validation images to use (class-balanced); None: all.
        quick: use at most 200 images for robustness and gates, and only severities 1, 3 and 5.
        device: "auto", "cpu", "cuda" ...
        progress: called with (current step, units done, units in total).

    Returns:
        The numbers, and the path of the page.

    Raises:
        ExciteError: there is no trained network, the data cannot be read or has other classes, the file cannot be
            written, or the folder for figures exists.
    """
    tell = progress or (lambda what, done, total: None)
    tell("opening network and data", 0, 1)
    told = read_run(source)
    limits = None if images is None else {"limit_val": images}
    opened = open_trained(source, overrides, device=device, limits=limits)
    whole = images is None and _same_data(opened, told.results)
    path = Path(out) if out is not None else _place(opened, whole)
    check_writable(path)  # before minutes of work
    if figures is not None:
        check_new_folder(Path(figures))
    study = study_opened(opened, told, keep=whole, quick=quick, progress=tell)
    # The numbers first, so that they are not lost if drawing or writing the page fails.
    if opened.run is not None and whole and (opened.run / "results.json").is_file():
        write_json(opened.run / "results.json", {**read_json(opened.run / "results.json"), KEY: study.numbers})
    with scratch_folder("report") as scratch:
        make_page(study, scratch).write(path)
    if figures is not None:
        write_figures(study, Path(figures))
    tell("written", 1, 1)
    return Reported(study.numbers, path)


def run_files(source: str | Path) -> dict[str, Path]:
    """The files of a run folder that a report reads and that exist, by name; downloaded if at an address."""
    found = {}
    for name in _RUN_FILES:
        if is_remote(source):
            try:
                found[name] = Path(local_file(f"{str(source).rstrip('/')}/{name}"))
            except ExciteError:  # it is not a run, or not finished
                continue
        elif os.path.isfile(path := Path(source) / name):  # unlike Path.is_file, it takes any text
            found[name] = path
    return found


@dataclass(frozen=True)
class Told:
    """The records of a training in its run folder.

    Attributes:
        files: see :func:`run_files`.
        results, environment: contents of ``results.json`` and ``environment.json``; None if missing.
    """

    files: Mapping[str, Path]
    results: Results | None
    environment: Environment | None


def read_run(source: str | Path) -> Told:
    """Read the records of a run folder before anything is measured. Raises ExciteError if a file is damaged."""
    files = run_files(source)
    results, environment = files.get("results.json"), files.get("environment.json")
    return Told(
        files,
        None if results is None else read_results(results, source),
        None if environment is None else read_environment(environment),
    )


def _same_data(opened: Opened, results: Results | None) -> bool:
    """Whether the images are the validation images of the training, by fingerprint; True if that is unknown."""
    return results is None or results.get("data_fingerprint") in (None, opened.data.fingerprint)


def _place(opened: Opened, whole: bool) -> Path:
    suffix = "" if whole else f"-{opened.data.fingerprint[:8]}"
    if opened.run is not None:
        return opened.run / f"report{suffix}.html"
    name = opened.source.rstrip("/").rpartition("/")[2]
    parent = Path() if is_remote(opened.source) else Path(opened.source).parent
    if parent.name == "checkpoints":  # not among the checkpoints
        parent = parent.parent
    return parent / f"{name.removesuffix('.safetensors')}-report{suffix}.html"


def study_opened(
    opened: Opened,
    told: Told,
    *,
    keep: bool = False,
    quick: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Study:
    """Measure everything for a report.

    Args:
        opened: network and data.
        told: the result of :func:`read_run`.
        keep: whether to keep the predictions in the run folder.
        quick: see :func:`report`.
        progress: see :func:`report`.
    """
    settings = opened.recipe.report
    fewer = partial(min, QUICK_IMAGES) if quick else int
    severities = SEVERITIES[::2] if quick else SEVERITIES
    predictions = predictions_of(opened, partial(progress, "predicting"), keep=keep)
    about, summary = _about(opened, predictions, told), _summary(opened, predictions, told.results)
    drawn = _curves(told.files, measure_of(opened.predictor.meta["recipe"]))
    robust = partial(progress, "measuring robustness")
    robustness = study_robustness(opened, fewer(settings.robustness_images), severities=severities, progress=robust)
    explanation = None
    if settings.gate_images and has_gates(opened.predictor):
        explanation = _explain(opened, fewer(settings.gate_images), progress)
    common: Common = {
        "about": about,
        "summary": summary,
        "curves": drawn,
        "robustness": robustness,
        "gates": None if explanation is None else _gate_numbers(explanation),
        "speed": study_speed(opened, partial(progress, "timing")),
    }
    numbers = _numbers(common, predictions, opened.predictor.threshold, settings.mistakes)
    photographs = pictures(opened, [row["position"] for row in numbers["mistakes"]])
    # The recipe of the training, without overrides for other data.
    recipe = Recipe.from_dict(opened.predictor.meta["recipe"], opened.source).to_yaml()
    return Study(numbers, photographs, explanation, recipe)


def _numbers(common: Common, predictions: Predictions, threshold: float, mistakes: int) -> Numbers | LabelNumbers:
    if predictions.several:
        wrong = label_mistakes(predictions, threshold, mistakes)
        return {**common, "labels": study_labels(predictions, threshold), "mistakes": wrong}
    return {**common, **study_predictions(predictions, mistakes)}


def has_gates(predictor: Predictor) -> bool:
    """Whether the network has any gate."""
    try:
        return bool(outer_gates(predictor.model))
    except ExciteError:
        return False


def _about(opened: Opened, predictions: Predictions, told: Told) -> About:
    """The origin of the numbers."""
    files, environment = told.files, told.environment
    trained = Recipe.from_dict(opened.predictor.meta["recipe"], opened.source)
    results: Results = told.results or {}
    # Its present place: results.json does not know that a run folder was moved.
    run = results.get("run") if opened.run is None else str(opened.run)
    converted = opened.predictor.meta.get("converted_from")
    trained_as = opened.predictor.meta.get("trained_as")
    return {
        "source": opened.source,
        "is_run": "metrics.jsonl" in files,
        "finished": "results.json" in files if "metrics.jsonl" in files else None,
        "gated": has_gates(opened.predictor),
        "gates_of_timm": foreign_gates(opened.predictor.model),
        "weights_sha256": opened.weights,
        "epoch": opened.predictor.meta.get("epoch"),
        "epochs": trained.train.epochs,
        "step": opened.predictor.meta.get("step"),
        "data_fingerprint": opened.data.fingerprint,
        "data_of_training": results.get("data_fingerprint"),
        "data_source": opened.recipe.data.source,
        "training_images": len(opened.data.train),
        "measured": opened.data.measured,
        "notes": opened.data.notes,
        "validation_images": len(predictions),
        "warning": predictions.warning,
        "unreadable_images": opened.data.bad_val + len(opened.data.val) - len(predictions),
        "classes": len(predictions.classes),
        "preprocessing": predictions.preprocessing,
        "precision": predictions.precision,
        "device": device_name(opened.predictor.device),
        "versions": versions(),
        "environment": environment,
        "command": None if converted or trained_as else reproducing_command(trained, environment, run),
        "trained_as": None if trained_as is None else trained_as["name"],
        "converted_from": None if converted is None else str(converted.get("source")),
    }


def _summary(opened: Opened, predictions: Predictions, results: Results | None) -> Results:
    """Values from ``results.json``, or from the checkpoint itself if there is no run."""
    if results is None:
        results = _told_by_checkpoint(opened, predictions)
    return cast(Results, {key: results.get(key) for key in (LABEL_SUMMARY if predictions.several else SUMMARY)})


def _told_by_checkpoint(opened: Opened, predictions: Predictions) -> Results:
    meta = opened.predictor.meta
    metrics = meta.get("metrics")
    size = describe(meta["model"]["name"], **meta["model"]["args"])
    told: Results = {
        "recipe": opened.recipe.name,
        "model": meta["model"]["name"],
        "params_m": size["params"] / 1e6,
        "gmacs": size["gmacs"],
        "precision": predictions.precision,
        "batch_size": None if meta.get("converted_from") else opened.recipe.train.batch_size,
        "resolution": by_text(opened.predictor.preprocessing.size),
        "top1": None if metrics is None else metrics.get("top1"),
        "top5": None if metrics is None else metrics.get("top5"),
        "loss": None if metrics is None else metrics.get("loss"),
    }
    if metrics is not None:
        told |= cast(
            Results, {key: metrics[key] for key in ("map", "macro_f1", "micro_f1", "threshold") if key in metrics}
        )
    if metrics is not None and (images := metrics.get("images")) is not None:
        told["images"] = images
    return told


def _curves(files: Mapping[str, Path], metric: MeasureName) -> Curves | None:
    if "metrics.jsonl" not in files:
        return None
    found = curves(read_metrics(files["metrics.jsonl"]), metric)
    return {"train": thinned(found["train"]), "eval": thinned(found["eval"])}


def thinned(points: Sequence[_Point], most: int = POINTS) -> list[_Point]:
    """At most ``most`` points: the means over segments, at the step and epoch of the last point of each."""
    if len(points) <= most:
        return list(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    rows: list[_Point] = []
    for start, end in itertools.pairwise(edges):
        part = cast(Sequence[Mapping[str, float | None]], points[start:end])
        row: dict[str, float | None] = {}
        for key in part[0]:
            values = [value for p in part if (value := p[key]) is not None]
            row[key] = part[-1][key] if key in ("step", "epoch") else (statistics.fmean(values) if values else None)
        rows.append(cast(_Point, row))
    return rows


# --- measuring --------------------------------------------------------------------------------------------------------


def study_robustness(
    opened: Opened,
    images: int,
    *,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    progress: Advance = lambda done, total: None,
) -> Robustness | None:
    """Top-1 (mAP) under five corruptions, and without, on the same images; None for 0 images, and for bands that are
    not colours.

    Args:
        opened: network and data.
        images: the most images to use, class-balanced.
        severities: severities from 1 to 5.
        seed: seed of the choice of images and of the noise.
        progress: called with (images evaluated, in total), each corruption counted apart.
    """
    if not images or opened.data.preprocessing.in_chans not in COLOURS:
        return None
    some = opened.taking(images, seed)
    side = max(opened.data.preprocessing.size)
    kinds = [(name, severity) for name in STRENGTHS for severity in severities]
    changes = {kind: corrupter(*kind, side, seed) for kind in kinds}
    plain, changed = _Tally(), {kind: _Tally() for kind in kinds}
    measure: RobustMeasure = "map" if opened.predictor.several else "top1"
    done, total = 0, len(some.data.val) * (1 + len(kinds))
    # Batch by batch, each with every corruption: the images never are in memory all at once.
    for pixels, labels in _chosen_batches(some):
        plain.add(opened.predictor, pixels, labels)
        done += len(labels)
        for kind, change in changes.items():
            changed[kind].add(opened.predictor, change(pixels), labels)
            done += len(labels)
            progress(done, total)
    found = {
        "images": plain.images,
        "seed": seed,
        "strengths_of": definition(side),
        f"clean_{measure}": plain.value,
        "not_finite": plain.without,
        f"mean_{measure}": statistics.fmean(tally.value for tally in changed.values()),
        "rows": [_robustness_row(*kind, side, tally, plain.value, measure) for kind, tally in changed.items()],
    }
    return cast(Robustness, found)


@dataclass
class _Tally:
    """Evaluated images, and how many are right; those ``without`` finite logits count as wrong."""

    images: int = 0
    right: int = 0
    without: int = 0
    logits: Rows = field(default_factory=Rows)  # with several labels an image, of which mAP takes all
    labels: Rows = field(default_factory=Rows)

    @property
    def value(self) -> float:
        """Top-1 in percent; with several labels an image, mAP (0 without any label)."""
        if len(self.labels):
            return mean_average_precision(self.logits.all(), self.labels.all()) or 0.0
        return 100 * self.right / self.images

    def add(self, predictor: Predictor, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        logits = predictor.logits(pixels).cpu()
        if predictor.several:
            self.logits.add(logits.numpy())
            self.labels.add(labels.numpy())
        self.right += int(hits(logits, labels).sum())
        self.without += int((~finite(logits)).sum())
        self.images += len(labels)


def _robustness_row(
    name: str, severity: int, side: int, tally: _Tally, clean: float, measure: RobustMeasure
) -> RobustnessRow:
    return {
        "corruption": name,
        "severity": severity,
        "strength": strength(name, severity, side),
        "unit": STRENGTHS[name][0],
        measure: tally.value,  # type: ignore[misc]
        "lost": clean - tally.value,
        "not_finite": tally.without,
    }


def _chosen_batches(opened: Opened) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Images uint8 (B, C, H, W) and labels int64 (B,), or uint8 (B, K) of several, on the CPU."""
    for pixels, labels, _ in opened.batches():
        yield pixels.cpu().contiguous(), labels.cpu()


def _explain(opened: Opened, images: int, progress: Progress) -> Explanation:
    some = opened.taking(images, opened.recipe.data.split_seed)
    return explain(some, limit=len(some.data.val), ablation="estimate", timing=False, progress=progress)


def _gate_numbers(explanation: Explanation) -> Gates:
    rows = [
        {**named({key: row.get(key) for key in SCALARS}, explanation.several), "constant": len(row["constant"])}
        for row in explanation.rows
    ]
    return {"images": explanation.images, "rows": cast(list[GateNumbers], rows)}


def study_speed(opened: Opened, progress: Advance = lambda done, total: None) -> Speed:
    """Time of a pass over 1 and over 16 images, in the form that ``excite predict`` runs: fp32, folded on a CPU.

    Only the network is timed, on zeros, without reading and preparing images. Each batch size takes about a second
    after a warm-up; the result is median and quartiles in milliseconds, and images per second from the median.
    """
    predictor = opened.predictor.as_predicting()
    preprocessing = predictor.preprocessing
    rows: list[SpeedRow] = []
    for i, batch in enumerate((1, 16)):
        shape = (batch, *preprocessing.shape)
        images = torch.zeros(shape, device=predictor.device).contiguous(memory_format=torch.channels_last)
        step = inference_step(predictor.model, images, "fp32")
        taken = in_turns({batch: step}, predictor.device, seconds=_TIMING_SECONDS, rounds=(5, 200))[batch].ms
        low, middle, high = quartiles(taken)
        row: SpeedRow = {
            "batch": batch,
            "ms": middle,
            "ms_low": low,
            "ms_high": high,
            "steps": len(taken),
            "images_per_second": 1000 * batch / middle,
        }
        rows.append(row)
        progress(i + 1, 2)
    form = form_of(predictor.model, predictor.precision)
    return {"device": device_name(predictor.device), "threads": torch.get_num_threads(), "form": form, "rows": rows}
