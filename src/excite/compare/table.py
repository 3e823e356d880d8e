"""Formatting of the numbers, shared by terminal and page."""

from collections.abc import Sequence
from typing import Literal, cast

from excite.compare.study import WHAT_IT_SAYS, RunRow, Study
from excite.measures import named
from excite.pages.resampling import RESAMPLES, SEED

#: Keys that get a column if the runs differ in them.
Differing = Literal["model", "device", "devices", "batch_size", "trained_in"]


class ShownRow(RunRow):
    """A row with formatted intervals, p-values etc. in addition to its numbers; ``gate`` is "none" without gates."""

    params_m: float
    epochs_text: str | None
    top1_interval: str | None
    difference_interval: str | None
    loss_interval: str | None
    f1_interval: str | None
    f1_text: str | None
    p_text: str | None
    p_holm_text: str | None


def format_p(p: float | None) -> str | None:
    """A p-value with two significant digits: 0.43, 0.012, 0.0031, or "< 0.0001"."""
    if p is None:
        return None
    if p < 1e-4:
        return "< 0.0001"
    return f"{p:.2f}" if p >= 0.1 else f"{p:#.2g}"  # "#" keeps the 0 of 0.050


def interval(low: float | None, high: float | None, spec: str) -> str | None:
    """An interval such as "84.01 to 85.42"; None if there is none."""
    return None if low is None else f"{low:{spec}} to {high:{spec}}"


def with_ends(value: str, ends: str | None, brackets: str) -> str:
    """A value with its interval in brackets, "[]" or "()", if there is one."""
    return value if ends is None else f"{value} {brackets[0]}{ends}{brackets[1]}"


def epochs(row: RunRow) -> str | None:
    """The epochs: "13", or "7 of 13" for a run that is unfinished or was stopped early."""
    done = row["epochs_done"]
    stopped = row["finished"] and done is not None and row["epochs"] is not None and done < row["epochs"]
    if row["finished"] is False or stopped:
        return f"{done or 0:g} of {row['epochs']}"
    return None if row["epochs"] is None else str(row["epochs"])


def differing(rows: Sequence[RunRow], keys: Sequence[Differing]) -> list[Differing]:
    """The keys in which the rows differ; unknown values are ignored."""
    return [key for key in keys if len({row[key] for row in rows if row[key] is not None}) > 1]


def shown(found: Study) -> list[ShownRow]:
    """The rows with formatted intervals, p-values etc. in addition to their numbers."""
    rows: list[ShownRow] = []
    for row in found["rows"]:
        base = row["label"] == found["baseline"] and bool(found["paired"])
        change = interval(row["difference_low"], row["difference_high"], "+.2f")
        loss = interval(row["loss_difference_low"], row["loss_difference_high"], "+.4f")
        rows.append(
            {
                **row,
                "gate": row["gate"] or "none",
                "params_m": row["params"] / 1e6,
                "epochs_text": epochs(row),
                "top1_interval": interval(row["top1_low"], row["top1_high"], ".2f"),
                "difference_interval": "baseline" if base else change,
                "loss_interval": "baseline" if base else loss,
                "f1_interval": "baseline" if base else interval(row.get("f1_low"), row.get("f1_high"), "+.2f"),
                "f1_text": _f1(row),
                "p_text": format_p(row["p"]),
                "p_holm_text": format_p(row["p_holm"]),
            }
        )
    return rows


def _f1(row: RunRow) -> str | None:
    """Micro F1 with its interval: "44.96 [43.28 to 46.68]"; None where images have one class each."""
    if row.get("micro_f1") is None:  # nor is the key there in what a file has of one class each
        return None
    return with_ends(f"{row['micro_f1']:.2f}", interval(row["micro_f1_low"], row["micro_f1_high"], ".2f"), "[]")


#: What there is only with several labels an image, and only with one class each.
_OF_LABELS = ("micro_f1", "micro_f1_low", "micro_f1_high", "macro_f1", "threshold")
_OF_LABELS_COMPARED = ("f1_difference", "f1_low", "f1_high")
_OF_CLASSES = ("balanced", "top5", "p", "p_holm", "test")


def outward(found: Study) -> Study:
    """The numbers as files have them: with several labels an image, what is held as ``top1`` is called ``map``; keys
    that do not apply are left out."""
    several = found["measure"] == "mAP"
    gone = _OF_CLASSES if several else (*_OF_LABELS, *_OF_LABELS_COMPARED)
    rows = [named({key: value for key, value in row.items() if key not in gone}, several) for row in found["rows"]]
    curves = [{**each, "validation": named(each["validation"], several)} for each in found["curves"]]
    classes = None if found["per_class"] is None else [named(each, several) for each in found["per_class"]]
    return cast(Study, {**found, "rows": rows, "curves": curves, "per_class": classes})


