"""What is printed."""

import io
import sys

from rich.console import Console

from excite.console import ProgressBar, make_table


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
