"""What every drawing shares: colours, marks, how Matplotlib treats text, how a figure is written, and that a picture
which cannot be drawn costs a sentence and nothing else. Imports nothing heavy."""

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

#: Okabe & Ito's, which colour-blind readers can tell apart.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: A mark of its own for each line besides, for those who see no colours.
MARKS = ("o", "s", "^", "D", "v", "P", "X")

_P = ParamSpec("_P")
_Drawn = TypeVar("_Drawn")


@contextmanager
def style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """In which figures are made and written.

    Args:
        more: further settings of Matplotlib's (``rcParams``).
    """
    from matplotlib import rc_context

    # Text as text: it can be searched and read aloud. Without hashsalt and date, equal data would give unequal files.
    # Names of runs, classes and files are the user's, in which a $ is a $ and no formula (which may be no valid one),
    # a % no comment of LaTeX's; a user's own settings may ask for either.
    options = {
        "svg.fonttype": "none",
        "svg.hashsalt": "excite",
        "font.size": 10,
        "text.parse_math": False,
        "text.usetex": False,
        "axes.formatter.use_mathtext": False,
    }
    with rc_context({**options, **(more or {})}), warnings.catch_warnings():
        # Of a name in another script; in an SVG the reader's own fonts have it.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        warnings.filterwarnings("ignore", "Matplotlib currently does not support .* natively")
        # Of labels that need all the room there is; the figure is written all the same.
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        yield


def drawn_width(text: str) -> int:
    """In Latin characters; Chinese and the like are twice as wide."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def shortened(text: str, most: int) -> str:
    """A name of the user's where there is room for ``most`` Latin characters only, on one line and printable."""
    text = printable(text)
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
    return [write(figure, path.with_name(f"{path.name}.{kind}")) for kind in ("png", "svg")]


def write(figure: Any, path: Path, dpi: int = 110) -> Path:
    """Write a figure as PNG or SVG, by the name of ``path``, whole or not at all: the door that every figure leaves by.

    Raises:
        ExciteError: it cannot be written.
    """
    if isinstance(figure, Undrawn):
        raise ExciteError(figure.reason)
    kind = "svg" if path.suffix == ".svg" else "png"
    with written_aside(path) as aside:
        aside.write_bytes(_file(figure, kind, dpi))
    return path


def svg(figure: Any) -> str:
    """A figure as the text of an SVG file."""
    return _file(figure, "svg", 110).decode()


def _file(figure: Any, kind: str, dpi: int) -> bytes:
    out = io.BytesIO()
    with style():
        _make_printable(figure)
        figure.savefig(out, dpi=dpi, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _make_printable(figure: Any) -> None:
    """Escape what a figure's texts must not hold: an SVG with a control character in it is no XML any more."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = axis.get_major_formatter()
            if isinstance(labels, FixedFormatter | FuncFormatter):  # labels that were given, not numbers of an axis
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
    """What stands for a figure that could not be drawn: the reason."""

    reason: str


def attempt(draw: Callable[_P, _Drawn], *arguments: _P.args, **options: _P.kwargs) -> _Drawn | Undrawn:
    """A figure in our style, or :class:`Undrawn`."""
    try:
        with style():
            return draw(*arguments, **options)
    except Exception as error:
        return Undrawn(reason(error))


@contextmanager
def dispensable(what: str, say: Callable[[str], object]) -> Iterator[None]:
    """Around the drawing of ``what``, after the numbers were written: if it fails, that is a sentence and no error.

    Args:
        what: what is drawn, such as the file's name.
        say: called with the sentence.
    """
    try:
        yield
    except Exception as error:
        say(f"{what} could not be drawn ({reason(error)}); the numbers are whole")
