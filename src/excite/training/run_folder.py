"""The files of a run folder: metrics and curves."""

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard, cast

from excite.errors import ExciteError, install_line
from excite.files import append_text, from_json, to_json, told, write_text
from excite.measures import MEASURES, MeasureName, rank
from excite.pages.figures import COLORS, style, write
from excite.runtime.meeting import folder_of_job
from excite.storage.identity import is_blank
from excite.storage.runs import begin_in
from excite.training.results import Record


def new_run_folder(parent: Path, name: str) -> Path:
    """Create ``parent/name-YYYYMMDD-HHMMSS`` (with a number appended if it exists), with the identity of a new run.
    Raises ExciteError."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        folder = parent / (f"{name}-{stamp}" + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                raise ExciteError(f"{parent} is a file; give a folder for the runs") from None
            continue
        except OSError as error:
            raise ExciteError(f"the run folder {folder} cannot be created: {error.strerror or error}") from None
        begin_in(folder)
        return folder
    raise ExciteError(f"no free name for a run folder in {parent}; give another folder for the runs")


def choose_run_folder(name: str, out: Path, run_dir: Path | None) -> Path:
    """The folder for a new or resumed run: ``run_dir``, the folder of this job if it was restarted, or a new one.

    Args:
        name: first part of a new folder's name.
        out: parent of a new folder.
        run_dir: a folder to start in, or to resume in if it holds a run. What a kill left while the folder was begun
            is no obstacle: the run is begun anew in it.

    Raises:
        ExciteError: the folder cannot be created, or holds something other than a run.
    """
    if run_dir is None:
        return folder_of_job(lambda: new_run_folder(out, name))
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        blank = is_blank(run_dir)
    except OSError as error:
        raise ExciteError(f"the run folder {run_dir} cannot be created: {error.strerror or error}") from None
    if blank:
        begin_in(run_dir)
    elif not (run_dir / "recipe.yaml").is_file():
        raise ExciteError(f"{run_dir} is neither empty nor a run folder (it has no recipe.yaml); give a new folder")
    return run_dir


class Metrics:
    """Writes ``metrics.jsonl``, one JSON object per line, and TensorBoard events on request."""

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ExciteError(f"log.tensorboard needs TensorBoard: {install_line('track')}") from None
            self._writer = SummaryWriter(str(folder / "tensorboard"))

    def rewind(self, step: int, evaluated: int) -> int:
        """Drop the lines that a resumed run will write again, and damaged lines.

        Args:
            step: the step that is resumed from; lines after it are dropped.
            evaluated: the last step whose evaluation is done; those after it are dropped.

        Returns:
            The number of damaged lines, not counting the last one, which a kill may leave half-written.
        """
        records, damaged = _read_lines(self.path)
        kept = [r for r in records if r["step"] <= (evaluated if r["kind"] == "eval" else step)]
        write_text(self.path, "".join(to_json(r) + "\n" for r in kept))
        return damaged

    def write(self, record: Record) -> None:
        """Append one record; it has a ``kind`` ("train" or "eval") and a ``step``."""
        append_text(self.path, to_json(record) + "\n", create=False)
        if self._writer is not None:
            with told(self.path.with_name("tensorboard")):
                for key, value in record.items():
                    if isinstance(value, int | float) and key not in ("step", "epoch"):
                        self._writer.add_scalar(f"{record['kind']}/{key}", value, record["step"])
                self._writer.flush()


def read_metrics(path: Path) -> list[Record]:
    """The records of a ``metrics.jsonl``, without damaged lines (a kill may cut off the last one)."""
    return _read_lines(path)[0]


def usual_ms(records: Sequence[Record]) -> float | None:
    """Median milliseconds per step over all records of training but warm-ups; None if there are none."""
    trained = [record for record in records if record["kind"] == "train" and not record.get("warm_up")]
    usual = [ms for record in trained if (ms := record.get("ms_per_step")) is not None]
    return statistics.median(usual) if usual else None


def _read_lines(path: Path) -> tuple[list[Record], int]:
    """The records, and how many lines before the last one are damaged."""
    if not path.is_file():
        return [], 0
    records, damaged = [], 0
    # A disk that lost its last block leaves bytes that are not UTF-8; they count as a damaged line.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = from_json(line)
        except ValueError:
            record = None
        if is_record(record):
            records.append(record)
        else:
            damaged += number < len(lines)
    return records, damaged


#: Keys that every record of a kind has; the value is None if a measure does not apply or is not finite.
_KEYS = {"train": ("epoch", "loss", "lr"), "eval": ("epoch", "loss", "top1")}
#: Numbers that a record may have; whoever reads one asks with ``get``.
_MEASURES = (
    *("top5", "images", "accuracy", "images_per_second", "ms_per_step", "data_wait", "compile_seconds", "memory_gb"),
    *("loss_scale", "seconds", "seconds_left", "not_finite", *MEASURES),
)


def is_record(record: Any) -> TypeGuard[Record]:
    """Whether this is a valid record of ``metrics.jsonl``: it has the keys of its kind, and its values are numbers."""
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0:
        return False
    if not isinstance(record.get("kind"), str):
        return False
    keys = _KEYS.get(record["kind"], ())
    if any(key not in record for key in keys) or type(record.get("epoch", 0)) not in (int, float):
        return False
    if record["kind"] == "eval" and record["top1"] is None:  # every evaluation has it
        return False
    usual = {key: record[key] for key in (*keys, *_MEASURES) if key in record}
    return all(type(value) in (int, float, type(None)) for value in usual.values())


def draw_curves(run: Path, title: str, metric: MeasureName = "top1") -> Path | None:
    """Plot loss, accuracy and learning rate over the epochs into ``curves.png``. None if there is nothing to plot.

    With several labels an image, mAP and micro F1 are drawn in the place of accuracies.

    The measure that chooses the best epoch is drawn, too, with its best evaluation marked.

    The colours are from Okabe & Ito's palette, which colour-blind readers can tell apart.
    """
    from matplotlib.figure import Figure

    records = read_metrics(run / "metrics.jsonl")
    train = [r for r in records if r["kind"] == "train"]
    evals = [r for r in records if r["kind"] == "eval"]
    if not train:
        return None

    def plot(axis: Any, rows: Sequence[Mapping[str, Any]], key: str, label: str, color: str, width: int) -> None:
        known = [(r["epoch"], r[key]) for r in rows if r.get(key) is not None]
        if known:
            axis.plot(*zip(*known, strict=True), label=label, color=color, linewidth=width)
            axis.legend(frameon=False)

    with style():
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        loss, accuracy, rate = figure.subplots(1, 3)
        plot(loss, train, "loss", "training", COLORS[1], 1)
        plot(loss, evals, "loss", "validation", COLORS[2], 2)
        several = any("threshold" in r for r in evals)
        if several:
            plot(accuracy, evals, "map", "validation: mAP", COLORS[2], 2)
            plot(accuracy, evals, "micro_f1", "validation: micro F1", COLORS[5], 1)
        else:
            plot(accuracy, train, "accuracy", "training", COLORS[1], 1)
            plot(accuracy, evals, "top1", "validation", COLORS[2], 2)
        measure, of_loss, main = MEASURES[metric], metric == "loss", ("map" if several else "top1", "loss")
        if metric not in main:
            plot(accuracy, evals, metric, f"validation: {measure.label}", COLORS[4], 2)
        plot(rate, train, "lr", "learning rate", COLORS[3], 2)
        evals = [r for r in evals if r.get("images") is None or (r.get("not_finite") or 0) < r["images"]]
        known = [r for r in evals if cast(Mapping[str, Any], r).get(metric) is not None]
        if known:
            best = cast(Mapping[str, Any], max(known, key=lambda r: rank(r, metric)))
            place = (best["epoch"], best[metric])
            panel, color = loss if of_loss else accuracy, COLORS[2] if metric in main else COLORS[4]
            panel.plot(*place, "o", color=color)
            text = measure.text(best[metric])
            panel.annotate(text, place, (0, 12 if of_loss else -18), textcoords="offset points", ha="right")
        first = "mAP and micro F1" if several else "top-1 accuracy"
        shown = f"{first}, %" if metric in main else f"{first} and {measure.label}, %"
        for axis, label in ((loss, "loss"), (accuracy, shown), (rate, "learning rate")):
            axis.set(xlabel="epoch", title=label)
            axis.grid(alpha=0.3)
        figure.suptitle(title)
        return write(figure, run / "curves.png")
