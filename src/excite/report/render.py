"""The page of a report: shows the numbers of a study, and computes none itself."""

import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from excite.console import format_seconds
from excite.data.bands import COLOURS
from excite.explain import Explanation
from excite.explain.figures import choose_depths, draw_excitations, draw_health
from excite.measures import MEASURES, superlative, uneven, usual_measure
from excite.pages.figures import Undrawn, attempt, dispensable, save, shortened
from excite.pages.page import Card, Column, Page, Picture, Section, format_value, link, mono
from excite.pages.pictures import bands_shown, visible
from excite.recipe import ReportConfig
from excite.report import figures
from excite.report.class_table import class_table
from excite.report.contents import (
    About,
    Common,
    LabelNumbers,
    Numbers,
    Study,
    clean_of,
    mean_of,
    robust_measure,
)
from excite.report.label_page import (
    LABEL_COLUMNS,
    MISTAKES_CAPTION,
    label_cards,
    label_headline,
    label_sections,
    label_summary,
    measured_in_training,
    mistake_lines,
)
from excite.report.reproduce import RECIPE_FILE
from excite.report.study import ClassScores
from excite.runtime.environment import Environment
from excite.text import counted, tell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Pictures with a side below this many pixels are enlarged without smoothing.
SHARP = 96
#: Number of gates whose scales are drawn, spread evenly over the depth.
GATES_DRAWN = 6

SUMMARY_COLUMNS = [
    Column("model", "model"),
    Column("params_m", "params(M)", ".2f"),
    Column("gmacs", "GMACs", ".3f"),
    Column("devices", "devices", "d"),
    Column("batch_size", "batch size", "d"),
    Column("resolution", "resolution"),
    Column("compile_seconds", "compile s", ".1f"),
    Column("ms_per_step", "ms/step", ".2f"),
    Column("images_per_second", "img/s", ",.1f"),
    Column("top1", "acc@top1", ".2f"),
    Column("balanced", "balanced", ".2f", title="the mean of the accuracies of the classes"),
    Column("top5", "acc@top5", ".2f"),
    Column("last_top1", "last top1", ".2f", title="after the last epoch, which was not chosen using these images"),
    Column("recipe", "recipe"),
]


def make_page(study: Study, scratch: Path) -> Page:
    """Build the page of a study.

    Args:
        study: the study.
        scratch: an empty folder for the figures of the gates, which are first written as files.
    """
    numbers = study.numbers
    summary, about = numbers["summary"], numbers["about"]
    page = Page(
        f"{summary['recipe'] or summary['model']}: {summary['model']}",
        _subtitle(numbers),
        f"Written by excite {about['versions']['excite']} (excite report). This page loads nothing from the network.",
        headline=headline(numbers),
    )
    drawn = figures.drawings(numbers)
    _summary(page, numbers)
    _training(page, numbers, drawn)
    if "labels" in numbers:
        label_sections(page, numbers, drawn)
    else:
        _confusion(page, numbers, drawn["confusion"])
        _classes(page, numbers)
        _calibration(page, numbers, drawn["reliability"])
    _mistakes(page, study)
    _robustness(page, numbers, drawn.get("robustness"))
    _gates(page, study, scratch)
    _speed(page, numbers)
    _origin(page, study)
    return page


