"""Progress in a Jupyter notebook: one display, updated in place.

IPython is never imported here: a notebook has imported it already.
"""

import math
import sys
import time
from collections.abc import Sequence
from html import escape
from typing import Any

from excite.text import printable

#: Seconds between two updates: each is sent to the browser in full.
SECONDS = 0.5
#: The most points drawn of a curve; longer curves are thinned out.
_POINTS = 200
_WIDTH, _HEIGHT, _MARGIN = 320, 110, 8


def in_notebook() -> bool:
    """Whether this process runs the cells of a notebook (Jupyter, VS Code, Colab)."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class Place:
    """A place in a cell's output whose HTML can be replaced."""

    def __init__(self) -> None:
        display: Any = sys.modules["IPython"].display
        self._html, self._last = display.HTML, -math.inf
        self._handle = display.display(self._html(""), display_id=True)

    def show(self, html: str, *, last: bool = False) -> None:
        """Replace the HTML, at most every :data:`SECONDS`; with ``last``, always."""
        now = time.monotonic()
        if last or now - self._last >= SECONDS:
            self._last = now
            self._handle.update(self._html(html))


def bar(what: str, done: int, total: int) -> str:
    """A progress bar with its label, as HTML; a ``total`` of 0 means unknown."""
    share = min(1.0, done / total) if total else 0.0
    told = f"{100 * share:.0f} %" if total else ""
    return (
        '<div style="display:flex;gap:.6em;align-items:center">'
        '<div style="width:12em;height:.7em;border:1px solid #888;border-radius:3px">'
        f'<div style="width:{100 * share:.1f}%;height:100%;background:#0072B2"></div></div>'
        f"<span>{told}</span><span>{_text(what)}</span></div>"
    )


class TrainingPicture:
    """The live picture of a training: progress bar, position, measurements, and curves of loss and accuracy.

    Args:
        steps: steps of the whole training.
        done: steps already done before the run was resumed.
    """

    def __init__(self, steps: int, done: int) -> None:
        self._steps, self._done = steps, done
        self._loss: list[tuple[int, float]] = []
        self._measured: list[tuple[int, float]] = []
        self._measure = ""
        self._lines = ["starting ...", "", ""]
        self._place = Place()
        self._update()

    def step(self, place: str, measured: str, step: int, loss: float | None) -> None:
        """Show a training record; ``loss`` is None if it was not finite."""
        self._lines[:2], self._done = [place, measured], step
        if loss is not None:
            self._loss.append((step, loss))
        self._update()

    def evaluated(self, line: str, step: int, value: float | None, name: str) -> None:
        """Show an evaluation: its line, and the value of the measure that chooses the best, with its name."""
        self._lines[2], self._measure = line, name
        if value is not None:
            self._measured.append((step, value))
        self._update()

    def close(self) -> None:
        """Show the final state, which stays."""
        self._update(last=True)

    def _update(self, last: bool = False) -> None:
        place, *lines = self._lines
        spec = ".2f" if self._measure.endswith("%") else ".4f"
        curves = [
            curve(points, self._steps, name, spec)
            for points, name, spec in ((self._loss, "training loss", ".3g"), (self._measured, self._measure, spec))
            if points
        ]
        shown = "".join(f"<div>{_text(line)}</div>" for line in lines if line)
        drawn = f'<div style="display:flex;gap:1em;flex-wrap:wrap">{"".join(curves)}</div>'
        self._place.show(bar(place, self._done, self._steps) + shown + drawn, last=last)


def curve(points: Sequence[tuple[int, float]], steps: int, name: str, spec: str) -> str:
    """Draw (step, value) points as SVG: a line over the whole training, with its extremes and last value."""
    every = -(-len(points) // _POINTS)
    kept = [*points[:-1:every], points[-1]]
    low, high = min(value for _, value in points), max(value for _, value in points)
    span, inner = high - low or 1.0, (_WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN - 14)

    def at(step: int, value: float) -> str:
        x = _MARGIN + inner[0] * step / max(1, steps)
        return f"{x:.1f},{_MARGIN + 14 + inner[1] * (high - value) / span:.1f}"

    head = f"{name}: {points[-1][1]:{spec}} (from {low:{spec}} to {high:{spec}})"
    x, y = at(*points[-1]).split(",")
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{escape(head, quote=True)}">'
        f'<text x="{_MARGIN}" y="14" font-size="11" fill="currentColor">{_text(head)}</text>'
        f'<rect x="{_MARGIN}" y="{_MARGIN + 14}" width="{inner[0]}" height="{inner[1]}" fill="none" stroke="#8888"/>'
        f'<polyline fill="none" stroke="#0072B2" stroke-width="1.5" points="{" ".join(at(*p) for p in kept)}"/>'
        f'<circle cx="{x}" cy="{y}" r="2.5" fill="#D55E00"/></svg>'
    )


def _text(text: str) -> str:
    return escape(printable(text))
