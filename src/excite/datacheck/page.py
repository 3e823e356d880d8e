"""The page of a check of data. All its numbers are those of ``--json``; pictures can be marked for a CSV of changes."""

import io
from collections import Counter
from collections.abc import Sequence

from excite.data.decode import BadImageError
from excite.datacheck.contents import DataNumbers, Example, Finding
from excite.datacheck.items import Items
from excite.datacheck.words import caveats, giveaway_sentences, headline, noise_sentences, restated_table
from excite.pages.page import Card, Column, Marked, Page, Section, mono
from excite.pages.page import link as _link

#: The longer side of a thumbnail, pixels; pictures up to the second size are enlarged without smoothing.
SIDE, SMALL = 96, 64
#: Pictures of one group of copies, where not all can be shown: an image that is there 500 times hides no others.
FEW = 6
CHANGES = "changes.csv"
#: The columns of the CSV that say which image is meant.
COLUMNS = ("part", "name", "label", "path")
#: A table with more classes is collapsed.
OPEN_CLASSES = 40


def make_page(numbers: DataNumbers, items: Items, pictures: int) -> Page:
    """Build the page.

    Args:
        numbers: the result.
        items: the images, which are decoded again for their thumbnails.
        pictures: the most of each finding.
    """
    about = numbers["about"]
    counts = ", ".join(f"{count:,} {part}" for part, count in about["images"].items())
    page = Page(
        f"Is this data any good? {about['data']}",
        f"{counts} images of {about['classes']:,} classes",
        "Written by excite data check, which changes no file.",
        headline=headline(numbers),
    )
    _summary(page.section("summary", "Summary"), numbers)
    if numbers["restated"]:
        _restated(page.section("accuracy", "Accuracy restated"), numbers)
    thumbnails: dict[int, bytes | None] = {}
    for finding in numbers["findings"]:
        if finding["examples"]:
            _finding(page.section(finding["kind"], finding["title"].capitalize()), finding, items, pictures, thumbnails)
    _giveaways(page.section("properties", "Does something give the class away?"), numbers)
    _classes(page.section("classes", "Classes"), numbers)
    if thumbnails:
        _changes(page.section("changes-list", "Changes"), items)
    return page


def _summary(section: Section, numbers: DataNumbers) -> None:
    shown = [finding for finding in numbers["findings"] if finding["count"]][:6]
    section.cards([Card(f["title"], f"{f['count']:,}", f["advice"]) for f in shown])
    for finding in numbers["findings"]:
        section.paragraph(f"{finding['sentence']} {finding['advice']}")
    if not numbers["findings"]:
        section.paragraph("Nothing was found.")
    for sentence in [*noise_sentences(numbers), *giveaway_sentences(numbers)]:
        section.paragraph(sentence)
    for sentence in caveats(numbers):
        section.note(sentence)
    if any(finding["examples"] for finding in numbers["findings"]):
        section.paragraph(
            "Click a picture to mark it: relabel it as proposed, remove it, or keep it. The list of changes is at the ",
            _link("end of the page", "#changes-list"),
            ". Marks are lost when the page is closed.",
        )


def _restated(section: Section, numbers: DataNumbers) -> None:
    for part in numbers["restated"]:
        head, measure, rows = restated_table(part)
        columns = [
            Column("what", head),
            Column("images", "images", ",d"),
            Column("value", f"{measure}, %", ".2f"),
            Column("interval", "95 % interval", align="right"),
        ]
        section.table(columns, [{**row} for row in rows])
        if part["leaked"]:
            right = 100 * part["leaked_right"] / part["leaked"]
            section.paragraph(
                f"Of the {part['leaked']:,} images that are copies of training images, the network gets {right:.1f} % "
                f"{'wholly ' if part['measure'] == 'map' else ''}right by their labels."
            )
    section.note(
        "The last line assumes that labels are missing and invented whatever the image and the class, and that one "
        "curve calibrates the network's confidence in all classes. See docs/data-check.md."
        if numbers["about"]["several"]
        else "The last line assumes that wrong labels are as frequent where the network is right as where it is wrong, "
        "that any other class is as likely to be written, and that the network's confidence is calibrated but for one "
        "temperature. See docs/data-check.md."
    )


