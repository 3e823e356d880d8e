"""What is printed."""

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from excite import console, notebook
from excite.console import Display, ProgressBar, make_table
from excite.progress import Steps
from excite.recipe import parse_yaml, recipe_text
from excite.text import with_fitting_comments, wrapped
from excite.training.reporting import format_step


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


def test_the_curve_in_a_notebook_is_that_of_the_measure_that_chooses(jupyter, tmp_path):
    display = Display()
    display.open(tmp_path / "log.txt", 4, 0)
    for step, value in ((1, 0.5), (2, None), (3, 0.25)):
        display.evaluated("an evaluation", step, value, "loss")
    display.close()
    [shown] = jupyter.places
    assert "loss: 0.2500 (from 0.2500 to 0.5000)" in shown[-1]


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


# --- terminals of every width -----------------------------------------------------------------------------------------


def drawn(table, width, terminal=True):
    """The lines that a terminal of ``width`` columns, or a pipe of as many, gets."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None, soft_wrap=True)
    console.print(table)
    return out.getvalue().splitlines()


GATES = [
    {
        "gate": f"layer{i}.0.gate",
        "channels": 64 * 2**i,
        "lost": f"+{i}.00 (-7.13 to +7.13)",
        "saved": f"{i}.12 (0.10 to 0.30)",
        "run": "runs/seresnet20-20260101-120000",
        "about": "reads the means over positions, and scales every channel by one number",
    }
    for i in range(6)
]
COLUMNS = [
    ("gate", "gate", ""),
    ("channels", "channels", ",d"),
    ("lost", "top-1 points lost if fixed (95 %)", ""),
    ("saved", "ms saved, 16 images (quartiles)", ""),
    ("run", "run", ""),
    ("about", "about", ""),
]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 150, 200])
@pytest.mark.parametrize("rows", [1, 2, 3, 6])
@pytest.mark.parametrize("title", [None, "six gates of a network whose name is a long one, on 2,000 images"])
def test_no_table_is_wider_than_the_terminal_and_no_cell_is_cut(width, rows, title):
    lines = drawn(make_table(GATES[:rows], COLUMNS, title, prose=["about"]), width)
    assert max(map(len, lines)) <= width
    printed = "\n".join(lines)
    for row in GATES[:rows]:
        for key, _, spec in COLUMNS[:-1]:
            assert format(row[key], spec) in printed
    words = printed.replace("│", " ").replace("┃", " ").split()
    for text in (GATES[0]["about"], *(heading for _, heading, _ in COLUMNS[1:])):
        assert set(text.split()) <= set(words)


def test_a_cell_wider_than_the_terminal_is_whole_on_a_line_of_its_own():
    path = "photos/" + "a-long-folder/" * 6 + "one photograph.jpg"
    rows = [{"image": path, "top": "cat 93.1 %  dog 3.2 %  frog 1.0 %"}] * 2
    lines = drawn(make_table(rows, [("image", "image", ""), ("top", "top 3", "")]), 60)
    assert lines == [path, "  top 3  cat 93.1 %  dog 3.2 %  frog 1.0 %"] * 2


def test_one_row_is_turned_and_few_rows_are_side_by_side():
    lines = drawn(make_table(GATES[:1], COLUMNS[:4]), 50)
    assert lines[0].split() == ["gate", "layer0.0.gate"]
    assert lines[1].split() == ["channels", "64"]
    lines = drawn(make_table(GATES[:2], COLUMNS[:4]), 60)
    assert lines[0].split() == ["gate", "layer0.0.gate", "layer1.0.gate"]
    assert lines[1].split() == ["channels", "64", "128"]


def test_many_rows_are_tables_below_each_other_of_about_one_width():
    lines = drawn(make_table(GATES, COLUMNS[:4]), 60)
    heads = [line.split()[0] for line in lines if line]
    assert heads.count("gate") == 2
    assert heads.count("layer5.0.gate") == 2
    assert [line.split()[1] for line in lines if line.startswith("layer")][:2] == ["64", "128"]


def test_every_table_of_a_benchmark_names_what_its_rows_are(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    lines = [["seresnet50", f"batch {8**i}", "10.25", "9.00 to 11.00", "97.56", "1.25", "1.00"] for i in range(7)]
    heads = ["model", "batch", "img/s", "quartiles", "ms/step", "memory GB", "img/s / first row's"]
    Display().pasted("| too wide |" * 9, heads, lines, left=2)
    printed = terminal.getvalue()
    assert all(printed.count(f"batch {8**i} ") == 2 for i in range(7))


def test_a_pipe_gets_a_table_with_lines_however_wide():
    lines = drawn(make_table(GATES, COLUMNS), 80, terminal=False)
    assert lines[0].startswith("┏")
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) > 80
    assert all(GATES[i]["run"] in "\n".join(lines) for i in range(6))


@pytest.mark.parametrize("width", [30, 60, 80])
@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("top-1 81.20 % of 2,000 images of /data/photographs/of/animals/val, " * 3, ["81.20 %", "/data/photographs"]),
        ("the weights are in 'my photos/a folder with spaces/model.safetensors' now", ["'my photos/a folder with"]),
        ("there are no images; type: excite train folder-seresnet50 data.root=photos", ["excite train folder-seres"]),
        ("it is interrupted; `excite train --resume runs/my-run` goes on with it", ["`excite train --resume runs/my"]),
    ],
)
def test_a_sentence_is_folded_between_words_and_what_is_copied_stays_whole(width, text, whole):
    lines = wrapped(text, width).split("\n")
    assert " ".join(line.strip() for line in lines) == text.strip()
    for each in whole:
        assert any(each in line for line in lines)
    for line in lines:
        assert len(line) <= width or line.startswith(("'", "`", "excite ", "/data/photographs"))


def test_what_is_said_of_a_label_goes_on_below_itself():
    text = "  model.safetensors    best weights, self-contained: what excite validate and excite predict take"
    first, second = wrapped(text, 70).split("\n")
    assert first.index("best") == len(second) - len(second.lstrip())


def test_what_does_not_fit_beside_its_label_is_below_it():
    assert wrapped("The artefact.  `beside the weights of the run`", 32).split("\n") == [
        "The artefact.",
        "`beside the weights of the run`",
    ]


def test_wide_letters_count_twice():
    lines = wrapped("画像 " * 20, 40).split("\n")
    assert max(sum(2 for c in line if c != " ") + line.count(" ") for line in lines) <= 40


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("name", ["digits-seresnet20", "imagenet-seresnet50"])
def test_a_recipe_on_a_terminal_says_the_same_with_its_comments_folded(name, width):
    text = recipe_text(name)[0]
    fitted = with_fitting_comments(text, width)
    assert parse_yaml(fitted, name) == parse_yaml(text, name)
    for line in fitted.split("\n"):
        assert len(line) <= width or "excite train" in line


def test_lines_that_are_folded_are_whole_in_the_log(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    display = Display()
    display.open(tmp_path / "log.txt", steps=1, done=0)
    display.close()
    display.message("a sentence that is longer than the terminal is wide, by a good deal")
    assert "a sentence that is longer than the\nterminal is wide, by a good deal\n" in terminal.getvalue()
    assert (tmp_path / "log.txt").read_text() == "a sentence that is longer than the terminal is wide, by a good deal\n"


@pytest.mark.parametrize(
    ("width", "shown"),
    [(80, "loss 0.8850  acc 84.38 %"), (24, "loss 0.8850  acc 84.38 %"), (23, "loss 0.8850"), (5, "loss 0.8850")],
)
def test_no_measurement_is_cut_in_two(width, shown):
    assert console._beginning("loss 0.8850  acc 84.38 %", width) == shown


def test_the_line_below_the_bar_fits_a_terminal_of_80_columns(tmp_path):
    record = {"epoch": 0.5, "step": 9, "loss": 0.8850, "accuracy": 84.38, "lr": 3.333e-5, "images_per_second": 32.0}
    record |= {"ms_per_step": 1009.7, "data_wait": 0.09, "memory_gb": 1.18, "loss_scale": None, "seconds_left": 26.0}
    display, screen = Display(), io.StringIO()
    screen.isatty = lambda: True
    display.console = Console(file=screen, force_terminal=True, width=80, soft_wrap=True)
    display.open(tmp_path / "log.txt", 27, 0)
    display.step(*format_step(record, 3, 27), 9)
    display.close()
    assert "data wait 9 %" in screen.getvalue()
    assert "1.1" not in screen.getvalue()
    assert "1.18 GB" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("where", ["a pipe", "a notebook"])
def test_forced_colours_make_no_terminal(where, request, monkeypatch, tmp_path, capsys):
    """Rich takes what FORCE_COLOR colours for a terminal. A bar would leave a line each time that it is redrawn."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter's kernels and many CI servers do
    if where == "a notebook":
        request.getfixturevalue("jupyter")
    display = Display()
    assert display.console.is_terminal
    display.open(tmp_path / "log.txt", 4, 0)
    for word in ("one", "two"):
        display.message(word)
    display.close()
    with ProgressBar("loading") as progress:
        progress("reading", 1, 4)
    told = capsys.readouterr()
    assert told.out == "one\ntwo\n"
    assert told.err == ("" if where == "a notebook" else "reading\n")
