"""``excite compare``: compare networks and write the files."""

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

    ``excite.compare("runs/a", "runs/b")`` calls this function; :func:`excite.compare.compare` writes no files.

    Args:
        words: two or more run folders, checkpoints, or other libraries' weights, one by one or in a list; and
            ``data.key=value`` strings for all of them.
        overrides: further ``data.key=value`` changes; see ``load_recipe``.
        out: path of the page, NAME.html; the CSV is written next to it. None: ``compare.html`` in the current folder,
            with a number if that exists.
        baseline: the source or label that the others are compared with; None: the first.
        labels: a name for each, as a list or separated by commas; None: the names of the folders.
        figures: a folder for every figure as PNG and SVG; None: do not write them.
        confidence: confidence level of the intervals.
        device: "auto", "cpu", "cuda" ...
        precision: "fp32", "bf16", "fp16" or "auto"; None: for each network that of its training.
        force: overwrite existing files.
        progress: called with (current step, units done, units in total).

    Returns:
        The comparison, with the paths of its files.

    Raises:
        ExciteError: see :func:`excite.compare.compare`; or a file exists.
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
