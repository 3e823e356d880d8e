"""``excite compare`` from end to end: command, page, table, figures, and what goes wrong."""

import csv
import json
import re
import shutil
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from excite.cli import app
from excite.compare import compare
from excite.compare.build import Comparison
from excite.compare.figures import figures
from excite.compare.page import make_page
from excite.compare.runs import _gate, _recipe, read_run
from excite.compare.study import study
from excite.compare.table import differing, format_p, headline, sentences, shown
from excite.compare.words import LONGEST_LABEL, choose_baseline, choose_labels, free_name
from excite.errors import ExciteError
from excite.grafting import graft
from excite.models import create_model
from excite.recipe import load_recipe
from excite.trained import images, predictions
from excite.trained.opened import open_trained
from tests.compare.conftest import made_up
from tests.report.conftest import numbered
from tests.report.test_browser import cut_off

EVIL = '<script>alert("x")</script> & $a_b$ %s'


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*words: object) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, ["compare", *map(str, words)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


class Texts(HTMLParser):
    """The texts of a page, and its elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_command_prints_a_table_and_writes_page_table_and_figures(trained, here, monkeypatch):
    printed = invoke(*trained, "--figures", "pictures")
    for word in ("bare", "small", "cifar_seresnet20", "none", "se", "top-1 % [95 %]", "difference [95 %]", "baseline"):
        assert word in printed
    assert "McNemar's, two-sided" in printed
    assert "page: compare.html, table: compare.csv, figures: pictures/" in printed
    names = {path.name for path in (here / "pictures").iterdir()}
    assert {"accuracy.png", "accuracy.svg", "curves.png", "classes.svg", "images-1-small.png"} <= names
    assert "agreement.png" not in names  # of two runs it would be one number
    rows = list(csv.DictReader((here / "compare.csv").open()))
    assert [row["label"] for row in rows] == ["bare", "small"]
    (here / "there.html").write_text("mine")
    monkeypatch.setattr(Comparison, "to_html", lambda self: f"baseline {self.found['baseline']}")  # saves seconds
    found = json.loads(invoke(*trained, "--json", "--out", "there.html", "--force", "--baseline", trained[0]))
    assert found["files"] == ["there.html", "there.csv"]
    assert (here / "there.html").read_text() == "baseline bare"
    assert float(rows[1]["top1"]) == found["rows"][1]["top1"]
    assert [row["key"] for row in found["recipe"]] == ["name", "model.name"]
    # The runs validate on fewer images than there are: that alone is said.
    assert len(found["notes"]) == 1
    assert re.fullmatch(
        r"Measured: the validation part, (\d+) of 360 images \(data\.limit_val=\1\)\.", found["notes"][0]
    )
    for source, row in zip(trained, found["rows"], strict=True):
        results = json.loads((source / "results.json").read_text())
        assert row["measured"] == "predictions"
        assert row["loss"] == pytest.approx(results["loss"], rel=1e-5)
        for key in ("top1", "top5", "images", "gmacs", "ms_per_step", "images_per_second", "memory_gb"):
            assert row[key] == results[key]
        assert row["params"] == pytest.approx(1e6 * results["params_m"])
    assert (trained[0] / predictions.FILE).is_file()
    assert found["command"].startswith(f"excite compare {trained[0]}")


def test_the_page_shows_the_numbers_of_the_json_and_pictures_of_the_data(trained):
    result = compare(trained, labels=["plain", "gated"])
    html = result.to_html()
    page = Texts(html)
    found = result.to_dict()
    for row in found["rows"]:
        for text in (f"{row['top1']:.2f}", f"{row['loss']:.4f}", f"{row['params']:,d}", row["weights"]):
            assert text in page.texts
        assert f"{row['top1_low']:.2f} to {row['top1_high']:.2f}" in page.texts
    row = found["rows"][1]
    assert f"{row['difference']:+.2f}" in page.texts
    assert f"{row['difference_low']:+.2f} to {row['difference_high']:+.2f}" in page.texts
    assert format_p(row["p"]) in page.texts
    for each in found["per_class"]:
        assert each["class"] in page.texts
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == len(found["only_one"][0]["images"]) == sum(map(len, result.pixels)) > 0
    assert all(attributes["src"].startswith("data:image/png") for attributes in images)
    data = open_trained(trained[0]).data
    first = found["only_one"][0]["images"][0]
    assert np.array_equal(result.pixels[0][0][:, :, 0], data.val.images[first["position"], 0].numpy())
    assert data.classes[data.val.labels[first["position"]].item()] == first["class"]
    assert found["command"] in "".join(page.texts)


@pytest.mark.filterwarnings("error:Glyph")  # of other scripts: a browser has them, Matplotlib's font has not
def test_hostile_names_are_text_on_the_page_and_on_the_terminal(labels, three, here):
    logits = three[1].predictions.logits
    runs = [
        made_up(name, logits, labels, classes=(EVIL, "ドッグ", "x" * 300)) for name in (EVIL, "[bold]b[/bold]", "$c")
    ]
    runs[1].predictions = made_up("b", logits[::-1], labels, classes=(EVIL, "ドッグ", "x" * 300)).predictions
    found = {**study(runs), "command": EVIL}
    comparison = Comparison(found, [[], []])
    html = comparison.to_html()
    page = Texts(html)
    assert html.count("<script>") == 1  # the page's own
    assert EVIL in page.texts
    assert "[bold]b[/bold]" in page.texts
    comparison.write_figures(here / "figures")
    assert (here / "figures" / "agreement.svg").is_file()
    assert next(csv.DictReader(comparison.to_csv().splitlines()))["label"] == EVIL

    from rich.console import Console

    from excite.commands.compare import show_comparison as show
    from excite.console import Display

    display = Display()
    display.console = Console(width=400, record=True, quiet=False)
    show(found, [Path("a.html"), Path("a.csv")], display)
    printed = display.console.export_text()
    assert "[bold]b[/bold]" in printed
    assert "Holm's p" in printed
    assert "top-1 % [95 %]" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a comparison needs at least two runs, and none was given"),
        (["A"], "at least two runs, and only"),
        (["A", "A"], "are the same network; give each run once"),
        (["A", "A/model.safetensors"], "are the same network"),
        (["A", "nowhere"], "there is no run folder or checkpoint 'nowhere'"),
        (["A", "B", "--labels", "x"], "--labels must give each of the 2 runs a different name, not 'x'"),
        (["A", "B", "--labels", "x,x"], "a different name"),
        (["A", "B", "--labels", "x," + "y" * (LONGEST_LABEL + 1)], "give a shorter name"),
        (["A", "B", "--baseline", "smal"], "did you mean 'small'"),
        (["A", "B", "--confidence", "95"], "give a share between 0 and 1"),
        (["A", "B", "data.rot=x"], "did you mean 'data.root'"),
        (["A", "B", "data.limit_val=many"], "data.limit_val is 'many'"),
        (["A", "B", "data.source=folder", "data.root=/no/where"], "/no/where does not exist"),
        (["A", "B", "--out", "page.txt"], "the name of the page must end in .html"),
        (["A", "B", "--out", "there.html"], "there.html already exists"),
        (["A", "B", "--figures", "folder"], "folder already exists"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(trained, here, words, message):
    (here / "there.html").write_text("mine")
    (here / "folder").mkdir()
    a, b = map(str, trained)
    words = [re.sub(r"^A(?=$|/)", a, re.sub("^B$", b, word)) for word in words]
    with pytest.raises(ExciteError) as caught:
        invoke(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (here / "there.html").read_text() == "mine"
    assert sorted(path.name for path in here.iterdir()) == ["folder", "there.html"]


def test_without_data_stored_predictions_are_compared_and_then_what_the_training_found(trained, here, monkeypatch):
    before = compare(trained).to_dict()
    copies = []
    for run in trained:
        copies.append(Path(shutil.copytree(run, here / run.name)))

    def gone(*_: object, **__: object) -> None:
        raise ExciteError("data.root=/gone does not exist")

    monkeypatch.setattr(images, "open_measured", gone)
    stored = compare(copies).to_dict()
    assert stored["rows"][1]["p"] == before["rows"][1]["p"]
    assert all("so its stored predictions are used" in note for note in stored["notes"])
    assert len(stored["notes"]) == 2
    assert "only the names of the images are shown" in make_page(stored, [[]], {}).render()
    # They are of these weights, in that precision, and of the images of the recipe as it is.
    run = str(copies[0])
    assert read_run(run, "x").predictions is not None
    assert read_run(run, "x", ["data.limit_val=9"]).predictions is None
    assert read_run(run, "x", precision="bf16").predictions is None
    shutil.copy(copies[1] / predictions.FILE, copies[0] / predictions.FILE)
    assert read_run(run, "x").predictions is None
    for copy in copies:
        (copy / predictions.FILE).unlink()
    (copies[1] / "results.json").unlink()
    rest = compare(copies)
    found = rest.to_dict()
    assert found["paired"] == []
    assert [row["measured"] for row in found["rows"]] == ["training", "training"]
    assert [row["top1"] for row in found["rows"]] == [row["top1"] for row in before["rows"]]
    assert any("could not be evaluated here (data.root=/gone does not exist)" in note for note in found["notes"])
    assert any(note.startswith("small is unfinished: 2 of 2 epochs") for note in found["notes"])
    html = rest.to_html()
    assert "not compared image by image</h1>" in html
    assert f"<code>{escape(found['command'])} data.root=FOLDER</code>" in html


def test_the_headline_says_the_result_with_its_interval(three, labels):
    truth = np.eye(3)[labels]
    perfect, worse = made_up("perfect", truth, labels), made_up("worse", truth.copy(), labels)
    worse.predictions.logits[:40] *= -1
    found = study([perfect, worse])
    row = found["rows"][1]
    low, high = f"{row['difference_low']:+.2f}", f"{row['difference_high']:+.2f}"
    assert headline(found) == (
        "worse gets 20.00 points fewer of the same 200 images right than perfect; "
        f"95 % interval {low} to {high}: worse is worse"
    )
    worse.predictions.logits[:39] *= -1  # one image is left, which says nothing
    told = headline(study([perfect, worse], confidence=0.9))
    assert told.startswith("worse gets 0.50 points fewer of the same 200 images right than perfect; 90 % interval -")
    assert told.endswith(": no difference is shown")
    told = headline(study(three))
    best = study(three)["rows"][2]
    assert told.startswith(f"Top-1 (95 % interval): c {best['top1']:.2f} % ({best['top1_low']:.2f} to ")
    assert told.index("c 9") < told.index("b ") < told.index("a ")
    assert re.search(r"; \d of 2 differ from a \(Holm's p below 0\.05\)$", told)


def test_what_no_run_recorded_is_no_panel(three):
    records = [{"kind": "eval", "step": 1, "epoch": 1.0, "loss": None, "top1": 50.0, "top5": 90.0}]
    few = [replace(run, records=records) for run in three[:2]]
    titles = [axis.get_title() for axis in figures(study(few))["curves"].axes]
    assert titles == ["validation top-1"]


def test_a_page_without_a_name_replaces_none(here):
    assert free_name() == Path("compare.html")
    (here / "compare.html").touch()
    (here / "compare-2.csv").touch()
    assert free_name() == Path("compare-3.html")


def test_labels_come_from_paths_without_the_time_where_that_is_enough():
    stamped = "runs/a-20260101-120000"
    assert choose_labels([stamped, "runs/b-20260101-120000"]) == ["a", "b"]
    assert choose_labels([stamped, "runs/a-20260102-120000"]) == ["a-20260101-120000", "a-20260102-120000"]
    assert choose_labels(["x/run", "y/run"]) == ["run (1)", "run (2)"]
    assert choose_labels(["x/run/model.safetensors", "net.safetensors"]) == ["run", "net"]
    assert choose_labels(["r/checkpoints/step-00000010", "r"]) == ["r/step-00000010", "r"]
    assert choose_labels(["x/run", "y/run", "z/run (1)", "z/run"]) == ["run (2)", "run (3)", "run (1)", "run (4)"]
    twice = choose_labels(["a/run", "b/run", "c/run (1)", "d/run (1)"])
    assert twice == ["run (2)", "run (3)", "run (1) (1)", "run (1) (2)"]
    assert choose_labels(["n" * 200, "b"]) == ["n" * (LONGEST_LABEL - 1) + "…", "b"]
    assert choose_labels(["n" * LONGEST_LABEL, "n" * (LONGEST_LABEL + 1)])[0] == "n" * LONGEST_LABEL
    assert choose_labels(["a/model.ckpt", "model.safetensors", "hf:timm/net"]) == ["model.ckpt", "model", "net"]
    assert choose_labels(["a", "b"], [" one", "n" * LONGEST_LABEL]) == ["one", "n" * LONGEST_LABEL]


def test_a_baseline_goes_by_its_path_or_by_its_name(here):
    sources, labels = ["runs/a", "runs/b", "c"], ["first", "second", "runs/a"]
    wanted = {None: 0, "runs/b": 1, "second": 1, "runs/../c": 2, str(here / "runs" / "b"): 1, "runs/a": 0}
    assert {name: choose_baseline(name, sources, labels) for name in wanted} == wanted


def test_a_run_is_what_its_folder_and_its_network_say(trained, tmp_path):
    told = []
    run = Path(shutil.copytree(trained[1], tmp_path / "run"))
    (run / predictions.FILE).unlink(missing_ok=True)
    found = read_run(str(run), "gated", device="cpu", progress=lambda *words: told.append(words))
    results = json.loads((run / "results.json").read_text())
    assert told[-1] == ("predicting gated", results["images"], results["images"])
    assert (found.label, found.source, found.gate, found.problem) == ("gated", str(run), "se", None)
    assert (found.params / 1e6, found.gmacs) == pytest.approx((results["params_m"], results["gmacs"]), abs=1e-6)
    assert (found.started, found.unfinished, found.results) == (True, False, results)
    assert found.recipe == load_recipe(str(run)).model_dump(mode="json")
    assert [r["kind"] for r in found.evaluations] == ["eval"] * 2
    theirs = read_run(str(numbered(run, tmp_path / "theirs.safetensors")), "theirs", device="cpu")
    assert (theirs.started, theirs.results, theirs.records) == (False, None, [])
    assert theirs.recipe is None  # the one in its header is only the nearest
    assert theirs.body == read_run(str(trained[0]), "bare", device="cpu").body  # the same network but for the gates
    assert ("conv1.weight", (16, 1, 3, 3)) in theirs.body
    assert _recipe({"recipe": {"of": "another version"}}) == {"of": "another version"}


def texts(**values):
    """What the table shows of a run of which this is known."""
    row = dict.fromkeys(("gate", "p", "p_holm", "epochs", "epochs_done", "finished")) | {"params": 1234567}
    row |= {f"{key}_{end}": None for key in ("top1", "difference", "loss_difference") for end in ("low", "high")}
    return shown({"rows": [{"label": "run", **row, **values}], "baseline": "base", "paired": ["base", "run"]})[0]


def test_the_table_shows_intervals_and_how_far_a_run_has_come():
    known = texts(
        gate="se", p=0.0123, p_holm=1.0, epochs=13, epochs_done=13.0, finished=True, top1_low=84.006, top1_high=90.5,
        difference_low=-0.004, difference_high=1.5, loss_difference_low=-0.12345, loss_difference_high=0.5,
    )  # fmt: skip
    ends = [known[f"{key}_interval"] for key in ("top1", "difference", "loss")]
    assert ends == ["84.01 to 90.50", "-0.00 to +1.50", "-0.1235 to +0.5000"]
    assert [known[key] for key in ("gate", "p_text", "p_holm_text", "params_m")] == ["se", "0.012", "1.00", 1.234567]
    assert known["epochs_text"] == "13"
    nothing = texts()
    assert {nothing[f"{key}_interval"] for key in ("top1", "difference", "loss")} == {None}
    assert (nothing["gate"], nothing["epochs_text"], nothing["p_text"]) == ("none", None, None)
    assert texts(epochs=13, epochs_done=7.5, finished=False)["epochs_text"] == "7.5 of 13"
    assert texts(epochs=13, finished=False)["epochs_text"] == "0 of 13"
    base = texts(label="base")
    assert (base["difference_interval"], base["loss_interval"]) == ("baseline", "baseline")
    alone = shown({"rows": [base], "baseline": "base", "paired": []})[0]
    assert (alone["difference_interval"], alone["loss_interval"]) == (None, None)  # of nothing
    assert differing([{"a": 1, "b": 1, "c": 1}, {"a": 2, "b": None, "c": 1}], ["c", "b", "a"]) == ["a"]


@pytest.mark.parametrize(
    ("better", "form"), [((1.3,), "mid-p; "), ((0.99,), "exact binomial; "), ((0.99, 1.3), "both forms are used; ")]
)
def test_the_sentences_tell_the_test_and_how_many_there_are(labels, better, form):
    """Two networks that differ little are right on nearly the same images: few pairs, an exact test."""
    rng, truth = np.random.default_rng(1), np.eye(3)[labels]
    noise = rng.normal(size=(200, 3))
    runs = [
        made_up(f"{s}", s * truth + (noise if s < 1.1 else rng.normal(size=(200, 3))), labels) for s in (1, *better)
    ]
    told = sentences(study(runs, confidence=0.9))
    assert "90 %" in told[0]
    assert "90 %" in told[1]
    assert "the same 200 images" in told[1]
    assert f"({form}" in told[2]
    assert [f"{len(better)} runs are tested" in line for line in told[3:]] == [True, False][2 - len(better) :]
    assert sentences(study([runs[0], made_up("x", truth, labels, fingerprint="y")], confidence=0.9)) == told[:1]


@pytest.mark.parametrize(
    ("p", "text"),
    [(None, None), (1.0, "1.00"), (0.4652, "0.47"), (0.0123, "0.012"), (0.00312, "0.0031"), (1e-9, "< 0.0001"),
     (0.1, "0.10"), (0.0996, "0.10"), (0.04996, "0.050"), (1e-4, "0.00010"), (0.999e-4, "< 0.0001")],
)  # fmt: skip
def test_p_values_have_two_digits_that_count(p, text):
    assert format_p(p) == text


@pytest.mark.slow
def test_the_page_opens_in_a_browser_without_complaints(trained, browser, here):
    result = compare(trained)
    page = result.write(here / "page.html")[0]
    browser.get_log("browser")
    for width, scheme in ((360, "dark"), (390, "dark"), (1280, "light")):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
        browser.get(page.as_uri())
        assert browser.get_log("browser") == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert cut_off(browser) == []
        loaded = browser.execute_script("return [...document.images].map((image) => image.naturalWidth)")
        assert len(loaded) == sum(map(len, result.pixels))
        assert min(loaded) > 0
        drawn = browser.execute_script("return [...document.querySelectorAll('svg')].map((s) => s.clientHeight)")
        assert len(drawn) == 3
        assert min(drawn) > 50


def test_a_network_that_numbers_its_classes_is_paired_with_one_that_names_them(trained, tmp_path):
    """Recipes that name the classes "c0", "c1" ...: the numbered one takes these."""
    words = ["data.class_names=[c0, c1, c2, c3, c4, c5, c6, c7, c8, c9]"]
    names = [f"c{k}" for k in range(10)]
    named = numbered(trained[0], tmp_path / "named.safetensors", classes=names)
    found = compare([named, numbered(trained[1], tmp_path / "theirs.safetensors")], words).to_dict()
    assert found["paired"]
    assert {image["class"] for pair in found["only_one"] for image in pair["images"]} <= set(names)


def test_a_network_of_timm_is_not_said_to_have_no_gates(timm):
    theirs = create_model("timm:seresnet18", num_classes=2, image_size=32)
    assert _gate(theirs) == "timm's SEModule"
    plain = create_model("timm:resnet18", num_classes=2, image_size=32)
    assert _gate(plain) is None
    assert _gate(graft(plain, "ge")) == "ge"
    assert _gate(create_model("cifar_seresnet20")) == "se"