def write_figures(study: Study, folder: Path) -> list[Path]:
    """Write every figure of the page as PNG and SVG into ``folder``; return their paths.

    A figure that cannot be drawn is reported on standard error.
    """
    written = []
    for name, drawing in figures.drawings(study.numbers).items():
        with dispensable(name, tell):
            written += save(drawing, folder / name)
    if study.explanation is not None:
        names = [name for name, drawn, *_ in _gate_figures(study.explanation, folder) if not isinstance(drawn, Undrawn)]
        written += [folder / f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    return written


def headline(numbers: Numbers | LabelNumbers) -> str:
    """The result in one sentence: "96.4 % of 360 validation images right; 95 % interval 93.9 to 97.9 %; weakest class 9
    (30 of 36)". With fewer than 1,000 images it has only one decimal."""
    if "labels" in numbers:
        return label_headline(numbers, _images(numbers, numbers["labels"]["accuracy"]["images"]))
    accuracy = numbers["accuracy"]
    spec = ".1f" if accuracy["images"] < 1000 else ".2f"
    low, high = f"{accuracy['top1_low']:{spec}}", f"{accuracy['top1_high']:{spec}}"
    parts = [
        f"{accuracy['top1']:{spec}} % of {_images(numbers, accuracy['images'])} right",
        f"{100 * accuracy['confidence']:g} % interval {low} to {high} %",
    ]
    if is_uneven(numbers):
        parts.append(f"balanced accuracy {numbers['classes']['macro']['recall']:{spec}} %")
    return "; ".join([*parts, *_weakest(numbers["classes"]["rows"])])


def _images(numbers: Common, count: int) -> str:
    """ "360 validation images"."""
    return " ".join(filter(None, [f"{count:,}", _measured(numbers), "images"]))


def _weakest(rows: Sequence[ClassScores]) -> list[str]:
    """The class with the lowest recall, or up to three on ties; [] if all are equal."""
    known = [(row["recall"], row) for row in rows if row["recall"] is not None]
    lowest, highest = min(known, key=_first)[0], max(known, key=_first)[0]
    if lowest == highest:
        return []
    last = [row for recall, row in known if recall == lowest]
    if len(last) > 3:
        return [f"{len(last):,} classes are the weakest, at {lowest:.1f} % each"]
    names = [
        f"{shortened(row['class'], 40)} ({round(lowest * row['support'] / 100):,} of {row['support']:,})"
        for row in last
    ]
    return [f"weakest class{'es' if len(names) > 1 else ''} {', '.join(names)}"]


def _first(pair: tuple[float, object]) -> float:
    return pair[0]


def _subtitle(numbers: Common) -> str:
    about = numbers["about"]
    started = (about["environment"] or {}).get("started")
    parts = [
        f"{about['classes']:,} classes",
        f"{about['validation_images']:,} {_measured(numbers)} images",
        *([f"trained {started[:10]}"] if started else []),
    ]
    return " · ".join(parts)


# --- sections ---------------------------------------------------------------------------------------------------------


def _cards(numbers: Numbers) -> list[Card]:
    """Accuracies."""
    accuracy = numbers["accuracy"]
    interval = f"95 %: {accuracy['top1_low']:.2f} to {accuracy['top1_high']:.2f}"
    cards = [Card("top-1 accuracy", f"{accuracy['top1']:.2f} %", interval)]
    if is_uneven(numbers):
        cards.append(Card("balanced accuracy", f"{numbers['classes']['macro']['recall']:.2f} %", "mean over classes"))
    most = accuracy["top5_of"]
    if most < numbers["about"]["classes"]:  # otherwise it is always 100 %
        cards.append(Card(f"top-{most} accuracy", f"{accuracy['top5']:.2f} %", f"{accuracy['images']:,} images"))
    return cards


def _summary(page: Page, numbers: Numbers | LabelNumbers) -> None:
    section = page.section("summary", "Summary")
    summary = numbers["summary"]
    cards = label_cards(numbers) if "labels" in numbers else _cards(numbers)
    cards += [
        Card(
            "parameters",
            f"{format_value(summary['params_m'], '.2f')} M",
            f"{format_value(summary['gmacs'], '.3f')} GMACs per image",
        ),
    ]
    if "labels" not in numbers and numbers["calibration"]["ece"] is not None:
        cards.append(Card("calibration error", f"{numbers['calibration']['ece']:.2f} %", "ECE, top class"))
    if summary.get("test_top1") is not None:
        note = f"{summary['test_images']:,} images, measured once at the end"
        cards.append(Card("test top-1", f"{summary['test_top1']:.2f} %", note))
    if summary.get("test_metric") is not None and summary.get("metric") == "map":
        cards.append(Card("test mAP", f"{summary['test_metric']:.2f} %", "measured once at the end"))
    robust = numbers["robustness"]
    if robust is not None:
        key = robust_measure(robust)
        note = f"mean {MEASURES[key].label}; {clean_of(robust):.2f} % without"
        cards.append(Card("under corruptions", f"{mean_of(robust):.2f} %", note))
    if summary["images_per_second"] is not None:
        note = f"{summary['ms_per_step']:.1f} ms per step of {summary['batch_size']} images"
        cards.append(Card("training", f"{summary['images_per_second']:,.0f} img/s", note))
    section.cards(cards)
    columns = [c for c in SUMMARY_COLUMNS if c.key != "balanced" or summary.get("uneven")]
    if "labels" in numbers:
        columns = [c for c in columns if c.key in summary]
        columns[-1:-1] = LABEL_COLUMNS
    what = "mAP and F1" if "labels" in numbers else "accuracy"
    section.table(columns, [summary], f"Size, speed and {what} of this run")
    if "labels" in numbers:
        label_summary(section, numbers)
    else:
        _how_accurate(section, numbers)
    for sentence in _warnings(numbers):
        section.note(sentence)
    if numbers["about"]["preprocessing"]["in_chans"] not in COLOURS:
        section.note("The robustness was not measured: the corruptions are defined for grey and colour images.")
    for what, why, keys in _not_measured(numbers):
        section.not_measured(what, why, shlex.join(["excite", "report", numbers["about"]["source"], *keys]))
    if numbers["gates"] is None and not numbers["about"]["gated"]:
        section.note(_why_no_gates(numbers["about"]))


def _how_accurate(section: Section, numbers: Numbers) -> None:
    accuracy = numbers["accuracy"]
    section.paragraph(
        f"{accuracy['right']:,} of {accuracy['images']:,} images are classified correctly. The interval is Wilson's; "
        "it covers the choice of images, for this one network. To see how much results vary with the seed, use "
        "excite twins."
    )


def is_uneven(numbers: Numbers) -> bool:
    """Whether balanced accuracy is shown beside top-1."""
    return uneven([row["support"] for row in numbers["classes"]["rows"]])


def _has_curves(numbers: Common) -> bool:
    curves = numbers["curves"]
    return curves is not None and bool(curves["train"] or curves["eval"])


def _not_measured(numbers: Numbers | LabelNumbers) -> list[tuple[str, str, list[str]]]:
    """Parts that were switched off: (what, why, overrides that switch them on)."""
    if "labels" in numbers:
        accuracy = numbers["labels"]["accuracy"]
        wrong = accuracy["exact"] < 100
    else:
        wrong = numbers["accuracy"]["images"] > numbers["accuracy"]["right"] + numbers["accuracy"]["not_finite"]
    absent = [
        (
            "the robustness",
            "robustness_images",
            numbers["robustness"] is None and numbers["about"]["preprocessing"]["in_chans"] in COLOURS,
        ),
        ("the gates", "gate_images", numbers["gates"] is None and numbers["about"]["gated"]),
        ("the most confident mistakes", "mistakes", not numbers["mistakes"] and wrong),
    ]
    return [
        (what, f"report.{key} is 0", [f"report.{key}={ReportConfig.model_fields[key].default}"])
        for what, key, missing in absent
        if missing
    ]


def _measured(numbers: Common) -> str:
    """The kind of images: "validation", "test", "training", or "" for all images of a folder."""
    return {"all": ""}.get(numbers["about"]["measured"], numbers["about"]["measured"])


def _warnings(numbers: Numbers | LabelNumbers) -> list[str]:
    """Notes that a reader must know before reading the numbers."""
    about, summary = numbers["about"], numbers["summary"]
    if "labels" in numbers:
        label, (then, now, last) = "mAP", measured_in_training(numbers)
    else:
        label, (then, now, last) = "top-1", (summary["top1"], numbers["accuracy"]["top1"], summary["last_top1"])
    found = []
    other = about["data_of_training"] not in (None, about["data_fingerprint"])
    if other:
        found.append(
            "These are not the validation images of the training (their fingerprint differs): the table and the curves "
            "come from the training, everything else from the images given."
        )
    elif then is not None and now is not None and abs(then - now) > 1e-9:
        found.append(
            f"{label[:1].upper()}{label[1:]} was {then:.2f} % in training and is {now:.2f} % in the evaluation for "
            "this page: on another device or with other versions, rounding may change the class of a few images."
        )
    if about["warning"]:
        out = "calibration" if "labels" in numbers else "the confusion matrix and of calibration"
        found.append(f"{about['warning']}. They are left out of {out}.")
    unreadable = about["unreadable_images"]
    if unreadable:
        found.append(f"{counted(unreadable, 'image')} could not be read and are not counted anywhere.")
    found += [f"{note[:1].upper()}{note[1:]}." for note in about["notes"]]
    if summary.get("measured") == "test":
        found.append("Measured on the test images throughout the training, so nothing was chosen using them.")
    elif summary["best_epoch"] is not None and not other:
        metric = summary.get("metric") or "top1"
        how = (
            ""
            if metric == usual_measure("multilabel" if "labels" in numbers else None)
            else f" by the {superlative(metric)}"
        )
        found.append(
            f"The weights are those of epoch {summary['best_epoch']:g} of {summary['epochs']}, chosen{how} using "
            f"these same images, so {label} is slightly optimistic"
            + ("." if last is None else f"; after the last epoch it was {last:.2f} %.")
        )
    if summary.get("stopped_early"):
        found.append(
            f"The run ended early, after epoch {summary['last_epoch']:g} of {summary['epochs']}: no evaluation was "
            "better than the best (train.patience)."
        )
    if about["finished"] is False:
        found.append(
            f"This run is not finished: the weights are those of epoch {about['epoch']:g} of "
            f"{about['epochs']}, the best so far. To resume it: `excite train --resume`"
        )
    if not about["is_run"]:
        found.append(
            "This is a checkpoint without a run folder: curves, training speed and environment are not known. To "
            "include them, use the run folder: excite report RUN"
        )
    return found


def _training(page: Page, numbers: Numbers | LabelNumbers, drawn: "Mapping[str, Figure | Undrawn]") -> None:
    curves = numbers["curves"]
    if curves is None or not _has_curves(numbers):
        return
    section = page.section("curves", "Curves")
    evals = curves["eval"]
    metric = numbers["summary"].get("metric") or "top1"
    measure = MEASURES[metric]
    shown = {"loss": "Loss", "accuracy": "Top-1 accuracy", "metric": measure.label, "learning-rate": "Learning rate"}
    section.figures(
        *(page.figure(drawn[name], f"{what} over the epochs") for name, what in shown.items() if name in drawn)
    )
    if evals:
        columns = [Column("epoch", "epoch", "g"), Column("step", "step", "d"), Column("loss", "validation loss", ".4f")]
        if "labels" not in numbers:
            columns += [Column("top1", "top-1 %", ".2f"), Column("top5", "top-5 %", ".2f")]
        columns += [] if measure.usual else [Column("metric", measure.heading, ".2f")]
        section.details("Evaluations as a table").table(columns, evals)


def _confusion(page: Page, numbers: Numbers, drawing: "Figure | Undrawn") -> None:
    section = page.section("confusion", "Confusion matrix")
    confusion = numbers["confusion"]
    labels, block = confusion["labels"], confusion["block"]
    what = "Rows are true classes, columns are predictions; colours show shares of the row."
    if block > 1:
        what = (
            f"Each row and column stands for {block} consecutive classes; colours show shares of the row on a "
            "logarithmic scale. Errors between classes of the same block are on the diagonal."
        )
    section.draw(drawing, f"Confusion matrix of {len(numbers['classes']['rows'])} classes", what, wide=len(labels) > 12)
    if not confusion["pairs"]:
        every = "All images are classified correctly."
        section.paragraph("No image is assigned to a wrong class." if numbers["accuracy"]["not_finite"] else every)
        return
    section.heading("Confused most often")
    columns = [Column("true", "true class"), Column("predicted", "predicted class"), Column("images", "images", "d")]
    columns.append(Column("share", "images / images of the true class, %", ".1f"))
    section.table(columns, confusion["pairs"])


def _classes(page: Page, numbers: Numbers) -> None:
    section = page.section("classes", "Classes")
    rows, macro = numbers["classes"]["rows"], numbers["classes"]["macro"]
    section.paragraph(
        f"Mean over the classes: precision {macro['precision']:.2f} %, recall {macro['recall']:.2f} %, F1 "
        f"{macro['f1']:.2f} %. Recall is the share of a class's images that are predicted as this class, "
        "precision the share of these predictions that are right, and support the number of its images."
    )
    columns = [Column("class", "class"), Column("precision", "precision %", ".2f"), Column("recall", "recall %", ".2f")]
    columns += [Column("f1", "F1 %", ".2f"), Column("support", "support", ",d"), Column("predicted", "predicted", ",d")]
    class_table(section, columns, rows, "f1", "F1")


def _calibration(page: Page, numbers: Numbers, drawing: "Figure | Undrawn") -> None:
    found = numbers["calibration"]
    if found["ece"] is None:  # no image has finite logits; the summary says so
        return
    section = page.section("calibration", "Calibration")
    section.draw(
        drawing,
        "Reliability diagram: accuracy over confidence",
        "Bars below the dashed line: the network is overconfident.",
    )
    section.key_values(
        [
            ("expected calibration error", _unit(found["ece"], ".2f", "%")),
            ("mean confidence", _unit(found["mean_confidence"], ".2f", "%")),
            ("accuracy", f"{numbers['accuracy']['top1']:.2f} %"),
            ("negative log-likelihood", _unit(found["nll"], ".4f", "nats")),
            ("Brier score", _unit(found["brier"], ".4f", "(0 is best, 2 worst)")),
            ("best temperature", format_value(found["temperature"], ".3f")),
        ]
    )
    section.paragraph(
        f"ECE: {found['bins']} bins of equal width, absolute differences weighted by images (L1), of the predicted "
        "class (",
        link("Guo et al. 2017", "https://arxiv.org/abs/1706.04599"),
        ").",
    )
    held = found["held_out"]
    if held is None:
        section.note("No temperature was fitted: there are too few images, or all are classified correctly.")
        return
    section.paragraph(
        f"Dividing the logits by {found['temperature']:.3f} changes no predicted class. It was fitted on "
        f"{held['images_fitted']:,} images (half of each class, seed {held['seed']}). On the other {held['images']:,} "
        f"it takes the ECE from {held['ece_before']:.2f} to {held['ece_after']:.2f} % and the negative log-likelihood "
        f"from {held['nll_before']:.4f} to {held['nll_after']:.4f} nats."
    )


def _mistakes(page: Page, study: Study) -> None:
    rows = study.numbers["mistakes"]
    if not rows:
        return
    section = page.section("mistakes", "Most confident mistakes")
    caption = "In bold: the predicted class and its probability. Images are shown as the network sees them."
    if "labels" in study.numbers:
        caption, told = MISTAKES_CAPTION, [mistake_lines(row) for row in study.numbers["mistakes"]]
    else:
        told = [
            (
                f"{row['true']}, predicted as {row['predicted']}",
                [f"{row['predicted']}, {100 * row['probability']:.1f} %", f"is {row['true']}", row["name"]],
            )
            for row in study.numbers["mistakes"]
        ]
    shown = [
        Picture(encoded(pixels), alt, lines, pixelated=min(pixels.shape[:2]) < SHARP)
        for (alt, lines), pixels in zip(told, study.photographs, strict=True)
    ]
    section.gallery(shown, caption)
    if said := bands_shown(study.numbers["about"]["preprocessing"]["in_chans"]):
        section.note(f"The {said}.")


def encoded(pixels: np.ndarray, most: int = 192) -> bytes:
    """uint8 (H, W, C) -> PNG bytes of a small picture, or JPEG bytes of at most ``most`` pixels a side."""
    from PIL import Image

    image = Image.fromarray(visible(pixels))
    out = io.BytesIO()
    if max(image.size) < SHARP:
        image.save(out, "PNG", optimize=True)
    else:
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
        image.save(out, "JPEG", quality=85)
    return out.getvalue()


def _robustness(page: Page, numbers: Common, drawing: "Figure | Undrawn | None") -> None:
    found = numbers["robustness"]
    if found is None:
        return
    section = page.section("robustness", "Robustness")
    rows, key = found["rows"], robust_measure(found)
    what = {"top1": "Top-1", "map": "mAP"}[key]
    section.draw(
        drawing,
        f"{what}{' accuracy' if key == 'top1' else ''} over the severity of five corruptions",
        f"{found['images']:,} images (class-balanced, seed {found['seed']}).",
    )
    severities = sorted({row["severity"] for row in rows})
    columns = [Column("corruption", "corruption"), Column("clean", "clean", ".2f")]
    columns += [Column(f"s{s}", f"severity {s}", ".2f") for s in severities]
    columns += [Column("strengths", "strengths")]
    lines = []
    for name in dict.fromkeys(row["corruption"] for row in rows):
        own = [row for row in rows if row["corruption"] == name]
        strengths = f"{own[0]['unit']}: {', '.join(format(row['strength'], 'g') for row in own)}"
        lines.append(
            {
                "corruption": name.replace("_", " "),
                "clean": clean_of(found),
                "strengths": strengths,
                **{f"s{row['severity']}": row[key] for row in own},
            }
        )
    if without := sum(row["not_finite"] for row in rows):
        section.note(f"{without:,} evaluations of corrupted images gave no finite logits and count as wrong.")
    section.table(columns, lines, f"{what}, %; mean over all corruptions and severities: {mean_of(found):.2f} %")
    section.paragraph(
        f"Corruptions and strengths are those of {found['strengths_of']} (",
        link("Hendrycks & Dietterich 2019", "https://arxiv.org/abs/1903.12261"),
        "), applied to the network's input after resizing and cropping.",
    )


def _gates(page: Page, study: Study, scratch: Path) -> None:
    found, explanation = study.numbers["gates"], study.explanation
    if found is None or explanation is None:
        return
    section = page.section("gates", "Gates")
    for name, drawn, alt, caption in _gate_figures(explanation, scratch):
        figure = drawn if isinstance(drawn, Undrawn) else (scratch / f"{name}.svg").read_text(encoding="utf-8")
        section.figures(page.figure(figure, alt, caption, wide=True))
    columns = [Column("gate", "gate"), Column("kind", "kind"), Column("channels", "channels", "d")]
    columns += [Column("mean", "mean scale", ".3f"), Column("sd_images", "sd over images", ".3f")]
    columns += [Column("saturated_low", "< 0.05", ".1%"), Column("saturated_high", "> 0.95", ".1%")]
    columns += [Column("constant", "constant channels", "d", title="channels whose scale is the same for all images")]
    columns += [Column("class_share", "by class", ".0%", title="variance between classes / total variance")]
    columns += [Column("loss_added", "loss added if fixed", "+.4f", title="nats, first-order estimate")]
    section.table(
        columns,
        found["rows"],
        f"Over {found['images']:,} images (class-balanced); < 0.05, > 0.95: shares of scales at the ends of the range",
    )
    section.paragraph("To measure the effect of each gate instead of estimating it: ", mono("excite explain"))


def _why_no_gates(about: About) -> str:
    """The note for a network without gates of excite."""
    others = about["gates_of_timm"]
    if others == ["unknown"]:
        return "This network has no gates of excite; whether it has gates built by timm is unknown."
    if others:
        return f"This network has no gates of excite; it has {', '.join(others)}, which excite cannot explain."
    return "This network has no gates."


def _gate_figures(explanation: Explanation, scratch: Path) -> Iterator[tuple[str, list[Path] | Undrawn, str, str]]:
    """Write the figures of ``excite explain`` that fit on a page; yield (name, files, alternative text, caption)."""
    count = next(iter(explanation.statistics.values())).count
    present = [name for k, name in enumerate(explanation.classes) if count[k] > 0]
    shown = [explanation.classes.index(name) for name in choose_depths(present, 5)]
    chosen = {name: explanation.statistics[name] for name in choose_depths(list(explanation.statistics), GATES_DRAWN)}
    yield (
        "health",
        attempt(draw_health, explanation.rows, scratch / "health", ""),
        "Health of the gates",
        "One row per gate, from input to output: the distribution of its scales, the share of their variance between "
        "classes, and the estimated increase in loss if it is fixed at its mean.",
    )
    yield (
        "excitations",
        attempt(draw_excitations, chosen, explanation.classes, shown, scratch / "excitations", ""),
        "Mean scale of each channel by class, one panel per gate",
        "Mean scale of each channel by class, at several depths (as in the SE paper, section 6.3).",
    )


def _speed(page: Page, numbers: Common) -> None:
    section = page.section("speed", "Speed and size")
    summary, speed = numbers["summary"], numbers["speed"]
    seconds = summary["train_seconds"]
    pairs = [
        ("parameters", f"{format_value(summary['params_m'], '.3f')} M"),
        ("multiply-accumulates", f"{format_value(summary['gmacs'], '.4f')} G per image"),
        ("training", None if seconds is None else f"{format_seconds(seconds)} h, {summary['device']}"),
        ("training step", _unit(summary["ms_per_step"], ".2f", "ms")),
        ("training speed", _unit(summary["images_per_second"], ",.1f", "img/s")),
        ("peak memory", _unit(summary["memory_gb"], ".2f", "GB")),
        ("precision", summary["precision"]),
    ]
    section.key_values([(name, value) for name, value in pairs if value is not None])
    columns = [Column("batch", "batch size", "d"), Column("ms", "ms, median", ".2f")]
    columns += [Column("ms_low", "lower quartile", ".2f"), Column("ms_high", "upper quartile", ".2f")]
    columns += [Column("images_per_second", "img/s", ",.1f"), Column("steps", "timed passes", "d")]
    threads = f", {counted(speed['threads'], 'thread')}"
    about = f"The network alone, {speed['form']} (as excite predict runs it), on {speed['device']}{threads}"
    section.table(columns, speed["rows"], f"{about}; without reading and preparing images")


def _unit(value: float | None, spec: str, unit: str) -> str | None:
    return None if value is None else f"{format(value, spec)} {unit}"


def _origin(page: Page, study: Study) -> None:
    section = page.section("origin", "Reproduce")
    about = study.numbers["about"]
    if about["command"]:
        saved = RECIPE_FILE in about["command"].split()
        where = f"With the recipe below saved as {RECIPE_FILE}, this command" if saved else "This command"
        section.code(about["command"], f"{where} trains it again:")
        section.paragraph(
            "It uses the same recipe; with the same CPU, threads and versions, results are bit-identical."
        )
    elif about["trained_as"]:
        section.paragraph(
            f"This network was trained as {about['trained_as']}; excite graft or excite prune then added or removed "
            "gates, so training alone does not give these weights."
        )
    else:
        section.paragraph(f"The weights were converted from {about['converted_from']}; excite did not train them.")
    environment = about["environment"]
    if environment:
        section.code(environment["command"], "The original command (quotation marks are not recorded):")
    section.heading("Data and weights")
    pairs: list[tuple[str, Any]] = [
        ("source", about["source"]),
        ("weights, sha256", mono(about["weights_sha256"])),
        ("data, fingerprint", mono(about["data_fingerprint"])),
        ("data", f"{about['data_source']}: {about['training_images']:,} training images, "
                 f"{about['validation_images']:,} for validation, {about['classes']:,} classes"),
    ]  # fmt: skip
    pairs += [(f"preprocessing: {key}", _plain(value)) for key, value in about["preprocessing"].items()]
    section.key_values(pairs)
    if environment:
        section.heading("Environment of the training")
        section.key_values(_environment(environment))
    section.heading("Recipe")
    section.details("The whole recipe").code(study.recipe)


def _environment(environment: Environment) -> Sequence[tuple[str, object]]:
    git = environment.get("git")
    state = None if git is None else f"{git['commit']}{', with changes' if git['changed'] else ''}"
    keys = ("started", "device", "processes", "precision", "platform")
    pairs = [(key, environment.get(key)) for key in keys]
    return [*pairs, ("git", state), *environment.get("versions", {}).items()]


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(format(v, ".4g") if isinstance(v, float) else str(v) for v in value)
    return str(value)
