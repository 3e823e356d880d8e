"""Common parts of all figures: colours, markers, Matplotlib's text settings, and writing files.

A figure that cannot be drawn costs one message and nothing else. Imports nothing heavy.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unicodedata import east_asian_width

from excite.errors import ExciteError, first_line
from excite.files import written_aside
from excite.text import printable, printable_lines

#: The palette of Okabe & Ito, which colour-blind readers can distinguish.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: Markers, so that lines differ without colour, too.
MARKS = ("o", "s", "^", "D", "v", "P", "X")

_P = ParamSpec("_P")
_Drawn = TypeVar("_Drawn")


@contextmanager
def style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """The Matplotlib settings in which figures are drawn and written.

    Args:
        more: further ``rcParams``.
    """
    from matplotlib import rc_context

    # Text stays text, so that it can be searched and read aloud. A fixed hashsalt and no date: equal data give equal
    # files. Names of runs, classes and files come from the user: "$" starts no formula and "%" no LaTeX comment,
    # whatever the user's own Matplotlib settings.
    options = {
        "svg.fonttype": "none",
        "svg.hashsalt": "excite",
        "font.size": 10,
        "text.parse_math": False,
        "text.usetex": False,
        "axes.formatter.use_mathtext": False,
    }
    with rc_context({**options, **(more or {})}), warnings.catch_warnings():
        # Names in another script; the reader's own fonts show them in an SVG.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        warnings.filterwarnings("ignore", "Matplotlib currently does not support .* natively")
        # Labels that need all the space; the figure is written anyway.
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        yield


def drawn_width(text: str) -> int:
    """The width of a text in Latin characters; Chinese and similar characters count twice."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def shortened(text: str, most: int) -> str:
    """A name shortened to the width of ``most`` Latin characters, on one line and printable."""
    text = printable(text)
    if drawn_width(text) <= most:
        return text
    end = next(k for k in range(len(text), -1, -1) if drawn_width(text[:k]) < most)
    return f"{text[:end]}…"


def save(figure: Any, path: Path) -> list[Path]:
    """Write a figure as PNG and as SVG. Raises ExciteError.

    Args:
        figure: a Matplotlib figure.
        path: the path without suffix.

    Returns:
        The paths of the two files.
    """
    return [write(figure, path.with_name(f"{path.name}.{kind}")) for kind in ("png", "svg")]


def write(figure: Any, path: Path, dpi: int = 110) -> Path:
    """Write a figure atomically as SVG if ``path`` ends in ".svg", else as PNG. All figures are written here.

    Raises:
        ExciteError: it could not be drawn, or cannot be written.
    """
    if isinstance(figure, Undrawn):
        raise ExciteError(figure.reason)
    kind = "svg" if path.suffix == ".svg" else "png"
    with written_aside(path) as aside:
        aside.write_bytes(_file(figure, kind, dpi))
    return path


def svg(figure: Any) -> str:
    """A figure as SVG text."""
    return _file(figure, "svg", 110).decode()


def _file(figure: Any, kind: str, dpi: int) -> bytes:
    out = io.BytesIO()
    with style():
        _make_printable(figure)
        figure.savefig(out, dpi=dpi, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _make_printable(figure: Any) -> None:
    """Escape control characters in a figure's texts: an SVG that contains one is not valid XML."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = axis.get_major_formatter()
            if isinstance(labels, FixedFormatter | FuncFormatter):  # given labels, not the numbers of an axis
                axis.set_major_formatter(FuncFormatter(_printable_labels(labels)))
    for text in figure.findobj(Text):
        text.set_text(printable_lines(text.get_text()))


def _printable_labels(labels: Callable[..., str]) -> Callable[..., str]:
    return lambda value, position=None: printable(labels(value, position))


def reason(error: BaseException) -> str:
    """Why something failed, in a few words."""
    text = str(error).strip()
    if isinstance(error, ExciteError):
        return text
    return f"{type(error).__name__}: {first_line(error)}" if text else type(error).__name__


@dataclass(frozen=True)
class Undrawn:
    """Stands for a figure that could not be drawn, with the reason."""

    reason: str


def attempt(draw: Callable[_P, _Drawn], *arguments: _P.args, **options: _P.kwargs) -> _Drawn | Undrawn:
    """The result of ``draw(*arguments, **options)`` in our style, or :class:`Undrawn` if it raises an error."""
    try:
        with style():
            return draw(*arguments, **options)
    except Exception as error:
        return Undrawn(reason(error))


@contextmanager
def dispensable(what: str, say: Callable[[str], object]) -> Iterator[None]:
    """A context for drawing ``what`` after the numbers were written: a failure becomes a message, not an error.

    Args:
        what: what is drawn, such as a file name.
        say: called with the message.
    """
    try:
        yield
    except Exception as error:
        say(f"{what} could not be drawn ({reason(error)}); the numbers are complete")
