"""``excite data check``: from a data set, or a run, to findings and a page.

Shapes: N images of all parts, K classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from excite.data import DataSets, open_data
from excite.data.decode import BadImageError
from excite.datacheck import files
from excite.datacheck.asked import data_recipe, is_network
from excite.datacheck.contents import (
    Balance,
    DataNumbers,
    Example,
    Kind,
)
from excite.datacheck.copies import Copies, find_copies
from excite.datacheck.features import fixed_features, network_features
from excite.datacheck.giveaways import find_giveaways
from excite.datacheck.items import PARTS, Items, all_items
from excite.datacheck.judged import Suspect, judge_labels, restate
from excite.datacheck.kept import Arrays, kept, place_of
from excite.datacheck.labels import PERHAPS, SURE
from excite.datacheck.look import Looks, look_at_all
from excite.datacheck.outliers import find_outliers
from excite.datacheck.page import make_page
from excite.datacheck.words import summary_rows, told
from excite.errors import ExciteError, shown
from excite.files import check_writable
from excite.pages.inline import show_table
from excite.pages.pictures import bands_shown
from excite.progress import Progress, silent
from excite.recipe import Overrides, Recipe, apply_overrides, elsewhere, override_words
from excite.size import by_text
from excite.trained.classes import match_classes
from excite.trained.opened import open_trained
from excite.trained.predictor import Predictor
from excite.weights.locate import run_folder

#: The most images of a finding in the JSON; the page has fewer.
MOST = 10_000
#: Pictures of each finding on the page.
PICTURES = 60
PAGE = "data-check.html"
#: A side that no JPEG is decoded smaller for.
WHOLE = 1 << 20
_DETAILS = {
    "same bytes": "same bytes as",
    "same pixels": "same pixels as",
    "near": "near copy of",
    "mirrored": "mirror image of",
}


class DataCheck(NamedTuple):
    """The findings (docs/data-check.md), and the file of the page: ``numbers, path = excite.check_data(...)``."""

    numbers: DataNumbers
    path: Path

    @property
    def fails(self) -> bool:
        """Whether there are broken files, or parts share images or groups, as for ``--strict``."""
        return any(found["kind"] in ("broken", "leaks", "groups") for found in self.numbers["findings"])

    def _repr_html_(self) -> str:
        rows = [(row["title"], f"{row['count']:,}") for row in summary_rows(self.numbers)]
        title = f"check of {self.numbers['about']['source']}"
        return show_table(("finding", "images"), rows, title=title, notes=[f"page: {self.path}"])


def check_data(
    source: str | Path | None = None,
    overrides: Overrides = (),
    *,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    pictures: int = PICTURES,
    device: str = "auto",
    progress: Progress | None = None,
) -> DataCheck:
    """Check a data set, or the data of a run, and write a page. Files of the data are never changed.

    Args:
        source: the data (a folder, or what ``data.source`` takes), or a run folder or checkpoint, whose recipe names
            the data. None: ``data.root`` or a source that comes with the package.
        overrides: ``data.key=value`` strings, such as ``data.source=cifar10``; see ``load_recipe``.
        weights: for data without a run: a trained network whose features labels and outliers are judged by.
        out: the page; None: ``data-check.html`` in the run folder, or in the current folder. An existing one is
            replaced.
        pictures: the most pictures of each finding on the page.
        device: "auto", "cpu", "cuda" ...
        progress: called with (current step, units done, units in total).

    Returns:
        The findings, and the path of the page.

    Raises:
        ExciteError: the data or the network cannot be read, or have different classes; or the page cannot be written.
    """
    tell = progress or silent
    tell("opening the data", 0, 0)
    opened = _open(source, overrides, weights, device)
    path = Path(out) if out is not None else _place(source, opened)
    check_writable(path)  # before minutes of work
    items = all_items(opened.data, opened.recipe.data.max_pixels, opened.recipe.data.in_chans)
    looks = look_at_all(items, tell)
    if not len(looks.good):
        first, reason = next(iter(looks.reasons.items()))
        raise ExciteError(f"none of {len(items):,} images can be read; the first is {items.names[first]}: {reason}")
    numbers = _study(opened, items, looks, tell)
    tell("writing the page", 0, 0)
    make_page(numbers, items, pictures).write(path)
    return DataCheck(numbers, path)


@dataclass
class _Opened:
    source: str
    recipe: Recipe
    data: DataSets
    predictor: Predictor | None
    weights: str | None
    is_run: bool


def _open(source: str | Path | None, overrides: Overrides, weights: str | Path | None, device: str) -> _Opened:
    # Files as they are: in memory there are only their pixels, resized.
    words = [*override_words(overrides), "data.mode=stream"]
    if source is not None and is_network(source):
        if weights is not None:
            raise ExciteError(f"{source} is a run with weights of its own: leave --weights out")
        network = open_trained(source, device=device)
        predictor = network.predictor
        trained = Recipe.from_dict(predictor.meta["recipe"], str(source))
        recipe = Recipe.from_dict(
            apply_overrides(predictor.meta["recipe"], elsewhere(trained.data, words)), str(source)
        )
        data = open_data(recipe.data, recipe.augment)
        match_classes(predictor, data.classes, source)
        return _Opened(str(source), recipe, data.relabelled(predictor.classes), predictor, network.weights, True)
    recipe = data_recipe(source, words)
    data = open_data(recipe.data, recipe.augment)
    if weights is None:
        return _Opened(str(source or recipe.data.root or recipe.data.source), recipe, data, None, None, False)
    network = open_trained(weights, device=device)
    return _Opened(str(source or recipe.data.root), recipe, data, network.predictor, network.weights, False)


def _place(source: str | Path | None, opened: _Opened) -> Path:
    run = run_folder(str(source)) if opened.is_run else None
    return Path(PAGE) if run is None else run / PAGE


def _study(opened: _Opened, items: Items, looks: Looks, tell: Progress) -> DataNumbers:
    copies = _copies(items, looks, tell)
    if opened.predictor is None:
        features = fixed_features(looks)
    else:
        name = f"the network of {opened.source}" if opened.is_run else "the network of --weights"
        features = network_features(opened.predictor, opened.weights or "", items, looks, name, tell)
    book = _Book(items, copies)
    book.odd("broken", files.broken(looks))
    # What shows nothing has no class to be judged by.
    constant = files.constant(looks)
    shown = np.setdiff1d(looks.good, [item for item, _ in constant])
    judged, noises, missing = judge_labels(opened.is_run, items, shown, features, copies.group, tell)
    for least, kind in ((SURE, "labels"), (PERHAPS, "labels-perhaps")):
        book.labels(kind, judged, least)  # type: ignore[arg-type]
    book.leaks()
    book.groups()
    book.conflicts()
    book.copies()
    book.odd("constant", constant)
    book.odd("endings", files.endings(items, looks))
    book.odd("tiny", files.tiny(looks, min(opened.recipe.data.training_size)))
    book.odd("shapes", files.shapes(looks))
    book.odd("modes", files.modes(looks))
    good = looks.good
    beyond = np.full(len(items), -np.inf)
    beyond[shown] = find_outliers(features.values[shown], items.given[shown], copies.group[shown])
    book.outliers(beyond)
    balance = _balance(items)
    giveaways = find_giveaways(Looks(looks.rows[good], {}, 0), items.given[good], items.each_class)
    if not giveaways:
        missing.append("whether size, format or colour give the class away: too few images, or all are alike in these")
    restated = []
    if opened.is_run and opened.predictor is not None:
        restated = restate(items, good, features, copies.group, noises, opened.predictor.threshold)
    numbers: DataNumbers = {
        "about": {
            "source": opened.source,
            "run": opened.is_run,
            "data": opened.recipe.data.root or opened.recipe.data.source,
            "images": {name: int((items.parts == k).sum()) for k, name in enumerate(PARTS) if (items.parts == k).any()},
            "classes": len(items.each_class),
            "several": items.several is not None,
            "image_size": by_text(opened.recipe.data.training_size),
            "features": features.source,
            "weights_sha256": opened.weights,
            "looked_at_now": looks.fresh,
            "not_judged": missing,
            "notes": [*opened.data.notes, *([bands] if (bands := bands_shown(items.channels)) else [])],
        },
        "findings": [],
        "balance": balance,
        "giveaways": giveaways,
        "labels": [row for noise in noises for row in noise.rows],
        "restated": restated,
    }
    numbers["findings"] = told(numbers, book.found)
    return numbers


def _copies(items: Items, looks: Looks, tell: Progress) -> Copies:
    def make() -> Arrays:
        found = find_copies(looks.rows, looks.good, tell)
        kinds = [_same_pixels(items, looks, pair, kind) for pair, kind in zip(found.pairs, found.kinds, strict=True)]
        return {
            "pairs": found.pairs,
            "kinds": np.array(kinds, "U12"),
            "scores": found.scores,
            "group": found.group,
        }

    found = kept(place_of(items, "copies"), looks.rows["key"].tobytes(), make)
    return Copies(found["pairs"], found["kinds"].tolist(), found["scores"], found["group"])


def _same_pixels(items: Items, looks: Looks, pair: np.ndarray, kind: str) -> str:
    """ "same pixels" for two near copies that are the same picture in other files, else the kind as it is."""
    one, other = looks.rows[pair[0]], looks.rows[pair[1]]
    alike = all(np.array_equal(one[what], other[what]) for what in ("width", "height", "grey", "colour", "mean"))
    if kind != "near" or not alike:
        return kind
    try:
        first, second = (items.picture(int(item), WHOLE) for item in pair)
    except BadImageError:  # it has gone since
        return kind
    return "same pixels" if np.array_equal(np.asarray(first), np.asarray(second)) else kind


# --- counts -----------------------------------------------------------------------------------------------------------


def _balance(items: Items) -> Balance:
    counts = items.counts()
    whole = counts[0]
    there = np.flatnonzero(counts.sum(0))
    largest, smallest = there[int(whole[there].argmax())], there[int(whole[there].argmin())]
    return {
        "classes": [
            {"label": name, "training": int(a), "validation": int(b), "test": int(c)}
            for name, (a, b, c) in zip(items.each_class, counts.T, strict=True)
        ],
        "largest": items.each_class[largest],
        "smallest": items.each_class[smallest],
        "ratio": float(whole[largest] / max(1, whole[smallest])),
    }


# --- findings ---------------------------------------------------------------------------------------------------------


class _Book:
    """Collects the images of each kind of finding: kind -> (count, examples)."""

    def __init__(self, items: Items, copies: Copies) -> None:
        self.items, self.links = items, copies
        self.found: dict[Kind, tuple[int, list[Example]]] = {}
        self._groups = copies.groups()
        self._kinds = {(int(a), int(b)): kind for (a, b), kind in zip(copies.pairs.tolist(), copies.kinds, strict=True)}

    def add(self, kind: Kind, count: int, examples: list[Example]) -> None:
        """Note a finding, unless there is none."""
        if count:
            self.found[kind] = (count, examples[:MOST])

    def example(self, item: int, detail: str, instead: str | None = None, group: int | None = None) -> Example:
        """An image of a finding."""
        return {
            "part": self.items.part(item),
            "name": self.items.names[item],
            "path": self.items.path(item),
            "label": self.items.label(item),
            "detail": detail,
            "instead": instead,
            "group": group,
            "item": item,
        }

    def odd(self, kind: Kind, found: Sequence[files.Odd]) -> None:
        """Files that are broken or odd."""
        self.add(kind, len(found), [self.example(item, why) for item, why in found[:MOST]])

    def labels(self, kind: Kind, judged: Sequence[Suspect], least: float) -> None:
        """Labels that are wrong with a probability of ``least`` or more, those already told apart."""
        some = [each for each in judged if each.wrong >= least and (least >= SURE or each.wrong < SURE)]
        self.add(kind, len(some), [self.example(each.item, each.detail, each.instead) for each in some[:MOST]])

    def _link(self, item: int, others: Sequence[int]) -> tuple[int, str]:
        """The nearest of the others, and what the item is to it."""
        order = ("same bytes", "same pixels", "near", "mirrored")
        linked = [(order.index(kind), other) for other in others if (kind := self._kind(item, other)) is not None]
        if linked:
            rank, other = min(linked)
            return other, f"{_DETAILS[order[rank]]} {self.items.names[other]}"
        return others[0], f"near copy of {self.items.names[others[0]]}"

    def _kind(self, a: int, b: int) -> str | None:
        return self._kinds.get((min(a, b), max(a, b)))

    def leaks(self) -> None:
        """Images of the validation or test part with a copy in an earlier part."""
        count, examples = 0, list[Example]()
        parts = self.items.parts
        for number, group in enumerate(self._groups):
            first = min(parts[i] for i in group)
            later, earlier = [i for i in group if parts[i] > first], [i for i in group if parts[i] == first]
            count += len(later)
            shown: set[int] = set()
            for item in later:
                other, detail = self._link(item, earlier)
                where = f" ({self.items.part(other)})"
                examples.append(self.example(item, detail + where, group=number))
                if other not in shown:
                    examples.append(self.example(other, "its copy", group=number))
                    shown.add(other)
        self.add("leaks", count, examples)

    def groups(self) -> None:
        """Images of the validation or test part whose group, such as a patient, is in an earlier part, too."""
        members: dict[str, list[int]] = {}
        for item in range(len(self.items)) if self.items.shared else ():
            if (group := self.items.shared.get(self.items.path(item) or "")) is not None:
                members.setdefault(group, []).append(item)
        count, examples = 0, list[Example]()
        for number, (group, some) in enumerate(members.items()):
            first = min(int(self.items.parts[i]) for i in some)
            later, earlier = ([i for i in some if (self.items.parts[i] > first) == after] for after in (True, False))
            count += len(later)
            told = f"of {shown(group)}, of which {len(earlier):,} images are in the {PARTS[first]} part"
            examples += [self.example(item, told, group=number) for item in later]
        self.add("groups", count, examples)

    def conflicts(self) -> None:
        """Copies with different labels."""
        count, examples = 0, list[Example]()
        for number, group in enumerate(self._groups):
            labels = Counter(int(self.items.labels[i]) for i in group)
            if len(labels) == 1:
                continue
            count += len(group)
            (common, most), *others = labels.most_common()
            tied = others[0][1] == most
            for item in group:
                own = int(self.items.labels[item])
                instead = common if own != common else others[0][0] if tied else None
                _, detail = self._link(item, [i for i in group if i != item])
                name = None if instead is None else self.items.classes[instead]
                examples.append(self.example(item, detail, name, number))
        self.add("conflicts", count, examples)

    def copies(self) -> None:
        """Copies within a part and a class: all but the first of each group."""
        count, examples = 0, list[Example]()
        for number, group in enumerate(self._groups):
            alike: dict[tuple[int, int], list[int]] = {}
            for item in group:
                alike.setdefault((int(self.items.parts[item]), int(self.items.labels[item])), []).append(item)
            for some in alike.values():
                if len(some) > 1:
                    count += len(some) - 1
                    examples.append(self.example(some[0], f"the first of {len(some)}", group=number))
                    examples += [
                        self.example(i, self._link(i, [j for j in some if j != i])[1], group=number) for i in some[1:]
                    ]
        self.add("copies", count, examples)

    def outliers(self, beyond: np.ndarray) -> None:
        """Images beyond the fence of their class."""
        far = np.flatnonzero(beyond > 0)
        order = far[np.argsort(-beyond[far], kind="stable")]
        self.add("outliers", len(order), [self.example(int(i), "unlike all others of its class") for i in order[:MOST]])
