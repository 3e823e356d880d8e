"""How objects appear in a notebook: as a small HTML table without style sheet or script.

All text is escaped. Imports nothing heavy.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from excite.pages.pictures import visible
from excite.text import printable

if TYPE_CHECKING:
    import numpy as np

#: The most rows that a table shows.
MOST_ROWS = 20
#: The longer side of a thumbnail, pixels.
SIDE = 64


@dataclass(frozen=True)
class Thumbnail:
    """A cell that is a small picture.

    Args:
        pixels: uint8 (H, W, C), see :func:`excite.pages.pictures.visible`; None: an empty cell.
        title: alternative text.
    """

    pixels: "np.ndarray | None"
    title: str = ""

    def html(self) -> str:
        """An ``img`` element with the picture embedded."""
        if self.pixels is None:
            return ""
        from PIL import Image

        image = Image.fromarray(visible(self.pixels))
        image.thumbnail((SIDE, SIDE))
        out = io.BytesIO()
        image.save(out, "PNG")
        title = escape(printable(self.title), quote=True)
        source = base64.b64encode(out.getvalue()).decode()
        # Tiny images are enlarged without smoothing.
        style = f"height:{SIDE}px;margin:0;image-rendering:{'pixelated' if max(image.size) < SIDE else 'auto'}"
        return f'<img alt="{title}" title="{title}" style="{style}" src="data:image/png;base64,{source}">'


Cell = str | Thumbnail | Sequence[Thumbnail]


def show_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    title: str = "",
    notes: Sequence[str] = (),
    more: int = 0,
) -> str:
    """A table as HTML: a title, at most :data:`MOST_ROWS` rows, and a line for each note.

    Args:
        heads: column headings; left out if all are empty.
        rows: texts and thumbnails.
        title: one line above the table.
        notes: lines below the table.
        more: rows that the caller left out already.
    """
    style = ' style="text-align:left;white-space:pre-wrap"'
    parts = [f"<b>{_text(title)}</b>"] if title else []
    parts.append("<table>")
    if any(heads):
        parts.append(f"<thead><tr>{''.join(f'<th{style}>{_text(head)}</th>' for head in heads)}</tr></thead>")
    body = ("".join(f"<td{style}>{_cell(cell)}</td>" for cell in row) for row in rows[:MOST_ROWS])
    parts.append(f"<tbody>{''.join(f'<tr>{cells}</tr>' for cells in body)}</tbody></table>")
    more += max(0, len(rows) - MOST_ROWS)
    parts += [f"<div>{_text(line)}</div>" for line in (*([f"and {more:,} more"] if more else []), *notes)]
    return "".join(parts)


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _text(cell)
    return cell.html() if isinstance(cell, Thumbnail) else " ".join(each.html() for each in cell)


def _text(text: str) -> str:
    return escape(printable(text))