def headline(found: Study) -> str:
    """The result in one sentence with its interval: for two networks the difference, for more the best three accuracies
    and how many differ from the baseline."""
    percent, rows = f"{100 * found['confidence']:g} % interval", found["rows"]
    compared = [row for row in rows if row["difference"] is not None]
    if len(compared) == 1 and len(rows) == 2:
        return _against(compared[0], found)
    measure = "Top-1" if found["measure"] == "top-1" else "mAP"
    known = sorted((row for row in rows if row["top1"] is not None), key=lambda row: -(row["top1"] or 0))
    if not known:
        return "No accuracy of these networks is known"
    listed = [
        with_ends(f"{row['label']} {row['top1']:.2f} %", interval(row["top1_low"], row["top1_high"], ".2f"), "()")
        for row in known
    ]
    more = f" and {len(known) - 3} more below" if len(known) > 3 else ""
    told = f"{measure} ({percent}): {', '.join(listed[:3])}{more}"
    if not compared:
        return f"{told}; not compared image by image"
    level = 1 - found["confidence"]
    clear = sum(row["p_holm"] is not None and row["p_holm"] < level for row in compared)
    if found["measure"] == "mAP":
        apart = sum(not (row["difference_low"] or 0) <= 0 <= (row["difference_high"] or 0) for row in compared)
        return f"{told}; {apart} of {len(compared)} differ from {found['baseline']} (paired intervals without 0)"
    return f"{told}; {clear} of {len(compared)} differ from {found['baseline']} (Holm's p below {level:.2g})"


def _against(row: RunRow, found: Study) -> str:
    """The headline for two networks on the same images."""
    change, low, high = row["difference"] or 0.0, row["difference_low"] or 0.0, row["difference_high"] or 0.0
    more = f"{abs(change):.2f} points {'fewer' if change < 0 else 'more'}"
    shows = "no difference is shown" if low <= 0 <= high else f"{row['label']} is {'better' if change > 0 else 'worse'}"
    if found["measure"] == "mAP":
        return (
            f"mAP of {row['label']} is {change:+.2f} points against {found['baseline']} on the same {row['images']:,} "
            f"images; {100 * found['confidence']:g} % interval {interval(low, high, '+.2f')}: {shows}"
        )
    return (
        f"{row['label']} gets {more} of the same {row['images']:,} images right than {found['baseline']}; "
        f"{100 * found['confidence']:g} % interval {interval(low, high, '+.2f')}: {shows}"
    )


def sentences(found: Study) -> list[str]:
    """Sentences about how the numbers were computed and what they mean, as far as they apply."""
    percent = f"{100 * found['confidence']:g} %"
    if found["measure"] == "mAP":
        return _of_labels(found)
    told = [f"Top-1 with Wilson's {percent} interval."]
    if not found["paired"]:
        return told
    compared = [row for row in found["rows"] if row["p"] is not None]
    base = next(row for row in found["rows"] if row["label"] == found["baseline"])
    tests = {row["test"] for row in compared if row["test"] is not None}
    told.append(
        f"Differences to {found['baseline']} are paired, on the same {base['images']:,} images (equal fingerprints "
        f"and labels), in percentage points with Tango's {percent} interval."
    )
    form = {"exact": "exact binomial", "mid-p": "mid-p"}
    rule = "exact binomial if fewer than 25 images are right in only one of the two, otherwise mid-p"
    which = form[next(iter(tests))] if len(tests) == 1 else "both forms are used"
    told.append(f"p is McNemar's, two-sided ({which}; the rule: {rule}).")
    if len(compared) > 1:
        told.append(f"{len(compared)} runs are tested against the baseline; use Holm's p, which is adjusted for that.")
    told.append(WHAT_IT_SAYS)
    return told


def _of_labels(found: Study) -> list[str]:
    """The sentences about images with several labels."""
    percent = f"{100 * found['confidence']:g} %"
    told = [
        f"mAP and micro F1 with {percent} intervals from {RESAMPLES:,} resamples of the images (corrected for "
        f"their bias, seed {SEED}); F1 at each network's own threshold."
    ]
    if not found["paired"]:
        return told
    base = next(row for row in found["rows"] if row["label"] == found["baseline"])
    told.append(
        f"Differences to {found['baseline']} are paired, in the same resamples of the same {base['images']:,} images "
        "(equal fingerprints and labels), in percentage points."
    )
    if len(found["paired"]) > 2:
        told.append("Each interval is for one difference; with several, some leave out 0 by chance.")
    return [*told, WHAT_IT_SAYS]
