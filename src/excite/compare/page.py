"""The page of a comparison. All its numbers come from ``study``, and ``--json`` prints them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from excite.compare.figures import wrong_answer
from excite.compare.study import OneRight, OnlyOne, Study
from excite.compare.table import ShownRow, headline, sentences, shown
from excite.pages.figures import Undrawn
from excite.pages.page import ABSENT, Card, Column, Page, Picture, Section, mono

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Figures = Mapping[str, Figure | Undrawn]

#: A table with more classes is collapsed.
OPEN_CLASSES = 40
_KINDS = {"network": "network", "training": "training", "neutral": "no effect on training"}


def make_page(found: Study, pictures: Sequence[Sequence[bytes]], figures: "Figures") -> Page:
    """Build the page.

    Args:
        found: the result of ``study``, with ``command``.
        pictures: PNG bytes, one list for each entry of ``found["only_one"]``, which may be empty.
        figures: figures by name, see ``excite.compare.figures``.
    """
    names = [row["label"] for row in found["rows"]]
    others = ", ".join(name for name in names if name != found["baseline"])
    title = f"{found['baseline']} against {others}"
    page = Page(title, _subtitle(found), "Written by excite compare.", headline=headline(found))
    _summary(page.section("summary", "Summary"), found, figures)
    if found["paired"]:
        _pairs(page.section("pairs", "Label by label" if found["measure"] == "mAP" else "Image by image"), found)
    _recipe(page.section("recipe", "Recipes"), found)
    if "curves" in figures:
        section = page.section("curves", "Training")
        alt = f"Validation {found['measure']} by epoch and by time, validation loss and training loss of each run"
        section.draw(figures["curves"], alt, _curves_caption(found), wide=True)
    if found["paired"]:
        _classes(page.section("classes", "Classes"), found, figures)
        _agreement(page.section("agreement", "Agreement"), found, figures)
        _only_one(page.section("images", "Where only one is right"), found, pictures)
    _cost(page.section("cost", "Size, speed and memory"), found)
    _origin(page.section("origin", "What was compared"), found)
    return page


def _subtitle(found: Study) -> str:
    count = f"{len(found['rows'])} networks"
    if not found["paired"]:
        return f"{count}, not compared image by image"
    images = next(row["images"] for row in found["rows"] if row["label"] == found["baseline"])
    some = "" if len(found["paired"]) == len(found["rows"]) else f", {len(found['paired'])} of them"
    return f"{count}{some} on the same {images:,} images"


def _summary(section: Section, found: Study, figures: "Figures") -> None:
    section.cards(
        [Card(row["label"], _percent(row["top1"]), _card_note(row, found["measure"])) for row in shown(found)]
    )
    for note in found["notes"]:
        section.note(note)
    if not found["paired"]:
        why = "the runs have no predictions for the same images"
        section.not_measured("differences image by image", why, f"{found['command']} data.root=FOLDER")
    if "accuracy" in figures:
        alt = f"{_measure(found)} of each run with its interval, and the difference to the baseline with its interval"
        section.draw(figures["accuracy"], alt, wide=True)
    columns = [
        Column("label", "run"),
        Column("gate", "gate"),
        Column("top1", "mAP" if found["measure"] == "mAP" else "acc@top1", ".2f"),
        Column("top1_interval", f"{100 * found['confidence']:g} % interval", align="right"),
    ]
    if found["paired"]:
        columns += [
            Column(
                "difference",
                "difference",
                "+.2f",
                title=f"{found['measure']} minus that of {found['baseline']}, percentage points",
            ),
            Column("difference_interval", "its interval", align="right", title="paired"),
        ]
    if found["measure"] == "mAP":
        columns.append(Column("f1_text", "micro F1 [its interval]", align="right"))
        if found["paired"]:
            columns.append(Column("f1_difference", "F1 difference", "+.2f", title="percentage points"))
            columns.append(Column("f1_interval", "its interval", align="right", title="paired"))
        columns += [Column("macro_f1", "macro F1", ".2f"), Column("threshold", "threshold", ".3f")]
    elif found["paired"]:
        columns.append(Column("p_text", "p", align="right", title="McNemar's test"))
        if len(found["paired"]) > 2:
            columns.append(Column("p_holm_text", "Holm's p", align="right", title="adjusted for several tests"))
    columns += [
        Column("epochs_text", "epochs", align="right"),
        Column("params_m", "params(M)", ".3f"),
        Column("gmacs", "GMACs", ".4f"),
        *([Column("balanced", "balanced", ".2f", title="mean of the classes' accuracies")] if found["uneven"] else []),
        *([] if found["measure"] == "mAP" else [Column("top5", "acc@top5", ".2f", title=_TOP5)]),
        Column("loss", "loss", ".4f", title="mean cross-entropy, nats"),
        Column("images", "images", ",d"),
    ]
    section.table(columns, shown(found), "All runs")
    section.paragraph(*_marked(" ".join(sentences(found))))


_TOP5 = "top-K if there are only K < 5 classes"


def _measure(found: Study) -> str:
    """At the start of a sentence."""
    return "mAP" if found["measure"] == "mAP" else "Top-1"


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f} %"


def _card_note(row: ShownRow, measure: str) -> str:
    if row["top1"] is None:
        return "unknown"
    if row["difference"] is None:
        return f"{measure}, the baseline" if row["difference_interval"] == "baseline" else measure
    more = f", p {row['p_text']}" if row["p_text"] else ""
    return f"{measure}, {row['difference']:+.2f} points{more}"


def _marked(text: str) -> list[str]:
    """The parts of a sentence, with text in backticks in a fixed-width font."""
    return [mono(part) if i % 2 else part for i, part in enumerate(text.split("`"))]


def _pairs(section: Section, found: Study) -> None:
    rows = [row for row in shown(found) if row["both_right"] is not None]
    base, several = found["baseline"], found["measure"] == "mAP"
    tests = [Column("test", "McNemar's test"), Column("p_text", "p", align="right")]
    section.table(
        [
            Column("label", "run"),
            Column("both_right", "both right", ",d"),
            Column("only_this", "only this run", ",d"),
            Column("only_baseline", f"only {base}", ",d"),
            Column("both_wrong", "both wrong", ",d"),
            *([] if several else tests),
            Column("loss_difference", "loss difference", "+.4f", title="mean over the images, nats"),
            Column("loss_interval", "its interval", align="right", title="normal approximation"),
        ],
        rows,
        f"Decisions on every class of every image, at each network's threshold, that each run and {base} get right"
        if several
        else f"Images that each run and {base} get right; the test uses only those that exactly one of the two "
        "gets right",
    )


def _recipe(section: Section, found: Study) -> None:
    names = [row["label"] for row in found["rows"]]
    if not found["recipe"]:
        known = len(found["recipes_known"])
        section.paragraph(
            "The recipes are the same."
            if known == len(names)
            else f"The recipes of {known} of the runs are known." + (" They are the same." if known > 1 else "")
        )
        return
    rows = [
        {"key": row["key"], "kind": _KINDS[row["kind"]], **{f"v{i}": v for i, v in enumerate(row["values"])}}
        for row in found["recipe"]
    ]
    columns = [Column("key", "key"), *(Column(f"v{i}", name) for i, name in enumerate(names))]
    section.table([*columns, Column("kind", "affects")], rows, "Keys that differ, defaults included")


def _curves_caption(found: Study) -> str:
    windows = [curve["training"]["window"] for curve in found["curves"]]
    few, many = min(windows), max(windows)
    smooth = str(few) if few == many else f"{few} to {many}"
    return (
        f"The training loss is the mean of the last {smooth} recorded values (with label smoothing or mixed images it "
        "is not comparable with the validation loss). Minutes count training steps only, on each run's own machine."
    )


def _classes(section: Section, found: Study, figures: "Figures") -> None:
    what = "average precision" if found["measure"] == "mAP" else "top-1"
    alt = f"Difference in {what} of each class to {found['baseline']}, sorted"
    if "classes" in figures:
        section.draw(figures["classes"], alt, wide=True)
    columns = [Column("class", "class"), Column("images", "images", ",d")]
    for i, name in enumerate(found["paired"]):
        columns.append(Column(f"top1_{i}", name, ".2f"))
        columns += (
            [Column(f"difference_{i}", "points", "+.2f", title=f"difference to {found['baseline']}")] if i else []
        )
    rows = [
        {
            **row,
            **{f"top1_{i}": value for i, value in enumerate(row["top1"])},
            **{f"difference_{i}": value for i, value in enumerate(row["difference"])},
        }
        for row in found["per_class"] or []
    ]
    titles = {"mAP": "Average precision of each class", "top-1": "Top-1 of each class (recall)"}
    fold = len(rows) > OPEN_CLASSES
    place = section.details(f"All {len(rows)} classes") if fold else section
    place.table(columns, rows, f"{titles[found['measure']]}, percent")


def _agreement(section: Section, found: Study, figures: "Figures") -> None:
    agreement, several = found["agreement"], found["measure"] == "mAP"
    assert agreement is not None
    if "agreement" in figures:
        alt = "For every two runs, the share of images on which they agree and on which both are wrong"
        section.draw(figures["agreement"], alt, wide=True)
    rows = [
        {
            "pair": f"{a} and {b}",
            "same": agreement["same"][i][j],
            "both_wrong": agreement["both_wrong"][i][j],
            "chance": agreement["chance"][i][j],
        }
        for i, a in enumerate(agreement["labels"])
        for j, b in enumerate(agreement["labels"])
        if i < j
    ]
    section.table(
        [
            Column("pair", "runs"),
            Column("same", f"same {'decision' if several else 'class'}, %", ".2f", title="right or wrong"),
            Column("both_wrong", "both wrong, %", ".2f"),
            Column("chance", "both wrong by chance, %", ".2f", title="if their errors were independent"),
        ],
        rows,
        f"Agreement between every two runs, in % of the {'decisions on classes' if several else 'images'}",
    )


def _only_one(section: Section, found: Study, pictures: Sequence[Sequence[bytes]]) -> None:
    section.paragraph(
        "Images on which both networks are most confident and only one predicts exactly the labels: those with the "
        "largest product of the probabilities of their predictions, as if classes were independent."
        if found["measure"] == "mAP"
        else "Images on which both networks are most confident and one of them is wrong: those with the largest "
        "product of the probabilities of their predicted classes."
    )
    for pair, images in zip(found["only_one"] or [], pictures, strict=True):
        for winner in (pair["label"], pair["baseline"]):
            chosen = [i for i, image in enumerate(pair["images"]) if image["right"] == winner]
            loser = pair["baseline"] if winner == pair["label"] else pair["label"]
            section.heading(f"{winner} is right, {loser} is wrong")
            if not chosen:
                section.paragraph("There are no such images.")
            elif images:
                section.gallery([_picture(pair, pair["images"][i], images[i]) for i in chosen])
            else:
                section.table(_IMAGE_COLUMNS, [_image_row(pair, pair["images"][i]) for i in chosen])
    if not all(pictures):
        section.note("If the data could not be opened, only the names of the images are shown.")


_IMAGE_COLUMNS = [
    Column("name", "image"),
    Column("class", "class"),
    Column("sure", "its probability", ".3f"),
    Column("wrong", "wrong class"),
    Column("wrongly_sure", "probability of the wrong class", ".3f"),
]


class _ImageRow(OneRight):
    """With the probability from the network that is right, and the class and probability from the other."""

    sure: float
    wrong: str
    wrongly_sure: float


def _image_row(pair: OnlyOne, image: OneRight) -> _ImageRow:
    probabilities = (image["this_probability"], image["baseline_probability"])
    sure, wrongly = probabilities if image["right"] == pair["label"] else probabilities[::-1]
    return {**image, "sure": sure, "wrong": wrong_answer(pair, image), "wrongly_sure": wrongly}


def _picture(pair: OnlyOne, image: OneRight, png: bytes) -> Picture:
    row = _image_row(pair, image)
    lines = [row["class"], f"{100 * row['sure']:.1f} %", f"not {row['wrong']}, {100 * row['wrongly_sure']:.1f} %"]
    width = int.from_bytes(png[16:20], "big")  # of the PNG header
    return Picture(png, f"{row['name']}: {row['class']}", [*lines, row["name"]], pixelated=width <= 64)


def _cost(section: Section, found: Study) -> None:
    rows = shown(found)
    columns = [
        Column("label", "run"),
        Column("gate", "gate"),
        Column("params", "parameters", ",d"),
        Column("gmacs", "GMACs", ".4f"),
        Column("images_per_second", "training img/s", ",.0f"),
        Column("ms_per_step", "training ms/step", ".2f"),
        Column("batch_size", "batch size", "d"),
        Column("train_seconds", "training s", ",.0f"),
        Column("memory_gb", "peak GB", ".2f"),
        Column("device", "device"),
        Column("devices", "devices", "d"),
        Column("trained_in", "precision"),
    ]
    section.table(columns, rows, "Speed and memory as measured in each run's own training")
    section.paragraph("They are only comparable if nothing else ran on the machine; ", mono("excite bench"),
                      " measures networks in turns.")  # fmt: skip


def _origin(section: Section, found: Study) -> None:
    columns = [
        Column("label", "run"),
        Column("model", "model"),
        Column("source", "given as"),
        Column("recipe", "recipe"),
        Column("seed", "seed", "d"),
        Column("best_epoch", "epoch of the weights", "g"),
        Column("training_top1", f"{found['measure']} in training", ".2f"),
        Column("precision", "evaluation precision"),
        Column("weights", "weights, sha256"),
        Column("data_fingerprint", "data, fingerprint"),
    ]
    section.table(columns, found["rows"], "Origin of each network")
    section.code(found["command"], "To make this page again:")
