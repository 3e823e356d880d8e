"""Names of classes and files are shown and never obeyed, wherever text leaves."""

import io
import json
import os
import re
import subprocess
import sys
import tokenize
import unicodedata
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from PIL import Image

from excite import text
from excite.console import Display, bar, make_table
from excite.errors import ExciteError
from excite.files import read_json, write_json, write_text
from excite.pages.figures import Undrawn, attempt, dispensable, save, style, write
from excite.pages.page import Column, Page
from excite.recipe import load_recipe
from excite.training.run_folder import draw_curves

#: Renames a terminal's window, clears it, turns the direction of writing, forges a line, is no UTF-8, is C1, is markup.
HOSTILE = "\x1b]0;hello\x07\x1b[31mred\x1b[2J\u202eevil\nerror: all good\r\udce9\x9b31m[red]x[/red][/] :car: $a$ $b"
SHOWN = r"\x1b]0;hello\x07\x1b[31mred\x1b[2J\u202eevil\nerror: all good\r\xe9\x9b31m[red]x[/red][/] :car: $a$ $b"


def harmful(shown: str) -> list[str]:
    """Every character that a terminal or a reader would obey, but for the ends of lines."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return [c for c in shown if c != "\n" and unicodedata.category(c) in kinds]


def test_what_is_escaped_is_what_unicode_calls_a_control_or_a_format():
    assert text.printable(HOSTILE) == SHOWN
    plain = "Ünïcödé, 日本, e\u0301, \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645, 👩\u200d🚀, \\x1b"
    assert text.printable(plain) == plain
    assert text.printable_lines("a\n\x1b\tb") == "a\n\\x1b\\tb"
    seen = set(range(0x600, 0x606)) | {0x6DD, 0x890, 0x891, 0x8E2, 0x200C, 0x200D, 0x110BD, 0x110CD}
    for code in range(0x110000):
        harms = unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and code not in seen
        assert not harms or text.printable(chr(code)) != chr(code), hex(code)
    assert all(text.printable(chr(code)) == chr(code) for code in range(0x20, 0x7F))


@pytest.mark.parametrize("ascii_only", [False, True])
def test_json_is_exact_and_harmless(ascii_only, tmp_path):
    value = {HOSTILE: [HOSTILE, "\x7f\u2028\U000e0041é", 1.5, None]}
    written = text.as_json(value, ascii_only=ascii_only)
    assert json.loads(written) == value
    assert harmful(written) == []
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    write_text(tmp_path / "a.txt", "caf\udce9")
    assert (tmp_path / "a.txt").read_text() == "caf\\udce9"


@pytest.mark.parametrize(("page", "shown"), [("ascii", "\\xfc\\u65e5"), ("cp1252", "ü\\u65e5"), ("utf-8", "ü日")])
def test_a_code_page_that_lacks_a_letter_is_no_error(page, shown, monkeypatch, capsys):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=page, errors="strict"))
    text.tell(f"ü日{HOSTILE}")
    Display().message(f"ü日{HOSTILE}")
    Display().table(make_table([{"a": "ü日"}], [("a", HOSTILE, "")], title=HOSTILE))
    text.show("ü日")
    text.print_json({"ü日": HOSTILE})
    written = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.flush()
        written[name] = stream.buffer.getvalue().decode(page)
    assert written["stderr"] == f"{shown}{SHOWN}\n"
    assert written["stdout"].startswith(f"{shown}{SHOWN}\n")
    assert json.loads(written["stdout"][written["stdout"].index("{\n") :]) == {"ü日": HOSTILE}
    assert harmful(written["stdout"]) == []


def test_messages_log_and_progress_show_names_as_they_are(tmp_path, capsys):
    display = Display()
    display.open(tmp_path / "log.txt", 1, 0)
    display.message(HOSTILE)
    display.step(HOSTILE, HOSTILE, 1)
    assert (tmp_path / "log.txt").read_text() == f"{SHOWN}\n{SHOWN}  {SHOWN}\n"
    assert capsys.readouterr().out == f"{SHOWN}\n{SHOWN}  {SHOWN}\n"
    shown = bar()
    shown.add_task(HOSTILE)
    shown.console.file = io.StringIO()
    shown.console.width = 300
    shown.console.print(shown.get_renderable())
    assert SHOWN in shown.console.file.getvalue()


def test_a_page_shows_names_as_they_are():
    page = Page(HOSTILE, HOSTILE, headline=HOSTILE)
    section = page.section("a", HOSTILE)
    section.table([Column("a", HOSTILE)], [{"a": HOSTILE}])
    section.code(HOSTILE)
    html = page.render()
    assert harmful(html) == []
    html.encode()


# --- figures ----------------------------------------------------------------------------------------------------------


def figure():
    from matplotlib.figure import Figure

    made = Figure(layout="constrained")
    axis = made.subplots()
    axis.plot([0, 1], label=HOSTILE)
    axis.legend()
    axis.set_xticks([0, 1], [HOSTILE, "caf\udce9 $x"])
    axis.set_title(HOSTILE)
    axis.set_ylabel("100 % # _ ^ \\ {")
    made.suptitle(HOSTILE)
    return made


@pytest.mark.parametrize("settings", [{}, {"text.usetex": True}, {"axes.formatter.use_mathtext": True}])
def test_figures_show_names_as_they_are(settings, tmp_path, recwarn):
    from matplotlib import rc_context

    with rc_context(settings), style():
        files = save(figure(), tmp_path / "a")
    svg = files[1].read_text()
    ElementTree.fromstring(svg)
    assert harmful(svg) == []
    shown = re.sub(r"<[^>]*>", " ", svg)
    assert r"\x1b]0;hello\x07\x1b[31mred\x1b[2J\u202eevil" in shown
    assert r"caf\xe9 $x" in shown
    assert "$a$ $b" in shown
    assert [w for w in recwarn.list if "Glyph" in str(w.message)] == []


def test_letters_that_the_font_lacks_make_no_noise(tmp_path, recwarn):
    from matplotlib.figure import Figure

    with style():
        made = Figure()
        made.suptitle("日本 \U0001f697 ก")
        write(made, tmp_path / "a.png")
    assert recwarn.list == []


def test_a_figure_that_cannot_be_drawn_costs_a_sentence(tmp_path, capsys):
    told = []
    with dispensable("a.png", told.append):
        raise MemoryError
    assert told == ["a.png could not be drawn (MemoryError); the numbers are complete"]
    undrawn = attempt(lambda: 1 / 0)
    assert isinstance(undrawn, Undrawn)
    with pytest.raises(ExciteError, match="ZeroDivisionError"):
        write(undrawn, tmp_path / "a.png")
    page = Page("title", headline="result")
    section = page.section("a", "a")
    section.draw(undrawn, "The curve")
    section.paragraph("the numbers")
    html = page.render()
    assert "This figure could not be drawn (ZeroDivisionError: division by zero)" in html
    assert "the numbers" in html
    assert "The curve" in capsys.readouterr().err


def test_curves_of_a_recipe_with_dollars(tmp_path):
    """It ended a finished run in a traceback."""
    record = {"kind": "train", "step": 1, "epoch": 1.0, "loss": 1.0, "accuracy": None, "lr": 0.1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    path = draw_curves(tmp_path, "costs $1 and $\\frac$ \x1b[31m: cifar_resnet20")
    assert path is not None
    assert Image.open(path).size[0] > 100


# --- the whole command ------------------------------------------------------------------------------------------------


def test_a_path_that_is_no_yaml_is_a_path():
    path = "/data/caf\udce9 \x1b[31m"
    recipe = load_recipe("digits-seresnet20", [f"data.root={path}"])
    assert recipe.data.root == path
    assert type(recipe).from_yaml(recipe.to_yaml()) == recipe


@pytest.fixture
def hostile(tmp_path):
    """A recipe whose name, folder, classes and files all are hostile; and the folder."""
    classes = ["\x1b]0;hello\x07\x1b[31mred\x1b[2J\u202eevil", "[red]x[bold]", "caf\udce9 日本 :car: $a$ $b"]
    root = tmp_path / "data\x1b[2J"
    try:
        for k, name in enumerate(classes):
            for part, count in (("train", 4), ("val", 2)):
                folder = root / part / name
                folder.mkdir(parents=True)
                for i in range(count):
                    image = Image.new("RGB", (16, 16), (80 * k, 40 * i, 0))
                    image.save(folder / f"{i}\x1b[31m.png")
        (root / "val" / classes[0] / "b\u202ead\udce9.png").write_bytes(b"no image")
    except OSError as error:
        pytest.skip(f"this disk has no such names: {error}")
    recipe = {
        "name": "x$ $y$ [red] {",
        "model": {"name": "cifar_seresnet20"},
        "data": {"source": "folder", "root": str(root), "image_size": 16, "on_bad_val": "skip", "workers": 0},
        "optimizer": {"lr": 0.05},
        "train": {"epochs": 1, "batch_size": 4, "precision": "fp32"},
        "report": {"robustness_images": 3, "gate_images": 3},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "recipe.yaml", root


def command(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "excite", *map(str, words)],
        cwd=folder,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", **environment},
    )


@pytest.mark.parametrize(
    "words", [[HOSTILE], ["train", "--" + HOSTILE], ["models", "a", HOSTILE], ["models", f"--json={HOSTILE}"]]
)
def test_a_word_that_no_command_knows(words, excite):
    done = excite(*words, check=False)
    assert done.returncode == 2
    assert harmful(done.stdout + done.stderr) == []
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_from_training_to_prediction_on_an_ascii_console(hostile, tmp_path):
    recipe, root = hostile
    done = command(tmp_path, "train", recipe, "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    assert b"1 image" in done.stdout
    predicted = command(tmp_path, "predict", "run", root / "val", "--json", "--grid", "grid.png")
    assert predicted.returncode == 1, "one of them is no image"
    rows = json.loads(predicted.stdout)
    assert len(rows) == 6
    assert {os.fsencode(row["path"]).startswith(os.fsencode(root)) for row in rows} == {True}
    assert any("caf\udce9 日本" in entry["class"] for entry in rows[0]["top"])
    assert b"\\u202eevil" in predicted.stderr
    shown = [done.stdout, done.stderr, predicted.stdout, predicted.stderr]
    names = ("log.txt", "bad_images.txt", "report.html", "results.json", "environment.json", "recipe.yaml")
    written = [(tmp_path / "run" / name).read_bytes() for name in names]
    for each in [*shown, *written]:
        assert set(harmful(each.decode())) <= {"\t"}  # between path and reason in bad_images.txt


def test_results_are_there_before_any_picture(hostile, tmp_path, monkeypatch, capsys):
    from excite.report.build import report
    from excite.training import train

    def fail(*_, **__):
        raise MemoryError("no room for a picture")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    recipe, _ = hostile
    run = tmp_path / "run"
    results = train(str(recipe), run_dir=run)
    assert read_json(run / "results.json") == results
    assert "curves.png could not be drawn (MemoryError: no room for a picture)" in (run / "log.txt").read_text()
    assert not (run / "curves.png").exists()
    numbers, page = report(run, figures=tmp_path / "figures")
    assert read_json(run / "results.json")["report"]["accuracy"] == numbers["accuracy"]
    assert "This figure could not be drawn (MemoryError: no room for a picture)" in page.read_text()
    assert "confusion could not be drawn" in capsys.readouterr().err


def test_one_of_a_thing_and_several():
    assert [text.counted(n, "shard") for n in (0, 1, 2, 1234)] == ["0 shards", "1 shard", "2 shards", "1,234 shards"]
    assert [text.counted(2, noun) for noun in ("class", "box", "branch")] == ["2 classes", "2 boxes", "2 branches"]
    assert [text.counted(2, noun) for noun in ("epoch", "damaged line")] == ["2 epochs", "2 damaged lines"]


def test_no_message_counts_thing_s():
    """``counted`` is there for it."""
    source = Path(text.__file__).parent
    found = [
        f"{path.relative_to(source)}:{token.start[0]}"
        for path in source.rglob("*.py")
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.STRING and re.search(r"[a-z]{3}\((s|es)\)", token.string)
    ]
    assert found == []
