"""What is printed."""

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from excite import notebook
from excite.console import Display, ProgressBar, make_table
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


class Jupyter:
    """What IPython offers in a notebook: each place has a list of what it showed."""

    def __init__(self, kernel: object = "a kernel") -> None:
        self.places: list[list[str]] = []
        self.display = SimpleNamespace(HTML=str, display=self._place)
        self.get_ipython = lambda: SimpleNamespace(kernel=kernel)

    def _place(self, html: str, display_id: bool) -> SimpleNamespace:
        assert display_id
        self.places.append([html])
        return SimpleNamespace(update=self.places[-1].append)


@pytest.fixture
def jupyter(monkeypatch) -> Jupyter:
    found = Jupyter()
    monkeypatch.setitem(sys.modules, "IPython", found)
    monkeypatch.setattr(notebook, "SECONDS", 0.0)
    return found


def test_a_training_in_a_notebook_is_one_place_that_is_updated(jupyter, tmp_path, capsys):
    display = Display()
    display.open(tmp_path / "log.txt", 4, 0)
    display.message("run folder x")
    display.step("epoch 1/2  step 1/4  0:00:03 left", "loss 2.5  <b>", 1, 2.5)
    display.step("epoch 1/2  step 2/4", "loss overflowed", 2, None)
    display.evaluated("epoch 1/2  validation top-1 60 %", 2, 60.0)
    display.message("warning: something")
    display.step("epoch 2/2  step 4/4", "loss 1.5", 4, 1.5)
    display.evaluated("epoch 2/2  validation top-1 80 %", 4, 80.0)
    display.close()
    [shown] = jupyter.places
    assert "25 %" in shown[2]
    assert "&lt;b&gt;" in shown[2]
    assert shown[2].count("<svg ") == 1
    assert shown[-1].count("<svg ") == 2
    assert "training loss: 1.5 (from 1.5 to 2.5)" in shown[-1]
    assert "top-1 %: 80.00 (from 60.00 to 80.00)" in shown[-1]
    assert capsys.readouterr().out == "run folder x\nwarning: something\n"  # lines that stay are lines
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert len(log) == 7
    assert log[3] == "epoch 1/2  validation top-1 60 %"


def test_a_bar_in_a_notebook_goes_away(jupyter):
    with ProgressBar("loading") as progress:
        progress("reading <x>", 1, 4)
    [shown] = jupyter.places
    assert "reading &lt;x&gt;" in shown[-2]
    assert "width:25.0%" in shown[-2]
    assert shown[-1] == ""


@pytest.mark.parametrize("how", ["quiet", "IPython in a terminal", "no IPython"])
def test_elsewhere_there_is_no_picture(how, jupyter, monkeypatch, tmp_path, capsys):
    if how != "quiet":
        jupyter = Jupyter(kernel=None)
        monkeypatch.setitem(sys.modules, "IPython", jupyter)
    if how == "no IPython":
        monkeypatch.delitem(sys.modules, "IPython")
    display = Display(quiet=how == "quiet")
    display.open(tmp_path / "log.txt", 4, 0)
    display.step("epoch 1/2", "loss 2.5", 1, 2.5)
    display.evaluated("validation top-1 60 %", 2, 60.0)
    display.close()
    assert jupyter.places == []
    assert capsys.readouterr().out == ("" if how == "quiet" else "epoch 1/2  loss 2.5\nvalidation top-1 60 %\n")


def test_a_curve_of_many_points_keeps_its_ends():
    points = [(step, 1.0 / step) for step in range(1, 1002)]
    drawn = notebook.curve(points, 1001, "loss", ".3f")
    kept = drawn.split('points="')[1].split('"')[0].split()
    assert 150 <= len(kept) <= 201
    assert kept[0].endswith(",22.0")  # the largest value is at the top
    assert kept[-1] == "312.0,102.0"
    assert "loss: 0.001 (from 0.001 to 1.000)" in drawn
