"""The parts of a report's page that are about images with several labels each; computes no numbers itself."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from excite.pages.figures import Undrawn, shortened
from excite.pages.page import Card, Column, Page, Section, format_value
from excite.report.class_table import class_table
from excite.report.contents import LabelNumbers
from excite.report.labels import LabelAccuracy, LabelMistake

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LabelMeasure = Literal["map", "micro_f1", "macro_f1"]

LABEL_COLUMNS = [
    Column("map", "mAP", ".2f"),
    Column("macro_f1", "macro F1", ".2f"),
    Column("micro_f1", "micro F1", ".2f"),
    Column("threshold", "threshold", ".3f"),
]


def _ends(found: LabelAccuracy, name: LabelMeasure) -> tuple[float | None, float | None]:
    if name == "map":
        return found["map_low"], found["map_high"]
    if name == "micro_f1":
        return found["micro_f1_low"], found["micro_f1_high"]
    return found["macro_f1_low"], found["macro_f1_high"]


def with_interval(found: LabelAccuracy, name: LabelMeasure, spec: str = ".2f", joined: str = " ({} to {})") -> str:
    """A measure with the ends of its interval: "40.41 % (37.90 to 43.02)"; "none" if it is undefined."""
    value, (low, high) = found[name], _ends(found, name)
    if value is None:
        return "none"
    return f"{value:{spec}} %" + ("" if low is None else joined.format(f"{low:{spec}}", f"{high:{spec}}"))


def label_headline(numbers: LabelNumbers, images: str) -> str:
    """The result in one sentence: "mAP 40.4 % of 600 validation images; 95 % interval 37.9 to 43.0 %; micro F1 45.0 %
    at the threshold 0.211; weakest class cat (27.1 %)"."""
    found = numbers["labels"]["accuracy"]
    spec = ".1f" if found["images"] < 1000 else ".2f"
    joined = f" of {images}; {100 * found['confidence']:g} % interval {{}} to {{}} %"
    parts = [f"mAP {with_interval(found, 'map', spec, joined)}"]
    parts.append(f"micro F1 {found['micro_f1']:{spec}} % at the threshold {found['threshold']:.3f}")
    known = [(row["ap"], row["class"]) for row in numbers["labels"]["classes"] if row["ap"] is not None]
    if len(known) > 1:
        lowest, name = min(known)
        parts.append(f"weakest class {shortened(name, 40)} ({lowest:.1f} %)")
    return "; ".join(parts)


def label_cards(numbers: LabelNumbers) -> list[Card]:
    """What is shown in the place of accuracies."""
    found, calibration = numbers["labels"]["accuracy"], numbers["labels"]["calibration"]
    at = f"at the threshold {found['threshold']:.3f}"

    def card(name: LabelMeasure, title: str, about: str) -> Card:
        low, high = _ends(found, name)
        ends = "" if low is None else f"95 %: {low:.2f} to {high:.2f}"
        return Card(title, format_value(found[name], ".2f") + " %", "; ".join(filter(None, (ends, about))))

    cards = [
        card("map", "mAP", ""),
        card("micro_f1", "micro F1", at),
        card("macro_f1", "macro F1", "mean over classes"),
    ]
    cards.append(Card("all labels right", f"{found['exact']:.2f} %", f"of the images, {at}"))
    if calibration["ece"] is not None:
        cards.append(Card("calibration error", f"{calibration['ece']:.2f} %", "ECE, all image-label pairs"))
    return cards


def label_summary(section: Section, numbers: LabelNumbers) -> None:
    """The sentence on how the numbers were computed."""
    found = numbers["labels"]["accuracy"]
    unlabelled = f", {found['unlabelled']:,} of them without any" if found["unlabelled"] else ""
    section.paragraph(
        f"{found['images']:,} images have {found['labels']:,} labels{unlabelled}. A class is predicted from the "
        f"threshold {found['threshold']:.3f} on, which was chosen on the validation images for the highest micro F1 "
        f"and is kept in the weights. mAP needs no threshold. The intervals come from {found['resamples']:,} "
        f"resamples of the images (corrected for their bias, seed {found['seed']}); they cover the choice of "
        f"images, for this one network. The most likely class is a label of {found['hit_at_1']:.2f} % of the images."
    )


def label_sections(page: Page, numbers: LabelNumbers, drawn: "Mapping[str, Figure | Undrawn]") -> None:
    """Classes, thresholds, what occurs together and what is mixed up, and calibration."""
    _classes(page, numbers, drawn)
    _thresholds(page, numbers, drawn)
    _together(page, numbers, drawn)
    _calibration(page, numbers, drawn)


