"""Output for users: messages, tables, and progress as a bar on a terminal or in a notebook, as plain lines elsewhere.

Messages of a run also go to its log.txt.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from excite import notebook
from excite.files import append_text
from excite.progress import Steps
from excite.text import cells, lenient, printable, printable_lines, tell, wrapped


def format_seconds(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 7384 -> "2:03:04"."""
    return str(timedelta(seconds=round(seconds)))


class _Description(ProgressColumn):
    """The current step. File names in it are shown literally, not read as rich markup."""

    def render(self, task: Task) -> Text:
        return Text(printable(task.description))


def bar(*columns: ProgressColumn) -> Progress:
    """A rich progress bar on standard error if that is a terminal; ``columns`` follow the description."""
    console = Console(file=lenient(sys.stderr))
    return Progress(_Description(), *columns, console=console, transient=True, disable=not sys.stderr.isatty())


class ProgressBar:
    """A :data:`excite.progress.Progress` shown as a bar on standard error if that is a terminal, or in a notebook.

    Elsewhere it prints a line at the start of each step, and occasionally one with its progress.

    ``with ProgressBar("loading") as progress:`` shows the bar at once, and removes it at the end.

    Args:
        what: the bar's first description.
        lines: whether to print lines without a terminal: only one process of a job should.
    """

    def __init__(self, what: str = "loading", lines: bool = True) -> None:
        redrawn = sys.stderr.isatty() or notebook.in_notebook()
        self._lines = Steps(tell) if lines and not redrawn else None
        self._bar = bar(BarColumn(24), TaskProgressColumn(), TimeRemainingColumn())
        self._task = self._bar.add_task(what, total=None)
        self._what, self._place = what, notebook.Place() if notebook.in_notebook() else None

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        if self._place is not None:
            self._place.show(notebook.bar(self._what, 0, 0))
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._place is not None:
            self._place.show("", last=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show the current step and how much of it is done; a ``total`` of 0 means unknown."""
        if self._lines is not None:
            self._lines(what, done, total)
        self._bar.update(self._task, description=what, completed=done, total=total or None)
        if self._place is not None:
            self._place.show(notebook.bar(what, done, total))

    def beside(self, say: Callable[..., None]) -> Callable[..., None]:
        """Wrap ``say`` so that its lines appear above the bar."""

        def said(*words: Any) -> None:
            self._bar.stop()
            say(*words)
            self._bar.start()

        return said


def _beginning(measured: str, width: int) -> str:
    """As many of the measurements, two spaces apart, as fit on one line: none is cut in two."""
    parts = measured.split("  ")
    while len(parts) > 1 and cell_len("  ".join(parts)) > width:
        parts.pop()
    return "  ".join(parts)


class Display:
    """Messages, progress and tables of one run; silent on all processes but the first.

    Args:
        quiet: write to the log file only.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        # A pipe or a file has no width: tables and lines are not folded there.
        # No text is rich markup: a class may be called "[red]" or ":car:".
        self.console = Console(
            file=lenient(sys.stdout),
            width=None if sys.stdout.isatty() else 180,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
            force_jupyter=False,  # plain text in a notebook, too, where rich would create one output per line
        )
        self._log: Path | None = None
        self._progress: Progress | None = None
        self._live: Live | None = None
        self._picture: notebook.TrainingPicture | None = None
        self._steps = (0, 0)

    @property
    def redraws(self) -> bool:
        """Whether lines that were printed can be redrawn, as for a bar: on a terminal only.

        Rich also takes for a terminal what ``FORCE_COLOR`` colours, as in notebooks and on CI servers.
        """
        return self.console.is_terminal and self.console.file.isatty()

    def open(self, log: Path, steps: int, done: int) -> None:
        """Open the log file for appending and start the live display.

        On a terminal that is a bar with the position and measurements; in a notebook, a picture once there is something
        to draw.

        Args:
            log: the log file.
            steps: steps of the whole training.
            done: steps done before the run was resumed.
        """
        self._log, self._steps = log, (steps, done)
        if self.redraws and not self.quiet:
            self._progress = Progress(BarColumn(24), TaskProgressColumn(), _Description())
            self._task = self._progress.add_task("starting ...", total=steps, completed=done)
            self._live = Live(self._progress, console=self.console, transient=True)
            self._live.start()

    def step(self, place: str, measured: str, step: int, loss: float | None = None) -> None:
        """Show a training record in the live display, or else as a line. ``loss`` is a point of the curve."""
        self._to_log(f"{place}  {measured}")
        picture = self._pictured()
        if picture is not None:
            picture.step(place, measured, step, loss)
        elif self._live is not None and self._progress is not None:
            self._progress.update(self._task, completed=step, description=place)
            self._live.update(Group(self._progress, Text(_beginning(printable(measured), self.console.width))))
        elif not self.quiet:
            self.console.print(printable(f"{place}  {measured}"))

    def evaluated(self, line: str, step: int, value: float | None, name: str = "top-1 %") -> None:
        """Show an evaluation as a line, or in a notebook as a point of the curve of ``value``, with its ``name``."""
        picture = self._pictured()
        if picture is None:
            self.message(line)
        else:
            self._to_log(line)
            picture.evaluated(line, step, value, name)

    def message(self, line: str) -> None:
        """Print one line, with control characters escaped; on a terminal it is folded between words."""
        self._to_log(line)
        if not self.quiet:
            text = printable(line)
            self.console.print(wrapped(text, self.console.width) if self.redraws else text)

    def text(self, text: str) -> None:
        """Print several lines. On a terminal paragraphs are refilled; indented lines, such as formulas, are not."""
        paragraph: list[str] = []
        for line in text.split("\n"):
            if self.redraws and line.strip() and not line.startswith(" "):
                paragraph.append(line)
                continue
            self._flow(paragraph)
            self.message(line)
        self._flow(paragraph)

    def _flow(self, paragraph: list[str]) -> None:
        if paragraph:
            self.message(" ".join(paragraph))
            paragraph.clear()

    def table(self, table: "FittedTable") -> None:
        """Print a table; a narrow terminal gets another layout."""
        if not self.quiet:
            self.console.print(table)

    def pasted(self, markdown: str, heads: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> None:
        """Print a table as Markdown, ready to paste; on a terminal that is too narrow for it, as an ordinary table.

        Args:
            markdown: the Markdown text.
            heads: the column headings.
            lines: the cells, as text, row by row.
            left: the number of columns on the left that hold text; the others hold numbers.
        """
        text = printable_lines(markdown)
        if self.redraws and max(map(cells, text.split("\n"))) > self.console.width:
            drawn = [_Drawn(head, [printable(line[i]) for line in lines], i >= left) for i, head in enumerate(heads)]
            self.table(FittedTable(drawn, names=left))
        elif not self.quiet:
            self.console.print(text)

    def close(self) -> None:
        """Remove the live display; a notebook keeps its final state."""
        if self._picture is not None:
            self._picture.close()
            self._picture = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _pictured(self) -> notebook.TrainingPicture | None:
        """The live picture in a notebook, below the messages printed so far; None elsewhere."""
        if self._picture is None and notebook.in_notebook() and not self.quiet:
            self._picture = notebook.TrainingPicture(*self._steps)
        return self._picture

    def _to_log(self, line: str) -> None:
        if self._log is not None:
            append_text(self._log, printable(line) + "\n")


#: Key, heading, format spec.
Column = tuple[str, str, str]
#: In terminal columns: the gap between columns of a narrow table, and the least width of prose.
_GAP, _PROSE = 2, 28


def make_table(
    rows: Sequence[Mapping[str, Any]], columns: Iterable[Column], title: str | None = None, prose: Iterable[str] = ()
) -> "FittedTable":
    """A table of ``rows``; each column is (key, heading, format spec), with "-" where a value is None.

    Text is shown literally: a "[" in the name of a class or a file is not rich markup, and control characters are
    escaped.

    Args:
        rows: the values by key.
        columns: the columns to show; the first one names the row.
        title: shown above the table.
        prose: keys of columns whose text may be folded between words. The others hold names and numbers, which are
            never cut: if they do not fit, the table takes another layout, see :class:`FittedTable`.
    """
    columns, folded = list(columns), set(prose)
    drawn = [
        _Drawn(
            heading=printable(heading),
            cells=["-" if row.get(key) is None else printable(format(row[key], spec)) for row in rows],
            numeric=all(isinstance(row.get(key), int | float | None) for row in rows),
            prose=key in folded,
        )
        for key, heading, spec in columns
    ]
    return FittedTable(drawn, None if title is None else printable(title))


@dataclass(frozen=True)
class _Drawn:
    """A column of formatted cells."""

    heading: str
    cells: list[str]
    numeric: bool = False
    prose: bool = False

    @property
    def natural(self) -> int:
        """Its width without folding."""
        return max(map(cells, [self.heading, *self.cells]), default=0)

    @property
    def least(self) -> int:
        """Its least width: headings are folded between words, and so are cells of prose."""
        heading = max(map(cells, self.heading.split() or [""]))
        if self.prose:
            longest = max((cells(word) for text in self.cells for word in text.split()), default=0)
            return max(heading, longest, min(self.natural, _PROSE))
        return max([heading, *map(cells, self.cells)])


class FittedTable:
    """A table that adapts to the width of the terminal and never cuts a name.

    On a wide terminal, in a pipe or in a file, it is a table with lines. On a narrow terminal it is:

    - for one row, or a few rows with many columns: transposed, one line per column;
    - for more rows: several tables, each with the first ``names`` columns, and prose below its row;
    - if a column does not fit even next to the first one: one paragraph per row.
    """

    def __init__(self, columns: Sequence[_Drawn], title: str | None = None, names: int = 1) -> None:
        self._columns, self._title, self._names = list(columns), title, names
        self._count = len(self._columns[0].cells) if self._columns else 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        lines = 3 * len(self._columns) + 1
        least = sum(column.least for column in self._columns) + lines
        if not console.is_terminal:
            width = max(width, least)
        if least <= width:
            yield self._with_lines(width - lines)
            return
        if self._title is not None:
            yield Text(wrapped(self._title, width), style="italic")
        for line, style in self._narrow(width):
            yield Text(line, style=style, no_wrap=True, overflow="ignore")

    def _with_lines(self, room: int) -> Table:
        title = None if self._title is None else Text(self._title)
        table = Table(title=title, title_justify="left")
        widths = _widths(self._columns, room)
        table.width = sum(widths) + 3 * len(widths) + 1  # in a pipe it may be wider than rich's page
        for column, width in zip(self._columns, widths, strict=True):
            justify: Literal["left", "right"] = "right" if column.numeric else "left"
            table.add_column(Text(column.heading), justify=justify, overflow="fold", width=width)
        for i in range(self._count):
            table.add_row(*(Text(column.cells[i]) for column in self._columns))
        return table

    def _narrow(self, width: int) -> Iterator[tuple[str, str]]:
        """The lines, each with its style."""
        first, others = self._columns[: self._names], self._columns[self._names :]
        plain, prose = [c for c in others if not c.prose], [c for c in others if c.prose]
        values = sum(_GAP + max(cells(column.cells[i]) for column in self._columns) for i in range(self._count))
        label = min(_longest(self._columns), width - values)
        readable = label >= max(cells(word) for column in self._columns for word in (column.heading or " ").split(" "))
        if self._count == 1:
            yield from self._said(0, self._columns, width)
        elif self._count <= min(5, len(plain)) and not prose and readable:
            yield from self._turned(label)
        elif (blocks := _blocks(first, plain, width)) is not None:
            for number, block in enumerate(blocks):
                if number:
                    yield "", ""
                yield from _aligned(block, width, prose if number == 0 else [])
        else:
            for i in range(self._count):
                yield first[0].cells[i], "bold"
                for line, style in self._said(i, [*first[1:], *others], width - 2):
                    yield f"  {line}", style

    def _said(self, row: int, columns: Sequence[_Drawn], width: int) -> Iterator[tuple[str, str]]:
        """A row with one line per column; values go below the heading if there is no room next to it."""
        label = min(_longest(columns), width // 2)
        for column in columns:
            text = column.cells[row]
            room = width - label - _GAP
            parts = wrapped(text, max(room, 1)).split("\n") if column.prose else [text]
            if max(map(cells, parts)) > room:
                yield column.heading, ""
                below = wrapped(f"  {text}", width).split("\n") if column.prose else _listed(text, width)
                yield from ((line, "") for line in below)
            else:
                yield from _beside(column.heading, label, parts)

    def _turned(self, label: int) -> Iterator[tuple[str, str]]:
        """A line for each column, of ``label`` columns for its heading; what names a row stands on top."""
        widths = [max(cells(column.cells[i]) for column in self._columns) for i in range(self._count)]
        for number, column in enumerate(self._columns):
            texts = [_padded(text, width, right=True) for text, width in zip(column.cells, widths, strict=True)]
            for line, _ in _beside(column.heading, label, [(" " * _GAP).join(texts)]):
                yield line, "" if number else "bold"


def _longest(columns: Sequence[_Drawn]) -> int:
    """How wide the widest heading is on one line."""
    return max((cells(column.heading) for column in columns), default=0)


def _padded(text: str, width: int, right: bool = False) -> str:
    space = " " * (width - cells(text))
    return space + text if right else text + space


def _beside(heading: str, label: int, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A heading, folded to ``label`` columns, with lines of text to its right."""
    for head, text in zip_longest(wrapped(heading, label).split("\n"), texts, fillvalue=""):
        yield (_padded(head, label) + " " * _GAP + text).rstrip(), ""


def _widths(columns: Sequence[_Drawn], room: int) -> list[int]:
    """How wide each column becomes; what is left over goes to prose first."""
    spare, widths = room - sum(column.least for column in columns), [column.least for column in columns]
    for i in sorted(range(len(columns)), key=lambda i: not columns[i].prose):
        more = min(spare, columns[i].natural - widths[i])
        widths[i] += more
        spare -= more
    return widths


def _listed(text: str, width: int) -> list[str]:
    """The items of a cell, separated by two spaces, on as many lines as needed; no item is cut."""
    lines: list[str] = []
    for part in re.split(r" {2,}", text):
        if lines and cells(f"{lines[-1]}  {part}") <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(f"  {part}")
    return lines


def _blocks(first: Sequence[_Drawn], others: Sequence[_Drawn], width: int) -> list[list[_Drawn]] | None:
    """Distribute the columns over as few tables as possible, each starting with ``first``; None if one does not fit.

    The tables have similar widths, so that the last one does not have just one column.
    """
    found = _filled(first, others, width)
    while found is not None and (narrower := _filled(first, others, width - 1)) and len(narrower) == len(found):
        found, width = narrower, width - 1
    return found


def _filled(first: Sequence[_Drawn], others: Sequence[_Drawn], width: int) -> list[list[_Drawn]] | None:
    least = sum(column.least for column in first) + _GAP * (len(first) - 1)
    blocks, room = [list(first)], width - least
    for column in others:
        need = _GAP + column.least
        if need > room and len(blocks[-1]) > len(first):
            blocks.append(list(first))
            room = width - least
        if need > room:
            return None
        blocks[-1].append(column)
        room -= need
    return blocks if least <= width else None


def _aligned(columns: Sequence[_Drawn], width: int, prose: Sequence[_Drawn]) -> Iterator[tuple[str, str]]:
    """A table without lines; headings are folded, and prose is below its row."""
    widths = _widths(columns, width - _GAP * (len(columns) - 1))

    def line(texts: Sequence[str]) -> str:
        parts = [_padded(t, w, c.numeric) for t, w, c in zip(texts, widths, columns, strict=True)]
        return (" " * _GAP).join(parts).rstrip()

    headings = [wrapped(c.heading, w).split("\n") for c, w in zip(columns, widths, strict=True)]
    depth = max(map(len, headings))
    for level in range(depth):
        yield line([([""] * (depth - len(h)) + h)[level] for h in headings]), "bold"
    for column in prose if len(prose) == 1 else ():
        for part in wrapped(f"    {column.heading}", width).split("\n"):
            yield part, "bold"
    for i in range(len(columns[0].cells)):
        yield line([column.cells[i] for column in columns]), ""
        for column in prose:
            if column.cells[i] not in ("", "-"):
                said = f"{column.heading}: {column.cells[i]}" if len(prose) > 1 else column.cells[i]
                for part in wrapped(f"    {said}", width).split("\n"):
                    yield part, ""
