"""The command line of ``excite compare``: its meaning and its errors, found before anything is loaded."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from excite.errors import ExciteError, nearest
from excite.files import check_new
from excite.recipe import apply_overrides, is_override
from excite.storage import is_remote
from excite.weights.locate import locate

#: The most characters of a label, which appears in tables, figures and headings.
LONGEST_LABEL = 60
_STAMP = re.compile(r"-\d{8}-\d{6}(-\d+)?$")


@dataclass(frozen=True)
class Asked:
    """The checked arguments of a comparison: runs, changes of the data, labels, and path of the page."""

    sources: list[str]
    overrides: list[str]
    labels: list[str] | None
    page: Path


def read_words(
    words: Sequence[str],
    *,
    out: str | Path | None,
    figures: str | Path | None,
    labels: str | Sequence[str] | None,
    baseline: str | None,
    confidence: float,
    force: bool,
) -> Asked:
    """Sort the words of a command line, and check everything that needs no network.

    Raises:
        ExciteError: see :func:`settle`; or a file exists.
    """
    page = free_name() if out is None else Path(out)
    check_target(page, force)
    if figures is not None:
        check_folder(figures, force)
    sources, overrides = [w for w in words if not is_override(w)], [w for w in words if is_override(w)]
    called = labels.split(",") if isinstance(labels, str) else None if labels is None else list(labels)
    settle(sources, overrides, called, baseline, confidence)
    return Asked(sources, overrides, called, page)


def free_name() -> Path:
    """``compare.html`` in the current folder, with a number if that or its CSV exists."""
    number = 1
    while True:
        name = "compare" if number == 1 else f"compare-{number}"
        if not any(Path(f"{name}.{kind}").exists() for kind in ("html", "csv")):
            return Path(f"{name}.html")
        number += 1


def settle(
    sources: Sequence[str],
    overrides: Sequence[str],
    labels: Sequence[str] | None,
    baseline: str | None,
    confidence: float,
) -> tuple[list[str], int]:
    """The label of each run, and the position of the baseline.

    Raises:
        ExciteError: fewer than two runs, one given twice, an unknown key, wrong labels, baseline or confidence.
    """
    check_sources(sources)
    if not 0 < confidence < 1:
        raise ExciteError(f"--confidence is {confidence:g}; give a share between 0 and 1, such as 0.95")
    called = choose_labels(sources, labels)
    first = choose_baseline(baseline, sources, called)
    apply_overrides({}, list(overrides))  # reports a misspelt key before anything is loaded
    return called, first


def check_sources(sources: Sequence[str]) -> None:
    """Raise ExciteError for fewer than two runs, or for one given twice."""
    if len(sources) < 2:
        given = f"only {sources[0]!r} was given" if sources else "none was given"
        raise ExciteError(f"a comparison needs at least two runs, and {given}")
    seen: dict[str, str] = {}
    for source in sources:
        found = None if is_remote(source) else locate(source)
        place = source if found is None or found.kind != "own" else str(found.path.resolve())
        if place in seen:
            raise ExciteError(f"{seen[place]!r} and {source!r} are the same network; give each run once")
        seen[place] = source


def choose_labels(sources: Sequence[str], labels: Sequence[str] | None = None) -> list[str]:
    """A label for each run: the given one, or its folder name, without the time stamp if that is unique.

    Raises:
        ExciteError: the number of labels is wrong, or one is empty, too long or given twice.
    """
    if labels is not None:
        given = [label.strip() for label in labels]
        if len(given) != len(sources) or "" in given or len(set(given)) < len(given):
            raise ExciteError(
                f"--labels must give each of the {len(sources)} runs a different name, not {','.join(labels)!r}"
            )
        if long := [label for label in given if len(label) > LONGEST_LABEL]:
            raise ExciteError(f"--labels: {long[0]!r} has more than {LONGEST_LABEL} characters; give a shorter name")
        return given
    names = [_name(source) for source in sources]
    short = [_STAMP.sub("", name) for name in names]
    names = [s if short.count(s) == 1 else n for s, n in zip(short, names, strict=True)]
    names = [n if len(n) <= LONGEST_LABEL else f"{n[: LONGEST_LABEL - 1]}…" for n in names]
    taken = set(names)  # a folder may also be called "run (1)"
    found = []
    for name in names:
        numbered = (f"{name} ({number})" for number in itertools.count(1))
        found.append(name if names.count(name) == 1 else next(each for each in numbered if each not in taken))
        taken.add(found[-1])
    return found


def _name(source: str) -> str:
    path = Path(source)
    if path.name.startswith("step-") and path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}/{path.name}"
    if path.name == "model.safetensors" and path.parent.name:
        return path.parent.name
    if path.suffix == ".safetensors":
        return path.stem
    return path.name or path.resolve().name or source


def choose_baseline(wanted: str | None, sources: Sequence[str], labels: Sequence[str]) -> int:
    """The position of the baseline, given by its path or label; the first run if None. Raises ExciteError."""
    if wanted is None:
        return 0
    for names in (sources, labels):
        if wanted in names:
            return list(names).index(wanted)
    for position, source in enumerate(sources):
        if Path(source).resolve() == Path(wanted).resolve():
            return position
    hint = nearest(wanted, [*labels, *sources])
    raise ExciteError(f"--baseline {wanted!r} is not one of the runs ({', '.join(labels)}){hint}")


def check_target(path: str | Path, force: bool = False) -> tuple[Path, Path]:
    """The paths of page and CSV file. Raises ExciteError if one exists, or for another suffix."""
    page = Path(path)
    if page.suffix != ".html":
        raise ExciteError(f"--out {page}: the name of the page must end in .html")
    table = page.with_suffix(".csv")
    for file in (page, table):
        check_new(file, force)
    return page, table


def check_folder(folder: str | Path, force: bool = False) -> Path:
    """The path of the folder for figures. Raises ExciteError if it exists without ``force``, or is a file."""
    folder = Path(folder)
    if folder.exists() and not (force and folder.is_dir()):
        raise ExciteError(f"{folder} already exists; name a new folder, or use --force to write into it")
    return folder
