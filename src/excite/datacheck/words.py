"""Findings in words: titles, sentences with counts, and what to do about each. The worst comes first."""

from collections.abc import Mapping
from typing import TypedDict, get_args

from excite.datacheck.contents import DataNumbers, Example, Finding, Giveaway, Kind, Restated

#: From this ratio of the largest class to the smallest, imbalance is a finding.
UNEVEN = 3.0

#: Kind -> (title, sentence for one image, sentence for several, advice). {n} is the count.
_SAID: dict[Kind, tuple[str, str, str, str]] = {
    "broken": (
        "broken files",
        "1 image cannot be read.",
        "{n} images cannot be read.",
        "A training skips such files or stops at them: replace or remove them.",
    ),
    "leaks": (
        "copies across parts",
        "1 image outside the training part is a copy of a training image.",
        "{n} images of the validation or test part are copies of images of another part.",
        "Keep each in one part only: what was trained on measures nothing.",
    ),
    "groups": (
        "groups across parts",
        "1 image outside the training part is of a group (a patient, a place) that is in another part, too.",
        "{n} images of the validation or test part are of groups (patients, places) that are in another part, too.",
        "What is known of a group helps with its other images: keep each group in one part.",
    ),
    "conflicts": (
        "copies with different labels",
        "1 image has copies with another label.",
        "{n} images have copies with another label.",
        "At most one of the labels is right.",
    ),
    "labels": (
        "labels that look wrong",
        "1 label is more likely wrong than right.",
        "{n} labels are more likely wrong than right.",
        "The page proposes another class for each.",
    ),
    "copies": (
        "copies within a class",
        "1 image repeats another one of its class and part.",
        "{n} images repeat others of their class and part.",
        "What is repeated counts more than the rest: remove it, or keep it knowingly.",
    ),
    "giveaways": (
        "what gives the class away",
        "1 property that should not matter tells the class.",
        "{n} properties that should not matter tell the class.",
        "A network may learn them instead of what the pictures show.",
    ),
    "imbalance": (
        "uneven classes",
        "",
        "",
        "Look at the balanced accuracy beside the accuracy.",
    ),
    "constant": (
        "constant images",
        "1 image has one colour all over.",
        "{n} images have one colour all over.",
        "Such images show nothing: remove them.",
    ),
    "endings": (
        "wrong extensions",
        "1 file has the extension of another format.",
        "{n} files have the extension of another format.",
        "Such files are read all the same; other programs may refuse them.",
    ),
    "tiny": (
        "tiny images",
        "1 image is tiny.",
        "{n} images are tiny.",
        "Enlarged for the network, such images are blurred.",
    ),
    "shapes": (
        "odd shapes",
        "1 image is far longer than the others.",
        "{n} images are far longer than the others.",
        "A crop in the middle may miss what such images show.",
    ),
    "modes": (
        "unusual pixels",
        "1 image has an unusual kind of pixels.",
        "{n} images have an unusual kind of pixels.",
        "Such pixels are converted; see data.white for 16 bits.",
    ),
    "labels-perhaps": (
        "labels worth a look",
        "1 more label is wrong with a probability of 20 to 50 %.",
        "{n} more labels are wrong with a probability of 20 to 50 %.",
        "Worth a look if there is time.",
    ),
    "outliers": (
        "outliers",
        "1 image is unlike all others of its class.",
        "{n} images are unlike all others of their class.",
        "Such images may not belong there.",
    ),
}

#: What differs where images may have several labels.
_SAID_OF_SEVERAL: dict[Kind, tuple[str, str, str, str]] = {
    "labels": (
        "labels that look wrong",
        "1 image has a label that is more likely wrong than right, or lacks one that more likely belongs there.",
        "{n} images have a label that is more likely wrong than right, or lack one that more likely belongs there.",
        "The page proposes other classes for each.",
    ),
    "labels-perhaps": (
        "labels worth a look",
        "1 more image has a label, or lacks one, that is wrong with a probability of 20 to 50 %.",
        "{n} more images have a label, or lack one, that is wrong with a probability of 20 to 50 %.",
        "Worth a look if there is time.",
    ),
    "outliers": (
        "outliers",
        "1 image is unlike all others of each of its classes.",
        "{n} images are unlike all others of each of their classes.",
        "Such images may not belong there.",
    ),
}


class SummaryRow(TypedDict):
    """A finding as a row of the table on the terminal."""

    title: str
    count: int
    first: str