def _finding(
    section: Section, finding: Finding, items: Items, pictures: int, thumbnails: dict[int, bytes | None]
) -> None:
    section.paragraph(f"{finding['sentence']} {finding['advice']}")
    shown: list[Marked] = []
    bare: list[Example] = []
    for example in _spread(finding["examples"], pictures):
        item = example["item"]
        if item not in thumbnails:
            thumbnails[item] = None if finding["kind"] == "broken" else thumbnail(items, item)
        png = thumbnails[item]
        if png is None:
            bare.append(example)
        else:
            shown.append(_picture(example, png))
    left = len(finding["examples"]) - len(shown) - len(bare)
    if shown:
        section.marked(shown, f"{left:,} more are in --json." if left else "")
    if bare:
        columns = [Column("name", "image"), Column("part", "part"), Column("label", "class"), Column("detail", "what")]
        section.table(columns, [{**example} for example in bare])


def _spread(examples: Sequence[Example], pictures: int) -> list[Example]:
    """The first examples; where there are more than are shown, a group of copies shows its first few only."""
    if len(examples) <= pictures:
        return list(examples)
    seen: Counter[int] = Counter()
    chosen = []
    for example in examples:
        group = example["group"]
        if group is not None:
            seen[group] += 1
            if seen[group] > FEW:
                continue
        chosen.append(example)
    return chosen[:pictures]


def _picture(example: Example, png: bytes) -> Marked:
    first = f"{example['label']} → {example['instead']}?" if example["instead"] else example["label"]
    group = [] if example["group"] is None else [f"group {example['group'] + 1}"]
    key = {
        "part": example["part"],
        "name": example["name"],
        "label": example["label"],
        "path": example["path"] or "",
    }
    return Marked(
        png,
        f"{example['name']}: {example['label']}",
        [first, example["detail"], *group, f"{example['part']}: {example['name']}"],
        pixelated=int.from_bytes(png[16:20], "big") <= SMALL if png[:4] == b"\x89PNG" else False,
        key=key,
        instead=example["instead"] or "",
    )


def thumbnail(items: Items, item: int) -> bytes | None:
    """A small picture, PNG or JPEG; None if the image can no longer be read."""
    try:
        image = items.picture(item, SIDE)
    except BadImageError:
        return None
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(out, "PNG")
    else:
        image.save(out, "JPEG", quality=85)
    return out.getvalue()


def _giveaways(section: Section, numbers: DataNumbers) -> None:
    if not numbers["giveaways"]:
        section.paragraph("Not judged: there are too few images, or all are alike in these properties.")
        return
    rows = [{**each, "verdict": "gives it away" if each["gives_away"] else "no"} for each in numbers["giveaways"]]
    section.table(
        [
            Column("what", "from this alone"),
            *([Column("label", "the class told best")] if numbers["about"]["several"] else []),
            Column("accuracy", "right, %", ".1f", title="balanced accuracy, five-fold cross-validated"),
            Column("chance", "by chance, %", ".1f", title="the mean over 200 shuffles of the labels"),
            Column("p", "p", ".3f", title="share of the shuffles that do as well"),
            Column("verdict", "verdict"),
        ],
        rows,
        "How often the class can be told from one property alone",
    )


def _classes(section: Section, numbers: DataNumbers) -> None:
    rows: Sequence[dict[str, object]] = [{**row} for row in numbers["balance"]["classes"]]
    place = section.details(f"All {len(rows)} classes") if len(rows) > OPEN_CLASSES else section
    parts = [Column(part, part, ",d") for part in numbers["about"]["images"]]
    place.table([Column("label", "class"), *parts], rows, "Images of each class")


def _changes(section: Section, items: Items) -> None:
    section.paragraph(
        "What you have marked, as CSV: part, name and label of each image, its file, and what is to be done: ",
        mono("remove"),
        ", ",
        mono("relabel"),
        " (to the class in the last column) or ",
        mono("keep"),
        ". No file is changed by it.",
    )
    section.changes(items.classes, COLUMNS, CHANGES)
