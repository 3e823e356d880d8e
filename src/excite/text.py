"""Text on its way out: to a terminal, a log, a table, a page, a figure. Imports nothing heavy.

Names of classes and files are other people's. They may hold escape sequences that rename a terminal's window or clear
it, characters that turn the direction of writing so that a line reads as another, bytes that are no UTF-8 (Python keeps
them as lone surrogates), or letters that the console's code page lacks. None of this is an error, and none of it may
do anything but be shown: text is made :func:`printable` at the doors through which it leaves, and only there.
"""

import json
import math
import re
import sys
from typing import Any, TextIO

# What a terminal, a browser or a reader would obey instead of showing it: controls (Cc: C0, DEL and C1, escape among
# them), formats (Cf: marks of direction, invisible letters, tags), lone surrogates (Cs), separators of lines and
# paragraphs (Zl, Zp); General Category of the Unicode Standard, section 4.5. Written out, because asking 1.1 million
# characters takes half a second; a test asks them. Left out are the joiners, without which Persian, Hindi and many
# emoji are misspelt, and the few Arabic and Kaithi formats that are seen.
_HARMFUL = (
    r"\x00-\x1f\x7f-\x9f\xad\u061c\u070f\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ud800-\udfff"
    r"\ufeff\ufff9-\ufffb\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_LINE = re.compile(f"[{_HARMFUL}]")
_LINES = re.compile(f"(?!\n)[{_HARMFUL}]")


def _escaped(found: re.Match[str]) -> str:
    code = ord(found.group())
    short = {9: r"\t", 10: r"\n", 13: r"\r"}.get(code)
    if short:
        return short
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8 (PEP 383)
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: object) -> str:
    """One line in which every character shows itself: escape, control and bidirectional characters as ``\\x1b``,
    ``\\u202e``, a byte that is no UTF-8 as ``\\xe9``. Text without any is given back as it is.
    """
    return _LINE.sub(_escaped, str(text))


def printable_lines(text: object) -> str:
    """The same for text of several lines, whose ends stay."""
    return _LINES.sub(_escaped, str(text))


def as_json(value: Any, indent: int | None = 2, *, ascii_only: bool = False) -> str:
    """JSON that reads back as ``value``, lone surrogates included, and holds no character that harms.

    What :func:`printable` would escape is escaped in JSON's own way (RFC 8259, section 7). A float that is not finite
    becomes null: JSON has no NaN, and other readers of what Python makes of it end with an error. All JSON of ours is
    written by this.

    Args:
        value: as for ``json.dumps``.
        indent: as for ``json.dumps``.
        ascii_only: escape everything beyond ASCII.
    """
    text = json.dumps(_without_nan(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    # Outside of strings there are only spaces and newlines, so that whatever else is found is inside of one.
    return _LINES.sub(lambda found: json.dumps(found.group())[1:-1], text)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return [_without_nan(each) for each in value] if isinstance(value, list | tuple) else value


def print_json(value: Any) -> None:
    """Print a value as JSON; where standard output has a code page that lacks a character, in ASCII."""
    text = as_json(value)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = as_json(value, ascii_only=True)
    print(text)


def show(text: str) -> None:
    """Print lines on standard output."""
    print(printable_lines(text), file=lenient(sys.stdout))


def tell(line: object) -> None:
    """Print one line on standard error, at once."""
    print(printable(line), file=lenient(sys.stderr), flush=True)


def tell_lines(text: object) -> None:
    """Print text of several lines on standard error, such as a traceback."""
    print(printable_lines(text).rstrip("\n"), file=lenient(sys.stderr), flush=True)


class _Lenient:
    """A text stream that writes characters which its code page lacks as ``\\xe9``, instead of raising."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = self._stream.encoding
        return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lenient(stream: TextIO) -> TextIO:
    """The stream, or where writing to it may raise because of its code page, one around it that does not.

    The user's own stream is left as it is: a program that calls this package may want its errors.
    """
    strict = getattr(stream, "errors", None) in ("strict", None) and getattr(stream, "encoding", None)
    return _Lenient(stream) if strict else stream  # type: ignore[return-value]
