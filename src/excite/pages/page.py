"""Self-contained HTML pages: text, tables, figures and pictures in one file that opens from disk.

Nothing is loaded: styles, the short script and all pictures are in the file, and its Content-Security-Policy forbids
anything else. All text is escaped. The layout is in ``page.html.jinja``, ``page.css`` and ``page.js``.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypedDict

from markupsafe import Markup, escape

from excite.errors import ExciteError
from excite.files import write_text
from excite.pages.figures import Undrawn, reason, svg
from excite.text import printable_lines, tell

#: Shown for a missing value.
ABSENT = "\u2013"

#: Characters up to which text in a table is not broken into lines.
UNBROKEN = 28
#: A table with at most FEW_ROWS rows and more than FEW_COLUMNS columns may become a list of names and values.
FEW_ROWS, FEW_COLUMNS = 4, 4


def link(text: str, address: str) -> Markup:
    """A link for use in a paragraph; the page itself loads nothing from it."""
    return Markup('<a href="{}" rel="noreferrer">{}</a>').format(address, text)


def mono(text: str) -> Markup:
    """A name, path or command in a fixed-width font, for use in a paragraph."""
    return Markup("<code>{}</code>").format(text)


def format_value(value: object, spec: str = "") -> str:
    """``format(value, spec)`` for numbers; None becomes a dash, booleans "yes" or "no", and text is unchanged."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, spec) if isinstance(value, int | float) else str(value)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: its key in the rows.
        heading: its heading.
        spec: format of its numbers, such as ".2f".
        align: "left" or "right"; None: right for numbers.
        title: an explanation of the heading, shown as a tooltip.
    """

    key: str
    heading: str
    spec: str = ""
    align: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Card:
    """A headline number: its label, the number as text, and a short note below."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A photograph: ``image`` is PNG or JPEG bytes, ``alt`` its alternative text.

    Attributes:
        lines: lines below the picture, the first one in bold.
        pixelated: enlarge a small picture without smoothing.
    """

    image: bytes
    alt: str
    lines: Sequence[str] = ()
    pixelated: bool = False

    @property
    def address(self) -> str:
        """The picture as a ``data:`` address."""
        return data_address(self.image)


@dataclass(frozen=True)
class Marked(Picture):
    """A photograph that the reader can mark: to be removed, to get another class, or to be kept.

    Attributes:
        key: what the CSV of changes says of it, column -> text; equal for pictures of the same image, which are marked
            together.
        instead: the class that is proposed; "" if none is.
    """

    key: Mapping[str, str] = field(default_factory=dict)
    instead: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing: ``svg`` from :func:`inline_svg`; if ``wide``, it scrolls in its box on a narrow screen."""

    svg: Markup
    caption: str = ""
    wide: bool = False


class Head(TypedDict):
    """A column heading, its explanation, and whether the column is right-aligned."""

    text: str
    title: str | None
    right: bool


class Cell(TypedDict):
    """A cell of a table.

    Attributes:
        sort: sort key of a number; None: sort by the text.
        whole: whether it must not be broken into lines.
    """

    text: str
    right: bool
    sort: str | None
    whole: bool


@dataclass
class Block:
    """An element of the page; ``kind`` names a macro of the template, ``values`` are its arguments."""

    kind: str
    values: dict[str, Any]


