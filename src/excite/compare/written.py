"""``excite compare``: the comparison, and the files that it leaves."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from excite.compare.build import Comparison, compare
from excite.compare.words import read_words
from excite.progress import Progress
from excite.recipe import Overrides, override_words

Words = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def compare_and_write(
    *words: Words,
    overrides: Overrides = (),
    out: str | Path | None = None,
    baseline: str | None = None,
    labels: str | Sequence[str] | None = None,
    figures: str | Path | None = None,
    confidence: float = 0.95,
    device: str = "auto",
    precision: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compare trained networks on the same images, and write page, CSV and figures.

    ``excite.compare("runs/a", "runs/b")``; without files: :func:`excite.compare.compare`.

    Args:
        words: two or more run folders, checkpoints, or other systems' weights, one by one or in a list; and
            ``data.key=value``, which holds for all.
        overrides: more of these; see ``load_recipe``.
        out: the page, NAME.html; the CSV goes beside it. None takes ``compare.html`` here, with a number where that is
            taken.
        baseline: the source or label that the others are compared with; None: the first.
        labels: what to call each, in a list or separated by commas; None takes the names of the folders.
        figures: a folder for every figure as PNG and SVG; None writes none.
        confidence: of the intervals.
        device: "auto", "cpu", "cuda" ...
        precision: None takes for each what it was trained in.
        force: replace what is there.
        progress: called with (what is being done, done, in all).

    Raises:
        ExciteError: see :func:`excite.compare.compare`; something is there already.
    """
    given = [os.fspath(word) for each in words for word in ([each] if isinstance(each, str | os.PathLike) else each)]
    asked = read_words(
        [*given, *override_words(overrides)],
        out=out,
        figures=figures,
        labels=labels,
        baseline=baseline,
        confidence=confidence,
        force=force,
    )
    result = compare(
        asked.sources,
        asked.overrides,
        labels=asked.labels,
        baseline=baseline,
        confidence=confidence,
        device=device,
        precision=precision,
        progress=progress,
    )
    written = result.write(asked.page, force=force)
    if figures is not None:
        written += result.write_figures(figures, force=force)
    return replace(result, files=tuple(written))
