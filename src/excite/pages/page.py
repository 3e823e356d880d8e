"""A self-contained HTML page: text, tables, figures and pictures in one file that opens from the disk.

Nothing is loaded from anywhere: styles, the few lines of script and all pictures are in the file, and its
Content-Security-Policy forbids the rest. All text is escaped. The look is in ``page.html.jinja``, ``page.css`` and
``page.js`` beside this file.
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

#: What stands where there is no value.
ABSENT = "\u2013"

#: Texts in tables are broken into lines only where they are longer.
UNBROKEN = 28
#: A table of at most so many rows and more than so many columns, too wide, becomes a list of names and values.
FEW_ROWS, FEW_COLUMNS = 4, 4


def link(text: str, address: str) -> Markup:
    """A link for a paragraph, to be followed by the reader; nothing is loaded from it."""
    return Markup('<a href="{}" rel="noreferrer">{}</a>').format(address, text)


def mono(text: str) -> Markup:
    """A name, path or command for a paragraph, in a fixed-width font."""
    return Markup("<code>{}</code>").format(text)


def format_value(value: object, spec: str = "") -> str:
    """``format(value, spec)``, with a dash for None; texts take no spec."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, spec) if isinstance(value, int | float) else str(value)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: of the rows.
        heading: over it.
        spec: format of its numbers, such as ".2f".
        align: "left" or "right"; None takes the right for a column of numbers.
        title: what the heading means, where it needs words.
    """

    key: str
    heading: str
    spec: str = ""
    align: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Card:
    """A headline number: what it is, the number as text, and a few words below."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A photograph: ``image`` is PNG or JPEG bytes; ``alt`` says what it shows to those who cannot see it.

    Attributes:
        lines: below the picture, the first one in bold.
        pixelated: enlarge small pictures by whole pixels, without smoothing.
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
class Figure:
    """A drawing: ``svg`` as :func:`inline_svg` gives it; ``wide`` ones scroll in their box on a narrow screen."""

    svg: Markup
    caption: str = ""
    wide: bool = False


class Head(TypedDict):
    """A column's heading, what it means, and whether the column stands on the right."""

    text: str
    title: str | None
    right: bool


class Cell(TypedDict):
    """A cell of a table.

    Attributes:
        sort: what the script sorts numbers by; texts, where it is None, are sorted as they are shown.
        whole: whether it is never broken into lines.
    """

    text: str
    right: bool
    sort: str | None
    whole: bool


@dataclass
class Block:
    """Something on the page; ``kind`` names the template's macro, ``values`` are its arguments."""

    kind: str
    values: dict[str, Any]


