"""The runs that are compared: what each is, what its folder tells, and what it says about every image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from torch import nn

from excite.data import DataSets
from excite.errors import ExciteError
from excite.gates import Gate
from excite.models.grafting.wrapper import Grafted
from excite.models.listening import foreign_gates
from excite.models.summary import count_macs
from excite.progress import Progress
from excite.recipe import Recipe, apply_overrides
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
        label: what it is called everywhere.
        source: what was asked for.
        meta: the header of its weights.
        gate: the names of its gates, "unknown" where another library may have built some in; None without any.
        params, gmacs: trained parameters; multiply-accumulates of an image, 1e9 (None where they cannot be counted).
        body: name and shape of every tensor that belongs to no gate: equal for networks that differ in gates only.
        weights: sha256 (hex) of the weights.
        recipe: what it was trained by, defaults filled in; None for weights from elsewhere.
        results: ``results.json``; None where the run is unfinished or there is no run folder.
        records: ``metrics.jsonl``.
        started: whether there is a run folder.
        predictions: for all validation images; None where they cannot be had, for the reason in ``problem``.
        data: the images; None where only stored predictions were there.
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
    problem: str | None = None

    @property
    def unfinished(self) -> bool:
        """Whether it has a run folder without results."""
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
    device: str = "auto",
    precision: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Everything about one run; its predictions are made, or read back where they are stored and still hold.

    Args:
        source: run folder, checkpoint or another system's weights.
        label: what to call it.
        overrides: ``data.key=value`` strings.
        device, precision: see ``excite.trained.opened.open_trained``.
        progress: called with ("predicting LABEL", images done, images in all).

    Raises:
        ExciteError: there are no weights at ``source``, or an override is wrong. Data that is not there is no error.
    """
    advance = None if progress is None else lambda done, total: progress(f"predicting {label}", done, total)
    opened = open_trained(source, overrides, device=device, precision=precision)
    predictor = opened.predictor
    meta = predictor.meta
    predictions = data = problem = None
    try:
        predictions, data = predictions_of(opened, advance), opened.data
    except ExciteError as error:
        Recipe.from_dict(apply_overrides(predictor.meta["recipe"], overrides), source)  # raises where it was that
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
        problem=problem,
    )


def _folder(source: str) -> Path | None:
    """The run folder, fetched where it is at an address; None where the source is something else."""
    if is_remote(source):
        try:
            return run_folder(local_run(source))
        except ExciteError:  # the address of a weights file
            return None
    return run_folder(source)


def _stored(folder: Path, weights: str, precision: str) -> Predictions | None:
    """Predictions of these very weights; which images they are of, they say themselves."""
    found = Predictions.read(folder / FILE)
    return found if found is not None and (found.weights, found.precision) == (weights, precision) else None


def _gate(model: nn.Module) -> str | None:
    """The names of its gates: of ours, also grafted into another library's network, and of those of that library."""
    spec = getattr(model, "gate_spec", None)
    found = [spec["name"]] if spec is not None else [m.spec["name"] for m in model.modules() if isinstance(m, Grafted)]
    return " + ".join(dict.fromkeys([*found, *foreign_gates(model)])) or None


def _gmacs(predictor: Predictor) -> float | None:
    try:
        return round(count_macs(predictor.model) / 1e9, 6)  # type: ignore[arg-type]
    except Exception:  # a foreign network may do what the meta device cannot
        return None


def _body(model: nn.Module) -> frozenset[tuple[str, tuple[int, ...]]]:
    gates = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Gate))
    return frozenset((name, tuple(v.shape)) for name, v in model.state_dict().items() if not name.startswith(gates))


def _recipe(meta: Meta) -> RecipeMeta | None:
    if "converted_from" in meta:  # the recipe in there is only the nearest of ours
        return None
    try:
        return cast(RecipeMeta, Recipe.from_dict(meta["recipe"]).model_dump(mode="json"))
    except ExciteError:  # of another version: as it is written
        return meta["recipe"].copy()


def _read_results(folder: Path | None) -> Results | None:
    if folder is None or not (folder / "results.json").is_file():
        return None
    return read_results(folder / "results.json")


# --- which runs, and their names ------------------------------------------------------------------------------------
