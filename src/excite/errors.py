"""The exception that users see, and helpers for its messages, such as suggesting a similar name."""

import difflib
import os
import reprlib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

#: The most characters of a user's input that a message repeats.
LONGEST_SHOWN = 80

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxlong = 3, LONGEST_SHOWN - 10, LONGEST_SHOWN, 40
_repr.maxlist = _repr.maxtuple = _repr.maxdict = _repr.maxset = _repr.maxfrozenset = 6


class ExciteError(Exception):
    """A mistake in the user's input: a path, a recipe, an image, a checkpoint.

    Its text is one sentence: what is wrong, where, and how to fix it. The command line prints it without a traceback
    and exits with status 1; in Python it is an ordinary exception.

    Attributes:
        instead: words of the command line -> their replacements; the command line appends the corrected line to its
            message.
    """

    def __init__(self, *args: object, instead: Mapping[str, str] | None = None) -> None:
        super().__init__(*args)
        self.instead = dict(instead or {})


class UsageError(ExciteError):
    """A command line that does not parse. Exit status 2.

    Attributes:
        otherwise: a clause with advice, used if no corrected line is known.
    """

    def __init__(self, text: str, otherwise: str) -> None:
        super().__init__(text)
        self.otherwise = otherwise


def install_line(extra: str) -> str:
    """The command that installs an extra of ``pyproject.toml``.

    In a clone it names the path of the clone. Otherwise pip would look for ``excite[...]`` in the registry, and replace
    an editable install by it.
    """
    clone = Path(__file__).resolve().parents[2]
    if (clone / "pyproject.toml").is_file() and (clone / "src" / "excite" / "errors.py").is_file():
        return f"pip install -e {shlex.quote(f'{clone}[{extra}]')}"
    return f"pip install 'excite[{extra}]'"


def shown(value: Any) -> str:
    """``repr`` of a user's value, on one line of at most 80 characters.

    The middle of a long text and deeply nested values are left out while writing: a value that contains itself has no
    end.
    """
    try:
        text = _repr.repr(value)
    except Exception:  # an integer with too many digits for Python to print; an object whose repr fails
        return f"a huge {type(value).__name__}" if isinstance(value, int) else f"a {type(value).__name__}"
    text = text.replace("\n", " ")
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 4]} ..."


def shown_text(text: str) -> str:
    """Like :func:`shown`, for text that appears without quotation marks, such as a key or a name."""
    plain = repr(text[: LONGEST_SHOWN + 1])[1:-1]
    return plain if len(plain) <= LONGEST_SHOWN else f"{plain[: LONGEST_SHOWN - 4]} ..."


#: The most characters of another library's message: some repeat the whole input.
LONGEST_REASON = 300


def first_line(error: BaseException) -> str:
    """The first line of another library's error message, or the error's type if it has no message.

    It is at most 300 characters long.
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 4]} ..."


def nearest(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """``"; did you mean 'x'?"`` for the most similar of ``names``, or ``""``; then the clause ``otherwise``, if any."""
    matches = difflib.get_close_matches(name[: 2 * LONGEST_SHOWN], list(names), n=1, cutoff=0.5)
    if not matches:
        return f"; {otherwise}" if otherwise else ""
    return f"; did you mean {matches[0]!r}?" + (f" Otherwise {otherwise}" if otherwise else "")


#: Bytes of a name in a path, and of a whole path, that file systems take.
_LONGEST_PATH_NAME, _LONGEST_PATH = 255, 4095


def no_path(text: str) -> str | None:
    """Why a text cannot be the path of anything, as a clause; None if it can. Python raises OSError for such a text."""
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:  # half of a pair, as JSON and YAML can write it
        raw = b"\0"
    if b"\0" in raw:
        return "has a character that no path has"
    if len(raw) > _LONGEST_PATH:
        return f"is too long for a path (more than {_LONGEST_PATH} bytes)"
    if any(len(name) > _LONGEST_PATH_NAME for name in raw.split(os.fsencode(os.sep))):
        return f"has a file name too long for a disk (more than {_LONGEST_PATH_NAME} bytes)"
    return None


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with a home folder in the place of ``~``, as far as there is such a home; it takes any text."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):
        return Path(path)


def absence(path: str | Path, otherwise: str = "") -> str:
    """Why a local path is not what was asked for, as a clause: what it is, or which folder lacks a part of it.

    An example, with the nearest name: "photos has no 'vla'; did you mean 'val'?" The clause ``otherwise`` follows, as
    in :func:`nearest`.
    """
    whole = expanded(path).absolute()
    if (why := no_path(str(whole))) is not None:
        return f"it {why}"
    if whole.exists():
        return f"{whole} is {'a file' if whole.is_file() else 'a folder' if whole.is_dir() else 'no regular file'}"
    parent = next((p for p in whole.parents if p.exists()), Path(whole.anchor))
    missing = whole.relative_to(parent).parts[0]
    if (parent / missing).is_symlink():
        return f"{parent / missing} is a link that leads nowhere"
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError:
        names = []
    return f"{parent} has no {shown(missing)}{nearest(missing, names, otherwise)}"


def explain(error: Any) -> str:
    """A pydantic error about the contents of a file, as a clause."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    key = shown_text(".".join(map(str, error["loc"])))
    if error["type"] == "missing":
        return f"{key} is missing"
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{key} is {shown(error['input'])}, but {message.removeprefix('input ')}"