def _classes(page: Page, numbers: LabelNumbers, drawn: "Mapping[str, Figure | Undrawn]") -> None:
    section = page.section("classes", "Classes")
    rows, found = numbers["labels"]["classes"], numbers["labels"]["accuracy"]
    section.draw(
        drawn["precision-recall"],
        "Precision over recall, for all labels together and for some classes",
        "All image-label pairs together, and the classes with the highest and the lowest average precision.",
    )
    section.paragraph(
        f"AP, average precision, needs no threshold. Precision, recall and F1 are at the threshold "
        f"{found['threshold']:.3f}. Images: those that have the label. Predicted: those for which it is predicted. "
        "ECE is the calibration error of the probability of the class."
    )
    columns = [Column("class", "class"), Column("support", "images", ",d"), Column("predicted", "predicted", ",d")]
    columns += [Column("ap", "AP %", ".2f"), Column("precision", "precision %", ".2f")]
    columns += [Column("recall", "recall %", ".2f"), Column("f1", "F1 %", ".2f"), Column("ece", "ECE %", ".2f")]
    class_table(section, columns, rows, "ap", "average precision")


def _thresholds(page: Page, numbers: LabelNumbers, drawn: "Mapping[str, Figure | Undrawn]") -> None:
    section = page.section("thresholds", "Threshold")
    kept = numbers["labels"]["accuracy"]["threshold"]
    alt = "F1, precision and recall over the threshold, with the kept threshold marked"
    section.draw(drawn["thresholds"], alt, f"The dashed line is the kept threshold, {kept:.3f}.")
    columns = [Column("threshold", "threshold", ".2f"), Column("micro_f1", "micro F1 %", ".2f")]
    columns += [Column("macro_f1", "macro F1 %", ".2f"), Column("precision", "precision %", ".2f")]
    columns += [Column("recall", "recall %", ".2f")]
    section.details("As a table").table(columns, numbers["labels"]["thresholds"])


def _together(page: Page, numbers: LabelNumbers, drawn: "Mapping[str, Figure | Undrawn]") -> None:
    section = page.section("labels", "Labels together")
    found, pairs = numbers["labels"]["together"], numbers["labels"]["mixed_up"]
    what = "Images that have both labels; on the diagonal, all images with the label. Colours show shares of the row."
    if found["block"] > 1:
        what = f"Each row and column stands for {found['block']} consecutive classes; colours are logarithmic."
    section.draw(drawn["together"], "How often labels occur together", what, wide=len(found["labels"]) > 12)
    if not pairs:
        section.paragraph("No image has both a missed and an invented label.")
        return
    section.heading("Mixed up most often")
    columns = [
        Column("missed", "missed label"),
        Column("invented", "predicted instead"),
        Column("images", "images", "d"),
    ]
    columns.append(Column("share", "images / images with the label, %", ".1f"))
    section.table(columns, pairs)


def _calibration(page: Page, numbers: LabelNumbers, drawn: "Mapping[str, Figure | Undrawn]") -> None:
    found = numbers["labels"]["calibration"]
    if found["ece"] is None:  # no image has finite logits; the summary says so
        return
    section = page.section("calibration", "Calibration")
    section.draw(
        drawn["reliability"],
        "Reliability diagram: share of images that have the label over its probability",
        "Bars below the dashed line: labels are found likelier than they are.",
    )
    section.key_values(
        [
            ("expected calibration error", f"{format_value(found['ece'], '.2f')} %"),
            ("binary cross-entropy", f"{format_value(found['nll'], '.4f')} nats"),
            ("Brier score", f"{format_value(found['brier'], '.4f')} (0 is best, 1 worst)"),
        ]
    )
    section.paragraph(
        f"Over all image-label pairs. ECE: {found['bins']} bins of equal width, absolute differences weighted by "
        "pairs (L1)."
    )


def mistake_lines(row: LabelMistake) -> tuple[str, list[str]]:
    """The alternative text of a picture, and the lines below it."""
    invented = row["kind"] == "invented"
    verb = "predicted though absent" if invented else "missed"
    first = f"{'not' if invented else 'misses'} {row['class']}, {100 * row['probability']:.1f} %"
    true, said = (_listed(row["true"]), _listed(row["predicted"]))
    return f"{row['class']}, {verb}", [first, f"is {true}", f"predicted {said}", row["name"]]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "") if names else "none"


MISTAKES_CAPTION = (
    "In bold: a label that is predicted though absent, or missed, and its probability. First the likeliest labels "
    "that the image does not have, then the unlikeliest that it has. Images are shown as the network sees them."
)


def measured_in_training(numbers: LabelNumbers) -> tuple[float | None, float | None, float | None]:
    """mAP: in the evaluation of the training, now, and after the last epoch (None unless it chose the best epoch)."""
    summary = numbers["summary"]
    last = summary.get("last_metric") if summary.get("metric") == "map" else None
    return summary.get("map"), numbers["labels"]["accuracy"]["map"], last
