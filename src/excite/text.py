"""Text output: to a terminal, a log, a table, a page, a figure. Imports nothing heavy.

Names of classes and files come from outside. They may contain escape sequences that rename or clear a terminal window,
characters that reverse the writing direction so that a line reads differently, bytes that are not UTF-8 (Python keeps
them as lone surrogates), or characters that the console's code page lacks. None of this is an error, and none of it may
have an effect: text is made :func:`printable` where it is output, and only there.
"""

import json
import math
import os
import re
import sys
import unicodedata
from typing import Any, TextIO

# Characters that act on a terminal, browser or reader instead of being shown: controls (Cc: C0, DEL and C1, including
# escape), format characters (Cf: direction marks, invisible characters, tags), lone surrogates (Cs), line and paragraph
# separators (Zl, Zp); see General Category in the Unicode Standard, section 4.5. Written out, because checking 1.1
# million characters takes half a second; a test does that. Not included: joiners, without which Persian, Hindi and many
# emoji are misspelt, and the few Arabic and Kaithi format characters that are visible.
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
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8 (PEP 383)
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def counted(number: int, noun: str) -> str:
    """ "1 image", "2 images", "1,234 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x", "nch")) else "s"
    return f"{number:,} {noun}{ending}"


def printable(text: object) -> str:
    """One line of text that is safe to print: control and bidirectional characters become ``\\x1b``, ``\\u202e`` ...,
    and bytes that are not UTF-8 become ``\\xe9``. Other text is returned unchanged.
    """
    return _LINE.sub(_escaped, str(text))


def printable_lines(text: object) -> str:
    """Like :func:`printable`, but line breaks stay."""
    return _LINES.sub(_escaped, str(text))


def as_json(value: Any, indent: int | None = 2, *, ascii_only: bool = False) -> str:
    """JSON text that reads back as ``value``, including lone surrogates, and contains no harmful character.

    Whatever :func:`printable` would escape is escaped as in JSON (RFC 8259, section 7). A float that is not finite
    becomes null: JSON has no NaN, and other parsers reject the NaN that Python writes. All JSON of this package is
    written by this function.

    Args:
        value: as for ``json.dumps``.
        indent: as for ``json.dumps``.
        ascii_only: escape everything beyond ASCII.
    """
    text = json.dumps(_without_nan(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    # Outside strings JSON has only spaces and newlines, so any match is inside a string.
    return _LINES.sub(lambda found: json.dumps(found.group())[1:-1], text)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return [_without_nan(each) for each in value] if isinstance(value, list | tuple) else value


def print_json(value: Any) -> None:
    """Print a value as JSON, in ASCII if the code page of standard output lacks a character."""
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
    """Print one line on standard error and flush it; on a terminal it is folded between words."""
    width = columns(sys.stderr)
    text = printable(line)
    print(text if width is None else wrapped(text, width), file=lenient(sys.stderr), flush=True)


def tell_lines(text: object) -> None:
    """Print text of several lines on standard error, such as a traceback."""
    print(printable_lines(text).rstrip("\n"), file=lenient(sys.stderr), flush=True)


def columns(stream: TextIO) -> int | None:
    """The width of a terminal in columns; None for a pipe or a file."""
    if not stream.isatty():
        return None
    said = os.environ.get("COLUMNS", "")
    if said.isdigit() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def cells(text: str) -> int:
    """The terminal columns that a text takes: two for a wide character, none for a combining mark."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1 for c in text
    )


# Text that is copied as a whole: `in backticks`, 'a quoted name', and a command, from "excite" to the end of the line.
_WHOLE = re.compile(
    r"`[^`]+`\S*|\[default: [^\]]{1,20}\]|(?<![^\s(\[])'[^']+'[^\s']*"
    r"|(?:(?<=: )|(?<=:  ))(?:excite|torchrun) .+$|\S+(?: %\S*)?"
)
#: A label and the spaces that separate it from its description; folded lines are indented to the description.
_LABEL = re.compile(r"\s*\S+(?: \S+)* {2,}(?=\S)|\s*")


def wrapped(text: str, width: int) -> str:
    """One line of text as lines of at most ``width`` columns, folded between words.

    Text that users may copy is never cut or folded: a path, a name, text in backticks or quotation marks, and a command
    at the end. If it is too long for a line, it gets its own line, and the terminal wraps it.
    """
    if cells(text) <= width:
        return text
    label = _LABEL.match(text)
    assert label is not None
    first = _WHOLE.search(text, label.end())
    beside = label.end() <= min(30, width // 2) and first is not None and cells(text[: first.end()]) <= width
    margin = label.end() if beside else len(text) - len(text.lstrip())
    lines, line, end = [], text[:margin], margin
    for word in _WHOLE.finditer(text, margin):
        gap = text[end : word.start()]
        if line.strip() and end > margin and cells(line + gap + word.group()) > width:
            lines.append(line)
            line = " " * margin
        else:
            line += gap
        line += word.group()
        end = word.end()
    return "\n".join([*lines, line])


#: The break between two lines of one paragraph in a comment; "Source:   ..." and "# ---" start a new one.
_PARAGRAPH = re.compile(r"(?m)(?<=\S)(?<!^#)\n# (?!\w+: |\s)")


def with_fitting_comments(yaml: str, width: int) -> str:
    """YAML with its comments folded to ``width`` columns, next to their entry, or above it if there is no room.

    Only comments change, so that the YAML keeps its meaning.
    """
    lines: list[str] = []
    for line in _PARAGRAPH.sub(" ", yaml).split("\n"):
        entry, mark, comment = line.rpartition("# ")
        beside = cells(entry) + 2
        if cells(line) <= width or not mark or (entry.strip() and not entry.endswith("  ")):
            lines.append(line)
        elif not entry.strip() or width - beside >= 24:
            margin = " " * len(entry)
            folded = wrapped(comment, width - beside).split("\n")
            lines += [f"{margin if i and entry.strip() else entry}# {part}" for i, part in enumerate(folded)]
        else:
            margin = " " * (len(entry) - len(entry.lstrip()))
            lines += [f"{margin}# {part}" for part in wrapped(comment, width - len(margin) - 2).split("\n")]
            lines.append(entry.rstrip())
    return "\n".join(lines)


class _Lenient:
    """A text stream that writes characters missing from its code page as ``\\xe9`` instead of raising an error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = self._stream.encoding
        return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lenient(stream: TextIO) -> TextIO:
    """The stream, wrapped if writing to it could raise an error because of its code page.

    The original stream is not changed: a program that uses this package may want its errors.
    """
    strict = getattr(stream, "errors", None) in ("strict", None) and getattr(stream, "encoding", None)
    return _Lenient(stream) if strict else stream  # type: ignore[return-value]