def told(numbers: DataNumbers, found: Mapping[Kind, tuple[int, list[Example]]]) -> list[Finding]:
    """The findings in words, the worst first."""
    whole: dict[Kind, tuple[int, list[Example]]] = dict(found)
    away = [each for each in numbers["giveaways"] if each["gives_away"]]
    if away:
        whole["giveaways"] = (len(away), [])
    if numbers["balance"]["ratio"] >= UNEVEN:
        whole["imbalance"] = (0, [])
    findings: list[Finding] = []
    for kind in get_args(Kind):
        if kind not in whole:
            continue
        count, examples = whole[kind]
        said = _SAID_OF_SEVERAL if numbers["about"]["several"] else _SAID
        title, one, several, advice = said.get(kind, _SAID[kind])
        sentence = one if count == 1 else several.format(n=f"{count:,}")
        if kind == "giveaways":
            sentence = " ".join(
                f"The {each['what']} alone tells {_class_told(each)} in {each['accuracy']:.0f} % of the images "
                f"(balanced; chance {each['chance']:.0f} %)."
                for each in away
            )
        if kind == "imbalance":
            b = numbers["balance"]
            sentence = f"{b['largest']} has {b['ratio']:.1f} times as many training images as {b['smallest']}."
        findings.append(
            {"kind": kind, "title": title, "count": count, "sentence": sentence, "advice": advice, "examples": examples}
        )
    return findings


def headline(numbers: DataNumbers) -> str:
    """The result in a sentence."""
    images = sum(numbers["about"]["images"].values())
    counts: dict[str, int] = {each["kind"]: each["count"] for each in numbers["findings"]}
    said = [
        f"{counts[kind]:,} {word}"
        for kind, word in (
            ("broken", "broken"),
            ("leaks", "copied from another part"),
            ("groups", "of a group in another part"),
            ("conflicts", "with conflicting labels"),
            ("labels", "with a label that looks wrong"),
            ("copies", "repeated"),
        )
        if counts.get(kind)
    ]
    if said:
        return f"Of {images:,} images: {', '.join(said)}"
    return f"{images:,} images: nothing serious was found" if counts else f"{images:,} images: nothing was found"


def noise_sentences(numbers: DataNumbers) -> list[str]:
    """A sentence for each part on its wrong labels."""
    said = {
        "wrong": "of the labels of {part} are wrong",
        "missing": "of the labels that belong to images of {part} are missing",
        "invented": "of the labels given to images of {part} do not belong there",
    }
    return [
        f"About {each['percent']:.1f} % {said[each['what']].format(part=_the(each['part']))} "
        f"(95 %: {each['percent_low']:.1f} to {each['percent_high']:.1f}), judged by {each['judged_by']}."
        for each in numbers["labels"]
    ]


def giveaway_sentences(numbers: DataNumbers) -> list[str]:
    """A sentence on the most telling property, where none is a finding; nothing if none was judged."""
    found = numbers["giveaways"]
    if not found or any(each["gives_away"] for each in found):
        return []
    best = found[0]
    what = "it" if best["label"] is None else _class_told(best)
    return [
        f"Nothing gives the class away: the best single property, {best['what']}, tells {what} in "
        f"{best['accuracy']:.0f} % of the images (balanced; chance {best['chance']:.0f} %)."
    ]


def _the(part: str) -> str:
    return part if part.startswith("all") else f"the {part} part"


def _class_told(each: Giveaway) -> str:
    return "the class" if each["label"] is None else f"{each['label']!r} from the rest"


class RestatedLine(TypedDict):
    """An accuracy as a row of the tables on the terminal and on the page."""

    what: str
    images: int
    value: float
    interval: str


def restated_table(part: Restated) -> tuple[str, str, list[RestatedLine]]:
    """The head of the first column, the name of the measure, and the rows."""
    several = part["measure"] == "map"
    rows: list[RestatedLine] = []
    for row in part["rows"]:
        value, low, high = (row[key] for key in (("map", "map_low", "map_high") if several else _TOP1))
        rows.append(
            {"what": row["what"], "images": row["images"], "value": value, "interval": f"{low:.2f} to {high:.2f}"}
        )
    return f"{part['part']} {'mAP' if several else 'accuracy'}", "mAP" if several else "top-1", rows


_TOP1 = ("top1", "top1_low", "top1_high")


def caveats(numbers: DataNumbers) -> list[str]:
    """What the judgement of labels and outliers rests on, and what was not judged."""
    about = numbers["about"]
    said = []
    if about["run"] and numbers["labels"]:
        said.append(
            "The network was trained on the training labels, so it excuses some of them: fewer wrong ones are found "
            "there than there are. The classifier on its features is cross-fitted, the features are not."
        )
    elif about["weights_sha256"] is None:
        said.append(
            f"Labels and outliers were judged by {about['features']} alone. A trained network judges far better: "
            "give a run, or --weights."
        )
    return [*said, *(f"Not judged: {each}." for each in about["not_judged"]), *about["notes"]]


def summary_rows(numbers: DataNumbers) -> list[SummaryRow]:
    """A row for each finding."""
    return [
        {
            "title": each["title"],
            "count": each["count"],
            "first": each["examples"][0]["name"] if each["examples"] else each["sentence"],
        }
        for each in numbers["findings"]
    ]
