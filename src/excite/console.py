"""What the user sees: messages, tables, a bar on a terminal or in a notebook, plain lines elsewhere; those of a run
also in log.txt."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from excite import notebook
from excite.errors import ExciteError
from excite.progress import Steps
from excite.text import lenient, printable, tell


def format_seconds(seconds: float) -> str:
    """7384 -> "2:03:04"."""
    return str(timedelta(seconds=round(seconds)))


class _Description(ProgressColumn):
    """What is being done. File names in it are shown as they are: they are no markup of rich's."""

    def render(self, task: Task) -> Text:
        return Text(printable(task.description))


def bar(*columns: ProgressColumn) -> Progress:
    """rich's progress bar on standard error, where that is a terminal; ``columns`` come after what is being done."""
    console = Console(file=lenient(sys.stderr))
    return Progress(_Description(), *columns, console=console, transient=True, disable=not sys.stderr.isatty())


class ProgressBar:
    """A :data:`excite.progress.Progress`: as a bar on standard error where that is a terminal, or in a notebook;
    elsewhere as a line when a step begins, and now and then one for how far it is.

    ``with ProgressBar("loading") as progress:`` shows the bar from the beginning; it leaves nothing behind.

    Args:
        what: the bar's first words.
        lines: whether there are lines where there is no terminal: one process of a job speaks for all.
    """

    def __init__(self, what: str = "loading", lines: bool = True) -> None:
        self._lines = Steps(tell) if lines and not sys.stderr.isatty() else None
        self._bar = bar(BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
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
        """Show what is being done, and how much of it is; a ``total`` of 0 is not known."""
        if self._lines is not None:
            self._lines(what, done, total)
        self._bar.update(self._task, description=what, completed=done, total=total or None)
        if self._place is not None:
            self._place.show(notebook.bar(what, done, total))

    def beside(self, say: Callable[..., None]) -> Callable[..., None]:
        """``say``, whose lines come above the bar and not into it."""

        def said(*words: Any) -> None:
            self._bar.stop()
            say(*words)
            self._bar.start()

        return said


class Display:
    """Messages, progress and tables of one run; silent on all processes but the first.

    Args:
        quiet: write to the log file only.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        # A pipe or a file has no width: tables and lines are not folded there.
        # Nothing in a text is rich's: a class may be called "[red]" or ":car:".
        self.console = Console(
            file=lenient(sys.stdout),
            width=None if sys.stdout.isatty() else 180,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
            force_jupyter=False,  # lines of text, in a notebook, too: there rich would make an output of each
        )
        self._log: Path | None = None
        self._progress: Progress | None = None
        self._live: Live | None = None
        self._picture: notebook.TrainingPicture | None = None
        self._steps = (0, 0)

    def open(self, log: Path, steps: int, done: int) -> None:
        """Start the log file (appending) and what is live: on a terminal a bar and the place, then measurements,
        in a notebook a picture, when there is something to draw."""
        self._log, self._steps = log, (steps, done)
        if self.console.is_terminal and not self.quiet:
            self._progress = Progress(BarColumn(24), TaskProgressColumn(), _Description())
            self._task = self._progress.add_task("starting ...", total=steps, completed=done)
            self._live = Live(self._progress, console=self.console, transient=True)
            self._live.start()

    def step(self, place: str, measured: str, step: int, loss: float | None = None) -> None:
        """A training record: updates what is live, or prints a line where nothing is. ``loss`` is for the curve."""
        self._to_log(f"{place}  {measured}")
        picture = self._pictured()
        if picture is not None:
            picture.step(place, measured, step, loss)
        elif self._live is not None and self._progress is not None:
            self._progress.update(self._task, completed=step, description=place)
            self._live.update(Group(self._progress, Text(printable(measured))))
        elif not self.quiet:
            self.console.print(printable(f"{place}  {measured}"))

    def evaluated(self, line: str, step: int, top1: float) -> None:
        """An evaluation: a line that stays, but in a notebook a point of the curve. ``top1`` in percent."""
        picture = self._pictured()
        if picture is None:
            self.message(line)
        else:
            self._to_log(line)
            picture.evaluated(line, step, top1)

    def message(self, line: str) -> None:
        """A line that stays; a line it is, whatever the names in it hold."""
        self._to_log(line)
        if not self.quiet:
            self.console.print(printable(line))

    def table(self, table: Table) -> None:
        """Print a table."""
        if not self.quiet:
            self.console.print(table)

    def close(self) -> None:
        """Take the live lines away; a notebook keeps how it ended."""
        if self._picture is not None:
            self._picture.close()
            self._picture = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _pictured(self) -> notebook.TrainingPicture | None:
        """The picture of a training in a notebook, below what was said before it; None elsewhere."""
        if self._picture is None and notebook.in_notebook() and not self.quiet:
            self._picture = notebook.TrainingPicture(*self._steps)
        return self._picture

    def _to_log(self, line: str) -> None:
        if self._log is not None:
            try:
                with self._log.open("a", encoding="utf-8") as file:
                    file.write(printable(line) + "\n")
            except OSError as error:
                raise ExciteError(f"{self._log} cannot be written: {error.strerror or error}") from None


def make_table(
    rows: Sequence[Mapping[str, Any]], columns: Iterable[tuple[str, str, str]], title: str | None = None
) -> Table:
    """A table of ``rows``; each column is (key, heading, format spec), with "-" where a value is None.

    Texts are shown as they are: a "[" in the name of a class or a file is no markup of rich's, and what a terminal
    would obey is escaped.
    """

    def text(value: object) -> Text:
        return Text(printable(value))

    columns = list(columns)
    table = Table(title=None if title is None else text(title), title_justify="left")
    for key, heading, _ in columns:
        numeric = all(isinstance(row.get(key), int | float | None) for row in rows)
        table.add_column(text(heading), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(text("-" if row.get(key) is None else format(row[key], spec)) for key, _, spec in columns))
    return table