@dataclass
class Content:
    """What sections and folded parts are made of: the blocks, in their order."""

    page: "Page"
    blocks: list[Block] = field(default_factory=list)

    def _add(self, kind: str, **values: Any) -> None:
        self.blocks.append(Block(kind, values))

    def paragraph(self, *parts: str | Markup) -> None:
        """A paragraph; plain texts are escaped, :func:`link` and :func:`mono` give parts with a form."""
        self._add("paragraph", text=Markup("").join(escape(part) for part in parts))

    def note(self, *parts: str | Markup) -> None:
        """A paragraph set apart: what is missing and why, how a number is to be read."""
        self._add("note", text=Markup("").join(escape(part) for part in parts))

    def not_measured(self, what: str, why: str, command: str) -> None:
        """One line in place of a part that has no numbers.

        Args:
            what: as in "Not measured: WHAT".
            why: the reason, without a full stop.
            command: that measures it.
        """
        self.note(f"Not measured: {what} ({why}). To measure it: ", mono(command))

    def heading(self, text: str) -> None:
        """A heading below the section's own."""
        self._add("heading", text=text)

    def table(self, columns: Sequence[Column], rows: Sequence[Mapping[str, object]], caption: str = "") -> None:
        """A table that can be sorted by each column. One that is wider than the screen scrolls in its box, which says
        so; a short one of many columns becomes a list of names and values.

        Args:
            columns: what to show, from left to right.
            rows: key -> value; None is shown as a dash and sorted last.
            caption: says what the table shows.
        """
        right = [_on_the_right(column, rows) for column in columns]
        heads: list[Head] = [
            {"text": c.heading, "title": c.title, "right": r} for c, r in zip(columns, right, strict=True)
        ]
        lines = [[_cell(row.get(c.key), c.spec, r) for c, r in zip(columns, right, strict=True)] for row in rows]
        short = len(lines) <= FEW_ROWS and len(heads) > FEW_COLUMNS
        self._add("table", heads=heads, lines=lines, caption=caption, short=short)

    def key_values(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Names and values, a pair a line; values None are shown as a dash."""
        self._add("key_values", pairs=[(name, v if isinstance(v, Markup) else format_value(v)) for name, v in pairs])

    def cards(self, cards: Sequence[Card]) -> None:
        """Headline numbers side by side."""
        self._add("cards", cards=cards)

    def figures(self, *figures: Figure) -> None:
        """Drawings side by side where there is room, below each other where not."""
        self._add("figures", figures=figures)

    def draw(self, figure: Any, alt: str, caption: str = "", wide: bool = False) -> None:
        """One Matplotlib figure on its own; ``alt`` says what it shows to those who cannot see it."""
        self.figures(self.page.figure(figure, alt, caption, wide))

    def gallery(self, pictures: Sequence[Picture], caption: str = "") -> None:
        """Photographs in a grid."""
        self._add("gallery", pictures=pictures, caption=caption)

    def code(self, text: str, label: str = "") -> None:
        """Text as it is, with a button that copies it."""
        self._add("code", text=text, label=label)

    def details(self, summary: str) -> "Content":
        """A part that the reader unfolds; what it holds is added to what this gives back."""
        inner = Content(self.page)
        self._add("details", summary=summary, inner=inner)
        return inner


@dataclass
class Section(Content):
    """A part of the page with a heading and a line in the list of contents."""

    id: str = ""
    title: str = ""


class Page:
    """A page, made section by section.

    Args:
        title: what the page is about; the browser's tab shows it.
        subtitle: said with it, below the headline.
        footer: one line at the end.
        headline: the first heading: the result in words, with its interval.
    """

    def __init__(self, title: str, subtitle: str = "", footer: str = "", *, headline: str) -> None:
        self.title, self.subtitle, self.footer, self.headline = title, subtitle, footer, headline
        self.sections: list[Section] = []
        self._drawn = 0

    def section(self, id: str, heading: str) -> Section:
        """A new section at the end. ``id`` is the anchor: letters, digits and "-", each once a page.

        Raises:
            ValueError: no such form, or it is there already.
        """
        if not re.fullmatch(r"[a-z][a-z0-9-]*", id) or any(section.id == id for section in self.sections):
            raise ValueError(f"{id!r} is no id for a new section")
        made = Section(self, id=id, title=heading)
        self.sections.append(made)
        return made

    def figure(self, figure: Any, alt: str, caption: str = "", wide: bool = False) -> Figure:
        """A Matplotlib figure, or the text of an SVG of Matplotlib's, ready for :meth:`Content.figures`.

        One that cannot be drawn becomes a sentence on the page and on standard error.
        """
        self._drawn += 1
        try:
            if isinstance(figure, Undrawn):
                raise ExciteError(figure.reason)
            return Figure(inline_svg(figure, f"f{self._drawn}", alt), caption, wide)
        except Exception as error:  # a page is its numbers: they must not be lost for a picture
            tell(f"a figure could not be drawn and is missing on the page ({alt}): {reason(error)}")
            return Figure(Markup("<p>{}</p>").format(f"This figure could not be drawn ({reason(error)})."), alt, wide)

    def render(self) -> str:
        """The whole page as HTML."""
        script = _asset("page.js")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        html = _template().render(page=self, style=Markup(_asset("page.css")), script=Markup(script), digest=digest)
        # A browser obeys marks of direction as a terminal does; what else is escaped has no place in HTML at all.
        return printable_lines(html)

    def write(self, path: Path) -> Path:
        """Write the page whole or not at all, over one that is there. Raises ExciteError."""
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


#: Of figures that go into a page, over ``excite.pages.figures.style``.
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.titlesize": 11}


def inline_svg(figure: Any, prefix: str, alt: str) -> Markup:
    """An SVG of Matplotlib's to stand in a page: it takes on the page's colours, light or dark, and its font.

    Black becomes the colour of text, white areas let the page through; to keep a white or a black, use #fefefe or
    #010101. Ids get a prefix, since two figures would otherwise share the names of their clip paths.

    Args:
        figure: a Matplotlib figure, or the text of its SVG (written with ``svg.fonttype: none``).
        prefix: letters and digits, another for each figure of a page.
        alt: says what the figure shows to those who cannot see it.
    """
    text = figure if isinstance(figure, str) else svg(figure)
    text = text[text.index("<svg") :]
    for part in ("metadata", "style"):  # the style would hold for the whole page; page.css has it for figures
        text = re.sub(rf"<{part}\b.*?</{part}>", "", text, flags=re.DOTALL)
    text = text.replace("#000000", "currentColor").replace("fill: #ffffff", "fill: none")
    text = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r'href="#([^"]*)"', rf'href="#{prefix}-\1"', text)
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    if box is None:
        raise ValueError("this is no SVG of Matplotlib's: it has no viewBox that starts at 0 0")
    label = escape(" ".join(alt.split()))
    # A width in CSS pixels of one point each would be small: Matplotlib's sizes are points of 4/3 pixels.
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
