"""What is printed."""

import io
import sys

from rich.console import Console

from excite.console import ProgressBar, make_table
from excite.progress import Steps


def test_brackets_in_names_are_shown_as_they_are():
    names = ["[bold]cat[/bold]", "photo[1].jpg", "[/x]", "a[red]"]
    rows = [{"name": name, "value": None if i else 1.5} for i, name in enumerate(names)]
    console = Console(width=80, record=True, quiet=False)
    console.print(make_table(rows, [("name", "[name]", ""), ("value", "value", ".2f")]))
    printed = console.export_text()
    for text in [*names, "[name]", "1.50", "-"]:
        assert text in printed


def test_what_is_said_stands_beside_the_bar_and_not_in_it(monkeypatch):
    """On a terminal, of which each line is what was written last on it: the bar is wiped before, and comes back."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar("loading") as progress:
        say = progress.beside(lambda line: terminal.write(f"<{line}>\n"))
        progress("reading [red] \x1b]0;x", 1, 4)
        say("a sentence")
        progress("writing", 3, 4)
        progress("unknown", 0, 0)
    before, after = terminal.getvalue().split("<a sentence>\n")
    # Rich shows the cursor again when a bar is gone: nothing of it is on the line of the sentence.
    assert before.endswith(("\x1b[?25h", "\x1b[2K"))
    assert "reading [red] \\x1b]0;x" in before
    assert "unknown" in after
    assert "\x1b[?25l" in after  # the bar again


def test_where_there_is_no_terminal_every_step_is_a_line(monkeypatch):
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    with ProgressBar() as progress:
        progress("reading", 0, 0)
        for done in range(100):
            progress("evaluating", done, 100)
        progress("writing", 0, 1)
    assert told.getvalue() == "reading\nevaluating\nwriting\n"
    with ProgressBar(lines=False) as progress:
        progress("reading", 0, 0)
    assert told.getvalue() == "reading\nevaluating\nwriting\n"


def test_a_long_step_says_how_far_it_is(monkeypatch):
    clock, told = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    steps = Steps(told.append)
    for second, words in enumerate([("a", 0, 10), ("a", 1, 10), ("a", 2, 10), ("a", 3, 10), ("b", 0, 0), ("b", 1, 0)]):
        clock[0] = second
        steps(*words)
    clock[0] = 7.0
    steps("b", 2, 0)
    assert told == ["a", "a: 3 of 10", "b", "b"]
