"""``excite explain``: from a trained network to tables and figures."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict, cast

from torch import Tensor

from excite.choices import ABLATIONS, check_choice
from excite.data.decode import BadImageError
from excite.errors import ExciteError
from excite.explain.ablation import (
    Ablation,
    AblationValues,
    GateTiming,
    Images,
    Outcome,
    ablate_gates,
    compare_outcomes,
    estimate_ablations,
    judge,
    time_without_gates,
)
from excite.explain.images import ExplainedImage, ImageValues, check_class, check_layer, explain_image
from excite.explain.rows import GateColumns, GatePrice, GateRow, GateSaving
from excite.explain.statistics import ScaleStatistics, collect_scales
from excite.files import check_new_folder, write_json, write_text, written_aside
from excite.logits import NoFiniteLogits, sentence
from excite.measures import named
from excite.models.listening import check_gates, fixed_gates, outer_gates
from excite.pages.figures import dispensable
from excite.pages.inline import Cell, Thumbnail, show_table
from excite.pages.pictures import bands_shown
from excite.pages.tables import to_csv
from excite.progress import Progress
from excite.recipe import Overrides
from excite.text import printable
from excite.trained.opened import Opened, open_trained
from excite.trained.predictor import Predictor

#: The columns of gates.csv, in order.
SCALARS = tuple(GateColumns.__annotations__)

#: If the interval of the cost of gates exceeds this many points of top-1, a note says so.
CLEAR_POINTS = 1.0


class BadImage(TypedDict):
    """An image that cannot be explained, and why."""

    path: str
    reason: str


class ExplanationValues(TypedDict):
    """An :class:`Explanation` as JSON: ``explain.json``.

    Attributes:
        ms: milliseconds of a pass with all gates.
        together_saved_ms: milliseconds saved without the gates that could go.
    """

    source: str
    model: str
    images: int
    not_finite: int
    top1: float | None
    max_drop: float
    gates: list[GateRow]
    together: AblationValues | None
    ms: float | None
    timed: str | None
    together_saved_ms: float | None
    explained: list[ImageValues]
    bad_images: list[BadImage]
    notes: list[str]


@dataclass
class Explanation:
    """The result of :func:`explain`.

    Attributes:
        source: the run folder or checkpoint.
        model: name of the model.
        classes: class names of the network.
        images: number of images in the statistics; 0 without data.
        not_finite: number of these images without finite logits, which count as wrong (see ``excite.logits``).
        top1: top-1 on these images in percent, with several labels an image mAP; None if not measured.
        several: whether images may have several labels, so that mAP stands for top-1 in all numbers.
        rows: one row per gate, see docs/explain.md; empty without data.
        together: the cost of fixing all gates that could go at once; None if there are none, or if not evaluated.
        timing: the result of ``time_without_gates``: the whole network, each gate, and those of ``together``; or empty.
        timed: the form in which the network was timed: whether batch norms were folded, and the precision; "" if it was
            not timed.
        max_drop: percentage points of top-1 (with several labels an image, mAP) that the gates that could go may cost
        together.
        statistics: gate name -> statistics; empty without data.
        explained: the explained images.
        bad: (path, reason) of images that could not be explained.
        notes: notes for the user, one sentence each.
        drawn_classes: classes in the figures; if empty, up to five, spread evenly over those with images.
        drawn_gates: gates in the figures; if empty, up to nine, spread evenly over the depth.
        folder: the folder written to, if any.
    """

    source: str
    model: str
    classes: list[str]
    images: int = 0
    not_finite: int = 0
    top1: float | None = None
    several: bool = False
    rows: list[GateRow] = field(default_factory=list)
    together: Ablation | None = None
    timing: list[GateTiming] = field(default_factory=list)
    max_drop: float = 0.0
    timed: str = ""
    statistics: dict[str, ScaleStatistics] = field(default_factory=dict)
    explained: list[ExplainedImage] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    drawn_classes: list[str] = field(default_factory=list)
    drawn_gates: list[str] = field(default_factory=list)
    folder: Path | None = None

    @property
    def measure(self) -> str:
        """What accuracies are of: "top-1" or "mAP"."""
        return "mAP" if self.several else "top-1"

    @property
    def accuracy(self) -> str:
        """ ", top-1 91.20 %" for titles; "" if it was not measured."""
        return "" if self.top1 is None else f", {self.measure} {self.top1:.2f} %"

    def to_dict(self) -> ExplanationValues:
        """All values for JSON, without maps and pictures; with several labels an image, see :func:`named`."""
        together = None if self.together is None else cast(AblationValues, dataclasses.asdict(self.together))
        timed = self.together is not None and bool(self.timing) and self.timing[-1]["gates"]
        values: ExplanationValues = {
            "source": self.source,
            "model": self.model,
            "images": self.images,
            "not_finite": self.not_finite,
            "top1": self.top1,
            "max_drop": self.max_drop,
            "gates": [cast(GateRow, named(row, self.several)) for row in self.rows],
            "together": None if together is None else cast(AblationValues, named(together, self.several)),
            "ms": self.timing[0]["ms"] if self.timing else None,
            "timed": self.timed or None,
            "together_saved_ms": self.timing[-1]["saved_ms"] if timed else None,
            "explained": [image.to_dict() for image in self.explained],
            "bad_images": [{"path": path, "reason": reason} for path, reason in self.bad],
            "notes": self.notes,
        }
        return cast(ExplanationValues, named(values, self.several))

    def to_csv(self) -> str:
        """The scalar columns as CSV, one line per gate."""
        columns = tuple(named(dict.fromkeys(SCALARS), self.several))
        return to_csv([named(row, self.several) for row in self.rows], columns)

    def write(self, folder: Path) -> Path:
        """Write tables and figures into a new folder, atomically. A note reports figures that cannot be drawn.

        Raises:
            ExciteError: the folder exists or cannot be written.
        """
        check_new_folder(folder)
        with written_aside(folder) as aside:
            aside.mkdir(parents=True)
            write_json(aside / "explain.json", self.to_dict())
            if self.statistics:
                write_text(aside / "gates.csv", self.to_csv())
                with dispensable("the gates", self.notes.append):
                    self._draw(aside)
            self._draw_images(aside)
            write_json(aside / "explain.json", self.to_dict())  # with notes about failed figures
        self.folder = folder
        return folder

    def _repr_html_(self) -> str:
        heads = [
            "gate",
            "channels",
            "mean scale",
            "sd over images",
            "constant",
            f"{self.measure} points lost if fixed",
            "could go",
        ]
        rows = [
            [
                row["gate"],
                str(row["channels"]),
                f"{row['mean']:.3f}",
                f"{row['sd_images']:.3f}",
                str(len(row["constant"])),
                "-" if row["top1_lost"] is None else f"{row['top1_lost']:+.2f}",
                "yes" if row["could_go"] else "",
            ]
            for row in self.rows
        ]
        notes = [*self.notes, *([f"written: {self.folder}/"] if self.folder else [])]
        parts = [show_table(heads, rows, title=f"{self.model}: {self.images:,} images{self.accuracy}", notes=notes)]
        if self.explained:
            images: list[list[Cell]] = [
                [
                    Thumbnail(each.pixels.permute(1, 2, 0).numpy(), each.path),
                    each.path,
                    "  ".join(f"{name} {100 * share:.1f} %" for name, share in each.top),
                ]
                for each in self.explained
            ]
            parts.append(show_table(["", "image", "classes"], images))
        return "".join(parts)

    def _draw(self, folder: Path) -> None:
        from excite.explain.figures import choose_depths, draw_excitations, draw_health, draw_spread

        count = next(iter(self.statistics.values())).count
        present = [name for k, name in enumerate(self.classes) if count[k] > 0]
        numbers = [self.classes.index(name) for name in self.drawn_classes or choose_depths(present, 5)]
        chosen = {name: self.statistics[name] for name in self.drawn_gates or choose_depths(list(self.statistics))}
        images = f"{self.images:,} images"
        title = f"{self.model}: mean scale of each channel by class, {images}"
        draw_excitations(chosen, self.classes, numbers, folder / "excitations", title)
        title = f"{self.model}: scales over the images of one class"
        draw_spread(chosen, self.classes, numbers[:2], folder / "spread", title)
        goes = " (○ could go)" if any(row["could_go"] for row in self.rows) else ""
        title = f"{self.model}: gates on {images}{self.accuracy}{goes}"
        draw_health(self.rows, folder / "health", title, self.measure)

    def _draw_images(self, folder: Path) -> None:
        from excite.explain.image_figure import draw_image

        taken: set[str] = set()
        for explained in self.explained:
            stem = re.sub(r"\\|[^\w .-]", "_", printable(Path(explained.path).stem))[:80]
            name = next(
                n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(self.explained) + 2))) if n not in taken
            )
            taken.add(name)
            with dispensable(f"{name}.png", self.notes.append):
                draw_image(explained, folder / "images" / f"{name}.png")


def explain(
    source: str | Path | Opened,
    images: Sequence[str] = (),
    overrides: Overrides = (),
    *,
    limit: int = 2000,
    ablation: str = "full",
    timing: bool = True,
    batch: int = 16,
    max_drop: float = 0.1,
    target: str | None = None,
    layer: str | None = None,
    top_k: int = 5,
    drawn_classes: Sequence[str] = (),
    drawn_gates: Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
) -> Explanation:
    """Study what the gates of a trained network do, on a data set and for single images.

    Args:
        source: a run folder or a checkpoint, as for ``excite.load``; or an opened network with its images, in its own
            precision.
        images: image files to explain individually.
        overrides: ``data.key=value`` strings, for example ``data.root=/other/images``; see ``load_recipe``.
        limit: validation images (class-balanced, seeded) for statistics and accuracy; 0: use no data.
        ablation: "full" evaluates the network with each gate fixed at its mean; "estimate" is a first-order estimate in
            one pass; "off" does neither.
        timing: whether to time the network without each gate.
        batch: batch size for timing.
        max_drop: percentage points of top-1 (with several labels an image, mAP) that the gates marked ``could_go`` may
        cost together.
        target: the class for Grad-CAM; None: the most likely class of each image.
        layer: the module for Grad-CAM; None: the last one that outputs a map.
        top_k: classes to list per image.
        drawn_classes: classes to show in the figures; by default some are chosen.
        drawn_gates: gates to show in the figures; by default some are chosen.
        device: "auto", "cpu", "cuda" ...
        precision: "auto" (that of the training), "fp32", "bf16" or "fp16".
        progress: called with (current step, units done, units in total).

    Raises:
        ExciteError: the network has no gates, no such class, layer or gate; or the data cannot be opened, if they are
            required (there are overrides, or no images).
    """
    check_choice("ablation", ablation, ABLATIONS)
    if limit < 0 or max_drop < 0 or batch < 1:
        raise ExciteError("limit and max_drop must be at least 0, and batch at least 1")
    if limit == 0 and not images:
        raise ExciteError("there is nothing to explain without data and images: name images, or set limit above 0")
    if isinstance(source, Opened):
        opened = source
    else:
        own = None if precision == "auto" else precision  # None: that of the training
        opened = open_trained(source, overrides, device=device, precision=own, limits={"limit_val": limit})
    predictor = opened.predictor
    check_gates(drawn_gates, list(outer_gates(predictor.model)))
    if layer is not None:
        check_layer(layer, predictor.model)
    studied, notes = False, list[str]()
    if limit:
        try:
            notes += opened.data.notes
            studied = True
        except ExciteError as error:
            if overrides or not images:
                raise
            notes.append(f"scales are not compared with their means, because the data cannot be opened: {error}")
    for name in (*drawn_classes, *([] if target is None else [target])):
        check_class(name, predictor.classes)  # after the data, which supply class names if the network has only numbers
    model = predictor.meta["model"]["name"]
    result = Explanation(opened.source, model, predictor.classes, max_drop=max_drop, notes=notes)
    result.several = predictor.several
    result.drawn_classes, result.drawn_gates = list(drawn_classes), list(drawn_gates)
    tell = progress or (lambda what, done, total: None)
    if studied:
        _study(result, opened, ablation, timing, batch, tell)
    if images and (said := bands_shown(predictor.preprocessing.in_chans)):
        notes.append(said)
    for i, path in enumerate(images):
        try:
            explained = explain_image(predictor, path, result.statistics, target=target, layer=layer, top_k=top_k)
            result.explained.append(explained)
        except BadImageError as error:
            result.bad.append((str(path), error.reason))
        except NoFiniteLogits as error:
            result.bad.append((str(path), str(error)))
        tell("explaining images", i + 1, len(images))
    return result


def _study(result: Explanation, opened: Opened, ablation: str, timing: bool, batch: int, tell: Progress) -> None:
    """Fill ``result`` with the study on the data."""
    predictor, batches, count = opened.predictor, opened.batches, len(opened.data.val)
    without: list[int] = []
    statistics = collect_scales(predictor, batches(), partial(tell, "collecting scales"), count, without)
    result.statistics = statistics
    some = next(iter(statistics.values()))
    result.images = some.images + some.not_finite
    result.not_finite = len(without)
    if told := sentence(len(without), result.images, opened.name_of(without[0]) if without else None):
        result.notes.append(told)
    for name, found_scales in statistics.items():
        if found_scales.not_finite:
            result.notes.append(
                f"{name} has no finite scales for {found_scales.not_finite:,} of {result.images:,} images; its "
                "statistics are over the others"
            )
    for name in result.drawn_classes:
        if not some.count[predictor.classes.index(name)]:
            raise ExciteError(f"none of the {some.images} images used is of the class {name!r}")
    means = {name: found.overall_mean() for name, found in statistics.items()}
    ablations: dict[str, Ablation] = {}
    if ablation == "full":
        before = judge(predictor, batches())
        result.top1 = before.top1
        found = ablate_gates(
            predictor,
            batches,
            means,
            before=before,
            progress=partial(tell, "fixing each gate at its mean"),
            total=count,
        )
        ablations = {each.gates[0]: each for each in found}
        result.together = _most_together(predictor, batches, means, found, before, result.max_drop, tell)
        most = None if result.together is None else result.together.high
        if most is not None and most > CLEAR_POINTS:
            result.notes.append(
                f"{result.images:,} images are too few to tell which gates could go: those marked may cost up to "
                f"{most:.1f} points of {result.measure} together"
            )
    elif ablation == "estimate":
        ablations = {
            a.gates[0]: a
            for a in estimate_ablations(
                predictor, batches(), means, partial(tell, "estimating the effect of each gate"), count
            )
        }
    if timing:
        from excite.models.folding import form_of

        groups: list[Sequence[str]] = [[name] for name in means]
        groups += [result.together.gates] if result.together is not None else []
        result.timed = form_of(predictor.model, predictor.precision)
        result.timing = time_without_gates(
            predictor, groups, batch=batch, progress=partial(tell, "timing the network without each gate")
        )
    going = result.together.gates if result.together is not None else ()
    gates = outer_gates(predictor.model)
    for i, (name, found_scales) in enumerate(statistics.items()):
        timed = result.timing[i + 1] if result.timing else None
        row: GateRow = {
            "gate": name,
            "kind": type(gates[name]).__name__,
            "parameters": sum(p.numel() for p in gates[name].parameters()),
            **found_scales.to_dict(),
            **_price(ablations.get(name)),
            **_saving(timed, batch),
            "could_go": name in going if ablation == "full" else None,
        }
        result.rows.append(row)
    if all(len(row["constant"]) == row["channels"] for row in result.rows):
        result.notes.append(
            "all channels of all gates are constant, as they are right after grafting: train the network"
        )


def _most_together(
    predictor: Predictor,
    batches: Images,
    means: Mapping[str, Tensor],
    alone: Sequence[Ablation],
    before: Outcome,
    max_drop: float,
    tell: Progress,
) -> Ablation | None:
    """The largest set of gates, cheapest first, that costs at most ``max_drop`` points if all are fixed; by bisection.

    Gates that cost nothing alone may cost much together, because gates compensate for each other.
    """
    # Ordered by loss: top-1 changes in whole images, so an active gate might by chance come before a dead one.
    order = sorted((a for a in alone if _lost(a) <= max_drop), key=_loss_added)
    names = [each.gates[0] for each in order]
    best, low, high, step = (order[0] if order else None), 1, len(names), 0
    steps = high.bit_length()
    while low < high:
        middle = (low + high + 1) // 2
        with fixed_gates(predictor.model, {name: means[name].float() for name in names[:middle]}):
            found = compare_outcomes(names[:middle], before, judge(predictor, batches()))
        if _lost(found) <= max_drop:
            best, low = found, middle
        else:
            high = middle - 1
        step += 1
        tell("fixing several gates together", min(step, steps), steps)
    return best


def _loss_added(ablation: Ablation) -> float:
    return math.inf if ablation.loss_added is None else ablation.loss_added


def _lost(ablation: Ablation) -> float:
    assert ablation.top1_lost is not None
    return ablation.top1_lost


def _price(ablation: Ablation | None) -> GatePrice:
    return {
        "top1_lost": None if ablation is None else ablation.top1_lost,
        "top1_lost_low": None if ablation is None else ablation.low,
        "top1_lost_high": None if ablation is None else ablation.high,
        "loss_added": None if ablation is None else ablation.loss_added,
        "estimated": ablation is not None and ablation.estimated,
    }


def _saving(timed: GateTiming | None, batch: int) -> GateSaving:
    return {
        "saved_ms": None if timed is None else timed["saved_ms"],
        "saved_ms_low": None if timed is None else timed["saved_low"],
        "saved_ms_high": None if timed is None else timed["saved_high"],
        "batch": None if timed is None else batch,
    }
