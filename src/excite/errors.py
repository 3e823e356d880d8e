"""The one exception that users see, and the suggestion of a near name that its messages end with."""

import difflib
import reprlib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

#: Characters of somebody's input that a message repeats.
LONGEST_SHOWN = 80

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxlong = 3, LONGEST_SHOWN - 10, LONGEST_SHOWN, 40
_repr.maxlist = _repr.maxtuple = _repr.maxdict = _repr.maxset = _repr.maxfrozenset = 6


class ExciteError(Exception):
    """A mistake in what the user gave (a path, a recipe, an image, a checkpoint).

    Its text is one clear sentence: what is wrong, where, and how to mend it. The command line prints it without a
    traceback and exits with status 1; from Python it is an ordinary exception.

    Attributes:
        instead: words of the command line -> what to type in their place; the command line ends its message with the
            whole line.
    """

    def __init__(self, *args: object, instead: Mapping[str, str] | None = None) -> None:
        super().__init__(*args)
        self.instead = dict(instead or {})


class UsageError(ExciteError):
    """A command line of another form than the command takes. Exit status 2.

    Attributes:
        otherwise: a clause on what there is to do, where the line to type is not known.
    """

    def __init__(self, text: str, otherwise: str) -> None:
        super().__init__(text)
        self.otherwise = otherwise


def install_line(extra: str) -> str:
    """The line to type that installs the packages of an extra of ``pyproject.toml``.

    In a clone it names the clone: pip would look for ``excite[...]`` in the registry where the package is used without
    being installed, and replace a clone that is. Elsewhere pip finds the installed package by its name.
    """
    clone = Path(__file__).resolve().parents[2]
    if (clone / "pyproject.toml").is_file() and (clone / "src" / "excite" / "errors.py").is_file():
        return f"pip install -e {shlex.quote(f'{clone}[{extra}]')}"
    return f"pip install 'excite[{extra}]'"


def shown(value: Any) -> str:
    """``repr`` of something that was given, on one line and never longer than 80 characters.

    The middle of a long text and the depths of a nested value are left out before they are written: a value may hold
    itself many times over, and then all of it has no end.
    """
    try:
        text = _repr.repr(value)
    except Exception:  # an integer of more digits than Python writes; an object whose repr fails
        return f"a huge {type(value).__name__}" if isinstance(value, int) else f"a {type(value).__name__}"
    text = text.replace("\n", " ")
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 4]} ..."


def shown_text(text: str) -> str:
    """The same for a text that stands in a sentence without quotation marks, such as a key or a name."""
    plain = repr(text[: LONGEST_SHOWN + 1])[1:-1]
    return plain if len(plain) <= LONGEST_SHOWN else f"{plain[: LONGEST_SHOWN - 4]} ..."


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """``"; did you mean 'x'?"`` for the nearest of ``names``, ``""`` where none is near; then what there is to do
    ``otherwise``, a clause."""
    matches = difflib.get_close_matches(name[: 2 * LONGEST_SHOWN], list(names), n=1, cutoff=0.5)
    if not matches:
        return f"; {otherwise}" if otherwise else ""
    return f"; did you mean {matches[0]!r}?" + (f" Otherwise {otherwise}" if otherwise else "")


def explain(error: Any) -> str:
    """One of pydantic's errors about what a file says, as a clause."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    key = shown_text(".".join(map(str, error["loc"])))
    if error["type"] == "missing":
        return f"it lacks {key}"
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{key} is {shown(error['input'])}, but {message.removeprefix('input ')}"