@dataclass
class Content:
    """The content of a section or a folded part: blocks in order."""

    page: "Page"
    blocks: list[Block] = field(default_factory=list)

    def _add(self, kind: str, **values: Any) -> None:
        self.blocks.append(Block(kind, values))

    def paragraph(self, *parts: str | Markup) -> None:
        """Add a paragraph; plain text is escaped, :func:`link` and :func:`mono` give formatted parts."""
        self._add("paragraph", text=Markup("").join(escape(part) for part in parts))

    def note(self, *parts: str | Markup) -> None:
        """Add a note: what is missing and why, or how to read a number."""
        self._add("note", text=Markup("").join(escape(part) for part in parts))

    def not_measured(self, what: str, why: str, command: str) -> None:
        """Add a line in place of a part that was not measured.

        Args:
            what: the part, as in "Not measured: WHAT".
            why: the reason, without a full stop.
            command: the command that measures it.
        """
        self.note(f"Not measured: {what} ({why}). To measure it: ", mono(command))

    def heading(self, text: str) -> None:
        """Add a subheading."""
        self._add("heading", text=text)

    def table(self, columns: Sequence[Column], rows: Sequence[Mapping[str, object]], caption: str = "") -> None:
        """Add a table that can be sorted by each column.

        If it is wider than the screen, it scrolls in its box; a short one with many columns becomes a list of names and
        values.

        Args:
            columns: the columns, from left to right.
            rows: key -> value; None is shown as a dash and sorted last.
            caption: the caption.
        """
        right = [_on_the_right(column, rows) for column in columns]
        heads: list[Head] = [
            {"text": c.heading, "title": c.title, "right": r} for c, r in zip(columns, right, strict=True)
        ]
        lines = [[_cell(row.get(c.key), c.spec, r) for c, r in zip(columns, right, strict=True)] for row in rows]
        short = len(lines) <= FEW_ROWS and len(heads) > FEW_COLUMNS
        self._add("table", heads=heads, lines=lines, caption=caption, short=short)

    def key_values(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Add names and values, one pair per line; None is shown as a dash."""
        self._add("key_values", pairs=[(name, v if isinstance(v, Markup) else format_value(v)) for name, v in pairs])

    def cards(self, cards: Sequence[Card]) -> None:
        """Add headline numbers side by side."""
        self._add("cards", cards=cards)

    def figures(self, *figures: Figure) -> None:
        """Add drawings, side by side if there is room."""
        self._add("figures", figures=figures)

    def draw(self, figure: Any, alt: str, caption: str = "", wide: bool = False) -> None:
        """Add one Matplotlib figure; ``alt`` is its alternative text."""
        self.figures(self.page.figure(figure, alt, caption, wide))

    def gallery(self, pictures: Sequence[Picture], caption: str = "") -> None:
        """Add photographs in a grid."""
        self._add("gallery", pictures=pictures, caption=caption)

    def marked(self, pictures: Sequence[Marked], caption: str = "") -> None:
        """Add photographs that the reader can mark; the page needs :meth:`changes` once, too."""
        self._add("marked", pictures=pictures, caption=caption)

    def changes(self, classes: Sequence[str], columns: Sequence[str], file: str) -> None:
        """Add the list of what the reader has marked, with a button that saves it as CSV. Nothing is sent anywhere.

        Args:
            classes: the classes to choose from.
            columns: the columns of the CSV that come from :attr:`Marked.key`; "action" and "to" follow.
            file: the name that the browser proposes for the file.
        """
        self._add("changes", classes=classes, columns=columns, file=file)

    def code(self, text: str, label: str = "") -> None:
        """Add preformatted text with a copy button."""
        self._add("code", text=text, label=label)

    def details(self, summary: str) -> "Content":
        """Add a collapsed part, and return its content, to add to."""
        inner = Content(self.page)
        self._add("details", summary=summary, inner=inner)
        return inner


@dataclass
class Section(Content):
    """A part of the page with a heading and an entry in the table of contents."""

    id: str = ""
    title: str = ""


class Page:
    """A page, made section by section.

    Args:
        title: the subject of the page, also shown in the browser tab.
        subtitle: text after the title, below the headline.
        footer: one line at the end.
        headline: the main heading: the result in words, with its interval.
    """

    def __init__(self, title: str, subtitle: str = "", footer: str = "", *, headline: str) -> None:
        self.title, self.subtitle, self.footer, self.headline = title, subtitle, footer, headline
        self.sections: list[Section] = []
        self._drawn = 0

    def section(self, id: str, heading: str) -> Section:
        """Add a section at the end. ``id`` is its anchor: lower-case letters, digits and "-", unique on the page.

        Raises:
            ValueError: ``id`` has another form or is already in use.
        """
        if not re.fullmatch(r"[a-z][a-z0-9-]*", id) or any(section.id == id for section in self.sections):
            raise ValueError(f"{id!r} is not a valid id for a new section")
        made = Section(self, id=id, title=heading)
        self.sections.append(made)
        return made

    def figure(self, figure: Any, alt: str, caption: str = "", wide: bool = False) -> Figure:
        """Prepare a Matplotlib figure, or SVG text from Matplotlib, for :meth:`Content.figures`.

        If it cannot be drawn, a message appears on the page and on standard error.
        """
        self._drawn += 1
        try:
            if isinstance(figure, Undrawn):
                raise ExciteError(figure.reason)
            return Figure(inline_svg(figure, f"f{self._drawn}", alt), caption, wide)
        except Exception as error:  # the numbers must not be lost because of a picture
            tell(f"a figure could not be drawn and is missing on the page ({alt}): {reason(error)}")
            return Figure(Markup("<p>{}</p>").format(f"This figure could not be drawn ({reason(error)})."), alt, wide)

    def render(self) -> str:
        """The whole page as HTML."""
        script = _asset("page.js")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        html = _template().render(page=self, style=Markup(_asset("page.css")), script=Markup(script), digest=digest)
        # Browsers act on direction marks, as terminals do; the other escaped characters are not allowed in HTML.
        return printable_lines(html)

    def write(self, path: Path) -> Path:
        """Write the page atomically, replacing an existing file. Raises ExciteError."""
        write_text(path, self.render())
        return path


def _on_the_right(column: Column, rows: Sequence[Mapping[str, object]]) -> bool:
    if column.align is not None:
        return column.align == "right"
    return all(isinstance(row.get(column.key), int | float | None) for row in rows)


def _cell(value: object, spec: str, right: bool) -> Cell:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = format_value(value, spec)
    return {"text": text, "right": right, "sort": repr(value) if number else None, "whole": len(text) <= UNBROKEN}


def data_address(image: bytes) -> str:
    """PNG, JPEG, GIF or WebP bytes as a ``data:`` address. Raises ValueError for anything else."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((kind for start, kind in kinds.items() if image.startswith(start)), None)
    if kind is None:
        raise ValueError("only PNG, JPEG, GIF and WebP can be put into a page")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


#: Settings for figures in pages, in addition to ``excite.pages.figures.style``.
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.titlesize": 11}


def inline_svg(figure: Any, prefix: str, alt: str) -> Markup:
    """Embed a Matplotlib SVG in a page, with the page's font and its light or dark colours.

    Black becomes the text colour, and white areas become transparent; to keep black or white, use #010101 or #fefefe.
    Ids get a prefix, because the figures of a page would otherwise share the names of clip paths.

    Args:
        figure: a Matplotlib figure, or the text of its SVG (written with ``svg.fonttype: none``).
        prefix: letters and digits, different for each figure of a page.
        alt: the alternative text.
    """
    text = figure if isinstance(figure, str) else svg(figure)
    text = text[text.index("<svg") :]
    for part in ("metadata", "style"):  # its style would apply to the whole page; page.css has the styles for figures
        text = re.sub(rf"<{part}\b.*?</{part}>", "", text, flags=re.DOTALL)
    text = text.replace("#000000", "currentColor").replace("fill: #ffffff", "fill: none")
    text = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r'href="#([^"]*)"', rf'href="#{prefix}-\1"', text)
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    if box is None:
        raise ValueError("this is not an SVG from Matplotlib: it has no viewBox that starts at 0 0")
    label = escape(" ".join(alt.split()))
    # Matplotlib's sizes are in points, of 4/3 CSS pixels.
    width = f"{float(box.group(1)) * 4 / 3:.0f}"
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{label}" viewBox="0 0 {box.group(1)} {box.group(2)}" style="width: {width}px">'
    )
    return Markup(opening + body)


def _asset(name: str) -> str:
    return (resources.files("excite.pages") / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.jinja")
