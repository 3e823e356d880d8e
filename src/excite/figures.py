"""What every drawing shares: colours, marks, and how Matplotlib is told to treat text. Imports nothing heavy."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from excite.files import written_aside

#: Okabe & Ito's, which colour-blind readers can tell apart.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: A mark of its own for each line besides, for those who see no colours.
MARKS = ("o", "s", "^", "D", "v", "P", "X")


@contextmanager
def style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """In which figures are made and written.

    Args:
        more: further settings of Matplotlib's (``rcParams``).
    """
    from matplotlib import rc_context

    # Text as text: it can be searched and read aloud. Without hashsalt and date, equal data would give unequal files.
    # Names of runs, classes and files are the user's, in which a $ is a $ and no formula (which may be no valid one).
    options = {"svg.fonttype": "none", "svg.hashsalt": "excite", "font.size": 10, "text.parse_math": False}
    with rc_context({**options, **(more or {})}), warnings.catch_warnings():
        # Of a name in another script; in an SVG the reader's own fonts have it.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def drawn_width(text: str) -> int:
    """In Latin characters; Chinese and the like are twice as wide."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def shortened(text: str, most: int) -> str:
    """A name of the user's where there is room for ``most`` Latin characters only."""
    if drawn_width(text) <= most:
        return text
    end = next(k for k in range(len(text), -1, -1) if drawn_width(text[:k]) < most)
    return f"{text[:end]}…"


def save(figure: Any, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG beside each other. Raises ExciteError.

    Args:
        figure: a matplotlib Figure.
        path: without suffix.
    """
    written = []
    with style():
        for kind in ("png", "svg"):
            file = path.with_name(f"{path.name}.{kind}")
            with written_aside(file) as aside:
                figure.savefig(aside, dpi=110, format=kind, metadata={"Date": None} if kind == "svg" else None)
            written.append(file)
    return written
