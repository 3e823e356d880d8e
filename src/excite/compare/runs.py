"""The runs to be compared: the networks, the contents of their run folders, and their predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from torch import nn

from excite.compare.labels import Labelled
from excite.data import DataSets
from excite.errors import ExciteError
from excite.gates import Gate
from excite.models.grafting.wrapper import Grafted
from excite.models.listening import foreign_gates
from excite.models.summary import count_macs
from excite.progress import Progress
from excite.recipe import Recipe, apply_overrides, elsewhere
from excite.storage import is_remote, local_run
from excite.trained.opened import open_trained
from excite.trained.predictions import FILE, Predictions, predictions_of
from excite.trained.predictor import Predictor
from excite.training.results import EvalRecord, Record, Results, read_results
from excite.training.run_folder import read_metrics
from excite.weights.header import Meta, RecipeMeta
from excite.weights.locate import run_folder


@dataclass
class Run:
    """One of the networks.

    Attributes:
        label: its name in all output.
        source: the run folder, checkpoint or address, as given.
        meta: the header of its weights.
        gate: the names of its gates; "unknown" if another library may have built some; None without gates.
        params: number of trained parameters.
        gmacs: 1e9 multiply-accumulates per image; None if they cannot be counted.
        body: name and shape of every tensor outside gates; equal for networks that differ only in gates.
        weights: sha256 (hex) of the weights.
        recipe: the recipe of its training, with defaults; None for converted weights.
        results: ``results.json``; None if the run is unfinished or there is no run folder.
        records: ``metrics.jsonl``.
        started: whether there is a run folder.
        predictions: predictions for all validation images; None if they are not available.
        data: the data; None if the predictions were stored and the data are not available.
        several: whether images may have several labels each (``task=multilabel``).
        labelled: with several labels, what is computed from the predictions.
        problem: why the network could not be evaluated; None if it was.
    """

    label: str
    source: str
    meta: Meta
    gate: str | None
    params: int
    gmacs: float | None
    body: frozenset[tuple[str, tuple[int, ...]]]
    weights: str
    recipe: RecipeMeta | None
    results: Results | None = None
    records: list[Record] = field(default_factory=list)
    started: bool = False
    predictions: Predictions | None = None
    data: DataSets | None = None
    several: bool = False
    labelled: Labelled | None = None
    problem: str | None = None

    @property
    def unfinished(self) -> bool:
        """Whether there is a run folder without results."""
        return self.started and self.results is None

    @property
    def evaluations(self) -> list[EvalRecord]:
        """The validation records of its training."""
        return [r for r in self.records if r["kind"] == "eval"]


def read_run(
    source: str,
    label: str,
    overrides: Sequence[str] = (),
    *,
    like: Run | None = None,
    device: str = "auto",
    precision: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Read everything about one run; predictions are computed, or read if they are stored and still valid.

    Args:
        source: run folder, checkpoint or another library's weights.
        label: its name in all output.
        overrides: ``data.key=value`` strings.
        like: a run that it is compared with.
        device, precision: see ``excite.trained.opened.open_trained``.
        progress: called with ("predicting LABEL", images done, images in total).

    Raises:
        ExciteError: there are no weights at ``source``, an override is wrong, or images have several labels in one of
            this and ``like`` and one in the other. Missing data are not an error.
    """
    advance = None if progress is None else lambda done, total: progress(f"predicting {label}", done, total)
    opened = open_trained(source, overrides, device=device, precision=precision)
    predictor = opened.predictor
    if like is not None and like.several != predictor.several:
        one, more = (source, like.source) if like.several else (like.source, source)
        raise ExciteError(
            f"{more} was trained on images with several labels each (task=multilabel) and {one} on images with one "
            "class each; compare runs of the same task"
        )
    meta = predictor.meta
    predictions = data = problem = None
    try:
        predictions, data = predictions_of(opened, advance), opened.data
    except ExciteError as error:
        trained = Recipe.from_dict(meta["recipe"], source)
        words = elsewhere(trained.data, overrides)
        Recipe.from_dict(apply_overrides(meta["recipe"], words), source)  # raises if an override was the reason
        problem = str(error)
    folder = _folder(source)
    weights = opened.weights
    if predictions is None and folder is not None and not overrides:
        predictions = _stored(folder, weights, predictor.precision)
    return Run(
        label=label,
        source=source,
        meta=meta,
        gate=_gate(predictor.model),
        params=sum(p.numel() for p in predictor.model.parameters()),
        gmacs=_gmacs(predictor),
        body=_body(predictor.model),
        weights=weights,
        recipe=_recipe(meta),
        results=_read_results(folder),
        records=[] if folder is None else read_metrics(folder / "metrics.jsonl"),
        started=folder is not None,
        predictions=predictions,
        data=data,
        several=predictor.several,
        labelled=None if predictions is None or not predictor.several else Labelled(predictions, predictor.threshold),
        problem=problem,
    )


def _folder(source: str) -> Path | None:
    """The run folder, downloaded if at an address; None if the source is not a run."""
    if is_remote(source):
        try:
            return run_folder(local_run(source))
        except ExciteError:  # the address of a weights file
            return None
    return run_folder(source)


def _stored(folder: Path, weights: str, precision: str) -> Predictions | None:
    """Stored predictions, if made with these weights and this precision; they name their images themselves."""
    found = Predictions.read(folder / FILE)
    return found if found is not None and (found.weights, found.precision) == (weights, precision) else None


def _gate(model: nn.Module) -> str | None:
    """The names of its gates: excite's, including grafted ones, and those of another library."""
    spec = getattr(model, "gate_spec", None)
    found = [spec["name"]] if spec is not None else [m.spec["name"] for m in model.modules() if isinstance(m, Grafted)]
    return " + ".join(dict.fromkeys([*found, *foreign_gates(model)])) or None


def _gmacs(predictor: Predictor) -> float | None:
    try:
        return round(count_macs(predictor.model) / 1e9, 6)  # type: ignore[arg-type]
    except Exception:  # another library's network may use operations that the meta device lacks
        return None


def _body(model: nn.Module) -> frozenset[tuple[str, tuple[int, ...]]]:
    gates = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Gate))
    return frozenset((name, tuple(v.shape)) for name, v in model.state_dict().items() if not name.startswith(gates))


def _recipe(meta: Meta) -> RecipeMeta | None:
    if "converted_from" in meta:  # that recipe is only the closest one of excite
        return None
    try:
        return cast(RecipeMeta, Recipe.from_dict(meta["recipe"]).model_dump(mode="json"))
    except ExciteError:  # from another version: unchanged
        return meta["recipe"].copy()


def _read_results(folder: Path | None) -> Results | None:
    if folder is None or not (folder / "results.json").is_file():
        return None
    return read_results(folder / "results.json")


# --- which runs, and their names ------------------------------------------------------------------------------------
